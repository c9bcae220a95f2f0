"""Frames composed at a part of their size and enlarged: what a machine that cannot keep up shows."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.engine.background import Background
from avatard.engine.compositor import Compositor, Face
from avatard.engine.eyes import REST, Eyes
from avatard.engine.framing import Framing
from avatard.frame import Backdrop, Rectangle
from avatard.models.mcvdm.decoder import Layers
from avatard.models.mcvdm.mouth_filler import Mouth

Pixels = NDArray[np.uint8]


class EnlargedCompositor:
    """A compositor whose frames have the size of the whole framing, and the detail of a part of it.

    What stands still is enlarged too, so that no border between sharp and soft pixels is seen. The mouth is as the
    decoder paints it: a painter's teeth would hardly be seen at this size, and cost as much as all the rest.

    Args:
        identity: as of `Compositor`.
        framing: the same; its sides are multiples of `divisor`.
        background: the same.
        divisor: sides of the frames are composed this much smaller.
    """

    def __init__(
        self,
        identity: Face,
        framing: Framing,
        background: Background | None = None,
        *,
        divisor: int,
    ) -> None:
        size = framing.width // divisor, framing.height // divisor
        small = Framing(framing.left, framing.top, framing.scale / divisor, *size)
        self._small = Compositor(identity, small, background)
        self._size = (framing.width, framing.height)
        self.backdrop: Final = Backdrop(self._enlarged(self._small.still), self._moving(divisor))

    def frame(self, layers: Layers, eyes: Eyes = REST, mouth: Mouth | None = None) -> Pixels:
        """A whole frame `[H, W, 3 or 4]`, for the arguments of `Compositor`."""
        return self._enlarged(self._small.frame(layers, eyes, mouth))

    def _moving(self, divisor: int) -> Rectangle:
        """What moves, and the two pixels around it that the interpolation reaches."""
        left, top, width, height = self._small.rectangle
        low = [divisor * max(0, edge - 2) for edge in (left, top)]
        ends = zip((left + width, top + height), self._size, strict=True)
        high = [min(divisor * (edge + 2), side) for edge, side in ends]
        return Rectangle(low[0], low[1], high[0] - low[0], high[1] - low[1])

    def _enlarged(self, frame: Pixels) -> Pixels:
        return np.asarray(cv2.resize(frame, self._size, interpolation=cv2.INTER_CUBIC), np.uint8)
