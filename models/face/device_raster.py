"""Landmark rasters as `raster` draws them, with tensor operations alone: for points that are on a GPU."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from avatard.models.face.raster import DRAWN_SIDE, PARTS

#: Pixels of `raster`'s drawing to one of the drawing here; both are averaged to the raster's size.
COARSER: Final = 2
#: Widths in pixels of `raster`'s drawing as OpenCV's filter leaves them: of a line, and of an area's rim. Fitted to it.
LINE: Final = 5.35
RIM: Final = 1.7


def raster_tensor(points: Tensor, size: int = 64, *, side: float | None = None) -> Tensor:
    """Draw landmarks.

    Args:
        points: `[..., 68, 2]` pixels (x, y) of a square picture.
        size: side of the raster in pixels, at most `DRAWN_SIDE / COARSER`.
        side: side in pixels of the picture that the points belong to; the raster's own if not given.

    Returns:
        `[..., 3, size, size]` in [0, 1]. It differs from what `raster` draws by .2 levels of 255 on average.
    """
    factor = max(1, round(DRAWN_SIDE / COARSER / size))
    drawn = factor * size
    local = (points[..., :2].reshape(-1, 68, 2).float() + 0.5) * (drawn / (side or size)) - 0.5
    local = local.clamp(-8 * drawn, 8 * drawn)
    picture = local.new_zeros(len(local), 3, drawn, drawn)
    for part in PARTS:
        distance, inside = _lines([local[:, chosen] for chosen in part.points], drawn, closed=part.area)
        if part.area:
            filled = torch.where(inside, distance + 0.5, 0.5 - distance).clamp_(0, 1)
            shown = 1 - (1 - filled) * (1 - _stroke(distance, RIM / COARSER))
        else:
            shown = _stroke(distance, LINE / COARSER)
        for channel, level in zip(picture.unbind(1), part.colour, strict=True):
            channel.add_((level / 255 - channel) * shown)
    return F.avg_pool2d(picture, factor).reshape(*points.shape[:-2], 3, size, size)


def _lines(lines: list[Tensor], side: int, closed: bool) -> tuple[Tensor, Tensor]:
    """How far the pixel centres are from the nearest of some lines, and which of them a closed one encloses.

    Args:
        lines: points `[N, P, 2]` each.
        side: of the picture.
        closed: the last point of each line leads to its first.

    Returns:
        `[N, side, side]` each, pixels and true or false.
    """
    starts = torch.cat([line if closed else line[:, :-1] for line in lines], 1)[..., None, None]  # [N, K, 2, 1, 1]
    ends = torch.cat([line.roll(-1, 1) if closed else line[:, 1:] for line in lines], 1)[..., None, None]
    at = torch.arange(side, device=starts.device, dtype=torch.float32)
    (dx, dy), length = (ends - starts).unbind(2), (ends - starts).square().sum(2).clamp_min(1e-6)
    x, y = at[None, :] - starts[:, :, 0], at[:, None] - starts[:, :, 1]  # [N, K, 1, side], [N, K, side, 1]
    along = ((x * dx + y * dy) / length).clamp_(0, 1)  # [N, K, side, side]
    distance = ((x - along * dx).square_() + (y - along * dy).square_()).amin(1).sqrt_()
    # The even-odd rule: how many segments a ray to the left of a pixel crosses.
    crossed = ((y < 0) != (at[:, None] < ends[:, :, 1])) & (x > y * dx / torch.where(dy == 0, 1.0, dy))
    return distance, crossed.sum(1) % 2 == 1


def _stroke(distance: Tensor, width: float) -> Tensor:
    """Coverage of pixels at some distance from the middle of a line of this width (pixels)."""
    return (width / 2 + 0.5 - distance).clamp(0, min(width, 1.0))
