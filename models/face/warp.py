"""Dense warps in normalised coordinates: [-1, 1] across the picture, x right and y down, pixel centres inside.

A flow `[..., 2, H, W]` is a displacement: the picture at p is sampled at p + flow(p) (backward warping).
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from avatard.timebase import CROP_SIDE

#: Softening of the interpolation weights (squared, normalised units): about 1.5 pixels of 256.
SOFTENING = 0.012**2
#: The ring around the head that moves with the skull: the jaw line, and its reflection above the ears, times this.
RING = 1.28
#: Control points on each side of the border that never move.
BORDER = 8


def normalise(pixels: Tensor, size: int = CROP_SIDE) -> Tensor:
    """Pixel coordinates `[..., 2+]` (x, y, …) → normalised `[..., 2]`."""
    return (pixels[..., :2] + 0.5) * (2.0 / size) - 1.0


def grid(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Normalised coordinates of the pixel centres, `[2, height, width]` (x, y)."""
    y = (torch.arange(height, device=device) + 0.5) * (2.0 / height) - 1.0
    x = (torch.arange(width, device=device) + 0.5) * (2.0 / width) - 1.0
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])


def absolute(flow: Tensor) -> Tensor:
    """Displacements `[..., 2, H, W]` of whole pictures → the positions to sample at."""
    return flow + grid(flow.shape[-2], flow.shape[-1], flow.device)


def _ring(points: Tensor) -> Tensor:
    """34 points `[..., 34, 2]` around the head of 68 points `[..., 68, 2]`."""
    jaw = points[..., 0:17, :]
    right, left = jaw[..., :1, :], jaw[..., -1:, :]
    centre, axis = (right + left) / 2, F.normalize(left - right, dim=-1)
    offset = jaw - centre
    reflected = 2 * (offset * axis).sum(-1, keepdim=True) * axis - offset
    return centre + RING * torch.cat([offset, reflected], dim=-2)


def landmark_flow(source: Tensor, rigid: Tensor, target: Tensor, size: int) -> Tensor:
    """The closed-form flow that moves 68 points of the portrait to where a frame has them.

    Normalised inverse-distance weights over the points, a ring that moves rigidly and a fixed border.

    Args:
        source: the portrait's points `[..., 68, 2]`, normalised.
        rigid: the portrait's face under the frame's head pose, its expression unchanged `[..., 68, 2]`.
        target: the frame's points `[..., 68, 2]`; pass `rigid` for the flow of the head alone.
        size: side of the flow.

    Returns:
        `[..., 2, size, size]`, normalised units.
    """
    side = torch.linspace(-1, 1, BORDER + 1, device=source.device)[:-1]
    one = torch.ones_like(side)
    border = torch.cat(
        [torch.stack(edge, -1) for edge in ((side, -one), (one, side), (-side, one), (-one, -side))]
    ).expand(*target.shape[:-2], -1, 2)
    goal = torch.cat([target, _ring(rigid), border], dim=-2)
    moved = torch.cat([source - target, _ring(source) - _ring(rigid), torch.zeros_like(border)], dim=-2)
    query = grid(size, size, source.device).flatten(1).T  # [HW, 2]
    # |q - g|² + softening in one matrix product: the tensor [..., K, HW] is large, so it is passed over seldom.
    columns = torch.cat([-2 * query, (query**2).sum(-1, keepdim=True), torch.ones_like(query[:, :1])], -1).T
    rows = torch.cat([goal, torch.ones_like(goal[..., :1]), (goal**2).sum(-1, keepdim=True) + SOFTENING], -1)
    with torch.autocast(source.device.type, enabled=False):  # differences of large squares: bfloat16 would ruin them
        inverse = (rows @ columns).clamp_min_(SOFTENING).rsqrt_()
        weight = inverse.square().mul_(inverse)  # [..., K, HW]
        total = torch.cat([moved, torch.ones_like(moved[..., :1])], -1).transpose(-1, -2) @ weight  # [..., 3, HW]
    flow = total[..., :2, :] / total[..., 2:, :]
    return flow.reshape(*flow.shape[:-1], size, size)


