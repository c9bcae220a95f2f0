"""Inception v3 as FID uses it: 2,048 features of a picture. Evaluation only, never shipped.

Sources: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016); the pooling that differs in
the network of 2015-12-05, on which Heusel et al. (2017) defined FID, after `pytorch-fid`. The names of the weights are
torchvision's, which `pytorch-fid` has, too; heads that are not used here are left out of account.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models import checkpoint

SIDE = 299
BATCH = 8

Size = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU; `same` padding unless it has a stride or `pad` is false."""

    def __init__(self, inputs: int, outputs: int, size: Size, stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        rows, columns = (size, size) if isinstance(size, int) else size
        padding = (rows // 2, columns // 2) if pad and stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` → `[B, outputs, H', W']`."""
        return F.relu(self.bn(self.conv(x)))


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _most(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 1, 1)


def _shrink(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


class Block(nn.Module):
    """Branches side by side, their channels put together in order.

    Args:
        inputs: channels.
        branches: a prefix and the convolutions one after the other as (suffix, outputs, size, stride); a suffix of two
            letters, as `2ab`, splits into a 1×3 and a 3×1 convolution.
        pool: what the last branch begins with, or is where no convolution has the prefix `branch_pool`.
    """

    def __init__(
        self,
        inputs: int,
        branches: dict[str, list[tuple[str, int, Size, int]]],
        pool: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self._pool = pool
        self._paths: list[list[list[str]]] = []
        for prefix, convolutions in branches.items():
            path, width = [], inputs
            for suffix, outputs, size, stride in convolutions:
                if suffix.endswith("ab"):
                    names = [f"{prefix}_{suffix[:-1]}", f"{prefix}_{suffix[:-2]}b"]
                    sizes: list[Size] = [(1, 3), (3, 1)]
                else:
                    names, sizes = [f"{prefix}_{suffix}" if suffix else prefix], [size]
                for name, shape in zip(names, sizes, strict=True):
                    self.add_module(name, Conv(width, outputs, shape, stride))
                path.append(names)
                width = outputs
            self._paths.append(path)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, inputs, H, W]` → `[B, outputs, H', W']`."""
        outputs = []
        for path in self._paths:
            h = self._pool(x) if path and path[0][0] == "branch_pool" else x
            for names in path:
                h = torch.cat([self.get_submodule(name)(h) for name in names], 1)
            outputs.append(h)
        if not any(path[0][0] == "branch_pool" for path in self._paths):
            outputs.append(self._pool(x))
        return torch.cat(outputs, 1)


def _block_a(inputs: int, pooled: int) -> Block:
    branches: dict[str, list[tuple[str, int, Size, int]]] = {
        "branch1x1": [("", 64, 1, 1)],
        "branch5x5": [("1", 48, 1, 1), ("2", 64, 5, 1)],
        "branch3x3dbl": [("1", 64, 1, 1), ("2", 96, 3, 1), ("3", 96, 3, 1)],
        "branch_pool": [("", pooled, 1, 1)],
    }
    return Block(inputs, branches, _mean)


def _block_b(inputs: int) -> Block:
    branches: dict[str, list[tuple[str, int, Size, int]]] = {
        "branch3x3": [("", 384, 3, 2)],
        "branch3x3dbl": [("1", 64, 1, 1), ("2", 96, 3, 1), ("3", 96, 3, 2)],
    }
    return Block(inputs, branches, _shrink)


def _block_c(inputs: int, width: int) -> Block:
    row, column = (1, 7), (7, 1)
    branches: dict[str, list[tuple[str, int, Size, int]]] = {
        "branch1x1": [("", 192, 1, 1)],
        "branch7x7": [("1", width, 1, 1), ("2", width, row, 1), ("3", 192, column, 1)],
        "branch7x7dbl": [
            ("1", width, 1, 1),
            *[("2", width, column, 1), ("3", width, row, 1), ("4", width, column, 1), ("5", 192, row, 1)],
        ],
        "branch_pool": [("", 192, 1, 1)],
    }
    return Block(inputs, branches, _mean)


def _block_d(inputs: int) -> Block:
    branches: dict[str, list[tuple[str, int, Size, int]]] = {
        "branch3x3": [("1", 192, 1, 1), ("2", 320, 3, 2)],
        "branch7x7x3": [("1", 192, 1, 1), ("2", 192, (1, 7), 1), ("3", 192, (7, 1), 1), ("4", 192, 3, 2)],
    }
    return Block(inputs, branches, _shrink)


def _block_e(inputs: int, pool: Callable[[Tensor], Tensor]) -> Block:
    branches: dict[str, list[tuple[str, int, Size, int]]] = {
        "branch1x1": [("", 320, 1, 1)],
        "branch3x3": [("1", 384, 1, 1), ("2ab", 384, 3, 1)],
        "branch3x3dbl": [("1", 448, 1, 1), ("2", 384, 3, 1), ("3ab", 384, 3, 1)],
        "branch_pool": [("", 192, 1, 1)],
    }
    return Block(inputs, branches, pool)


class Inception(nn.Module):
    """The network up to its last pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _block_a(192, 32), _block_a(256, 64), _block_a(288, 64)
        self.Mixed_6a, self.Mixed_6b = _block_b(288), _block_c(768, 128)
        self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _block_c(768, 160), _block_c(768, 160), _block_c(768, 192)
        self.Mixed_7a, self.Mixed_7b, self.Mixed_7c = _block_d(768), _block_e(1280, _mean), _block_e(2048, _most)

    @classmethod
    def load(cls, path: str | Path) -> Inception:
        """From a safetensors file of torchvision's or `pytorch-fid`'s weights. Raises `CheckpointError`."""
        return checkpoint.fill(cls(), path)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures `[B, 3, 299, 299]` in [-1, 1] → features `[B, 2048]`."""
        h = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        h = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_shrink(h)))  # (B, 192, 71, 71)
        h = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_shrink(h))))  # (B, 288, 35, 35)
        h = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(h)))))  # (B, 768, 17, 17)
        h = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(h)))  # (B, 2048, 8, 8)
        features: Tensor = h.mean((2, 3))  # (B, 2048)
        return features

    @torch.inference_mode()
    def features(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pictures `[N, H, W, 3]` RGB → features `[N, 2048]`."""
        parts = []
        for first in range(0, len(pictures), BATCH):
            x = torch.from_numpy(pictures[first : first + BATCH]).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(self(F.interpolate(x, (SIDE, SIDE), mode="bilinear")))
        features: NDArray[np.float32] = torch.cat(parts).numpy()
        return features
