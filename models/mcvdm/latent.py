"""The latent of the video autoencoder: three planes for a clip; and the sizes of the networks around it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from torch import Tensor

#: Scale of the expression's flow as encoders see it: a few hundredths of the side become of the order of one.
MOTION_SCALE: Final = 20.0


class Planes(NamedTuple):
    """A clip's latent, values in (-1, 1)."""

    xy: Tensor  # [B, C, 32, 32]
    xt: Tensor  # [B, C, S, 32], rows are frames
    yt: Tensor  # [B, C, S, 32]


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the networks; travels in the checkpoint's metadata."""

    encoder: Literal["conv", "timesformer"] = "conv"
    decoder: Literal["reference", "plain"] = "reference"
    channels: int = 4  # of the latent
    width: int = 64  # at 32²
    mid: int = 48  # at 64²
    small: int = 32  # at 128², and the encoder's at 64²
    transformer_width: int = 384  # of the TimeSformer
    transformer_depth: int = 8
