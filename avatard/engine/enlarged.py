"""Frames composed at a part of their size and enlarged: what a machine that cannot keep up shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.engine.background import Background
from avatard.engine.compositor import Compositor, Drawn, Face
from avatard.engine.framing import Framing
from avatard.frame import Backdrop, Rectangle

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
        self.painted_in: Final = self._small.painted_in
        self.backdrop: Final = Backdrop(self._enlarged(self._small.still), self._moving(divisor))

    def frames(self, drawn: Sequence[Drawn]) -> list[Pixels]:
        """As those of `Compositor`."""
        return [self._enlarged(frame) for frame in self._small.frames(drawn)]

    def _moving(self, divisor: int) -> Rectangle:
        """What moves, and the two pixels around it that the interpolation reaches."""
        left, top, width, height = self._small.rectangle
        low = [divisor * max(0, edge - 2) for edge in (left, top)]
        ends = zip((left + width, top + height), self._size, strict=True)
        high = [min(divisor * (edge + 2), side) for edge, side in ends]
        return Rectangle(low[0], low[1], high[0] - low[0], high[1] - low[1])

    def _enlarged(self, frame: Pixels) -> Pixels:
        return np.asarray(cv2.resize(frame, self._size, interpolation=cv2.INTER_CUBIC), np.uint8)
