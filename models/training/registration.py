"""Registration of a clip's meshes to its pictures, for training data.

The mesh network sees one frame at a time: between two frames of a clip its points wander by about half a pixel, and its
mouths open less than the real ones. That is little to look at and much to learn from: a warp of one frame onto another
is off by as much, and what is trained on such pairs learns to move half-heartedly. Dense optical flow, which sees
both frames, finds what is left; smoothed, it corrects the points.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from avatard.models.face import warp
from avatard.models.face.topology import INNER_LIP, LEFT_EYE, MESH_TO_68, RIGHT_EYE, mouth_opening

Array = NDArray[np.floating]
Picture = NDArray[np.uint8]

#: How often a frame is warped and corrected; side of the warp's flow.
ROUNDS, CELLS = 2, 32
#: The square of a crop that holds the face, pixels: looking only there halves the work.
FACE = (slice(48, 240), slice(32, 224))
#: Standard deviation of the smoothing and the largest correction of a round, pixels of the crop.
SMOOTHING, LARGEST = 6.0, 4.0


def register(frames: Sequence[Picture], meshes: Array) -> Array:
    """One clip's meshes, in step with its pictures.

    All frames are registered to the one with the median mouth opening: from there neither a closed nor a wide mouth is
    far.

    Args:
        frames: the crops, N of `[256, 256, 3]`, RGB.
        meshes: `[N, 468, 3]`, pixels of the crop.

    Returns:
        `[N, 468, 3]`; depth and the median frame's points as they were.
    """
    registered = meshes.astype(np.float64)
    corner = (FACE[1].start, FACE[0].start)
    anchor = int(np.argsort(mouth_opening(meshes[:, MESH_TO_68]))[len(meshes) // 2])
    luma = [np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8) for frame in frames]
    faces = [np.ascontiguousarray(picture[FACE]) for picture in luma]
    enlarged, source = warp.enlarge(luma[anchor]), _points(registered[anchor])
    optical_flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    for n in np.delete(np.arange(len(frames)), anchor):
        for _ in range(ROUNDS):
            target = _points(registered[n])
            predicted = warp.remap(enlarged, warp.landmark_flow(source, target, target, CELLS).numpy())
            # What is left: face(p) = predicted(p + left(p)).
            left = np.zeros((*faces[n].shape, 2), np.float32)
            optical_flow.calc(faces[n], np.ascontiguousarray(predicted[FACE]), left)
            registered[n, :, :2] -= _smoothed(left, registered[n, :, :2] - corner).clip(-LARGEST, LARGEST)
    return registered


def _points(mesh: Array) -> torch.Tensor:
    """The 68 points `[68, 2]` of a mesh, normalised."""
    return warp.normalise(torch.from_numpy(mesh[MESH_TO_68].astype(np.float32)))


def _smoothed(flow: NDArray[np.float32], mesh: Array) -> Array:
    """A flow `[H, W, 2]` at the points of a mesh `[468, 2]`, taken from the skin and lips around them.

    Neither the background nor what open eyes and an open mouth show moves with the face.
    """
    points = mesh.astype(np.float32)
    skin = np.zeros(flow.shape[:2], np.float32)
    cv2.fillConvexPoly(skin, cv2.convexHull(points).round().astype(np.int32), 1.0)
    holes = [points[MESH_TO_68[part]].round().astype(np.int32) for part in (INNER_LIP, RIGHT_EYE, LEFT_EYE)]
    cv2.fillPoly(skin, holes, 0.0)
    weight = cv2.GaussianBlur(skin, (0, 0), SMOOTHING)
    mean = cv2.GaussianBlur(flow * skin[..., None], (0, 0), SMOOTHING) / np.maximum(weight, 1e-3)[..., None]
    found: Array = cv2.remap(mean, points[None, :, 0], points[None, :, 1], cv2.INTER_LINEAR)[0]
    return found
