"""Train the triplane video autoencoder (first stage of MC-VDM).

    accelerate launch scripts/train_autoencoder.py DATA_DIR RUN_DIR --perceptual vgg.safetensors --steps 20000

DATA_DIR was written by scripts/prepare_data.py, the perceptual trunk by scripts/fetch_perceptual.py. RUN_DIR receives
`state.safetensors` (weights, averaged weights, optimiser), `log.csv`, `validation.csv` and a sheet of pictures per
validation; a run that finds a state there goes on from it, with whatever arguments it is given now.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

from avatard.errors import UserError
from avatard.models.face import warp
from avatard.models.face.morphable import MorphableModel
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.decoder import FRAME, WHOLE, Window
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.latent import AutoencoderConfig, Planes
from avatard.models.training.clips import Entry, read_index
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

#: Noise on the latent, as a share of each plane's own spread: the decoder will see generated latents, never exact ones.
#: Not an absolute figure: planes that carry the motion spread by a few hundredths, and were drowned by it.
LATENT_NOISE = 0.1


def main() -> int:
    """Train; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--perceptual", type=Path, help="the trunk of the perceptual loss; without it the loss is L1")
    parser.add_argument("--mix", default="lrw_ar=0.9,grid_s1=0.1", help="share of each source")
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--batch", type=int, default=4, help="clips a step and process")
    parser.add_argument("--frames", type=int, default=4, help="frames a clip")
    parser.add_argument("--rate", type=float, default=8e-4, help="learning rate")
    parser.add_argument("--decoder", choices=["reference", "plain"], default="reference")
    parser.add_argument("--encoder", choices=["conv", "timesformer"], default="conv")
    parser.add_argument("--size", default="{}", help='JSON of the network\'s sizes, for example {"width": 96}')
    parser.add_argument("--full", type=float, default=0.0, help="share of steps on whole frames instead of windows")
    parser.add_argument("--validate", type=int, default=1000, help="steps between validations")
    parser.add_argument("--log", type=int, default=50, help="steps between rows of the log")
    parser.add_argument("--save", type=int, default=250, help="steps between states")
    parser.add_argument("--threads", type=int, default=1, help="of torch, per process")
    parser.add_argument("--workers", type=int, default=0, help="processes that read data")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        entries, mix = read_index(arguments.data), parse_mix(arguments.mix)
        train(arguments, [e for e in entries if not e.validation], [e for e in entries if e.validation], mix)
    except (UserError, ValueError, TypeError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train(arguments: argparse.Namespace, entries: list[Entry], unseen: list[Entry], mix: dict[str, float]) -> None:
    """The training loop."""
    accelerator = Accelerator(mixed_precision="bf16")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    run: Path = arguments.run
    run.mkdir(parents=True, exist_ok=True)
    mean_68 = MorphableModel.load().mean_68
    config = AutoencoderConfig(arguments.encoder, arguments.decoder, **json.loads(arguments.size))
    network = Autoencoder(config)
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, betas=(0.9, 0.99), weight_decay=1e-4)
    ema = Ema(network, 0.998)
    first, state = 0, run / "state.safetensors"
    if state.exists():
        saved, metadata = load_state(state)
        network.load_state_dict(saved["network"])
        restore_optimizer(optimizer, saved["optimizer"])
        ema.weights, first = saved["ema"], int(metadata["step"])
    examples = Examples(
        arguments.data,
        entries,
        mix,
        mean_68,
        Sampling(frames=arguments.frames),
        length=(arguments.steps - first) * arguments.batch * accelerator.num_processes,
        seed=arguments.seed,
        start=first * arguments.batch * accelerator.num_processes,
    )
    loader = DataLoader(examples, arguments.batch, num_workers=arguments.workers)
    perceptual = Perceptual(arguments.perceptual) if arguments.perceptual else None
    objective, optimizer, loader = accelerator.prepare(Objective(network, perceptual), optimizer, loader)
    averaged = Autoencoder(config).eval()
    validation = validation_examples(arguments.data, unseen, mean_68, clips=24, frames=6)
    log, scores = CsvLog(run / "log.csv"), CsvLog(run / "validation.csv")
    window_rng = torch.Generator().manual_seed(arguments.seed + first)
    sums: dict[str, float] = {}
    began = time.process_time()
    for step, batch in enumerate(loader, start=first):
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * cosine(step, arguments.steps)
        whole = float(torch.rand((), generator=window_rng)) < arguments.full
        if whole:
            batch = {key: value[: max(1, arguments.batch // 2)] for key, value in batch.items()}
        window = WHOLE if whole else choose_window(batch["target"], window_rng)
        losses = objective(batch, step, window)
        accelerator.backward(losses["total"])
        losses["gradient"] = accelerator.clip_grad_norm_(network.parameters(), 0.5)
        if not torch.isfinite(losses["gradient"]):
            optimizer.zero_grad()
            continue
        optimizer.step()
        optimizer.zero_grad()
        ema.update(network, step)
        for key, value in losses.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach())
        if not accelerator.is_main_process:
            continue
        if (step + 1) % arguments.log == 0:
            spent = (time.process_time() - began) / arguments.log
            log.write({"step": step + 1, **{k: v / arguments.log for k, v in sums.items()}, "core_ms": 1000 * spent})
            sums, began = {}, time.process_time()
        last = step + 1 == arguments.steps
        if (step + 1) % arguments.validate == 0 or last:
            averaged.load_state_dict(ema.weights)
            scores.write({"step": step + 1, **validate(averaged, validation, run / f"sheet_{step + 1:06}.png")})
        if (step + 1) % arguments.save == 0 or last:
            networks = {"network": network.state_dict(), "ema": ema.weights}
            metadata = {"step": str(step + 1), "config": json.dumps(asdict(config))}
            save_state(state, networks, {"optimizer": optimizer}, metadata)


def recolour(frames: Tensor) -> Tensor:
    """Each clip `[B, S, 3, H, W]` in colours of its own: the latent shall carry shape, colours are the portrait's."""
    shape = (len(frames), 1, 3, 1, 1)
    gain = torch.exp(0.15 * torch.randn(len(frames), 1, 1, 1, 1) + 0.06 * torch.randn(shape))
    return frames * gain + 0.12 * torch.randn(len(frames), 1, 1, 1, 1)


class Objective(nn.Module):
    """The autoencoder with its losses; one forward pass, so that it can be distributed."""

    def __init__(self, network: Autoencoder, perceptual: Perceptual | None):
        super().__init__()
        self.network, self.perceptual = network, perceptual

    def forward(self, batch: Batch, step: int, window: Window) -> dict[str, Tensor]:
        """Losses by name; `total` is what is minimised."""
        frames, reference = to_pictures(batch["frames"]), to_pictures(batch["reference"])
        with torch.no_grad():
            tracked = Geometry(batch["source"], batch["rigid"], batch["target"])
            rigid = tracked.rigid_flow()
            motion = tracked.landmark_flow() - rigid
            teacher = Geometry(batch["registered"][:, 0], batch["rigid"], batch["registered"][:, 1:]).landmark_flow()
        encoded = self.network.encode(recolour(frames), motion)
        noise = LATENT_NOISE * min(1.0, step / 2000)  # from the start it would drown a latent that nothing reads yet
        planes = Planes(*(p + noise * p.detach().std() * torch.randn_like(p) for p in encoded))
        rendering = self.network.render(self.network.volume(planes), self.network.portrait(reference), rigid, window)

        dear = step % 2 == 1  # the perceptual loss costs as much as the rest of the step
        losses = picture_losses(rendering, frames, batch["weight"], window, None if dear else self.perceptual)
        losses["flow"] = flow_loss(rendering.flow, teacher, batch["weight"])
        total = losses["pictures"]
        if self.network.config.decoder == "reference":
            total = total + 20 * flow_weight(step) * losses["flow"]
        return {"total": total, **losses}


def flow_weight(step: int) -> float:
    """The teacher's weight: the landmark flow shows the way, and stays.

    Let go, lips move half as far as they should: pictures alone say little about where a smooth chin went.
    """
    return 4.0 - 1.0 * math.exp(-step / 800)


@torch.inference_mode()
def validate(network: Autoencoder, examples: list[Batch], picture: Path) -> dict[str, float]:
    """Figures on unseen people, and a sheet: portrait, target, frame, warp, painted, landmark warp, latent zeroed.

    `zeroed` and `shuffled` decode without a latent and with another clip's: both must cost in the mouth.
    """
    totals: dict[str, list[Tensor]] = {}
    rows, previous = [], None
    for item in examples:
        batch = default_collate([item])
        frames, reference = to_pictures(batch["frames"]), to_pictures(batch["reference"])
        tracked = Geometry(batch["source"], batch["rigid"], batch["target"])
        rigid, landmarks = tracked.rigid_flow(), tracked.landmark_flow()
        motion = landmarks - rigid
        flow = nn.functional.interpolate(landmarks[0], FRAME, mode="bilinear")[None]
        baseline = warp.sample(reference, warp.absolute(flow))
        with torch.autocast("cpu", torch.bfloat16):
            planes, portrait = network.encode(frames, motion), network.portrait(reference)
            rendering = network.render(network.volume(planes), portrait, rigid)
            zeroed = network.decode(Planes(*(torch.zeros_like(p) for p in planes)), portrait, rigid)
            shuffled = network.decode(previous or planes, portrait, rigid)
        mask = mouth_mask(batch["target"])
        still = reference[:, None].expand_as(frames)
        for name, made in {
            "still": still, "warp": baseline, "frames": rendering.frames, "zeroed": zeroed, "shuffled": shuffled,
        }.items():  # fmt: skip
            if name == "shuffled" and previous is None:
                continue
            totals.setdefault(f"{name}_psnr", []).append(psnr(made, frames).mean())
            totals.setdefault(f"{name}_mouth", []).append(psnr(made, frames, mask).mean())
        widest = int((batch["target"][0, :, 66, 1] - batch["target"][0, :, 62, 1]).argmax())
        shown = (frames, rendering.frames, rendering.warped, rendering.painted, baseline, zeroed)
        rows.append(torch.stack([reference[0], *(clip[0, widest].float() for clip in shown)]))
        previous = planes
    sheet(picture, rows[:12])
    return {name: float(torch.stack(values).mean()) for name, values in totals.items()}


if __name__ == "__main__":
    sys.exit(main())
