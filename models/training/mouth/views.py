"""Where windows of stored pictures lie: in the middle, or turned, scaled, shifted and mirrored by chance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from avatard.models.mcvdm.mouth_window import WINDOW_HEIGHT, WINDOW_WIDTH
from avatard.models.training.mouth.dataset import Mouth

Size = tuple[int, int]
#: Heights and widths of the windows that are trained on, the smallest first.
SIZES: tuple[Size, ...] = ((48, 96), (64, 112), (WINDOW_HEIGHT, WINDOW_WIDTH))


class Chance:
    """Random numbers on a device."""

    def __init__(self, generator: torch.Generator):
        self.generator, self.device = generator, generator.device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """From 0 to 1."""
        return torch.rand(*shape, generator=self.generator, device=self.device)


class Views(NamedTuple):
    """Maps from pixels of stored pictures to those of windows."""

    matrix: Tensor  # [B, 2, 3]
    size: Size  # of the windows

    @classmethod
    def middle(cls, count: int, device: torch.device) -> Views:
        """The views without chance: the largest window in the middle of the stored picture."""
        height, width = Mouth.STORED
        offset = [(WINDOW_WIDTH - width) / 2, (WINDOW_HEIGHT - height) / 2]
        matrix = torch.tensor([[1.0, 0.0, offset[0]], [0.0, 1.0, offset[1]]], device=device)
        return cls(matrix.expand(count, 2, 3), SIZES[-1])

    @classmethod
    def random(cls, chance: Chance, size: Size, spread: Tensor, flip: Tensor) -> Views:
        """Similarities; `spread` `[B]` is how far they go, `flip` `[B]` whether they mirror."""
        count = len(spread)
        turn = rotation(torch.deg2rad(5 * spread * chance.normal(count)), 0.07 * spread * chance.normal(count))
        turn = turn * torch.stack([torch.where(flip, -1.0, 1.0), torch.ones_like(spread)], -1)[:, None]
        height, width = Mouth.STORED
        middle = centre(*size, turn) + 4 * spread[:, None] * chance.normal(count, 2)
        offset = middle[..., None] - turn @ centre(height, width, turn)[:, None]
        return cls(torch.cat([turn, offset], dim=2), size)

    def first(self, count: int) -> Views:
        """The first of them."""
        return Views(self.matrix[:count], self.size)

    def chosen(self, numbers: Tensor) -> Views:
        """Some of them."""
        return Views(self.matrix[numbers], self.size)

    def then(self, second: Tensor) -> Views:
        """These, and another map `[B, 2, 3]` of the window's pixels after them."""
        turn = second[..., :2] @ self.matrix[..., :2]
        offset = second[..., :2] @ self.matrix[..., 2:] + second[..., 2:]
        return Views(torch.cat([turn, offset], dim=2), self.size)

    def after(self, first: Tensor) -> Views:
        """Another map `[B, 2, 3]` to the stored picture's pixels, and these after it."""
        turn = self.matrix[..., :2] @ first[..., :2]
        offset = self.matrix[..., :2] @ first[..., 2:] + self.matrix[..., 2:]
        return Views(torch.cat([turn, offset], dim=2), self.size)

    @property
    def mirrored(self) -> Tensor:
        """Which of them mirror, `[B]`."""
        flipped: Tensor = torch.linalg.det(self.matrix[..., :2]) < 0
        return flipped

    def of(self, pictures: Tensor) -> Tensor:
        """Windows `[B, 3, H, W]` of stored pictures `[B, 3, h, w]`; beyond these their edge is repeated."""
        height, width = Mouth.STORED
        inverse = torch.linalg.inv(self.matrix[..., :2])
        back = torch.cat([inverse, -inverse @ self.matrix[..., 2:]], dim=2)
        pixels = pixel_centres(*self.size, back)
        at = torch.einsum("bij,hwj->bhwi", back[..., :2], pixels) + back[:, None, None, :, 2]
        grid = (2 * at + 1) / at.new_tensor([width, height]) - 1
        return F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False)


def rotation(angle: Tensor, log_size: Tensor) -> Tensor:
    """Rotations and scalings `[B, 2, 2]`."""
    size = torch.exp(log_size)
    sine, cosine = size * torch.sin(angle), size * torch.cos(angle)
    return torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], dim=-2)


def centre(height: int, width: int, like: Tensor) -> Tensor:
    """Of a picture, pixels `[2]` (as a column `[2, 1]` with `[:, None]`)."""
    return like.new_tensor([(width - 1) / 2, (height - 1) / 2])


def pixel_centres(height: int, width: int, like: Tensor) -> Tensor:
    """Pixel centres x, y, `[height, width, 2]`."""
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=like.dtype),
        torch.arange(width, device=like.device, dtype=like.dtype),
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1)
