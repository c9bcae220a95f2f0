"""Where the head is: the portrait's own pose with idle motion, or with the motion of a driving video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from avatard.engine.idle_motion import Idle
from avatard.errors import UserError
from avatard.media.video_file import read_frames
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose, smooth

MAX_DRIVING_FRAMES = 1500  # a minute; then it starts again backwards


class PoseVideoError(UserError):
    """A driving video cannot be used."""

    CODE = "pose-video"


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

    def __init__(self, idle: Idle, motion: float) -> None:
        self._idle = idle
        self._motion = motion

    def __call__(self, base: Pose, frame: int) -> Pose:
        """As `DrivingPose`."""
        rotations, shifts = self._idle.head(frame, 1)
        turn = (Rotation.from_matrix(rotations[0]) ** self._motion).as_matrix()
        return Pose(turn @ base.rotation, base.scale, base.translation + base.scale * self._motion * shifts[0])