def sample(pictures: Tensor, positions: Tensor, mode: Literal["bilinear", "bicubic"] = "bilinear") -> Tensor:
    """Each clip's picture at its frames' positions.

    Args:
        pictures: `[B, C, H, W]`, one per clip.
        positions: `[B, S, 2, h, w]`, where to sample, normalised (a flow plus `grid`).
        mode: of interpolation; bicubic keeps a picture sharp, at four times the cost.

    Returns:
        `[B, S, C, h, w]` float32.
    """
    b, s, _, h, w = positions.shape
    # The frames of a clip lie below each other, so that its picture is not copied for each of them.
    rows = positions.permute(0, 1, 3, 4, 2).reshape(b, s * h, w, 2).float()
    out = F.grid_sample(pictures.float(), rows, mode=mode, padding_mode="border", align_corners=False)
    return out.view(b, -1, s, h, w).transpose(1, 2)


def enlarge(photograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB `[H, W, 3]` → `[2H, 2W, 3]`, bicubic: sampled linearly it is as sharp as the original under a bicubic."""
    size = (2 * photograph.shape[1], 2 * photograph.shape[0])
    return np.asarray(cv2.resize(photograph, size, interpolation=cv2.INTER_CUBIC), np.uint8)


def remap(
    enlarged: NDArray[np.uint8], flow: NDArray[np.float32], window: tuple[slice, slice] = (slice(None), slice(None))
) -> NDArray[np.uint8]:
    """A photograph, enlarged by `enlarge` to `[2H, 2W, 3]`, under a coarser flow `[2, h, w]` → `[H, W, 3]`.

    With a window, rows and columns, only that part of the result.
    """
    height, width = enlarged.shape[0] // 2, enlarged.shape[1] // 2
    x, y = (cv2.resize(f, (width, height), interpolation=cv2.INTER_LINEAR)[window] for f in flow)
    # Pixel i of the photograph has its centre at 2i + 0.5 of the enlarged one; a flow of 2 crosses the picture.
    x = x * width + (2 * np.arange(width, dtype=np.float32)[window[1]] + 0.5)
    y = y * height + (2 * np.arange(height, dtype=np.float32)[window[0], None] + 0.5)
    return np.asarray(cv2.remap(enlarged, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def enlarged_tensor(photograph: NDArray[np.uint8], device: torch.device) -> Tensor:
    """`enlarge` of a photograph for `remapped`: `[1, 3, 2H, 2W]` bytes, whose channels are innermost in memory."""
    return torch.from_numpy(enlarge(photograph)).permute(2, 0, 1)[None].to(device)


def remapped(enlarged: Tensor, flow: Tensor, window: tuple[slice, slice] = (slice(None), slice(None))) -> Tensor:
    """`remap` of clips of frames, on their device.

    Args:
        enlarged: photographs `[B, 3, 2H, 2W]`, see `enlarged_tensor`.
        flow: `[B, S, 2, h, w]`.
        window: rows and columns of the result; the rest is left out.

    Returns:
        `[B, S, 3, H, W]` bytes.
    """
    if flow.device.type != "cpu":
        return remap_tensor(enlarged, flow, window)
    pictures = [
        np.stack([remap(picture, one, window) for one in clip])
        for picture, clip in zip(enlarged.permute(0, 2, 3, 1).numpy(), flow.numpy(), strict=True)
    ]
    made = pictures[0][None] if len(pictures) == 1 else np.stack(pictures)
    return torch.from_numpy(made).permute(0, 1, 4, 2, 3)


def remap_tensor(enlarged: Tensor, flow: Tensor, window: tuple[slice, slice]) -> Tensor:
    """`remapped` with tensor operations alone: the same within OpenCV's rounding of positions to 1/32 pixel."""
    size = (enlarged.shape[2] // 2, enlarged.shape[3] // 2)
    lifted = F.interpolate(flow.flatten(0, 1), size, mode="bilinear", align_corners=False)
    positions = absolute(lifted)[..., window[0], window[1]]
    return sample(enlarged, positions.view(*flow.shape[:2], *positions.shape[1:])).round_().to(torch.uint8)
