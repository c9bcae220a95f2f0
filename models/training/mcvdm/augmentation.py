"""Changes of training examples, on the device that trains: all pictures of an example alike, and its points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from avatard.models.training.draws import Draws
from avatard.timebase import CROP_SIDE

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]

#: Taps of the blur on each side; its deviation is at most 1.1 pixels.
BLUR_REACH = 4
#: Quantisation of luma and chroma in JPEG at quality 50 (ITU-T T.81, tables K.1 and K.2).
LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
#: RGB → luma and colour differences (ITU-T T.871).
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Changes:
    """What is done to the examples of a batch; on the host, so that the device need not be asked who is concerned."""

    place: Floats  # [B, 2, 3], pixels → pixels: mirror, turn, scale, stretch and shift
    gamma: Floats  # [B]
    gain: Floats  # [B, 3], contrast and colour cast
    lift: Floats  # [B], brightness
    grey: Flags  # [B]
    blur: Floats  # [B], deviation in pixels; 0 for none
    quality: Floats  # [B], of a JPEG; 0 for none

    @classmethod
    def random(cls, draws: Draws) -> Changes:
        """As cameras, screens and codecs differ."""
        count = len(draws)
        recoloured = draws.below("recoloured", 0.8)
        contrast = np.exp(0.12 * draws.normal("contrast", 1) + 0.06 * draws.normal("cast", 3))
        return cls(
            _placement(draws),
            np.where(recoloured, np.exp(0.2 * draws.normal("gamma")), 1),
            np.where(recoloured[:, None], contrast, np.ones((count, 3))),
            np.where(recoloured, 0.04 * draws.normal("lift"), 0),
            draws.below("grey", 0.03),
            np.where(draws.below("blurred", 0.1), 0.4 + 0.7 * draws.uniform("blur"), 0),
            np.where(draws.below("compressed", 0.1), np.floor(40 + 45 * draws.uniform("quality")), 0),
        )

    @classmethod
    def none(cls, count: int) -> Changes:
        """Examples as they were filmed."""
        still, ones = np.zeros(count), np.ones((count, 3))
        place = np.broadcast_to(np.eye(2, 3), (count, 2, 3))
        return cls(place, ones[:, 0], ones, still, still > 0, still, still)

    def points(self, points: Tensor) -> Tensor:
        """Pixels `[B, ..., 2]` → where they are afterwards."""
        place = torch.from_numpy(self.place.astype(np.float32)).to(points.device)
        place = place.view(len(place), *[1] * (points.ndim - 3), 2, 3)
        return points @ place[..., :2].transpose(-1, -2) + place[..., 2][..., None, :]

    def pictures(self, pictures: Tensor) -> Tensor:
        """Bytes `[B, P, 3, 256, 256]` → bytes."""
        seen = self._recoloured(self._placed(pictures.flatten(1, 2).float()).view(pictures.shape))
        for chosen, change in (
            (self.grey, self._greyed),
            (self.blur > 0, self._blurred),
            (self.quality > 0, self._compressed),
        ):
            if chosen.any():
                where = torch.from_numpy(np.flatnonzero(chosen)).to(pictures.device)
                seen[where] = change(seen[where].float(), chosen).round().byte()
        return seen

    def _placed(self, pictures: Tensor) -> Tensor:
        """Channels `[B, C, 256, 256]`, moved; beyond them they are mirrored."""
        # A pixel of the result is taken from where it came from; positions in [-1, 1] across the picture.
        inverse = np.linalg.inv(self.place[:, :, :2])
        centre = (CROP_SIDE - 1) / 2
        offset = (inverse @ (centre - self.place[:, :, 2:]) - centre) * (2 / CROP_SIDE)
        back = torch.from_numpy(np.concatenate([inverse, offset], -1).astype(np.float32)).to(pictures.device)
        grid = F.affine_grid(back, [len(back), 1, CROP_SIDE, CROP_SIDE], align_corners=False)
        return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)

    def _recoloured(self, pictures: Tensor) -> Tensor:
        """Levels `[B, P, 3, 256, 256]` by tables, which take a third of the time of powers: bytes."""
        curve = np.linspace(0, 1, 256) ** self.gamma[:, None, None]
        levels = (curve - 0.5) * self.gain[:, :, None] + 0.5 + self.lift[:, None, None]
        table = torch.from_numpy((levels.clip(0, 1) * 255).round().astype(np.uint8)).to(pictures.device)
        table = table[:, None].expand(-1, pictures.shape[1], -1, -1)
        return table.gather(3, pictures.round_().long().flatten(3)).view(pictures.shape)

    def _greyed(self, pictures: Tensor, chosen: Flags) -> Tensor:
        luma = torch.einsum("...chw,c->...hw", pictures, pictures.new_tensor(LUMA))
        return luma[:, :, None].expand_as(pictures)

    def _blurred(self, pictures: Tensor, chosen: Flags) -> Tensor:
        reach = np.arange(-BLUR_REACH, BLUR_REACH + 1)
        taps = np.exp(-0.5 * (reach / self.blur[chosen, None]) ** 2)
        kernel = torch.from_numpy((taps / taps.sum(1, keepdims=True)).astype(np.float32)).to(pictures.device)
        channels = pictures.shape[1] * pictures.shape[2]
        kernel = kernel.repeat_interleave(channels, 0)
        planes = F.pad(pictures.reshape(1, -1, *pictures.shape[-2:]), (BLUR_REACH,) * 4, mode="reflect")
        planes = F.conv2d(planes, kernel[:, None, None], groups=len(kernel))
        return F.conv2d(planes, kernel[:, None, :, None], groups=len(kernel)).view_as(pictures)

    def _compressed(self, pictures: Tensor, chosen: Flags) -> Tensor:
        """What a JPEG with halved colour differences keeps."""
        quality = self.quality[chosen]
        scale = np.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
        luma, chroma = (
            np.clip(np.floor((np.array(steps) * scale + 50) / 100), 1, 255) for steps in (LUMA_STEPS, CHROMA_STEPS)
        )
        red, green, blue = pictures.unbind(2)
        y = LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
        halves = F.avg_pool2d(torch.stack([(blue - y) / 1.772, (red - y) / 1.402], 2).flatten(1, 2), 2)
        y = _quantised(y - 128, luma) + 128
        halves = _quantised(halves, chroma)
        cb, cr = (
            F.interpolate(halves, scale_factor=2.0, mode="bilinear")
            .view(*pictures.shape[:2], 2, *y.shape[-2:])
            .unbind(2)
        )
        rgb = [y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb]
        return torch.stack(rgb, 2).clamp_(0, 255)


def _quantised(planes: Tensor, steps: Floats) -> Tensor:
    """Planes `[B, P, H, W]` whose squares of eight pixels have cosine coefficients of whole `steps` `[B, 8, 8]`."""
    frequency, place = np.arange(8)[:, None], np.arange(8)
    waves = np.cos(np.pi * frequency * (2 * place + 1) / 16) * np.where(frequency, 0.5, 8**-0.5)
    basis = torch.from_numpy(waves.astype(np.float32)).to(planes.device)
    step = torch.from_numpy(steps.astype(np.float32)).to(planes.device)[:, None, None, None]
    squares = planes.unfold(2, 8, 8).unfold(3, 8, 8)  # [B, P, H / 8, W / 8, 8, 8]
    kept = ((basis @ squares @ basis.T) / step).round() * step
    return (basis.T @ kept @ basis).transpose(3, 4).reshape(planes.shape)


def _placement(draws: Draws) -> Floats:
    """Half of the examples mirrored, and most moved by a small similarity about the centre: `[B, 2, 3]`."""
    count = len(draws)
    moved = draws.below("moved", 0.6)
    angle = np.where(moved, np.radians(4 * draws.normal("angle")), 0)
    scale = np.where(moved, np.exp(0.02 + 0.07 * draws.normal("scale")), 1)
    stretch = np.where(moved, np.exp(0.03 * draws.normal("stretch")), 1)
    shift = np.where(moved[:, None], 6 * draws.normal("shift", 2), 0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]).transpose(2, 0, 1)
    sizes = np.stack([scale * stretch * np.where(draws.below("mirrored", 0.5), -1, 1), scale / stretch], -1)
    linear = turn * sizes[:, None]
    centre = np.full((count, 2), (CROP_SIDE - 1) / 2)
    offset = centre + shift - np.einsum("bij,bj->bi", linear, centre)
    return np.concatenate([linear, offset[..., None]], -1)
