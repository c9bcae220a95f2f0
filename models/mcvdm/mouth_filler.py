"""The mouth painter at work: frame after frame of one person, what the decoder painted between the lips is redone.

The decoder says what the mouth does: its lips are the frame's, its paint (blurred) is the hint, and where it painted
is where this paints. All that could change by chance is fixed: one code and one reference a person.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.mcvdm.mouth_painter import MouthPainter, blurred, fill, observe
from avatard.models.mcvdm.mouth_window import WINDOW_SCALE, MouthWindow, inner_lips, lip_mask
from avatard.models.pixels import to_tensor

Floats = NDArray[np.floating]
Picture = NDArray[np.uint8]

#: How far beyond the inner lips (pixels of the window) the decoder's paint is redone.
BEYOND = 4.0
#: Shares of paint in a pixel that leave it alone and that redo it; a ramp lies between.
SHARES = (0.25, 0.65)
#: Openings (interocular distances) at which painting sets in and is complete: nothing shows between closed lips.
OPENINGS = (0.015, 0.04)


@dataclass(frozen=True)
class Mouth:
    """Where a frame has its mouth."""

    landmarks: Floats  # the 68 points [68, 2 or more], pixels of the frame
    interocular_px: float  # as `Pose.scale` has it
    roll: float  # radians, clockwise


class MouthFiller:
    """Fills the mouths of one person.

    Args:
        painter: the network, in the type and layout that it shall run in.
        seed: of the person's code.
        reference: a picture of the same person that shows teeth, and where; None for none.
    """

    def __init__(self, painter: MouthPainter, seed: int = 0, reference: tuple[Picture, Mouth] | None = None):
        self._painter = painter
        self._code = torch.randn(1, painter.config.code, generator=torch.Generator().manual_seed(seed))
        self._reference: Tensor | None = None
        if reference is not None:
            picture, mouth = reference
            window, lips = _window(mouth)
            mask = torch.from_numpy(lip_mask(lips, window.height, window.width))[None, None]
            self._reference = torch.cat([to_tensor(window.cut(picture)[None]), mask], dim=1)

    @torch.inference_mode()
    def fill(self, frame: Picture, mouth: Mouth, share: Floats | None = None) -> None:
        """Paint what lies between the lips, in place.

        Args:
            frame: RGB `[H, W, 3]`.
            mouth: of the frame.
            share: of the decoder's paint in each pixel `[H, W]`, 0..1; without it all between the lips is painted.
        """
        window, lips = _window(mouth)
        strength = float(_ramp(np.array(_opening(lips)), OPENINGS))
        if strength == 0:
            return
        inside = lip_mask(lips, window.height, window.width, BEYOND if share is not None else 2.0)
        if share is not None:
            inside = np.minimum(inside, _ramp(window.cut_map(share), SHARES))
        if not inside.any():
            return
        picture, mask = to_tensor(window.cut(frame)[None]), torch.from_numpy(inside)[None, None]
        hint = torch.cat([blurred(picture, mask), torch.ones_like(mask)], dim=1)
        painted = self._painter(observe(picture, mask, hint, self._reference), self._code)
        shown = fill(picture, painted.clamp(-1, 1), mask * strength)[0].permute(1, 2, 0)
        window.paste(frame, ((shown + 1) * 127.5).numpy(), inside)


def _window(mouth: Mouth) -> tuple[MouthWindow, Floats]:
    """The window around a mouth, and its inner lips in it `[K, 2]`."""
    ring = inner_lips(mouth.landmarks)
    window = MouthWindow.around(ring, mouth.interocular_px, mouth.roll)
    return window, window.points(ring)


def _opening(lips: Floats) -> float:
    """Mean height of a polygon `[K, 2]` over its width, in pixels of the window over its scale."""
    area = cv2.contourArea(lips.astype(np.float32))
    return float(area / max(float(np.ptp(lips[:, 0])), 1.0) / WINDOW_SCALE)


def _ramp(value: Floats, limits: tuple[float, float]) -> Floats:
    low, high = limits
    ramp: Floats = np.clip((value - low) / (high - low), 0, 1).astype(np.float32)
    return ramp
