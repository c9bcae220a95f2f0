"""The first stage of MC-VDM: the triplane video autoencoder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avatard.models.face.morphable import MorphableModel
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.decoder import WHOLE, Window
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.latent import Planes
from avatard.models.pixels import normalise
from avatard.models.training.loop import Stage, Trainer
from avatard.models.training.mcvdm.dataset import Batch, Sampling, training_examples, validation_examples
from avatard.models.training.mcvdm.loss import choose_window, flow_loss, picture_losses
from avatard.models.training.mcvdm.recipe import McvdmRecipe
from avatard.models.training.perceptual import Perceptual
from avatard.models.training.schedule import Clock

#: Noise on the latent, as a share of each plane's own spread: the decoder will see generated latents, never exact ones.
#: Not an absolute figure: planes that carry the motion spread by a few hundredths, and were drowned by it.
LATENT_NOISE = 0.1
#: Steps until the noise has its full strength; from the start it would drown a latent that nothing reads yet.
NOISE_RAMP = 2000
#: Clips and frames of the validation.
VALIDATION_CLIPS, VALIDATION_FRAMES = 24, 6

#: Figures on examples of unseen people, and a sheet of pictures.
ValidateAutoencoder = Callable[[Autoencoder, list[Batch], Path], dict[str, float]]


def train_autoencoder(
    data: Path,
    run: Path,
    recipe: McvdmRecipe,
    trunk: Path | None,
    validate: ValidateAutoencoder,
    *,
    device: str = "auto",
    clock: Clock | None = None,
) -> None:
    """Train, or resume, until the recipe's steps are done or its minutes over.

    Args:
        data: prepared clips, or a bundle of them.
        run: the folder.
        recipe: see there.
        trunk: of the perceptual loss; without it the loss is L1.
        validate: see there.
        device: see `processes.start`.
        clock: of the stage.

    Raises:
        DataError: data or state do not fit.
    """
    stage = autoencoder_stage(data, run, recipe, trunk, device, clock)
    validation = validation_examples(
        data, MorphableModel.load().mean_68, stage.trainer.device, VALIDATION_CLIPS, VALIDATION_FRAMES
    )

    def figures_of(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, Autoencoder)
        return validate(averaged, validation, run / f"sheet_{step:06}.png")

    stage.trainer.train(stage.objective, stage.batches, figures_of)


def autoencoder_stage(
    data: Path, run: Path, recipe: McvdmRecipe, trunk: Path | None, device: str, clock: Clock | None
) -> Stage:
    """What the training takes its steps with; arguments as of `train_autoencoder`."""
    torch.manual_seed(recipe.seed)
    settings = recipe.autoencoder_stage
    network = Autoencoder(recipe.autoencoder)
    trainer = Trainer(
        network,
        settings.training,
        run,
        stage="autoencoder",
        config=json.dumps(asdict(recipe.autoencoder)),
        seed=recipe.seed,
        device=device,
        clock=clock,
    )
    examples = training_examples(data, recipe, Sampling(frames=settings.frames), trainer.device, recipe.seed)

    def batches(step: int) -> tuple[Any, ...]:
        whole = float(torch.rand(())) < settings.whole_share
        numbers = trainer.numbers(step)
        batch = examples.batch(numbers[: max(1, len(numbers) // 2)] if whole else numbers)
        return batch, step, WHOLE if whole else choose_window(recipe.window, batch["target"])

    perceptual = Perceptual(trunk) if trunk else None
    return Stage(trainer, AutoencoderObjective(network, perceptual).to(trainer.device), batches)


def recolour(frames: Tensor) -> Tensor:
    """Each clip `[B, S, 3, H, W]` in colours of its own: the latent learns shape, the portrait gives colours."""
    light, cast, lift = (torch.randn(len(frames), 1, channels, 1, 1, device=frames.device) for channels in (1, 3, 1))
    return frames * torch.exp(0.15 * light + 0.06 * cast) + 0.12 * lift


class AutoencoderObjective(nn.Module):
    """The autoencoder with its losses; one forward pass, so that it can be distributed."""

    def __init__(self, network: Autoencoder, perceptual: Perceptual | None):
        super().__init__()
        self.network, self.perceptual = network, perceptual

    def forward(self, batch: Batch, step: int, window: Window) -> dict[str, Tensor]:
        """Losses by name; `total` is what is minimised."""
        frames, reference = normalise(batch["frames"]), normalise(batch["reference"])
        with torch.no_grad():
            tracked = Geometry(batch["source"], batch["rigid"], batch["target"])
            rigid = tracked.rigid_flow()
            motion = tracked.landmark_flow() - rigid
            teacher = Geometry(batch["registered"][:, 0], batch["rigid"], batch["registered"][:, 1:]).landmark_flow()
        encoded = self.network.encode(recolour(frames), motion)
        noise = LATENT_NOISE * min(1.0, step / NOISE_RAMP)
        planes = Planes(*(p + noise * p.detach().std() * torch.randn_like(p) for p in encoded))
        rendering = self.network.render(self.network.volume(planes), self.network.portrait(reference), rigid, window)

        expensive = step % 2 == 1  # the perceptual loss costs as much as the rest of the step
        perceptual = None if expensive else self.perceptual
        losses = picture_losses(rendering, frames, batch["regions"], window, perceptual)
        losses["flow"] = flow_loss(rendering.flow, teacher, batch["regions"])
        total = losses["pictures"]
        if self.network.config.decoder == "reference":
            total = total + 20 * flow_weight(step) * losses["flow"]
        return {"total": total, **losses}


def flow_weight(step: int) -> float:
    """The teacher's weight: the landmark flow shows the way, and stays.

    Without it, lips move half as far as they should: pictures alone say little about where a smooth chin went.
    """
    return 4.0 - 1.0 * math.exp(-step / 800)
