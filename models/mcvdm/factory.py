"""Data factory: animates portraits with real expression trajectories, so that many people are seen talking.

A portrait's mesh, a ring around it that moves rigidly with the head and a fixed border are triangulated once on the mean
face. Each frame warps the portrait's own pixels from the photographed mesh to the wanted one, triangle by triangle. What a
portrait does not show is painted behind the two kinds of holes: eyeballs stay with the head while the lids slide over them;
the inside of the mouth comes from the frame that drives it, matched in colour, with the portrait's (or a donor's) upper
teeth fixed to the head where they are known. Points, landmarks and poses are those of the warped mesh, hence exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.crop import CROP_SIDE, Crop
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.face.topology import MESH_VERTICES

Array = NDArray[np.floating]
Indices = NDArray[np.intp]
Image = NDArray[np.uint8]

#: The mesh's outline, clockwise from the forehead.
FACE_OVAL: Final[Indices] = np.array(
    [
        *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
        *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
    ]
)
#: Inner lips from the right to the left corner; entry i of the upper lip lies over entry i of the lower one.
UPPER_INNER: Final[Indices] = np.array([191, 80, 81, 82, 13, 312, 311, 310, 415])
LOWER_INNER: Final[Indices] = np.array([95, 88, 178, 87, 14, 317, 402, 318, 324])
MOUTH_CORNERS: Final = (78, 308)
#: Upper and lower lids from the outer to the inner corner, right eye then left.
UPPER_LIDS: Final[Indices] = np.array(
    [[246, 161, 160, 159, 158, 157, 173], [466, 388, 387, 386, 385, 384, 398]]
)
LOWER_LIDS: Final[Indices] = np.array([[7, 163, 144, 145, 153, 154, 155], [249, 390, 373, 374, 380, 381, 382]])
EYE_CORNERS: Final[Indices] = np.array([[33, 133], [263, 362]])
#: Points that lids do not move and that place an eyeball in the picture (with its corners).
NASION: Final = (168, 6, 8)
#: Where skin is plain: its colour is a face's colour.
CHEEKS: Final[Indices] = np.array([50, 280, 205, 425, 101, 330, 117, 346])

#: Portraits are kept and warped at twice the crop's resolution, with a margin that heads can move into.
OVERSAMPLING: Final = 2
MARGIN: Final = 32
#: How far the two rings around the face are from its centre, in multiples of the outline, and how much they follow the
#: head: above the chin and below it (the neck stays with the shoulders).
RINGS: Final = ((1.25, 1.0, 0.8), (1.65, 0.75, 0.25))
#: The upper lid does most of a blink.
UPPER_LID_SHARE: Final = 0.88
#: How far (interocular distances) around the lips a correction of their opening is felt.
LIP_REACH: Final = 0.22


def mouth_polygon(points: Array) -> Array:
    """The inner lips `[..., 20, D]` of a mesh `[..., 468, D]`, a closed curve from the right corner over the top."""
    order = [MOUTH_CORNERS[0], *UPPER_INNER, MOUTH_CORNERS[1], *LOWER_INNER[::-1]]
    polygon: Array = points[..., order, :]
    return polygon


def lip_gap(canonical: Array) -> Array:
    """Height `[..., 9]` of the mouth's opening along the inner lips of a mesh `[..., 468, 3]`."""
    gap: Array = canonical[..., LOWER_INNER, 1] - canonical[..., UPPER_INNER, 1]
    return gap


def lid_gap(canonical: Array) -> Array:
    """Height `[..., 2, 7]` of the eyes' opening along the lids of a mesh `[..., 468, 3]`."""
    gap: Array = canonical[..., LOWER_LIDS, 1] - canonical[..., UPPER_LIDS, 1]
    return gap


