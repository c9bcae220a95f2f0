"""Face detection and the 468-point mesh: MediaPipe's short-range detector and face-landmark network on LiteRT.

Source: Bazarevsky et al., "BlazeFace" (2019); Kartynnik et al., "Real-time Facial Surface Geometry from Monocular
Video" (2019).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.checkpoint import verified
from avatard.models.face.topology import MESH_VERTICES

if TYPE_CHECKING:
    from pathlib import Path

Image = NDArray[np.uint8]  # [H, W, 3], RGB
Points = NDArray[np.float32]

DETECTOR_SIDE: Final = 128
MESH_SIDE: Final = 192
#: The eye corners that give a mesh its in-plane angle.
OUTER_EYE_CORNERS: Final = (33, 263)


@dataclass(frozen=True)
class Region:
    """A square of the image, turned by `angle`: where the mesh network looks."""

    centre: tuple[float, float]  # pixels
    side: float  # pixels
    angle: float  # radians, clockwise

    def to_image(self, side: int) -> NDArray[np.float64]:
        """Affine map `[2, 3]` from pixels of a `side`-wide crop to pixels of the image."""
        c, s = math.cos(self.angle) * self.side / side, math.sin(self.angle) * self.side / side
        half = side / 2
        return np.array(
            [
                [c, -s, self.centre[0] - (c - s) * half],
                [s, c, self.centre[1] - (s + c) * half],
            ]
        )


@dataclass(frozen=True)
class Detection:
    """One face found by the detector."""

    score: float  # 0..1
    box: tuple[float, float, float, float]  # left, top, right, bottom in pixels
    eyes: tuple[tuple[float, float], tuple[float, float]]  # centres of the subject's right and left eye, pixels

    @property
    def region(self) -> Region:
        """The square around the box with a quarter of margin on each side, turned with the eyes."""
        left, top, right, bottom = self.box
        (rx, ry), (lx, ly) = self.eyes
        return Region(
            ((left + right) / 2, (top + bottom) / 2),
            1.5 * max(right - left, bottom - top),
            math.atan2(ly - ry, lx - rx),
        )

    def mapped(self, factor: float, x: float, y: float) -> Detection:
        """The same face in a picture `factor` times as large that begins `x`, `y` of its pixels further left and up."""
        left, top, right, bottom = self.box
        (rx, ry), (lx, ly) = self.eyes
        return Detection(
            self.score,
            (left * factor + x, top * factor + y, right * factor + x, bottom * factor + y),
            ((rx * factor + x, ry * factor + y), (lx * factor + x, ly * factor + y)),
        )


def region_of(points: Points) -> Region:
    """The square around a mesh `[468, 3]`, for the next pass or the next frame of a video."""
    right, left = points[OUTER_EYE_CORNERS[0], :2], points[OUTER_EYE_CORNERS[1], :2]
    angle = math.atan2(left[1] - right[1], left[0] - right[0])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    upright = points[:, :2] @ turn
    low, high = upright.min(axis=0), upright.max(axis=0)
    x, y = turn @ ((low + high) / 2)
    return Region((float(x), float(y)), 1.5 * float((high - low).max()), angle)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the process's standard error silent: LiteRT announces its delegate there and has no switch for it."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


class LiteRtNetwork:
    """A LiteRT network with one input, one thread."""

    def __init__(self, path: Path):
        from ai_edge_litert.interpreter import Interpreter

        with _quiet():
            self._interpreter = Interpreter(str(path), num_threads=1)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [detail["index"] for detail in self._interpreter.get_output_details()]

    def __call__(self, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Its outputs for one picture `[h, w, 3]` of the size it wants."""
        self._interpreter.set_tensor(self._input, image[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


def _anchors() -> NDArray[np.float32]:
    """Anchor centres `[896, 2]` in 0..1: 2 a cell on the 16x16 grid, 6 a cell on the 8x8 grid."""
    grids = []
    for cells, repeats in ((16, 2), (8, 6)):
        centre = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        x, y = np.meshgrid(centre, centre)
        grids.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=-1), repeats, axis=0))
    return np.concatenate(grids)


