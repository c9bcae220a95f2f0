"""Train the diffusion of MC-VDM (second stage), in three commands that share a run folder.

    scripts/train_mcvdm.py cache   DATA_DIR RUN_DIR --autoencoder AE_RUN/state.safetensors --examples 3000
    scripts/train_mcvdm.py latents DATA_DIR RUN_DIR --steps 3000
    scripts/train_mcvdm.py pixels  DATA_DIR RUN_DIR --perceptual vgg.safetensors --steps 2000
    scripts/train_mcvdm.py export  DATA_DIR RUN_DIR --out models/weights/mcvdm.safetensors

`cache` encodes clips with the trained autoencoder; `latents` trains the UNet and the landmark encoder on them; `pixels`
goes on through the decoder, on the network's own samples, which is what the decoder will see; `export` writes the
averaged weights. Every command but the first resumes `RUN_DIR/state.safetensors` if it is there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from avatard.errors import UserError
from avatard.models import checkpoint
from avatard.models.diffusion import add_noise
from avatard.models.face import warp
from avatard.models.face.morphable import MorphableModel
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.landmark_encoder import Geometry, condition_maps, thumbnail
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.model import TIMESTEPS, Mcvdm, McvdmConfig, pack
from avatard.models.mcvdm.unet import UNetConfig
from avatard.models.training.clips import read_index
from avatard.models.training.loop import (
    CsvLog,
    Ema,
    cosine,
    load_state,
    parse_mix,
    restore_optimizer,
    save_state,
    sheet,
)
from avatard.models.training.mcvdm.dataset import Examples, Sampling, mouth_mask, validation_examples
from avatard.models.training.mcvdm.loss import choose_window, flow_loss, picture_losses, psnr, to_pictures
from avatard.models.training.perceptual import Perceptual

Batch = dict[str, Tensor]

#: Frames of an example, of its clip (the last ones), and of the clip of the low-latency profile, which is trained too.
FRAMES, CLIP, SHORT = 28, 16, 8
#: Share of the short clips, and the hops from the clip before.
SHORT_SHARE, HOPS = 0.4, (4, 6, 8, 12)
#: Share of the training on pure noise, where a one-step sample starts.
PURE_NOISE = 0.5
#: Share of the steps that are given the sample of the clip before.
CONTINUED = 0.4
#: Largest share of the clip before in a rendered frame, for the decoder to know cross-fades.
FADED = 0.6
#: Weight of the landmark flow as a teacher of the rendered samples.
FLOW = 60.0
SHARD = 100


def main() -> int:
    """Run one stage; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["cache", "latents", "pixels", "export"])
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--autoencoder", type=Path, help="state of scripts/train_autoencoder.py (cache; first latents)")
    parser.add_argument("--perceptual", type=Path, help="trunk of the perceptual loss (pixels)")
    parser.add_argument("--out", type=Path, help="file to write (export)")
    parser.add_argument("--note", default="", help="goes into the exported file's metadata")
    parser.add_argument("--objective", choices=["x0", "epsilon"], default="x0", help="epsilon is the paper's")
    parser.add_argument("--size", default="{}", help='JSON of the UNet\'s sizes, for example {"width": 64}')
    parser.add_argument("--mix", default="lrw_ar=0.9,grid_s1=0.1", help="share of each source")
    parser.add_argument("--examples", type=int, default=3000, help="to cache")
    parser.add_argument("--steps", type=int, default=3000, help="of the whole stage")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--shown", type=int, default=4, help="frames rendered of each clip (pixels)")
    parser.add_argument("--length", type=int, choices=[CLIP, SHORT], default=CLIP, help="frames of a clip (pixels)")
    parser.add_argument("--rate", type=float, default=4e-4, help="learning rate")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--validate", type=int, default=500, help="steps between validations")
    parser.add_argument("--log", type=int, default=25, help="steps between rows of the log")
    parser.add_argument("--threads", type=int, default=1, help="of torch, per process")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.run.mkdir(parents=True, exist_ok=True)
    try:
        {"cache": cache, "latents": train, "pixels": train, "export": export}[arguments.stage](arguments)
    except (UserError, ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def trained_autoencoder(arguments: argparse.Namespace) -> Autoencoder:
    """What `--autoencoder` names. Raises `ValueError` where it is missing."""
    if arguments.autoencoder is None:
        raise ValueError("--autoencoder: give the state of scripts/train_autoencoder.py")
    return Autoencoder.load(arguments.autoencoder)


def encode_clips(network: Autoencoder, batch: Batch) -> Batch:
    """An example's latents in float16: `xy16`, … of the long clip, `xy8`, … of the short, `latent` of the portrait."""
    frames, reference = to_pictures(batch["frames"]), to_pictures(batch["reference"])
    motion = Geometry(batch["source"], batch["rigid"], batch["target"]).motion()[:, -CLIP:]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        made = {"latent": network.encode(reference[:, None]).xy}
        for length in (CLIP, SHORT):
            planes = network.encode(frames[:, -length:], motion[:, -length:])
            made |= {f"{name}{length}": plane for name, plane in planes._asdict().items()}
    made = {name: plane.half() for name, plane in made.items()}
    small = (thumbnail(batch["reference"]).round()).byte()
    return made | {"small": small} | {key: batch[key] for key in ("source", "rigid", "target")}


def cache(arguments: argparse.Namespace) -> None:
    """Encode clips of people that may be trained on, in shards; a second call adds what is missing."""
    network = trained_autoencoder(arguments)
    sampling = Sampling(frames=FRAMES, max_step=1, shown=CLIP, tail=CLIP)
    examples = training_examples(arguments, sampling, arguments.examples)
    for first in range(0, arguments.examples, SHARD):
        path = arguments.run / f"cache_{first:06}.safetensors"
        if path.exists():
            continue
        numbers = range(first, min(first + SHARD, arguments.examples))
        made = [encode_clips(network, default_collate([examples[n]])) for n in numbers]
        checkpoint.save(path, {key: torch.cat([m[key] for m in made]) for key in made[0]}, {})
        print(f"{time.strftime('%X')} {path.name}", flush=True)


def training_examples(arguments: argparse.Namespace, sampling: Sampling, length: int, start: int = 0) -> Examples:
    """Examples of people that may be trained on."""
    entries = [e for e in read_index(arguments.data) if not e.validation]
    mean_68 = MorphableModel.load().mean_68
    mix = parse_mix(arguments.mix)
    return Examples(arguments.data, entries, mix, mean_68, sampling, length, seed=arguments.seed + 1, start=start)


class Cached(torch.utils.data.Dataset[Batch]):
    """The cache of a run, in memory; example `index` of a long run is drawn by its number."""

    def __init__(self, run: Path, length: int, start: int, seed: int):
        shards = [checkpoint.load(path)[0] for path in sorted(run.glob("cache_*.safetensors"))]
        if not shards:
            raise FileNotFoundError(f"no cache_*.safetensors in {run}: run the stage `cache` first")
        self.tensors = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
        self.size = len(self.tensors["latent"])
        self.length, self.start, self.seed = length, start, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Batch:
        epoch, place = divmod(self.start + index, self.size)
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.seed + epoch))
        return {key: tensor[order[place]] for key, tensor in self.tensors.items()}

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents by plane and channel, `[3, C]` each."""
        moments = [self.tensors[f"{name}{CLIP}"].float() for name in Planes._fields]
        return torch.stack([m.mean((0, 2, 3)) for m in moments]), torch.stack([m.std((0, 2, 3)) for m in moments])


class Objective(nn.Module):
    """The losses of both stages; one forward pass, so that it can be distributed."""

    def __init__(self, model: Mcvdm, perceptual: Perceptual | None, pixels: bool, length: int = CLIP):
        super().__init__()
        self.model, self.perceptual, self.pixels, self.length = model, perceptual, pixels, length

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; `total` is what is minimised."""
        return self.rendered(batch) if self.pixels else self.latent(batch)

    def condition(self, batch: Batch, small: Tensor, frames: slice) -> tuple[Planes, Tensor]:
        """The landmark planes zl and the rigid flow of some frames of an example."""
        geometry = Geometry(batch["source"], batch["rigid"][:, frames], batch["target"][:, frames])
        with torch.no_grad():
            rigid = geometry.rigid_flow()
            seen = condition_maps(geometry, small, rigid)
        planes: Planes = self.model.landmarks(seen)
        return planes, rigid

    def previous(self, batch: Batch, small: Tensor, latent: Tensor, length: int) -> tuple[Planes, int]:
        """The network's own sample of the clip before and the hop from it, in some of the steps; zeros and 0 in others.

        Its own, not the true one: a network that trusts the truth drifts when it is fed its own errors for hours.
        """
        noise = noise_like(latent, length)
        if torch.rand(()) > CONTINUED:
            return Planes(*map(torch.zeros_like, noise)), 0
        hop = min(HOPS[int(torch.randint(len(HOPS), ()))], length - 2)
        with torch.no_grad():
            zl, _ = self.condition(batch, small, slice(FRAMES - hop - length, FRAMES - hop))
            return self.model.generate(zl, latent, None, noise, steps=1), hop

    def latent(self, batch: Batch) -> dict[str, Tensor]:
        """Denoising in the latent space (paper eq. 9)."""
        model = self.model
        length = SHORT if torch.rand(()) < SHORT_SHARE else CLIP
        clean = model.standardise(Planes(*(batch[f"{name}{length}"].float() for name in Planes._fields)))
        latent = model.standardise_xy(batch["latent"].float())
        small = to_pictures(batch["small"])
        zl, _ = self.condition(batch, small, slice(FRAMES - length, FRAMES))
        before, _ = self.previous(batch, small, latent, length)
        t = timesteps(len(latent))
        noise = noise_like(latent, length)
        share = model.alpha_bar[t]
        noisy = Planes(*(add_noise(x, e, share) for x, e in zip(clean, noise, strict=True)))
        out = model.unet(noisy, t, zl, latent, before)
        goal = clean if model.config.objective == "x0" else noise
        errors = [(o - g).square().mean() for o, g in zip(out, goal, strict=True)]
        losses = {name: error for name, error in zip(Planes._fields, errors, strict=True)}
        return {"total": torch.stack(errors).mean(), **losses}

    def rendered(self, batch: Batch) -> dict[str, Tensor]:
        """What the viewer sees of one- and two-step samples."""
        model = self.model
        reference, frames = to_pictures(batch["reference"]), to_pictures(batch["frames"])
        with torch.no_grad():
            latent, small = model.identity(reference), thumbnail(reference)
        zl, rigid = self.condition(batch, small, slice(FRAMES - self.length, FRAMES))
        before, hop = self.previous(batch, small, latent, self.length)
        noisy, t = noise_like(latent, self.length), torch.full((len(latent),), TIMESTEPS - 1)
        if torch.rand(()) < 0.4:  # the second of two steps, on the network's own first
            with torch.no_grad():
                first = model.predict(noisy, t, zl, latent, before)
                t = torch.full_like(t, TIMESTEPS // 2 - 1)
                noisy = Planes(*(add_noise(x, e, model.alpha_bar[t]) for x, e in zip(first, noisy, strict=True)))
        planes = model.denormalise(model.predict(noisy, t, zl, latent, before))
        rows, chosen = torch.arange(len(frames))[:, None], batch["shown"] - (FRAMES - self.length)
        volume = model.autoencoder.volume(planes)[rows, chosen]
        if hop:  # as where clips are cross-faded: some frames show what the clip before has of them
            with torch.no_grad():
                held = model.autoencoder.volume(model.denormalise(before))[
                    rows, (chosen + hop).clamp(max=self.length - 1)
                ]
            share = (chosen < self.length - hop) * FADED * torch.rand(chosen.shape)
            volume = torch.lerp(volume, held, share[..., None, None, None].to(volume.dtype))
        window = choose_window(batch["target"][rows, batch["shown"]], None)
        rendering = model.autoencoder.render(volume, model.autoencoder.portrait(reference), rigid[rows, chosen], window)
        dear = torch.rand(()) < 0.5
        losses = picture_losses(rendering, frames, batch["weight"], window, None if dear else self.perceptual)
        registered, shown = batch["registered"], batch["shown"]
        truth = Geometry(registered[:, 0], batch["rigid"][rows, shown], registered[:, 1:][rows, shown])
        losses["flow"] = flow_loss(rendering.flow, truth.landmark_flow(), batch["weight"])
        return {"total": losses["pictures"] + FLOW * losses["flow"], **losses}


def noise_like(latent: Tensor, frames: int) -> Planes:
    """Noise for clips of the portraits with these latents `[B, C, 32, 32]`."""
    b, c, side, _ = latent.shape
    return Planes(torch.randn(b, c, side, side), torch.randn(b, c, frames, side), torch.randn(b, c, frames, side))


def timesteps(count: int) -> Tensor:
    """Logit-normal timesteps, and pure noise for a share of them."""
    t = (torch.sigmoid(torch.randn(count) + 0.5) * TIMESTEPS).long()
    return torch.where(torch.rand(count) < PURE_NOISE, TIMESTEPS - 1, t)


def fresh_model(arguments: argparse.Namespace, data: Cached) -> Mcvdm:
    """Untrained diffusion networks around a trained autoencoder."""
    autoencoder = trained_autoencoder(arguments)
    unet = UNetConfig(latent=autoencoder.config.channels, **json.loads(arguments.size))
    model = Mcvdm(McvdmConfig(autoencoder.config, unet, arguments.objective, CLIP))
    model.autoencoder.load_state_dict(autoencoder.state_dict())
    mean, std = data.statistics()
    model.mean.copy_(mean)
    model.std.copy_(std)
    return model


def load_model(saved: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str], name: str) -> Mcvdm:
    """The model of a run's state: `network`, or its average `ema`."""
    model = Mcvdm(McvdmConfig.from_json(metadata["config"]))
    model.load_state_dict(saved[name])
    return model