@dataclass(frozen=True)
class Portrait:
    """One photographed face."""

    name: str
    texture: Image  # the crop and its margin at OVERSAMPLING, [640, 640, 3] RGB
    canonical: Array  # [468, 3]
    pose: Pose  # in the crop
    rest: Array  # [468, 3]: the canonical mesh without expression

    @classmethod
    def of(cls, name: str, image: Image, mesh: Array, model: MorphableModel) -> Portrait:
        """From a picture `[H, W, 3]` and its mesh `[468, 3]` in pixels."""
        crop = Crop.of(model.pose(mesh))
        points = crop.points(mesh)
        canonical, pose = model.frontal(points[None])
        offset = np.array([[0, 0, MARGIN], [0, 0, MARGIN]])
        matrix = OVERSAMPLING * (crop.matrix + offset)
        matrix[:, 2] += (OVERSAMPLING - 1) / 2
        side = OVERSAMPLING * (CROP_SIDE + 2 * MARGIN)
        flags = cv2.INTER_AREA if OVERSAMPLING * crop.factor < 1 else cv2.INTER_CUBIC
        texture = cv2.warpAffine(image, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        rest = model.mean + model.neutral(canonical[0] - model.mean)
        return cls(name, texture.astype(np.uint8, copy=False), canonical[0], pose[0], rest)

    @property
    def crop(self) -> Image:
        """The picture as a clip would show it, `[256, 256, 3]`."""
        edge = OVERSAMPLING * MARGIN
        return shrink(self.texture[edge:-edge, edge:-edge])


@dataclass(frozen=True)
class Performance:
    """What one person did in front of a camera: N frames of expression, gaze of the lids, head pose and mouth."""

    expression: Array  # [N, K_exp] coefficients
    lips: Array  # [N, 9] opening of the inner lips, interocular distances
    lids: Array  # [N, 2] opening of the eyes as a share of the person's usual opening
    pose: Pose  # [N]
    points: Array  # [N, 468, 3] crop pixels
    frames: Image  # [N, 256, 256, 3] RGB
    mouth_width: float  # of the person at rest, interocular distances

    @classmethod
    def of(cls, frames: Image, points: Array, model: MorphableModel) -> Performance:
        """From a tracked clip: frames `[N, 256, 256, 3]` and meshes `[N, 468, 3]` in crop pixels."""
        canonical, pose = model.frontal(points)
        _, expression = model.fit(canonical - model.mean)
        rest = model.mean + model.neutral(np.median(canonical, axis=0) - model.mean)
        lids = lid_gap(canonical).mean(axis=-1)
        usual = np.percentile(lids, 80, axis=0)
        return cls(expression, lip_gap(canonical), lids / usual, pose, points, frames, _mouth_width(rest))

    def window(self, start: int, length: int) -> Performance:
        """A part of it."""
        part = slice(start, start + length)
        return Performance(
            self.expression[part], self.lips[part], self.lids[part], self.pose[part],
            self.points[part], self.frames[part], self.mouth_width,
        )  # fmt: skip


def _mouth_width(canonical: Array) -> float:
    return float(np.linalg.norm(canonical[MOUTH_CORNERS[1]] - canonical[MOUTH_CORNERS[0]]))


def with_openings(canonical: Array, lips: Array | None, lids: Array | None) -> Array:
    """The mesh `[468, 3]` with its inner lips `lips` `[9]` apart and its lids `lids` `[2, 7]` apart.

    Both lips share the correction and carry the skin around them with it; lids slide, the upper one the most.
    """
    moved = canonical.copy()
    if lips is not None:
        change = lips - lip_gap(canonical)
        for contour, share in ((UPPER_INNER, -0.4), (LOWER_INNER, 0.6)):
            other = LOWER_INNER if contour is UPPER_INNER else UPPER_INNER
            distance = np.linalg.norm(canonical[:, None] - canonical[contour], axis=-1)  # [468, 9]
            own = distance.min(axis=1) < np.linalg.norm(canonical[:, None] - canonical[other], axis=-1).min(axis=1)
            own[other], own[contour] = False, True
            kernel = np.exp(-((distance / 0.1) ** 2)) + 1e-9
            along = kernel @ (share * change) / kernel.sum(axis=1)
            reach = np.exp(-((distance.min(axis=1) / LIP_REACH) ** 2))
            reach[list(MOUTH_CORNERS)] = 0
            shift = along * reach * own
            shift[contour] = share * change
            moved[:, 1] += shift
    if lids is not None:
        change = lids - lid_gap(canonical)
        moved[UPPER_LIDS, 1] -= UPPER_LID_SHARE * change
        moved[LOWER_LIDS, 1] += (1 - UPPER_LID_SHARE) * change
    return moved


class Rig:
    """The triangulation of face, rings and border, the same for all faces."""

    def __init__(self, model: MorphableModel):
        opened = with_openings(model.mean, 0.3 * np.sin(np.linspace(0, np.pi, len(UPPER_INNER) + 2)[1:-1]), None)
        outline = [self._ring(model.mean, factor) for factor, _, _ in RINGS]
        flat = Pose(np.eye(3), np.array(0.6 * CROP_SIDE / 2.64), np.array([128.0, 108.0]))
        layout = np.concatenate([flat.project(np.concatenate([opened, *outline]))[:, :2], self.border])
        contours = [*MOUTH_CORNERS, *UPPER_INNER, *LOWER_INNER, *UPPER_LIDS.flat, *LOWER_LIDS.flat, *EYE_CORNERS.flat]
        triangles = _delaunay(layout, first=contours)
        lips = np.array([*UPPER_INNER, *LOWER_INNER, *MOUTH_CORNERS])
        eyes = [np.concatenate([UPPER_LIDS[i], LOWER_LIDS[i], EYE_CORNERS[i]]) for i in range(2)]
        hole = np.zeros(len(triangles), bool)
        for part in (lips, *eyes):
            hole |= np.isin(triangles, part).all(axis=1)
        self.triangles: Indices = triangles[~hole]

    @property
    def border(self) -> Array:
        """Fixed points around the crop's margin, `[B, 2]` crop pixels."""
        edge = np.linspace(-MARGIN, CROP_SIDE + MARGIN, 11)
        low, high = np.full_like(edge, edge[0]), np.full_like(edge, edge[-1])
        sides = [np.stack(s, axis=-1)[:-1] for s in ((edge, low), (high, edge), (edge[::-1], high), (low, edge[::-1]))]
        return np.concatenate(sides)

    @staticmethod
    def _ring(canonical: Array, factor: float) -> Array:
        """The outline `[36, 3]` of a mesh, blown up in the picture's plane."""
        oval = canonical[FACE_OVAL].copy()
        centre = oval[:, :2].mean(axis=0)
        oval[:, :2] = centre + factor * (oval[:, :2] - centre)
        return oval

    def vertices(self, portrait: Portrait, canonical: Array, pose: Pose, shape: Array) -> Array:
        """All vertices `[V, 3]` (crop pixels, relative depth) of a portrait's face `[468, 3]` at a pose.

        `shape` `[468, 3]` is how far the face differs from the photographed one at rest; the rings follow it.
        """
        chin = portrait.canonical[FACE_OVAL, 1] > portrait.canonical[FACE_OVAL, 1].mean()
        rings = []
        for factor, upper, lower in RINGS:
            still = portrait.pose.project(self._ring(portrait.canonical, factor))
            moved = pose.project(self._ring(portrait.canonical + shape, factor))
            follows = np.where(chin, lower, upper)[:, None]
            rings.append(still + follows * (moved - still))
        depth = np.full((len(self.border), 1), 1e3)
        return np.concatenate([pose.project(canonical), *rings, np.concatenate([self.border, depth], axis=1)])

    def render(self, portrait: Portrait, canonical: Array, pose: Pose, shape: Array, mouth: Mouth) -> Image:
        """The portrait with the face `[468, 3]` at a pose: `[512, 512, 3]` RGB, the crop at OVERSAMPLING."""
        source = self.vertices(portrait, portrait.canonical, portrait.pose, np.zeros_like(canonical))
        target = self.vertices(portrait, canonical, pose, shape)
        maps = [_affine(target[self.triangles, :2], source[self.triangles, :2])]
        for lids in range(2):
            anchors = [*EYE_CORNERS[lids], *NASION]
            maps.append(_affine(target[None, anchors, :2], source[None, anchors, :2]))
        strip = _mouth_strip()
        maps.append(_affine(target[strip, :2], mouth.points[strip, :2]))
        order = np.argsort(-target[self.triangles, 2].mean(axis=1))
        first_eye, first_mouth = len(self.triangles), len(self.triangles) + 2
        polygons = [*target[strip, :2], *(_eye_polygon(target, eye)[:, :2] for eye in range(2)), *target[self.triangles[order], :2]]
        labels = [*range(first_mouth, first_mouth + len(strip)), first_eye, first_eye + 1, *order]
        owner = _rasterise(polygons, labels)
        x, y = _sample(np.concatenate(maps), owner)
        offset, scale = (OVERSAMPLING - 1) / 2, OVERSAMPLING
        edge = OVERSAMPLING * MARGIN
        image = cv2.remap(portrait.texture, x * scale + offset + edge, y * scale + offset + edge, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        inside = owner >= first_mouth
        if inside.any():
            rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
            box = (slice(max(rows[0] - 4, 0), rows[-1] + 5), slice(max(columns[0] - 4, 0), columns[-1] + 5))
            painted = mouth.paint(x[box], y[box])
            alpha = cv2.GaussianBlur(inside[box].astype(np.float32), (5, 5), 1.0)[..., None]
            alpha = np.minimum(alpha, inside[box][..., None])
            image[box] = np.clip((1 - alpha) * image[box] + alpha * painted + 0.5, 0, 255).astype(np.uint8)
        return image


@dataclass(frozen=True)
class Mouth:
    """The inside of the mouth for one frame: the driving frame's own pixels, in the light of the portrait."""

    points: Array  # [468, 3] of the driving frame, its pixels
    frame: Image  # [256, 256, 3]
    gain: Array  # [3]

    def paint(self, x: Array, y: Array) -> Array:
        """Colours `[H, W, 3]`, 0..255, at the driving frame's positions `[H, W]`."""
        pixels = cv2.remap(self.frame, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        return pixels.astype(np.float32) * self.gain


def skin(image: Image, points: Array) -> Array:
    """Mean colour `[3]` of a face's cheeks."""
    soft = cv2.blur(image, (5, 5))
    x, y = np.clip(np.round(points[CHEEKS, :2]).astype(int), 0, image.shape[0] - 1).T
    colour: Array = soft[y, x].astype(np.float64).mean(axis=0)
    return colour


def _mouth_strip() -> Indices:
    """Triangles `[18, 3]` that fill the inner lips."""
    right, left = MOUTH_CORNERS
    u, v = UPPER_INNER, LOWER_INNER
    triangles = [(right, u[0], v[0]), (u[-1], left, v[-1])]
    for i in range(len(u) - 1):
        triangles += [(u[i], u[i + 1], v[i + 1]), (u[i], v[i + 1], v[i])]
    return np.array(triangles, dtype=np.intp)


def _eye_polygon(points: Array, eye: int) -> Array:
    outer, inner = EYE_CORNERS[eye]
    polygon: Array = points[[outer, *UPPER_LIDS[eye], inner, *LOWER_LIDS[eye][::-1]]]
    return polygon


def _affine(target: Array, source: Array) -> NDArray[np.float32]:
    """Least-squares affine maps `[T, 3, 2]` that take `target` `[T, K, 2]` to `source` `[T, K, 2]`."""
    ones = np.ones((*target.shape[:-1], 1))
    homogeneous = np.concatenate([target, ones], axis=-1)
    return (np.linalg.pinv(homogeneous, rcond=1e-7) @ source).astype(np.float32)


def _rasterise(polygons: Sequence[Array], labels: Sequence[int]) -> NDArray[np.int32]:
    """Which polygon (crop pixels) owns each pixel of the oversampled crop, the last one drawn winning; -1 for none."""
    side = CROP_SIDE * OVERSAMPLING
    owner = np.full((side, side), -1, np.int32)
    offset = (OVERSAMPLING - 1) / 2
    for polygon, label in zip(polygons, labels, strict=True):
        fixed = np.round((polygon * OVERSAMPLING + offset) * 16).astype(np.int32)
        if len(polygon) == 3:
            cv2.fillConvexPoly(owner, fixed, int(label), shift=4)
        else:
            cv2.fillPoly(owner, [fixed], int(label), shift=4)
    return owner


def _sample(maps: NDArray[np.float32], owner: NDArray[np.int32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Source positions x, y `[H, W]` (the maps' unit) of each pixel of the oversampled crop."""
    side = owner.shape[0]
    at = ((np.arange(side) + 0.5) / OVERSAMPLING - 0.5).astype(np.float32)
    chosen = maps[owner]  # [H, W, 3, 2]
    position = chosen[..., 0, :] * at[None, :, None] + chosen[..., 1, :] * at[:, None, None] + chosen[..., 2, :]
    return np.ascontiguousarray(position[..., 0]), np.ascontiguousarray(position[..., 1])


def _delaunay(points: Array, first: Sequence[int], apart: float = 1.5) -> Indices:
    """Delaunay triangles `[T, 3]` of points `[V, 2]`, those of `first` before the others.

    The mesh curls inwards at lips and nostrils; points that come within `apart` of earlier ones are left out, because
    triangles between them would fold at the first movement.
    """
    low = points.min(axis=0) - 1
    width, height = np.ceil(points.max(axis=0) - low).astype(int) + 2
    division = cv2.Subdiv2D((0, 0, int(width), int(height)))
    local = (points - low).astype(np.float32)
    chosen: list[int] = []
    for index in dict.fromkeys([*first, *range(len(points))]):
        if index in first or np.linalg.norm(local[chosen] - local[index], axis=-1).min() >= apart:
            chosen.append(index)
            division.insert((float(local[index, 0]), float(local[index, 1])))
    corners = division.getTriangleList().reshape(-1, 3, 1, 2)
    distance = np.linalg.norm(corners - local[chosen], axis=-1)  # [T, 3, chosen]
    real = (distance.min(axis=-1) < 1e-2).all(axis=-1)
    return np.array(chosen)[distance.argmin(axis=-1)[real]]


def shrink(image: Image) -> Image:
    """An oversampled picture at the crop's resolution."""
    side = image.shape[0] // OVERSAMPLING
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
