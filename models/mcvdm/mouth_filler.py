"""The mouth painter at work: frame after frame of one person, what the decoder painted between the lips is redone.

The decoder says what the mouth does: its lips are the frame's, its paint (blurred) is the hint, and where it painted
is where this paints. All that could change by chance is fixed: one code and one reference a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.mcvdm.mouth_painter import HINT_BLUR, MouthPainter, fill, observe
from avatard.models.mcvdm.mouth_window import WINDOW_SCALE, MouthWindow, inner_lips, lip_mask, window_size
from avatard.models.pixels import to_tensor
from avatard.models.precision import inference_autocast

Floats = NDArray[np.floating]
Picture = NDArray[np.uint8]

#: How far beyond the inner lips (pixels of the window) the decoder's paint is redone.
BEYOND = 4.0
#: Shares of paint in a pixel that leave it alone and that redo it; a ramp lies between.
SHARES = (0.25, 0.65)
#: Openings (interocular distances) at which painting sets in and is complete: little shows between lips that hardly
#: part, and the painter learned from mouths that are open.
OPENINGS = (0.025, 0.06)
#: A picture of the person is a reference for all others if its mouth is open this far: then it shows teeth.
REFERENCE_OPENING = 0.06


@dataclass(frozen=True)
class Mouth:
    """Where a picture has its mouth."""

    landmarks: Floats  # the 68 points [68, 2 or more], pixels of the picture
    interocular_px: float  # as `Pose.scale` has it
    roll: float  # radians, clockwise

    def after(self, matrix: Floats) -> Mouth:
        """The same mouth after a similarity `[2, 3]` of the picture."""
        points = self.landmarks[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        factor, turn = float(np.hypot(*matrix[:, 0])), float(np.arctan2(matrix[1, 0], matrix[0, 0]))
        return Mouth(points, factor * self.interocular_px, self.roll + turn)

    @cached_property
    def inner_lips(self) -> Floats:
        """A line once around them `[K, 2]`, pixels of the picture."""
        return inner_lips(self.landmarks).astype(np.float32)

    def window(self, *size: int) -> MouthWindow:
        """The window around it, of this height and width or the usual one."""
        return MouthWindow.around(self.inner_lips, self.interocular_px, self.roll, *size)

    @cached_property
    def opening(self) -> float:
        """Mean height between the inner lips, in interocular distances."""
        lips = self.window().points(self.inner_lips)
        area = cv2.contourArea(lips.astype(np.float32))
        return float(area / max(float(np.ptp(lips[:, 0])), 1.0) / WINDOW_SCALE)


class PaintShare(NamedTuple):
    """How much of each pixel the decoder painted."""

    values: Floats  # [h, w], 0..1
    matrix: Floats  # [2, 3], from its pixels to those of the frame


class _Gap(NamedTuple):
    """What is to be painted in a frame."""

    frame: Picture
    window: MouthWindow
    shown: Picture  # [h, w, 3], the window's part of the frame
    inside: Floats  # [h, w], 1 where to paint
    strength: float  # 0..1


class MouthInputs(NamedTuple):
    """What a few mouths are painted from."""

    seen: Tensor  # [B, 10, h, w], see `observe`
    code: Tensor  # [B, config.code]


@torch.inference_mode()
def make_mouths(painter: MouthPainter, inputs: MouthInputs) -> Tensor:
    """Paint `[B, 3, h, w]`, of one person's mouths or of several people's that share the pass."""
    with inference_autocast(painter.device):
        painted: Tensor = painter(*inputs)
    return painted


class MouthFiller:
    """Fills the mouths of one person.

    Args:
        painter: the network, in the layout that it shall run in.
        seed: of the person's code.
        reference: a picture of the same person that shows teeth, and where; None for none.
        mouths: paints; without it this person has passes of its own.
    """

    def __init__(
        self,
        painter: MouthPainter,
        seed: int = 0,
        reference: tuple[Picture, Mouth] | None = None,
        mouths: Callable[[MouthInputs], Tensor] | None = None,
    ):
        self._make_mouths = partial(make_mouths, painter) if mouths is None else mouths
        self._device = painter.device
        code = torch.randn(1, painter.config.code, generator=torch.Generator().manual_seed(seed))
        self._code = code.to(self._device)
        self._reference = reference
        self._references: dict[tuple[int, int], Tensor] = {}  # by the window's size

    def fill(self, frame: Picture, mouth: Mouth, share: PaintShare | None = None) -> None:
        """Paint what lies between the lips, in place.

        Args:
            frame: RGB `[H, W, 3]`.
            mouth: of the frame.
            share: of the decoder's paint; without it all between the lips is painted.
        """
        self.fill_all([(frame, mouth, share)])

    @torch.inference_mode()
    def fill_all(self, frames: Sequence[tuple[Picture, Mouth, PaintShare | None]]) -> None:
        """`fill` of a few frames in one pass of the network: four take a quarter less time than one by one.

        Their windows are as large as the largest of them.
        """
        open_ones = [one for one in frames if _strength(one[1]) > 0]
        if not open_ones:
            return
        size = _largest(window_size(mouth.window().points(mouth.inner_lips)) for _, mouth, _ in open_ones)
        gaps = [gap for gap in (_gap(*one, size) for one in open_ones) if gap.inside.any()]
        if not gaps:
            return
        pictures, hints = (
            to_tensor(np.stack(shown), self._device)
            for shown in ([gap.shown for gap in gaps], [_without_detail(gap.shown, gap.inside) for gap in gaps])
        )
        masks = _maps([gap.inside for gap in gaps]).to(self._device)
        hint = torch.cat([hints, torch.ones_like(masks)], dim=1)
        seen = observe(pictures, masks, hint, self._reference_in(size, len(gaps)))
        painted = self._make_mouths(MouthInputs(seen, self._code.expand(len(gaps), -1)))
        shares = masks * torch.tensor([gap.strength for gap in gaps], device=self._device)[:, None, None, None]
        filled = ((fill(pictures, painted.clamp(-1, 1), shares) + 1) * 127.5).permute(0, 2, 3, 1)
        for gap, window in zip(gaps, filled.cpu().numpy(), strict=True):
            gap.window.paste(gap.frame, window, gap.inside)

    def _reference_in(self, size: tuple[int, int], count: int) -> Tensor | None:
        """The reference in windows of this size, `[count, 4, h, w]`."""
        if self._reference is None:
            return None
        if size not in self._references:
            picture, mouth = self._reference
            window = mouth.window(*size)
            mask = _maps([lip_mask(window.points(mouth.inner_lips), *size)])
            self._references[size] = torch.cat([to_tensor(window.cut(picture)[None]), mask], dim=1).to(self._device)
        return self._references[size].expand(count, -1, -1, -1)


def _without_detail(window: Picture, mask: Floats) -> Picture:
    """The colours in a mask, as `mouth_painter.blurred` has them; OpenCV does it in a tenth of the time."""
    weights = mask.astype(np.float32)
    both = np.dstack([window * weights[..., None], weights])
    reach = 2 * round(3 * HINT_BLUR) + 1
    both = cv2.GaussianBlur(both, (reach, reach), HINT_BLUR, borderType=cv2.BORDER_CONSTANT)
    colours = both[..., :3] / np.maximum(both[..., 3:], 1e-4)
    return np.clip(colours + 0.5, 0, 255).astype(np.uint8)


def _gap(frame: Picture, mouth: Mouth, share: PaintShare | None, size: tuple[int, int]) -> _Gap:
    window = mouth.window(*size)
    inside = lip_mask(window.points(mouth.inner_lips), *size, BEYOND if share is not None else 2.0)
    if share is not None:
        inside = np.minimum(inside, _ramp(window.cut_map(share.values, share.matrix), SHARES))
    return _Gap(frame, window, window.cut(frame), inside, _strength(mouth))


def _strength(mouth: Mouth) -> float:
    """How much of the paint shows."""
    return float(_ramp(np.array(mouth.opening), OPENINGS))


def _largest(sizes: Iterable[tuple[int, int]]) -> tuple[int, int]:
    height, width = np.max(list(sizes), axis=0).tolist()
    return height, width


def _maps(maps: Sequence[Floats]) -> Tensor:
    """`[h, w]` each → `[B, 1, h, w]`."""
    return torch.from_numpy(np.stack(maps))[:, None]


def _ramp(value: Floats, limits: tuple[float, float]) -> Floats:
    low, high = limits
    ramp: Floats = np.clip((value - low) / (high - low), 0, 1).astype(np.float32)
    return ramp
