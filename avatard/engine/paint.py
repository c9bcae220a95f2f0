"""The decoder's paint in the photograph: at the mouth, enlarged without ringing, as grainy as the skin around."""

from __future__ import annotations

from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.engine import affine
from avatard.models.mcvdm.decoder import Layers

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

#: How far from the lips paint is used, in widths of the mouth: to the sides, above and below; mouths open downwards.
BESIDE: Final = 0.25
ABOVE: Final = 0.3
BELOW: Final = 0.7
#: Over this share of that box paint sets in at its border.
FADE: Final = 0.12
#: Standard deviation (pixels of the frame) of the blur that tells grain from what is photographed.
GRAIN_SIGMA: Final = 1.0
#: Grain beyond this (of 255) is texture.
MAX_GRAIN: Final = 6.0
#: White noise keeps this share of its deviation when what `GRAIN_SIGMA` blurs is taken away.
WHITE_NOISE: Final = 0.88
FULL: Final = 255.0
#: A low pass that leaves nothing of what alternates from pixel to pixel: decoders draw such patterns, mouths have none.
STEADY: Final = np.array([-1, 4, 10, 4, -1]) / 16
#: Paint of a smaller share, of FULL, is not seen.
SEEN: Final = 4.0


class Brush:
    """Paints the mouths of one photograph.

    Paint is used between the corners `low` and `high` (x, y) of the crop.

    Args:
        to_frame: crop → frame.
        left: first column of the part of the frame that is painted into.
        top: its first row.
        shape: its height and width.
        mouth: points around the lips in pixels of the crop, `[K, 2]`.
        still: the frame at rest, `[H, W, 3]`: its skin around the mouth shows how grainy it is.
    """

    def __init__(
        self,
        to_frame: NDArray[np.float64],
        left: int,
        top: int,
        shape: tuple[int, int],
        mouth: NDArray[np.floating],
        still: Pixels,
    ) -> None:
        self._to_part = to_frame - np.array([[0, 0, left], [0, 0, top]])
        low, high = mouth.min(0), mouth.max(0)
        width = float(high[0] - low[0])
        self.low: Final = low - width * np.array([BESIDE, ABOVE])
        self.high: Final = high + width * np.array([BESIDE, BELOW])
        around = affine.apply(to_frame, np.array([self.low, self.high])).round().astype(int)
        (x0, y0), (x1, y1) = np.clip(around, 0, [still.shape[1], still.shape[0]])
        noise = np.random.default_rng(0).normal(0, _grain(still[y0:y1, x0:x1]), shape).round().astype(np.int16)
        self._noise = cv2.merge([noise] * 3)

    def __call__(self, part: Pixels, layers: Layers) -> None:
        """Paint into a part of a frame `[h, w, 3]`."""
        painted, keep, (rows, columns) = layers.painted, layers.keep, layers.window
        zoom = painted.shape[1] / (columns.stop - columns.start)
        corner = np.array([columns.start, rows.start])
        size = np.array([painted.shape[1], painted.shape[0]])
        (x0, y0), (x1, y1) = (np.clip((p - corner) * zoom, 0, size).astype(int) for p in (self.low, self.high))
        share = _faded(255 - keep[y0:y1, x0:x1])
        left, top, width, height = cv2.boundingRect((share > SEEN).view(np.uint8))
        if not width:
            return
        # Where there is paint, and a little more: its edge becomes soft.
        inner = slice(max(0, top - 2), top + height + 2), slice(max(0, left - 2), left + width + 2)
        colours = painted[y0:y1, x0:x1][inner]
        if zoom == 1:
            steady = cv2.sepFilter2D(colours, -1, STEADY, STEADY, borderType=cv2.BORDER_REPLICATE)
            colours = _between(steady, colours)
        layer = np.dstack([colours, share[inner]])
        start = np.array([x0 + inner[1].start, y0 + inner[0].start])
        shift = (start + 0.5) / zoom + corner - 0.5
        matrix = affine.compose(self._to_part, np.array([[1 / zoom, 0, shift[0]], [0, 1 / zoom, shift[1]]]))
        ends = np.array([(x, y) for x in (0, layer.shape[1]) for y in (0, layer.shape[0])])
        there = affine.apply(matrix, ends)
        low = np.clip(np.floor(there.min(0)), 0, part.shape[1::-1]).astype(int)
        high = np.clip(np.ceil(there.max(0)), 0, part.shape[1::-1]).astype(int)
        if (high <= low).any():
            return
        matrix[:, 2] -= low
        where = slice(low[1], high[1]), slice(low[0], high[0])
        paint = _enlarged(layer, matrix, (int(high[0] - low[0]), int(high[1] - low[1])))
        colour = cv2.add(cv2.cvtColor(paint, cv2.COLOR_RGBA2RGB), self._noise[where], dtype=cv2.CV_8U)
        part[where] = over(colour, cv2.extractChannel(paint, 3), part[where])


def over(colour: Any, alpha: Any, under: Any) -> Pixels:
    """A picture `[h, w, 3]` of an opacity `[h, w]` over another one."""
    share = cv2.merge([alpha] * 3)
    change = cv2.multiply(cv2.subtract(colour, under, dtype=cv2.CV_16S), share, scale=1 / FULL, dtype=cv2.CV_16S)
    return np.asarray(cv2.add(under, change, dtype=cv2.CV_8U), np.uint8)


def _grain(skin: Pixels) -> float:
    """Standard deviation (of 255) of the grain in a piece of skin: the median of what is finer than its shading."""
    if not skin.size:
        return 0.0
    luma = cv2.cvtColor(skin, cv2.COLOR_RGB2GRAY).astype(np.float32)
    fine = np.abs(luma - cv2.GaussianBlur(luma, (0, 0), GRAIN_SIGMA))
    # Of a normal distribution: the median of |x| is 0.6745 deviations.
    return min(float(np.median(fine)) / 0.6745 / WHITE_NOISE, MAX_GRAIN)


def _faded(share: Pixels) -> Pixels:
    """What sets in at the border of its box `[h, w]`."""
    y, x = (np.clip((0.5 - np.abs((np.arange(n) + 0.5) / n - 0.5)) / FADE, 0, 1) for n in share.shape)
    return np.asarray(np.rint(share * (y[:, None] * x)), np.uint8)


def _enlarged(layer: Pixels, matrix: NDArray[np.float64], size: tuple[int, int]) -> Pixels:
    """A layer `[h, w, 4]` under an affine map: bicubic, but always between the pixels around, so nothing rings.

    The bicubic doubles the layer; from there the map is linear, which is seen no more and takes a third of the time.
    """
    double = (2 * layer.shape[1], 2 * layer.shape[0])
    cubic = cv2.resize(layer, double, interpolation=cv2.INTER_CUBIC)
    cubic = _between(cubic, cv2.resize(layer, double, interpolation=cv2.INTER_NEAREST))
    # Pixel i became 2i and 2i + 1, whose middle it was.
    halved = affine.compose(matrix, np.array([[0.5, 0, -0.25], [0, 0.5, -0.25]]))
    done = cv2.warpAffine(cubic, halved, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(done, np.uint8)


def _between(filtered: Any, pixels: Any) -> Any:
    """A picture after a filter, kept between what it was in the 3x3 pixels around each: no ringing."""
    square = np.ones((3, 3), np.uint8)
    return cv2.min(cv2.max(filtered, cv2.erode(pixels, square)), cv2.dilate(pixels, square))
