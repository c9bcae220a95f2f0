"""The second stage of MC-VDM: diffusion on latents, then through the decoder on rendered frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from avatard.models.device import choose_device
from avatard.models.diffusion import add_noise
from avatard.models.face.morphable import MorphableModel
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.landmark_encoder import Geometry, thumbnail
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.model import TIMESTEPS, Mcvdm, McvdmConfig
from avatard.models.pixels import normalise
from avatard.models.training.clips import DataError
from avatard.models.training.loop import Stage, Trainer
from avatard.models.training.mcvdm.dataset import Batch, Examples, Sampling, training_examples, validation_examples
from avatard.models.training.mcvdm.latent_cache import CLIP, FRAMES, SHORT, CachedLatents
from avatard.models.training.mcvdm.loss import WindowKind, choose_window, flow_loss, picture_losses
from avatard.models.training.mcvdm.recipe import McvdmRecipe
from avatard.models.training.perceptual import Perceptual
from avatard.models.training.schedule import Clock
from avatard.models.training.state import load_state

#: Share of the short clips, and the hops from the clip before.
SHORT_SHARE, HOPS = 0.4, (4, 6, 8, 12)
#: Share of the training on pure noise, where a one-step sample starts.
PURE_NOISE = 0.5
#: Share of the steps that are given the sample of the clip before.
CONTINUED = 0.4
#: Share of the rendered samples that are the second of two steps.
SECOND_STEP = 0.4
#: Largest share of the clip before in a rendered frame, for the decoder to know cross-fades.
FADED = 0.6
#: Share of the rendered steps without the perceptual loss, which costs as much as the rest.
CHEAP_SHARE = 0.5
#: Weight of the landmark flow as a teacher of the rendered samples.
FLOW = 60.0
VALIDATION_CLIPS = 16

StageName = Literal["latents", "pixels"]
#: Figures on examples of unseen people, and a sheet of pictures.
ValidateDiffusion = Callable[[Mcvdm, list[Batch], Path], dict[str, float]]


def train_diffusion(
    data: Path,
    run: Path,
    recipe: McvdmRecipe,
    stage: StageName,
    *,
    autoencoder: Path | None,
    trunk: Path | None,
    validate: ValidateDiffusion,
    device: str = "auto",
    clock: Clock | None = None,
) -> None:
    """Train a stage, or resume it, until the recipe's steps are done or its minutes over.

    Args:
        data: prepared clips, or a bundle of them.
        run: with the cache of latents, and the state of an earlier call.
        recipe: see there.
        stage: `latents` trains the UNet and the landmark encoder; `pixels` these and the decoder.
        autoencoder: the state of its training; the first call of `latents` needs it.
        trunk: of the perceptual loss of `pixels`.
        validate: see there.
        device: see `processes.start`.
        clock: of the stage.

    Raises:
        DataError: something is missing, or the state does not fit.
    """
    made = diffusion_stage(data, run, recipe, stage, autoencoder, trunk, device, clock)
    mean_68 = MorphableModel.load().mean_68
    validation = validation_examples(data, mean_68, made.trainer.device, VALIDATION_CLIPS, FRAMES, step=1)

    def figures_of(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, Mcvdm)
        return validate(averaged, validation, run / f"{stage}_{step:06}.png")

    made.trainer.train(made.objective, made.batches, figures_of)


def diffusion_stage(
    data: Path,
    run: Path,
    recipe: McvdmRecipe,
    stage: StageName,
    autoencoder: Path | None,
    trunk: Path | None,
    device: str,
    clock: Clock | None,
) -> Stage:
    """What a stage takes its steps with; arguments as of `train_diffusion`."""
    torch.manual_seed(recipe.seed)
    pixels = recipe.pixel_stage
    settings = pixels.training if stage == "pixels" else recipe.latent_stage
    cached = CachedLatents(run, recipe.seed, choose_device(device)) if stage == "latents" else None
    model = _starting_model(run, recipe, stage, cached, autoencoder)
    model.requires_grad_(False)
    trained: list[nn.Module] = [model.unet, model.landmarks]
    if stage == "pixels":
        trained += [model.autoencoder.trunk, model.autoencoder.decoder]
    for part in trained:
        part.requires_grad_(True)
    trainer = Trainer(
        model,
        settings,
        run,
        stage=stage,
        config=model.config.to_json(),
        prefix=stage,
        seed=recipe.seed,
        device=device,
        clock=clock,
    )
    examples: CachedLatents | Examples
    if cached is not None:
        examples = cached
    else:
        sampling = Sampling(frames=FRAMES, max_step=1, shown=pixels.shown, tail=pixels.length)
        examples = training_examples(data, recipe, sampling, trainer.device, recipe.seed + 1)

    def batches(step: int) -> tuple[Any, ...]:
        return (examples.batch(trainer.numbers(step)),)

    perceptual = Perceptual(trunk) if trunk else None
    objective = DiffusionObjective(model, perceptual, stage, pixels.length, recipe.window)
    return Stage(trainer, objective.to(trainer.device), batches)


def _starting_model(
    run: Path, recipe: McvdmRecipe, stage: StageName, cached: CachedLatents | None, autoencoder: Path | None
) -> Mcvdm:
    """What the stage starts from: the run's state, or untrained diffusion around a trained autoencoder."""
    state = run / "state.safetensors"
    if state.exists():
        saved, metadata = load_state(state)
        resumed = metadata["stage"] == stage
        return _model_of(saved, metadata, "network" if resumed else "ema")
    if cached is None:
        raise DataError(f"no {state}: run the stage `latents` first")
    trained = trained_autoencoder(autoencoder)
    config = McvdmConfig(trained.config, recipe.unet, recipe.objective, CLIP)
    model = Mcvdm(config)
    model.autoencoder.load_state_dict(trained.state_dict())
    mean, std = cached.statistics()
    model.mean.copy_(mean)
    model.std.copy_(std)
    return model


