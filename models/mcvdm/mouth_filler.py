"""The mouth painter at work: frame after frame of one person, what the decoder painted between the lips is redone.

The decoder says what the mouth does: its lips are the frame's, its paint (blurred) is the hint, and where it painted
is where this paints. All that could change by chance is fixed: one code and one reference a person.
"""

from __future__ import annotations

from dataclasses import dataclass
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
#: Openings (interocular distances) at which painting sets in and is complete: nothing shows between closed lips.
OPENINGS = (0.015, 0.04)
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

    @property
    def opening(self) -> float:
        """Mean height between the inner lips, in interocular distances."""
        ring = inner_lips(self.landmarks).astype(np.float32)
        window = MouthWindow.around(ring, self.interocular_px, self.roll)
        return _opening(window.points(ring))


class PaintShare(NamedTuple):
    """How much of each pixel the decoder painted."""

    values: Floats  # [h, w], 0..1
    matrix: Floats  # [2, 3], from its pixels to those of the frame


class MouthFiller:
    """Fills the mouths of one person.

    Args:
        painter: the network, in the layout that it shall run in.
        seed: of the person's code.
        reference: a picture of the same person that shows teeth, and where; None for none.
    """

    def __init__(self, painter: MouthPainter, seed: int = 0, reference: tuple[Picture, Mouth] | None = None):
        self._painter = painter
        self._code = torch.randn(1, painter.config.code, generator=torch.Generator().manual_seed(seed))
        self._reference = reference
        self._references: dict[tuple[int, int], Tensor] = {}  # by the window's size

    @torch.inference_mode()
    def fill(self, frame: Picture, mouth: Mouth, share: PaintShare | None = None) -> None:
        """Paint what lies between the lips, in place.

        Args:
            frame: RGB `[H, W, 3]`.
            mouth: of the frame.
            share: of the decoder's paint; without it all between the lips is painted.
        """
        ring = inner_lips(mouth.landmarks)
        size = window_size(MouthWindow.around(ring, mouth.interocular_px, mouth.roll).points(ring))
        window = MouthWindow.around(ring, mouth.interocular_px, mouth.roll, *size)
        lips = window.points(ring)
        strength = float(_ramp(np.array(_opening(lips)), OPENINGS))
        if strength == 0:
            return
        inside = lip_mask(lips, *size, BEYOND if share is not None else 2.0)
        if share is not None:
            inside = np.minimum(inside, _ramp(window.cut_map(share.values, share.matrix), SHARES))
        if not inside.any():
            return
        shown = window.cut(frame)
        picture, mask = to_tensor(shown[None]), torch.from_numpy(inside)[None, None]
        hint = torch.cat([to_tensor(_without_detail(shown, inside)[None]), torch.ones_like(mask)], dim=1)
        with inference_autocast():
            painted = self._painter(observe(picture, mask, hint, self._reference_in(size)), self._code)
        filled = fill(picture, painted.clamp(-1, 1), mask * strength)[0].permute(1, 2, 0)
        window.paste(frame, ((filled + 1) * 127.5).numpy(), inside)

    def _reference_in(self, size: tuple[int, int]) -> Tensor | None:
        """The reference in a window of this size, `[1, 4, h, w]`."""
        if self._reference is None:
            return None
        if size not in self._references:
            picture, mouth = self._reference
            ring = inner_lips(mouth.landmarks)
            window = MouthWindow.around(ring, mouth.interocular_px, mouth.roll, *size)
            mask = torch.from_numpy(lip_mask(window.points(ring), *size))[None, None]
            self._references[size] = torch.cat([to_tensor(window.cut(picture)[None]), mask], dim=1)
        return self._references[size]


def _without_detail(window: Picture, mask: Floats) -> Picture:
    """The colours in a mask, as `mouth_painter.blurred` has them; OpenCV does it in a tenth of the time."""
    weights = mask.astype(np.float32)
    both = np.dstack([window * weights[..., None], weights])
    reach = 2 * round(3 * HINT_BLUR) + 1
    both = cv2.GaussianBlur(both, (reach, reach), HINT_BLUR, borderType=cv2.BORDER_CONSTANT)
    colours = both[..., :3] / np.maximum(both[..., 3:], 1e-4)
    return np.clip(colours + 0.5, 0, 255).astype(np.uint8)


def _opening(lips: Floats) -> float:
    """Mean height of a polygon `[K, 2]` over its width, in pixels of the window over its scale."""
    area = cv2.contourArea(lips.astype(np.float32))
    return float(area / max(float(np.ptp(lips[:, 0])), 1.0) / WINDOW_SCALE)


def _ramp(value: Floats, limits: tuple[float, float]) -> Floats:
    low, high = limits
    ramp: Floats = np.clip((value - low) / (high - low), 0, 1).astype(np.float32)
    return ramp
