"""Where the head is: the portrait's own pose with idle motion, or with the motion of a driving video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avatard.engine.identity import Identity
from avatard.engine.idle_motion import Idle
from avatard.media.video_file import read_frames
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose, smooth

MAX_DRIVING_FRAMES = 1500  # a minute; then it starts again backwards


class PoseVideoError(ValueError):
    """A driving video cannot be used; one line."""


class DrivingPose:
    """The head pose of a video, relative to its first frame; played forwards and backwards without end.

    Source: the paper, section 3.3, takes the pose of the driving video by POS.

    Raises:
        PoseVideoError: there is no face in it.
    """

    def __init__(self, path: Path) -> None:
        tracker, morphable = FaceTracker(FaceMesh()), MorphableModel.load()
        poses: list[Pose] = []
        for frame in read_frames(path):
            mesh = tracker(frame)
            if mesh is not None:
                poses.append(morphable.pose(mesh.astype(np.float64)))
            elif poses:
                poses.append(poses[-1])
            if len(poses) == MAX_DRIVING_FRAMES:
                break
        if not poses:
            raise PoseVideoError(f"{path}: no face found in the driving video")
        pose = smooth(
            Pose(*(np.stack([getattr(p, name) for p in poses]) for name in ("rotation", "scale", "translation")))
        )
        first = pose[0]
        self._rotation = pose.rotation @ first.rotation.T
        self._scale = pose.scale / first.scale
        self._shift = (pose.translation - first.translation) / first.scale

    def __call__(self, base: Pose, frame: int) -> Pose:
        """The pose of an absolute frame for a face whose own pose is `base`."""
        count = len(self._scale)
        there = frame % max(1, 2 * count - 2)
        n = min(there, 2 * count - 2 - there) if count > 1 else 0
        shift = base.translation + base.scale * self._shift[n]
        return Pose(self._rotation[n] @ base.rotation, base.scale * self._scale[n], shift)


class IdlePose:
    """The portrait's pose with small, seeded head motion."""

    def __init__(self, identity: Identity, seed: int, motion: float) -> None:
        self._idle = Idle(MorphableModel.load().mean_68 + identity.neutral, seed)
        self._motion = motion

    def __call__(self, base: Pose, frame: int) -> Pose:
        """As `DrivingPose`."""
        rotations, shifts = self._idle.head(frame, 1)
        turn = _fraction(rotations[0].astype(np.float64), self._motion)
        return Pose(turn @ base.rotation, base.scale, base.translation + base.scale * self._motion * shifts[0])


def _fraction(rotation: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """A share of a small rotation (Rodrigues' formula)."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine = float(np.linalg.norm(axis)) / 2
    if sine < 1e-9:
        return np.eye(3)
    angle = share * np.arctan2(sine, (np.trace(rotation) - 1) / 2)
    x, y, z = axis / (2 * sine)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    return turned


def quaternion(rotation: NDArray[np.floating]) -> NDArray[np.float32]:
    """The unit quaternion x, y, z, w of a rotation matrix [3, 3], w ≥ 0. Source: Shepperd (1978)."""
    r = np.asarray(rotation, np.float64)
    trace = np.trace(r)
    squares = np.array([1 + 2 * r[0, 0] - trace, 1 + 2 * r[1, 1] - trace, 1 + 2 * r[2, 2] - trace, 1 + trace])
    largest = int(np.argmax(squares))
    off = np.array(
        [
            [squares[0], r[1, 0] + r[0, 1], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
            [r[1, 0] + r[0, 1], squares[1], r[2, 1] + r[1, 2], r[0, 2] - r[2, 0]],
            [r[0, 2] + r[2, 0], r[2, 1] + r[1, 2], squares[2], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], squares[3]],
        ]
    )[largest]
    q = off / np.linalg.norm(off)
    unit: NDArray[np.float32] = (q if q[3] >= 0 else -q).astype(np.float32)
    return unit
