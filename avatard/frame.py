"""A generated frame, the sound it is made from, and how two of them are blended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

#: Mono sound at 16 kHz, float32 `[T]` in [-1, 1].
Samples: TypeAlias = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeadPose:
    """Where a head is: scaled orthographic projection (POS), as it goes over the wire."""

    quaternion: tuple[float, float, float, float]  # x, y, z, w
    translation: tuple[float, float, float]  # from the picture's centre, in interocular distances (IOD)
    scale: float  # pixels per IOD


@dataclass(frozen=True, slots=True)
class Frame:
    """One generated frame."""

    pixels: NDArray[np.uint8]  # [H, W, 3] RGB
    landmarks: NDArray[np.float32]  # [68, 3], iBUG points of the frontal face, IOD units
    blendshapes: NDArray[np.float32]  # [52], ARKit order
    head: HeadPose


def raised_cosine(phase: NDArray[np.floating]) -> NDArray[np.floating]:
    """Blend weights that rise smoothly from 0 at phase 0 to 1 at phase 1; constant outside."""
    weights: NDArray[np.floating] = (1 - np.cos(np.pi * np.clip(phase, 0, 1))) / 2
    return weights
