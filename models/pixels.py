"""Pictures as bytes, 0 to 255, and as tensors in [-1, 1], which the networks see."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.device import CPU

Pictures = NDArray[np.uint8]


def normalise(pixels: Tensor) -> Tensor:
    """Bytes → [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_tensor(pictures: Pictures, device: torch.device = CPU) -> Tensor:
    """`[N, H, W, 3]` → `[N, 3, H, W]` in [-1, 1] on a device, to which they travel as bytes."""
    return normalise(torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2))


def to_bytes(pictures: Tensor) -> Pictures:
    """The inverse of `to_tensor`, clipped and rounded."""
    pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte()
    return pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
