"""Mesh warp of a photographed face: its mesh, rings around it and a fixed border, to any expression and pose.

The triangulation is made once on the mean face. Each picture takes the portrait's own pixels from the photographed
mesh to the wanted one, triangle by triangle. What a portrait does not show is painted behind two kinds of holes:
eyeballs stay with the head while the lids slide over them, and the inside of the mouth comes from another picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.crop import Crop
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.face.topology import (
    EYE_CORNERS,
    LID_CREASES,
    LOWER_INNER,
    LOWER_LIDS,
    MESH_VERTICES,
    MOUTH_CORNERS,
    UPPER_INNER,
    UPPER_LIDS,
)
from avatard.models.training.synthesis.piecewise_affine import affine, delaunay, rasterise, sample, signed_area
from avatard.timebase import CROP_SIDE

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
#: Points that lids do not move and that place an eyeball in the picture (with its corners).
NASION: Final = (168, 6, 8)
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


def lip_gap(canonical: Array) -> Array:
    """Height `[..., 9]` of the mouth's opening along the inner lips of a mesh `[..., 468, 3]`."""
    gap: Array = canonical[..., LOWER_INNER, 1] - canonical[..., UPPER_INNER, 1]
    return gap


def lid_gap(canonical: Array) -> Array:
    """Height `[..., 2, 7]` of the eyes' opening along the lids of a mesh `[..., 468, 3]`."""
    gap: Array = canonical[..., LOWER_LIDS, 1] - canonical[..., UPPER_LIDS, 1]
    return gap


