"""Frames of the photograph itself: its own pixels, moved by the decoder's flow, with the decoder's paint in the mouth.

The networks see and move a square of 256 pixels, turned upright around the face (`models/face/crop.py`). Here that
motion is applied to the photograph at the frame's resolution. Only a rectangle around the head is ever computed: at its
border, and at the border of the photograph, the motion has faded to nothing, so that it joins what stands still without
a seam, and no pixel comes from outside the photograph.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.engine import affine
from avatard.engine.background import Background
from avatard.engine.eyes import REST, EyePainter, Eyes
from avatard.engine.framing import Framing
from avatard.engine.paint import Brush, over
from avatard.engine.plate import Plate
from avatard.frame import Backdrop, Rectangle
from avatard.models.face.crop import Crop
from avatard.models.face.topology import MESH_TO_68, OUTER_LIP, interocular
from avatard.models.mcvdm.decoder import FINE_CELLS, Layers, Window
from avatard.models.mcvdm.mouth_filler import Mouth, MouthFiller, PaintShare
from avatard.timebase import CROP_SIDE

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

#: Pixels of the frame to one point of the flow as it is computed here.
CELL: Final = 8
#: How far (crop pixels) motion reaches beyond the crop: hair stands above it, shoulders below it stay.
ABOVE: Final = 44.0
BESIDE: Final = 20.0
#: It begins to fade so far inside the crop's border (crop pixels); above, the head is as rigid as in its middle.
INSIDE: Final = 16.0
#: Over so many crop pixels it fades towards the photograph's border, which it must not cross.
EDGE: Final = 28.0
#: The photograph is sampled from twice its pixels, made bicubically, by linear interpolation: that is sharp, equally so
#: at any phase, and a third of a bicubic's cost. What it dulls in the finest detail is added before.
OVERSAMPLING: Final = 2
SHARPEN: Final = 0.06
PADDING: Final = 24
#: Vertex of the mesh at the tip of the nose.
NOSE: Final = 4


class Face(Protocol):
    """What a compositor needs of an `avatard.engine.identity.Identity`."""

    @property
    def photograph(self) -> Pixels:
        """RGB `[H, W, 3]`."""
        ...

    @property
    def alpha(self) -> Pixels | None:
        """How opaque it is `[H, W]`."""
        ...

    @property
    def crop(self) -> Crop:
        """Photograph → the square that the networks see."""
        ...

    @property
    def points(self) -> Floats:
        """The mesh `[468, 3]` in pixels of the crop."""
        ...


class Drawn(NamedTuple):
    """What a frame is drawn from."""

    layers: Layers  # what the decoder made
    eyes: Eyes = REST  # where they look, and their lids
    mouth: Mouth | None = None  # in pixels of the crop, where it shall be filled


class Compositor:
    """The frames of one photograph.

    Args:
        identity: whose photograph, what of it the networks see, and where its mouth and eyes are.
        framing: what of the photograph is shown.
        background: what is shown instead of the photograph's own.
        filler: paints what shows between the lips; None leaves the decoder's paint.
    """

    def __init__(
        self,
        identity: Face,
        framing: Framing,
        background: Background | None = None,
        filler: MouthFiller | None = None,
    ) -> None:
        self.framing: Final = framing
        self.to_frame: Final = affine.compose(framing.matrix, affine.inverse(identity.crop.matrix))  # crop → frame
        self.rectangle: Final = _moving(self.to_frame, framing)
        mesh = identity.points[:, :2]
        margin = round(EDGE * _scale(self.to_frame)) + 4
        plate = Plate.of(identity.photograph, framing, margin)
        still = plate.part(0, 0, framing.width, framing.height).pixels[..., :3].copy()
        self._behind: Pixels | None = None
        self._transparent = False
        if background is not None:
            alpha = plate.like(identity.alpha, framing) if identity.alpha is not None else None
            nose = affine.apply(self.to_frame, mesh[NOSE])
            plate = background.cut(plate, alpha, (float(nose[0]), float(nose[1])))
            behind = background.filled(framing.width, framing.height)
            still = plate.part(0, 0, framing.width, framing.height).pixels.copy()
            self._transparent = behind is None
            if behind is not None:
                still = over(np.ascontiguousarray(still[..., :3]), still[..., 3], behind)
                self._behind = np.ascontiguousarray(behind[self.rectangle.slices])
        #: The frame at rest, `[H, W, 3]`, or `[H, W, 4]` without a background.
        self.still: Final[Pixels] = still
        self.backdrop: Final = Backdrop(self.still, self.rectangle)
        shape = (self.rectangle.height, self.rectangle.width)
        source = _Source.of(plate, self.rectangle, margin)
        self._source = source.pixels
        self._eyes = _eyes(source, affine.apply(self.to_frame, mesh), self.rectangle)
        mouth = mesh[MESH_TO_68[OUTER_LIP]]
        self._field = _Field(identity.photograph.shape, framing, self.to_frame, self.rectangle, source.rest)
        self._brush = Brush(self.to_frame, self.rectangle.left, self.rectangle.top, shape, mouth, still[..., :3])
        #: The part of the crop whose paint is used.
        self.painted_in: Final = Window.around(self._brush.low, self._brush.high)
        self._filler = filler
        # Fresh pages for each frame cost more than the work done on them.
        self._warped = np.empty((*shape, 4), np.uint8)

    def frames(self, drawn: Sequence[Drawn]) -> list[Pixels]:
        """Whole frames `[H, W, 3 or 4]`; the lids of the layers are those of the photograph."""
        return [self.backdrop.with_moved(pixels) for pixels in self._moved(drawn)]

    def frame(self, layers: Layers, eyes: Eyes = REST, mouth: Mouth | None = None) -> Pixels:
        """One frame; see `Drawn`."""
        return self.frames([Drawn(layers, eyes, mouth)])[0]

    def _moved(self, drawn: Sequence[Drawn]) -> list[Pixels]:
        """The moving rectangles of frames `[h, w, 3 or 4]`."""
        made: list[Pixels] = []
        mattes: list[Pixels] = []
        for layers, eyes, _ in drawn:
            self._eyes(eyes)
            _sample(self._source, self._field(layers.flow), self._warped)
            pixels = np.asarray(cv2.cvtColor(self._warped, cv2.COLOR_RGBA2RGB), np.uint8)
            self._brush(pixels, layers)
            made.append(pixels)
            if self._transparent or self._behind is not None:
                mattes.append(np.asarray(cv2.extractChannel(self._warped, 3), np.uint8))
        if self._filler is not None:
            to_part = self.to_frame - np.array([[0, 0, self.rectangle.left], [0, 0, self.rectangle.top]])
            self._filler.fill_all(
                [
                    (pixels, one.mouth.after(to_part), _share(one.layers, to_part))
                    for pixels, one in zip(made, drawn, strict=True)
                    if one.mouth is not None
                ]
            )
        if self._behind is not None:
            return [over(pixels, matte, self._behind) for pixels, matte in zip(made, mattes, strict=True)]
        if self._transparent:
            return [np.dstack([pixels, matte]) for pixels, matte in zip(made, mattes, strict=True)]
        return made

    def positions(self, flow: Floats) -> Floats:
        """Where each pixel of the rectangle comes from, `[h, w, 2]` in pixels of the unmoved frame."""
        left, top = self.rectangle[:2]
        rest = self._field.rest[0, 0]
        start: Floats = (self._field(flow) - rest) / OVERSAMPLING + np.array([left, top], np.float32)
        return start


def _share(layers: Layers, to_part: NDArray[np.float64]) -> PaintShare:
    """What the decoder painted, in a part of the frame to which `to_part` maps the crop."""
    rows, columns = layers.window
    zoom = (columns.stop - columns.start) / layers.keep.shape[1]
    corner = np.array([columns.start, rows.start]) + 0.5 * zoom - 0.5
    matrix = affine.compose(to_part, np.array([[zoom, 0, corner[0]], [0, zoom, corner[1]]]))
    return PaintShare(1 - layers.keep.astype(np.float32) / 255, matrix)


def _moving(to_frame: NDArray[np.float64], framing: Framing) -> Rectangle:
    """The part of a frame that motion reaches, and two cells more, whose motion is none."""
    low, high = -BESIDE, CROP_SIDE + BESIDE
    corners = np.array([(x, y, 1.0) for x in (low, high) for y in (-ABOVE, high)]) @ to_frame.T
    left, top = (2 * int(max(0.0, edge) // 2) for edge in corners.min(0) - 2 * CELL)
    right, bottom = corners.max(0) + 2 * CELL
    width = min(2 * int(np.ceil(right / 2)), framing.width) - left
    height = min(2 * int(np.ceil(bottom / 2)), framing.height) - top
    return Rectangle(left, top, width, height)


class _Source(NamedTuple):
    """What is sampled: the rectangle and what may move into it, OVERSAMPLING times as large."""

    pixels: Pixels  # [h, w, 4]: four channels are sampled in a third of the time of three
    rest: Floats  # [h, w, 2]: where the rectangle's pixels are in it when nothing moves

    @classmethod
    def of(cls, plate: Plate, rectangle: Rectangle, margin: int) -> _Source:
        """Of a rectangle and `margin` pixels of the frame around it, as far as the plate goes."""
        left, top, width, height = rectangle
        near = plate.part(left - margin, top - margin, left + width + margin, top + height + margin)
        high, wide, _ = near.pixels.shape
        kernel = np.array([-SHARPEN, 1 + 2 * SHARPEN, -SHARPEN])
        crisp = cv2.sepFilter2D(near.pixels.astype(np.float32), -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
        large = cv2.resize(crisp, (OVERSAMPLING * wide, OVERSAMPLING * high), interpolation=cv2.INTER_CUBIC)
        # Rows that are a multiple of 4 kB long would share their places in the processor's cache.
        pixels = np.empty((large.shape[0], large.shape[1] + PADDING, 4), np.uint8)[:, : large.shape[1]]
        pixels[...] = large.round().clip(0, 255)
        # The centre of a frame's pixel lies between the OVERSAMPLING ones that it became.
        x, y = (
            OVERSAMPLING * (np.arange(count, dtype=np.float32) + start) + (OVERSAMPLING - 1) / 2
            for count, start in ((width, left - near.left), (height, top - near.top))
        )
        return cls(pixels, np.stack(np.meshgrid(x, y), -1).astype(np.float32))


def _eyes(source: _Source, points: NDArray[np.float64], rectangle: Rectangle) -> EyePainter:
    """Of a mesh `[468, 2]` in pixels of the frame."""
    there = OVERSAMPLING * (points - np.array(rectangle[:2])) + source.rest[0, 0]
    return EyePainter(source.pixels, there, float(interocular(there[MESH_TO_68])))


class _Field:
    """From the decoder's flow to where each pixel of the rectangle comes from."""

    def __init__(
        self,
        shape: tuple[int, ...],
        framing: Framing,
        to_frame: NDArray[np.float64],
        rectangle: Rectangle,
        rest: Floats,
    ) -> None:
        self.rest = rest
        self._size = (rectangle.width, rectangle.height)
        columns, rows = (max(8, -(-side // CELL)) for side in self._size)
        step = np.array([rectangle.width / columns, rectangle.height / rows])
        # Centres of the cells, in pixels of the frame, of the crop and of the flow.
        x = rectangle.left + (np.arange(columns) + 0.5) * step[0] - 0.5
        y = rectangle.top + (np.arange(rows) + 0.5) * step[1] - 0.5
        frame = np.stack(np.meshgrid(x, y), -1)
        crop = affine.apply(affine.inverse(to_frame), frame)
        self._where = ((crop + 0.5) * (FINE_CELLS / CROP_SIDE) - 0.5).astype(np.float32)
        # Normalised units of the crop → pixels of the source.
        self._turn = (OVERSAMPLING * CROP_SIDE / 2 * to_frame[:, :2].T).astype(np.float32)
        # The photograph's border: motion ends there. Between two centres it may reach as far as at both of them.
        corner = framing.matrix @ np.array([-0.5, -0.5, 1.0]) + 0.5
        end = corner + framing.scale * np.array(shape[1::-1]) - 1
        room = np.minimum(frame - corner, end - frame)  # [rows, columns, 2]
        self._most = (OVERSAMPLING * np.maximum(room - step, 0)).astype(np.float32)
        fade = _reach(crop) * _smooth((room / (EDGE * _scale(to_frame))).min(-1))
        # Cubic interpolation of a border looks at two cells: what joins the still rest is still itself.
        if rectangle.left > 0:
            fade[:, :2] = 0
        if rectangle.top > 0:
            fade[:2] = 0
        if rectangle.left + rectangle.width < framing.width:
            fade[:, -2:] = 0
        if rectangle.top + rectangle.height < framing.height:
            fade[-2:] = 0
        self._fade = fade.astype(np.float32)[..., None]
        self._positions = np.empty((rectangle.height, rectangle.width, 2), np.float32)

    def __call__(self, flow: Floats) -> Floats:
        """Positions `[h, w, 2]` in pixels of the source, valid until the next call."""
        planes = np.ascontiguousarray(flow.transpose(1, 2, 0))
        moved = _sample(planes, self._where)
        moved = np.clip((moved @ self._turn) * self._fade, -self._most, self._most)
        cv2.resize(moved, self._size, self._positions, interpolation=cv2.INTER_CUBIC)
        return np.asarray(cv2.add(self._positions, self.rest, self._positions), np.float32)


def _sample(picture: Any, positions: Floats, into: Any = None) -> Any:
    """A picture `[H, W, C]` at positions `[h, w, 2]`, linearly; beyond it its edge is repeated."""
    # OpenCV's stubs do not know that both coordinates may come in one array.
    return cv2.remap(picture, positions, None, cv2.INTER_LINEAR, into, cv2.BORDER_REPLICATE)  # type: ignore[call-overload]


def _reach(crop: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of the flow is left at points of the crop `[..., 2]` near and beyond its border."""
    x, y = crop[..., 0], crop[..., 1]
    end = CROP_SIDE - 1.0
    beside, below = (_smooth((gap + BESIDE) / (BESIDE + INSIDE)) for gap in (np.minimum(x, end - x), end - y))
    return beside * below * _smooth((y + ABOVE) / ABOVE)


def _smooth(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """0 below 0, 1 above 1, and without a corner between."""
    t = np.clip(x, 0.0, 1.0)
    eased: NDArray[np.float64] = t * t * (3 - 2 * t)
    return eased


def _scale(matrix: NDArray[np.float64]) -> float:
    return float(np.hypot(matrix[0, 0], matrix[0, 1]))
