"""The recipe of the mouth painter, `configs/train/mouth_painter.toml`."""

from __future__ import annotations

from dataclasses import dataclass, field

from avatard.models.mcvdm.mouth_painter import PainterConfig


@dataclass(frozen=True)
class PainterTraining:
    """How long and how fast painter and discriminator are trained."""

    minutes: float  # of all calls together; the rates fall and the discriminator joins by the share that is over
    batch: int  # examples a step
    twins: int  # of these, whose stillness is trained
    rate: float  # learning rate of the painter after the warm-up
    # Spectral normalisation makes a discriminator slow: it needs larger steps (Heusel et al. 2017), and more of them.
    critic_rate: float  # learning rate of the discriminator
    critics: int  # steps of the discriminator to one of the painter, which costs ten times as much
    critic_from: float = 0.12  # share of the time after which the discriminator learns
    adversary_from: float = 0.12  # share of the time after which the painter listens to it
    sizes: tuple[float, ...] = (0.3, 0.3, 0.4)  # shares of the steps with each of `examples.SIZES`
    warmup: int = 100  # steps in which the rates rise linearly
    decay: float = 0.998  # of the averaged weights
    validate: int = 200  # steps between validations and states
    log: int = 20  # steps between rows of the log


@dataclass(frozen=True)
class LossWeights:
    """Of the painter's losses (`loss.py`)."""

    # Squares ask what colour is where; pixels ask where each tooth ends, which nobody can know, and get a blur.
    l1: float = 0.6  # absolute error of pixels
    colour: float = 1.4  # the same of small squares
    perceptual: float = 0.4
    adversarial: float = 0.2
    features: float = 2.0  # of the discriminator
    steady: float = 0.6  # difference between a window and its twin


@dataclass(frozen=True)
class MouthRecipe:
    """Sizes and training of the mouth painter."""

    training: PainterTraining
    painter: PainterConfig = field(default_factory=PainterConfig)
    loss: LossWeights = field(default_factory=LossWeights)
    hinted: float = 0.55  # share of the examples with a hint
    seed: int = 0
