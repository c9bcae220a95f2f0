"""Losses that compare pictures (paper eq. 5-7). Training only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models.pixels import Pictures, to_tensor


def l1(picture: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean absolute difference; `weight` broadcasts against the pictures and is normalised to mean one."""
    difference = (picture.float() - target.float()).abs()
    if weight is None:
        return difference.mean()
    return (difference * weight).mean() / weight.mean().clamp_min(1e-6)


class Perceptual(nn.Module):
    """Relative L1 between the first three levels of a VGG-16 trunk (after Johnson et al. 2016), pictures in [-1, 1].

    The trunk is a safetensors file written by `scripts/fetch_perceptual.py`. Only the levels that see texture and parts
    are used: the deeper ones cost more than the decoder they would train.
    """

    def __init__(self, path: Path):
        from avatard.models import checkpoint

        super().__init__()
        tensors, _ = checkpoint.load(path)
        self.levels = [
            sorted({key.rsplit(".", 1)[0] for key in tensors if key.startswith(f"level{n}")}) for n in range(3)
        ]
        for key, value in tensors.items():
            self.register_buffer(key.replace(".", "_"), value.float())

    def _features(self, x: Tensor) -> list[Tensor]:
        x = (x - self.get_buffer("shift")) / self.get_buffer("scale")
        features = []
        for n, names in enumerate(self.levels):
            if n:
                x = F.max_pool2d(x, 2)
            for name in names:
                key = name.replace(".", "_")
                x = F.relu(F.conv2d(x, self.get_buffer(f"{key}_weight"), self.get_buffer(f"{key}_bias"), padding=1))
            features.append(x)
        return features

    @torch.inference_mode()
    def texture(self, pictures: Pictures) -> NDArray[np.float32]:
        """What kinds of texture pictures `[N, H, W, 3]` have: mean and deviation of every channel, `[N, 896]`."""
        rows = []
        for picture in pictures:
            levels = self._features(to_tensor(picture[None].copy()))
            rows.append(torch.cat([moment for f in levels for moment in (f.mean((2, 3)), f.std((2, 3)))], dim=1))
        found: NDArray[np.float32] = torch.cat(rows).numpy()
        return found

    def forward(self, picture: Tensor, target: Tensor) -> Tensor:
        """Pictures `[N, 3, H, W]` → mean distance."""
        memory = torch.channels_last
        with torch.no_grad():
            truths = self._features(target.contiguous(memory_format=memory))
        distance = picture.new_zeros(())
        for x, y in zip(self._features(picture.contiguous(memory_format=memory)), truths, strict=True):
            distance = distance + (x - y).abs().mean(dtype=torch.float32) / y.mean(dtype=torch.float32).clamp_min(1e-3)
        return distance / len(truths)