@dataclass(frozen=True)
class PortraitMesh:
    """One photographed face."""

    name: str
    texture: Image  # the crop and its margin at OVERSAMPLING, [640, 640, 3] RGB
    canonical: Array  # [468, 3]
    pose: Pose  # in the crop
    rest: Array  # [468, 3]: the canonical mesh without expression

    @classmethod
    def of(cls, name: str, image: Image, mesh: Array, model: MorphableModel) -> PortraitMesh:
        """From a picture `[H, W, 3]` and its mesh `[468, 3]` in pixels."""
        crop = Crop.of(model.pose(mesh))
        points = crop.points(mesh)
        canonical, pose = model.frontal(points[None])
        offset = np.array([[0, 0, MARGIN], [0, 0, MARGIN]])
        matrix = OVERSAMPLING * (crop.matrix + offset)
        matrix[:, 2] += (OVERSAMPLING - 1) / 2
        side = OVERSAMPLING * (CROP_SIDE + 2 * MARGIN)
        flags = cv2.INTER_AREA if OVERSAMPLING * crop.factor < 1 else cv2.INTER_CUBIC
        texture = cv2.warpAffine(image, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        rest = model.mean + model.neutral(canonical[0] - model.mean)
        return cls(name, texture.astype(np.uint8, copy=False), canonical[0], pose[0], rest)

    @property
    def crop(self) -> Image:
        """The picture as a clip would show it, `[256, 256, 3]`."""
        edge = OVERSAMPLING * MARGIN
        return shrink(self.texture[edge:-edge, edge:-edge])


def mouth_width(canonical: Array) -> float:
    """Distance between the mouth's corners of a mesh `[468, 3]`."""
    return float(np.linalg.norm(canonical[MOUTH_CORNERS[1]] - canonical[MOUTH_CORNERS[0]]))


def with_openings(canonical: Array, lips: Array | None, lids: Array | None) -> Array:
    """The mesh `[468, 3]` with its inner lips `lips` `[9]` apart and its lids `lids` `[2, 7]` apart.

    Both lips share the correction and carry the skin around them with it; lids slide, the upper one the most.
    """
    moved = canonical.copy()
    if lips is not None:
        change = lips - lip_gap(canonical)
        line = (canonical[UPPER_INNER] + canonical[LOWER_INNER]) / 2
        below = canonical[:, 1] > np.interp(canonical[:, 0], line[:, 0], line[:, 1])
        below[UPPER_INNER], below[LOWER_INNER] = False, True
        for contour, side, share in ((UPPER_INNER, ~below, -0.4), (LOWER_INNER, below, 0.6)):
            distance = np.linalg.norm(canonical[:, None] - canonical[contour], axis=-1)  # [468, 9]
            kernel = np.exp(-((distance / 0.1) ** 2)) + 1e-9
            along = kernel @ (share * change) / kernel.sum(axis=1)
            reach = np.exp(-((distance.min(axis=1) / LIP_REACH) ** 2))
            reach[list(MOUTH_CORNERS)] = 0
            shift = along * reach * side
            shift[contour] = share * change
            moved[:, 1] += shift
    if lids is not None:
        change = lids - lid_gap(canonical)
        moved[UPPER_LIDS, 1] -= UPPER_LID_SHARE * change
        moved[LOWER_LIDS, 1] += (1 - UPPER_LID_SHARE) * change
    return moved


@dataclass(frozen=True)
class Opening:
    """Where a rendered picture shows the inside of the mouth, and which pixels of another picture belong there."""

    inside: NDArray[np.bool_]  # [512, 512]
    x: NDArray[np.float32]  # [512, 512] pixels of the other picture, where inside
    y: NDArray[np.float32]


class MeshWarper:
    """The triangulation of face, rings and border, the same for all faces."""

    def __init__(self, model: MorphableModel):
        opened = with_openings(model.mean, 0.3 * np.sin(np.linspace(0, np.pi, len(UPPER_INNER) + 2)[1:-1]), None)
        outline = [self._ring(model.mean, factor) for factor, _, _ in RINGS]
        flat = Pose(np.eye(3), np.array(0.6 * CROP_SIDE / 2.64), np.array([128.0, 108.0]))
        layout = np.concatenate([flat.project(np.concatenate([opened, *outline]))[:, :2], self.border])
        contours = [*MOUTH_CORNERS, *UPPER_INNER, *LOWER_INNER, *UPPER_LIDS.flat, *LOWER_LIDS.flat, *EYE_CORNERS.flat]
        triangles = delaunay(layout, first=contours)
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

    def vertices(self, portrait: PortraitMesh, canonical: Array, pose: Pose, shape: Array) -> Array:
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

    def _order(self, target: Array) -> Indices:
        """Triangles that face the viewer in the order of drawing: what surrounds the face, then the nearer the later.

        A turned head folds the mesh at its outline; what is folded over faces away and is hidden by the cheek.
        """
        depth = target[self.triangles, 2].mean(axis=1)
        depth[(self.triangles >= MESH_VERTICES).any(axis=1)] += 1e4
        order = np.argsort(-depth)
        towards: Indices = order[signed_area(target[self.triangles, :2])[order] > 0]
        return towards

    def render(
        self, portrait: PortraitMesh, canonical: Array, pose: Pose, shape: Array, inner_lips: Array
    ) -> tuple[Image, Opening]:
        """The portrait with the face `[468, 3]` at a pose, `[512, 512, 3]` RGB (oversampled), and its mouth.

        `inner_lips` `[468, 2]` places the inner lips in the picture that the mouth's inside will come from.
        """
        source = self.vertices(portrait, portrait.canonical, portrait.pose, np.zeros_like(shape))
        target = self.vertices(portrait, canonical, pose, shape)
        closing = 1 - lid_gap(canonical).mean(axis=-1) / lid_gap(portrait.canonical + shape).mean(axis=-1)
        closing = np.clip((closing - 0.1) / 0.3, 0, 1)
        skin = _without_lashes(_without_mouth(source), closing)
        visible = self.triangles[self._order(target)]
        eyes = np.array([[*EYE_CORNERS[eye], *NASION] for eye in range(2)])
        maps = np.concatenate(
            [
                affine(target[MOUTH_STRIP, :2], inner_lips[MOUTH_STRIP, :2]),
                affine(target[eyes, :2], in_texture(source[eyes, :2])),
                affine(target[visible, :2], in_texture(skin[visible, :2])),
            ]
        )
        eyelids = [target[_eye_outline(eye), :2] for eye in range(2)]
        polygons = [*target[MOUTH_STRIP, :2], *eyelids, *target[visible, :2]]
        owner = rasterise(polygons, CROP_SIDE, OVERSAMPLING)
        x, y = sample(maps, owner, OVERSAMPLING)
        warped = cv2.remap(portrait.texture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        image = np.asarray(warped, np.uint8)
        for eye in np.flatnonzero(closing):
            _draw_lashes(image, target, int(eye), float(closing[eye]))
        return image, Opening((owner >= 0) & (owner < len(MOUTH_STRIP)), x, y)


def in_texture(points: Array) -> Array:
    """Crop pixels `[..., 2]` as pixels of a portrait's texture."""
    placed: Array = OVERSAMPLING * (points + MARGIN) + (OVERSAMPLING - 1) / 2
    return placed


def _without_mouth(source: Array, outset: float = 1.2) -> Array:
    """Vertices whose inner lips lie `outset` pixels inside the lips' flesh where the mouth is open.

    The tracker's contour touches the teeth; their pixels must not travel with the lips when those close.
    """
    moved = source.copy()
    height = source[LOWER_INNER, 1] - source[UPPER_INNER, 1]
    shift = outset * np.clip(height / 3, 0, 1)
    moved[UPPER_INNER, 1] -= shift
    moved[LOWER_INNER, 1] += shift
    wide = outset * np.clip(height.max() / 3, 0, 1)
    moved[MOUTH_CORNERS[0], 0] -= wide
    moved[MOUTH_CORNERS[1], 0] += wide
    return moved


def _without_lashes(source: Array, closing: Array) -> Array:
    """Vertices whose upper lids lie in the skin above them, by how much each eye `[2]` closes.

    The tracker's lids cut through lashes and iris, whose pixels would be drawn out over the eyeball.
    """
    moved = source.copy()
    moved[UPPER_LIDS] += 0.6 * closing[:, None, None] * (source[LID_CREASES] - source[UPPER_LIDS])
    return moved


def _draw_lashes(image: Image, target: Array, eye: int, strength: float) -> None:
    """Darken a thin line along a closing upper lid."""
    line = target[[EYE_CORNERS[eye, 0], *UPPER_LIDS[eye], EYE_CORNERS[eye, 1]], :2]
    fixed = np.round((OVERSAMPLING * line + (OVERSAMPLING - 1) / 2) * 16).astype(np.int32)
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.polylines(mask, [fixed], False, 255, 3, cv2.LINE_AA, shift=4)
    (left, top), (right, bottom) = fixed.min(axis=0) // 16 - 8, fixed.max(axis=0) // 16 + 8
    box = (slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0)))
    alpha = 0.6 * strength * cv2.GaussianBlur(mask[box], (5, 5), 1.2).astype(np.float32)[..., None] / 255
    image[box] = (image[box] * (1 - alpha * np.array([0.75, 0.85, 0.88]))).astype(np.uint8)


def _strip() -> Indices:
    """Triangles `[18, 3]` that fill the inner lips."""
    right, left = MOUTH_CORNERS
    u, v = UPPER_INNER, LOWER_INNER
    triangles = [(right, u[0], v[0]), (u[-1], left, v[-1])]
    for i in range(len(u) - 1):
        triangles += [(u[i], u[i + 1], v[i + 1]), (u[i], v[i + 1], v[i])]
    return np.array(triangles, dtype=np.intp)


MOUTH_STRIP: Final = _strip()


def _eye_outline(eye: int) -> Indices:
    outer, inner = EYE_CORNERS[eye]
    return np.array([outer, *UPPER_LIDS[eye], inner, *LOWER_LIDS[eye][::-1]])


def shrink(image: Image) -> Image:
    """An oversampled picture at the crop's resolution."""
    side = image.shape[0] // OVERSAMPLING
    return cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
