"""What a recipe of MC-VDM holds: both networks, and their three trainings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from avatard.models.mcvdm.latent import AutoencoderConfig
from avatard.models.mcvdm.model import McvdmConfig
from avatard.models.mcvdm.unet import UNetConfig
from avatard.models.training.mcvdm.loss import WindowKind
from avatard.models.training.recipe import Optimisation

#: Steps where minutes decide.
ENDLESS = 10**9


@dataclass(frozen=True)
class AutoencoderRecipe:
    """The first stage."""

    training: Optimisation
    frames: int = 4  # of an example's clip
    whole_share: float = 0.0  # of steps on whole frames instead of windows


@dataclass(frozen=True)
class PixelRecipe:
    """The last stage: diffusion and decoder together, on rendered frames."""

    training: Optimisation
    shown: int = 4  # frames rendered of each clip
    length: Literal[16, 8] = 16  # frames of a clip


@dataclass(frozen=True)
class McvdmRecipe:
    """`configs/train/mcvdm_*.toml`."""

    mix: dict[str, float]  # share of each source of the data
    autoencoder: AutoencoderConfig
    unet: UNetConfig
    objective: Literal["x0", "epsilon"]  # epsilon is the paper's
    autoencoder_stage: AutoencoderRecipe
    latent_stage: Optimisation
    pixel_stage: PixelRecipe
    examples: int = 3000  # whose latents are cached for the latent stage
    window: WindowKind = "parts"  # rendered of a frame in training
    resident: bool = False  # all pictures lie on the device, 196 KB each, and are not decoded again and again
    shares: tuple[float, float, float] = (0.45, 0.2, 0.35)  # of the minutes of all three stages together
    seed: int = 0

    @property
    def network(self) -> McvdmConfig:
        """Of the networks together."""
        return McvdmConfig(self.autoencoder, self.unet, self.objective)

    def within(self, stage: str, minutes: float) -> McvdmRecipe:
        """The same with a budget of minutes for one of its stages, of as many steps as there is time for."""

        def within(training: Optimisation) -> Optimisation:
            return replace(training, minutes=minutes, steps=ENDLESS)

        if stage == "autoencoder":
            first = self.autoencoder_stage
            return replace(self, autoencoder_stage=replace(first, training=within(first.training)))
        if stage == "latents":
            return replace(self, latent_stage=within(self.latent_stage))
        last = self.pixel_stage
        return replace(self, pixel_stage=replace(last, training=within(last.training)))