def train(arguments: argparse.Namespace) -> None:
    """The training loop of `latents` and `pixels`."""
    accelerator = Accelerator(mixed_precision="bf16")
    pixels, run = arguments.stage == "pixels", arguments.run
    state = run / "state.safetensors"
    saved, metadata = load_state(state) if state.exists() else ({}, {})
    if pixels and not saved:
        raise FileNotFoundError(f"no {state}: run the stage `latents` first")
    first = int(metadata["step"]) if metadata.get("stage") == arguments.stage else 0
    batches = arguments.batch * accelerator.num_processes
    length, start = (arguments.steps - first) * batches, first * batches
    if pixels:
        sampling = Sampling(frames=FRAMES, max_step=1, shown=arguments.shown, tail=arguments.length)
        data: torch.utils.data.Dataset[Batch] = training_examples(arguments, sampling, length, start)
        model = load_model(saved, metadata, "network" if first else "ema")
        trained = [model.unet, model.landmarks, model.autoencoder.trunk, model.autoencoder.decoder]
    else:
        data = cached = Cached(run, length, start, arguments.seed)
        model = load_model(saved, metadata, "network") if saved else fresh_model(arguments, cached)
        trained = [model.unet, model.landmarks]
    model.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=arguments.rate, betas=(0.9, 0.99), weight_decay=1e-3
    )
    ema = Ema(model, arguments.ema)
    if first:
        restore_optimizer(optimizer, saved["optimizer"])
        ema.weights = saved["ema"]
    averaged = Mcvdm(model.config).eval()
    perceptual = Perceptual(arguments.perceptual) if arguments.perceptual else None
    loader = DataLoader(data, arguments.batch)
    objective = Objective(model, perceptual, pixels, arguments.length)
    objective, optimizer, loader = accelerator.prepare(objective, optimizer, loader)
    unseen = [e for e in read_index(arguments.data) if e.validation]
    validation = validation_examples(
        arguments.data, unseen, MorphableModel.load().mean_68, clips=16, frames=FRAMES, step=1
    )
    log, scores = CsvLog(run / f"{arguments.stage}.csv"), CsvLog(run / f"{arguments.stage}_validation.csv")
    sums: dict[str, float] = {}
    began = time.process_time()
    for step, batch in enumerate(loader, start=first):
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * cosine(step, arguments.steps)
        losses = objective(batch)
        accelerator.backward(losses["total"])
        losses["gradient"] = accelerator.clip_grad_norm_(model.parameters(), 1.0)
        if torch.isfinite(losses["gradient"]):
            optimizer.step()
            ema.update(model, step)
        optimizer.zero_grad()
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if not accelerator.is_main_process:
            continue
        done, last = step + 1, step + 1 == arguments.steps
        if done % arguments.log == 0:
            spent = (time.process_time() - began) / arguments.log
            log.write({"step": done, **{k: v / arguments.log for k, v in sums.items()}, "core_ms": 1000 * spent})
            sums, began = {}, time.process_time()
        if done % arguments.validate == 0 or last:
            averaged.load_state_dict(ema.weights)
            scores.write({"step": done, **validate(averaged, validation, run / f"{arguments.stage}_{done:06}.png")})
        if done % 100 == 0 or last:
            described = {"stage": arguments.stage, "step": str(done), "config": model.config.to_json()}
            networks = {"network": model.state_dict(), "ema": ema.weights}
            save_state(state, networks, {"optimizer": optimizer}, described)