def stage_of(run: Path) -> str:
    """The stage of a run's state; empty where there is none."""
    state = run / "state.safetensors"
    return load_state(state)[1]["stage"] if state.exists() else ""


def trained_autoencoder(state: Path | None) -> Autoencoder:
    """The averaged weights of the first stage. Raises `DataError` or `CheckpointError` where there are none."""
    if state is None:
        raise DataError("--autoencoder: give the state of the stage `autoencoder`")
    return Autoencoder.load(state)


def _model_of(saved: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, str], name: str) -> Mcvdm:
    """The model of a run's state: `network`, or its average `ema`."""
    model = Mcvdm(McvdmConfig.from_json(metadata["config"]))
    model.load_state_dict(saved[name])
    return model


def export(run: Path, out: Path, note: str) -> None:
    """Write the averaged weights of a run as a file that the daemon loads. Raises `DataError`."""
    state = run / "state.safetensors"
    if not state.exists():
        raise DataError(f"no state in {run}: run the stage `latents` first")
    saved, metadata = load_state(state)
    model = _model_of(saved, metadata, "ema")
    model.save(out, {"stage": metadata["stage"], "step": metadata["step"], "note": note})


class DiffusionObjective(nn.Module):
    """The losses of both stages; one forward pass, so that it can be distributed."""

    def __init__(
        self,
        model: Mcvdm,
        perceptual: Perceptual | None,
        stage: StageName,
        length: int = CLIP,
        window: WindowKind = "parts",
    ):
        super().__init__()
        self.model, self.perceptual, self.stage = model, perceptual, stage
        self.length, self.window = length, window

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Losses by name; `total` is what is minimised."""
        return self._rendered(batch) if self.stage == "pixels" else self._latent(batch)

    def _condition(self, batch: Batch, small: Tensor, frames: slice) -> tuple[Planes, Tensor]:
        """The landmark planes zl and the rigid flow of some frames of an example."""
        geometry = Geometry(batch["source"], batch["rigid"][:, frames], batch["target"][:, frames])
        with torch.no_grad():
            rigid = geometry.rigid_flow()
        return self.model.condition(geometry, small, rigid), rigid

    def _previous(self, batch: Batch, small: Tensor, latent: Tensor, length: int) -> tuple[Planes, int]:
        """The network's own sample of the clip before and the hop from it, in some of the steps; zeros and 0 in others.

        Its own, not the true one: a network that trusts the truth drifts when it is fed its own errors for hours.
        """
        noise = noise_like(latent, length)
        if torch.rand(()) > CONTINUED:
            return Planes(*map(torch.zeros_like, noise)), 0
        hop = min(HOPS[int(torch.randint(len(HOPS), ()))], length - 2)
        with torch.no_grad():
            zl, _ = self._condition(batch, small, slice(FRAMES - hop - length, FRAMES - hop))
            return self.model.generate(zl, latent, None, noise, steps=1), hop

    def _latent(self, batch: Batch) -> dict[str, Tensor]:
        """Denoising in the latent space (paper eq. 9)."""
        model = self.model
        length = SHORT if torch.rand(()) < SHORT_SHARE else CLIP
        clean = model.standardise(Planes(*(batch[f"{name}{length}"].float() for name in Planes._fields)))
        latent = model.standardise_xy(batch["latent"].float())
        small = normalise(batch["small"])
        zl, _ = self._condition(batch, small, slice(FRAMES - length, FRAMES))
        before, _ = self._previous(batch, small, latent, length)
        t = timesteps(len(latent), latent.device)
        noise = noise_like(latent, length)
        share = model.alpha_bar[t]
        noisy = Planes(*(add_noise(x, e, share) for x, e in zip(clean, noise, strict=True)))
        out = model.unet(noisy, t, zl, latent, before)
        goal = clean if model.config.objective == "x0" else noise
        errors = [(o - g).square().mean() for o, g in zip(out, goal, strict=True)]
        losses = {name: error for name, error in zip(Planes._fields, errors, strict=True)}
        return {"total": torch.stack(errors).mean(), **losses}

    def _rendered(self, batch: Batch) -> dict[str, Tensor]:
        """What the viewer sees of one- and two-step samples."""
        model, registered, shown = self.model, batch["registered"], batch["shown"]
        reference, frames = normalise(batch["reference"]), normalise(batch["frames"])
        with torch.no_grad():
            latent, small = model.identity(reference), thumbnail(reference)
        zl, rigid = self._condition(batch, small, slice(FRAMES - self.length, FRAMES))
        before, hop = self._previous(batch, small, latent, self.length)
        planes = model.denormalise(self._few_steps(zl, latent, before))
        rows, chosen = torch.arange(len(frames), device=shown.device)[:, None], shown - (FRAMES - self.length)
        volume = model.autoencoder.volume(planes)[rows, chosen]
        if hop:  # as where clips are cross-faded: some frames show what the clip before has of them
            with torch.no_grad():
                held = model.autoencoder.volume(model.denormalise(before))
                held = held[rows, (chosen + hop).clamp(max=self.length - 1)]
            share = (chosen < self.length - hop) * FADED * torch.rand(chosen.shape, device=shown.device)
            volume = torch.lerp(volume, held, share[..., None, None, None].to(volume.dtype))
        window = choose_window(self.window, batch["target"][rows, shown])
        rendering = model.autoencoder.render(volume, model.autoencoder.portrait(reference), rigid[rows, chosen], window)
        perceptual = None if torch.rand(()) < CHEAP_SHARE else self.perceptual
        losses = picture_losses(rendering, frames, batch["regions"], window, perceptual)
        truth = Geometry(registered[:, 0], batch["rigid"][rows, shown], registered[:, 1:][rows, shown])
        losses["flow"] = flow_loss(rendering.flow, truth.landmark_flow(), batch["regions"])
        return {"total": losses["pictures"] + FLOW * losses["flow"], **losses}

    def _few_steps(self, zl: Planes, latent: Tensor, before: Planes) -> Planes:
        """A sample in one step, or the second of two steps on the network's own first."""
        model = self.model
        noisy = noise_like(latent, self.length)
        t = torch.full((len(latent),), TIMESTEPS - 1, device=latent.device)
        if torch.rand(()) < SECOND_STEP:
            with torch.no_grad():
                first = model.predict(noisy, t, zl, latent, before)
                t = torch.full_like(t, TIMESTEPS // 2 - 1)
                noisy = Planes(*(add_noise(x, e, model.alpha_bar[t]) for x, e in zip(first, noisy, strict=True)))
        return model.predict(noisy, t, zl, latent, before)


def noise_like(latent: Tensor, frames: int) -> Planes:
    """Noise for clips of the portraits with these latents `[B, C, 32, 32]`."""
    b, c, side, _ = latent.shape
    return Planes(*(torch.randn(b, c, rows, side, device=latent.device) for rows in (side, frames, frames)))


def timesteps(count: int, device: torch.device) -> Tensor:
    """Logit-normal timesteps, and pure noise for a share of them."""
    t = (torch.sigmoid(torch.randn(count, device=device) + 0.5) * TIMESTEPS).long()
    return torch.where(torch.rand(count, device=device) < PURE_NOISE, TIMESTEPS - 1, t)
