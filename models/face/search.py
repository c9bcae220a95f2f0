"""Every face in a still picture, whatever its size: the short-range detector on overlapping tiles.

The detector sees 128x128 pixels and misses faces below about a sixth of that. Tiles of half, a quarter and an eighth of
the picture's longer side bring small faces back; the mesh network then says which of the finds are faces.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import cv2
import numpy as np

from avatard.models.face.mesh import DETECTOR_SIDE, Detection, FaceMesh, Image, Points

#: Of the detector's picture: faces below are missed.
SMALLEST_SHARE: Final = 1 / 6

Box = tuple[float, float, float, float]  # left, top, right, bottom

#: Tiles are at least this large (pixels) and this share of the longer side: 232 of them at most, about 0.3 s.
MIN_TILE: Final = 160.0
MIN_TILE_SHARE: Final = 1 / 8
#: Presence, 0..1, that the mesh network must see: tiles show the detector much that is no face.
MIN_PRESENCE: Final = 0.99
#: Two boxes are one face when they share this much of the smaller one.
SAME_FACE: Final = 0.5


def smallest_face(image: Image) -> float:
    """Height in pixels below which faces in an image `[H, W, 3]` are missed."""
    height, width = image.shape[:2]
    smallest_tile: float = max(MIN_TILE, max(height, width) * MIN_TILE_SHARE)
    return smallest_tile * SMALLEST_SHARE


def find_faces(mesh: FaceMesh, image: Image) -> list[Points]:
    """Meshes `[468, 3]` in pixels of all faces in an image `[H, W, 3]`, from the left of the picture to the right."""
    detections: list[Detection] = []
    for detection in _candidates(mesh, image):
        if not any(_common(detection.box, other.box) > SAME_FACE for other in detections):
            detections.append(detection)
    refined = sorted((mesh.refine(image, detection) for detection in detections), key=lambda face: -face[1])
    faces: list[Points] = []
    for points, presence in refined:
        if presence >= MIN_PRESENCE and not any(_common(_box(points), _box(other)) > SAME_FACE for other in faces):
            faces.append(points)
    return sorted(faces, key=lambda points: float(points[:, 0].mean()))


def _candidates(mesh: FaceMesh, image: Image) -> Iterator[Detection]:
    """What the detector finds in the whole picture and in half overlapping tiles, large ones first."""
    yield from mesh.detect(image)
    height, width = image.shape[:2]
    tile = max(height, width) / 2
    while tile >= max(MIN_TILE, max(height, width) * MIN_TILE_SHARE):
        factor = tile / DETECTOR_SIDE
        h, w = max(1, round(height / factor)), max(1, round(width / factor))
        level = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
        step = DETECTOR_SIDE // 2
        for top in range(0, step * max(1, math.ceil(h / step) - 1), step):
            for left in range(0, step * max(1, math.ceil(w / step) - 1), step):
                window = level[top : top + DETECTOR_SIDE, left : left + DETECTOR_SIDE]
                for detection in mesh.detect(window):
                    yield detection.mapped(factor, left * factor, top * factor)
        tile /= 2


def _box(points: Points) -> Box:
    left, top = points[:, :2].min(axis=0)
    right, bottom = points[:, :2].max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _common(a: Box, b: Box) -> float:
    """The area that two boxes share, as a part of the smaller one."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return width * height / smaller if smaller > 0 else 0.0