@torch.inference_mode()
def validate(model: Mcvdm, examples: list[Batch], picture: Path) -> dict[str, float]:
    """PSNR on unseen people, of the frame and of the mouth box, and a sheet.

    The sheet's columns: portrait, target, reconstruction, one step, two steps, closed-form warp.
    """
    totals: dict[str, list[Tensor]] = {}
    rows = []
    objective = Objective(model, None, pixels=True)
    for item in examples:
        batch = default_collate([item])
        frames, reference = to_pictures(batch["frames"])[:, -CLIP:], to_pictures(batch["reference"])
        picked = slice(0, CLIP, 3)
        geometry = Geometry(batch["source"], batch["rigid"][:, -CLIP:], batch["target"][:, -CLIP:])
        flow = nn.functional.interpolate(geometry.landmark_flow(64)[0, picked], 256, mode="bilinear")[None]
        made = {"warp": warp.sample(reference, warp.absolute(flow))}
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            person = model.encode_identity(reference)
            zl, rigid = objective.condition(batch, person.small, slice(FRAMES - CLIP, FRAMES))
            encoded = model.autoencoder.encode(frames, geometry.motion())
            latents = {"reconstruction": encoded}
            for steps in (1, 2):
                sample = model.generate(zl, person.latent, None, noise_like(person.latent, CLIP), steps)
                latents[f"steps_{steps}"] = model.denormalise(sample)
                error = (pack(sample) - pack(model.standardise(encoded))).square().mean()
                totals.setdefault(f"latent_{steps}", []).append(error)
            for name, planes in latents.items():
                volume = model.autoencoder.volume(planes)[:, picked]
                made[name] = model.autoencoder.render(volume, person.portrait, rigid[:, picked]).frames
        truth, points = frames[:, picked], geometry.target[:, picked]
        for name, clip in made.items():
            totals.setdefault(f"{name}_psnr", []).append(psnr(clip, truth).mean())
            totals.setdefault(f"{name}_mouth", []).append(psnr(clip, truth, mouth_mask(points)).mean())
        widest = int((points[0, :, 66, 1] - points[0, :, 62, 1]).argmax())
        shown = (truth, made["reconstruction"], made["steps_1"], made["steps_2"], made["warp"])
        rows.append(torch.stack([reference[0], *(clip[0, widest].float() for clip in shown)]))
    sheet(picture, rows)
    return {name: float(torch.stack(values).mean()) for name, values in totals.items()}


def export(arguments: argparse.Namespace) -> None:
    """Write the averaged weights as a shipped file."""
    if arguments.out is None:
        raise ValueError("--out: give the file to write")
    state = arguments.run / "state.safetensors"
    if not state.exists():
        raise FileNotFoundError(f"no state in {arguments.run}: run the stage `latents` first")
    saved, metadata = load_state(state)
    model = load_model(saved, metadata, "ema")
    model.save(arguments.out, {"stage": metadata["stage"], "step": metadata["step"], "note": arguments.note})
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