class FaceMesh:
    """Detector and mesh network. Not thread-safe: give each thread its own."""

    def __init__(self) -> None:
        self._detector = LiteRtNetwork(verified("face_detection_short_range.tflite"))
        self._mesh = LiteRtNetwork(verified("face_landmark.tflite"))
        self._anchors = _anchors()

    def detect(self, image: Image, threshold: float = 0.5) -> list[Detection]:
        """Faces in the image, best first. The face should be at least a sixth of the longer side."""
        height, width = image.shape[:2]
        side = max(height, width)
        square = self._letterbox(image, side)
        raw, logits = self._detector(square.astype(np.float32) / 127.5 - 1.0)
        scores = 1.0 / (1.0 + np.exp(-np.clip(logits[0, :, 0], -80, 80)))
        chosen = np.flatnonzero(scores >= threshold)
        if not len(chosen):
            return []
        values = raw[0, chosen].reshape(len(chosen), 8, 2) / DETECTOR_SIDE
        values[:, [0, 2, 3, 4, 5, 6, 7]] += self._anchors[chosen, None]
        offset = np.array([(side - width) / 2, (side - height) / 2], np.float32)
        size = (values[:, 1] * side).astype(np.float32)
        values = (values * side - offset).astype(np.float32)
        return _merge(scores[chosen].astype(np.float32), values[:, 0], size, values[:, 2:4])

    @staticmethod
    def _letterbox(image: Image, side: int) -> Image:
        """The whole image, area-averaged, centred in a black square of `DETECTOR_SIDE`."""
        height, width = image.shape[:2]
        h, w = max(1, round(height * DETECTOR_SIDE / side)), max(1, round(width * DETECTOR_SIDE / side))
        square = np.zeros((DETECTOR_SIDE, DETECTOR_SIDE, 3), np.uint8)
        top, left = (DETECTOR_SIDE - h) // 2, (DETECTOR_SIDE - w) // 2
        square[top : top + h, left : left + w] = cv2.resize(image, (w, h), interpolation=cv2.INTER_AREA)
        return square

    def mesh(self, image: Image, region: Region) -> tuple[Points, float]:
        """Mesh `[468, 3]` in image pixels (z: relative depth, away from the viewer) and the face's presence, 0..1."""
        to_image = region.to_image(MESH_SIDE)
        # A large face is sampled more finely and averaged: single samples of a sharp photograph are noise.
        fine = min(8, max(1, int(region.side / MESH_SIDE)))
        to_fine = to_image.copy()
        to_fine[:, :2] /= fine
        to_fine[:, 2] -= to_fine[:, :2].sum(axis=1) * (fine - 1) / 2
        size = (MESH_SIDE * fine, MESH_SIDE * fine)
        crop = cv2.warpAffine(image, to_fine, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        if fine > 1:
            crop = cv2.resize(crop, (MESH_SIDE, MESH_SIDE), interpolation=cv2.INTER_AREA)
        raw, logit = self._mesh(crop.astype(np.float32) / 255.0)
        local = raw.reshape(MESH_VERTICES, 3)
        points = np.empty((MESH_VERTICES, 3), np.float32)
        points[:, :2] = local[:, :2] @ to_image[:, :2].T + to_image[:, 2]
        points[:, 2] = local[:, 2] * (region.side / MESH_SIDE)
        return points, float(1.0 / (1.0 + np.exp(-np.clip(logit, -80, 80).item())))

    def refine(self, image: Image, detection: Detection) -> tuple[Points, float]:
        """Two passes: the second looks where the first mesh says the face is."""
        points, _ = self.mesh(image, detection.region)
        return self.mesh(image, region_of(points))


def _merge(
    scores: NDArray[np.float32], centres: Points, sizes: Points, eyes: Points, overlap: float = 0.3
) -> list[Detection]:
    """Weighted non-maximum suppression: overlapping boxes become their score-weighted mean."""
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=-1)
    left = list(np.argsort(-scores))
    found = []
    while left:
        best = boxes[left[0]]
        low, high = np.maximum(best[:2], boxes[left, :2]), np.minimum(best[2:], boxes[left, 2:])
        common = np.prod(np.clip(high - low, 0, None), axis=-1)
        union = np.prod(best[2:] - best[:2]) + np.prod(boxes[left, 2:] - boxes[left, :2], axis=-1) - common
        same = common / np.maximum(union, 1e-6) > overlap
        same[0] = True
        group = np.array(left)[same]
        weight = scores[group] / scores[group].sum()
        box = (boxes[group] * weight[:, None]).sum(axis=0)
        (rx, ry), (lx, ly) = (eyes[group] * weight[:, None, None]).sum(axis=0)
        found.append(
            Detection(
                float(scores[group[0]]),
                (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                ((float(rx), float(ry)), (float(lx), float(ly))),
            )
        )
        left = [i for i, s in zip(left, same, strict=True) if not s]
    return found


class FaceTracker:
    """Follows a face through a video: by the mesh of the last frame, and by the detector when it is lost."""

    def __init__(self, mesh: FaceMesh, presence: float = 0.5):
        self._mesh, self._presence = mesh, presence
        self._region: Region | None = None

    def __call__(self, image: Image) -> Points | None:
        """Mesh `[468, 3]` in pixels of the largest face, or None where there is none."""
        if self._region is not None:
            points, presence = self._mesh.mesh(image, self._region)
            if presence >= self._presence:
                self._region = region_of(points)
                return points
        self._region = None
        detections = self._mesh.detect(image)
        if not detections:
            return None
        largest = max(detections, key=lambda d: d.box[2] - d.box[0])
        points, presence = self._mesh.refine(image, largest)
        if presence < self._presence:
            return None
        self._region = region_of(points)
        return points
