"""The first stage of MC-VDM: the triplane video autoencoder."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from avatard.models.face.morphable import MorphableModel
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.decoder import WHOLE, Window
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.latent import Planes
from avatard.models.pixels import normalise
from avatard.models.training.clips import read_index
from avatard.models.training.loop import Trainer
from avatard.models.training.mcvdm.dataset import Batch, Examples, Sampling, validation_examples
from avatard.models.training.mcvdm.loss import choose_window, flow_loss, picture_losses
from avatard.models.training.mcvdm.recipe import McvdmRecipe
from avatard.models.training.perceptual import Perceptual

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
    data: Path, run: Path, recipe: McvdmRecipe, trunk: Path | None, validate: ValidateAutoencoder
) -> None:
    """Train, or resume, until the recipe's steps are done; without the perceptual trunk the loss is L1.

    Raises:
        DataError: data or state do not fit.
    """
    torch.manual_seed(recipe.seed)
    settings, mean_68 = recipe.autoencoder_stage, MorphableModel.load().mean_68
    network = Autoencoder(recipe.autoencoder)
    trainer = Trainer(
        network, settings.training, run, stage="autoencoder", config=json.dumps(asdict(recipe.autoencoder))
    )
    entries = read_index(data)
    examples = Examples(
        data,
        [entry for entry in entries if entry.split == "train"],
        recipe.mix,
        mean_68,
        Sampling(frames=settings.frames),
        length=trainer.examples_left,
        seed=recipe.seed,
        start=trainer.examples_done,
    )
    loader = DataLoader(examples, settings.training.batch, num_workers=settings.training.workers)
    validation = validation_examples(data, entries, mean_68, VALIDATION_CLIPS, VALIDATION_FRAMES)

    def figures_of(averaged: nn.Module, step: int) -> dict[str, float]:
        assert isinstance(averaged, Autoencoder)
        return validate(averaged, validation, run / f"sheet_{step:06}.png")

    def batches() -> Iterator[tuple[Any, ...]]:
        rng = torch.Generator().manual_seed(recipe.seed + trainer.step)
        for step, batch in enumerate(trainer.accelerator.prepare(loader), start=trainer.step):
            if float(torch.rand((), generator=rng)) < settings.whole_share:
                few = max(1, settings.training.batch // 2)
                yield {key: value[:few] for key, value in batch.items()}, step, WHOLE
            else:
                yield batch, step, choose_window(batch["target"], rng)

    objective = AutoencoderObjective(network, Perceptual(trunk) if trunk else None)
    trainer.train(objective, batches(), figures_of)


def recolour(frames: Tensor) -> Tensor:
    """Each clip `[B, S, 3, H, W]` in colours of its own: the latent learns shape, the portrait gives colours."""
    shape = (len(frames), 1, 3, 1, 1)
    gain = torch.exp(0.15 * torch.randn(len(frames), 1, 1, 1, 1) + 0.06 * torch.randn(shape))
    return frames * gain + 0.12 * torch.randn(len(frames), 1, 1, 1, 1)


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
