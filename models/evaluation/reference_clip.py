"""Real videos that generated ones are compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.face.topology import MESH_TO_68, eye_opening, mouth_opening
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.pixels import Pictures, to_tensor
from avatard.models.training.clips import Clip, Entry, in_turns
from avatard.timebase import CROP_SIDE

Floats = NDArray[np.floating]

#: Eyes are open in a frame if their opening is at least this share of the clip's median.
OPEN_EYES = 0.85


def choose_clips(folder: Path, entries: Iterable[Entry], count: int, least_frames: int = 16) -> list[Entry]:
    """At most `count` real clips, one of each person before a second one of anyone.

    Animated portraits are no ground truth, and faces that leave the picture are tracking errors.
    """
    usable = (entry for entry in entries if entry.frames >= least_frames and not entry.animated)
    return list(islice((entry for entry in in_turns(usable) if _stays_inside(folder / entry.path)), count))


def _stays_inside(path: Path) -> bool:
    points = Clip(path).points[:, MESH_TO_68, :2]
    return bool((points >= 0).all() and (points < CROP_SIDE).all())


@dataclass(frozen=True)
class ReferenceClip:
    """A real video and the frame that serves as its portrait: with open eyes, the most closed mouth."""

    name: str
    clip: Clip
    frames: Pictures  # [N, 256, 256, 3]
    points: Floats  # [N, 68, 2], pixels
    reference: int  # number of the portrait's frame

    @classmethod
    def read(cls, folder: Path, entry: Entry) -> ReferenceClip:
        """From a prepared folder."""
        clip = Clip(folder / entry.path)
        points = clip.points[:, MESH_TO_68, :2]
        name = f"{entry.source}-{entry.speaker}-{entry.clip}"
        reference = int(np.argmin(np.where(_eyes_open(points), mouth_opening(points), np.inf)))
        return cls(name, clip, clip.frames(), points, reference)

    def from_first_open_eyes(self) -> ReferenceClip:
        """The same with the first frame with open eyes as the portrait."""
        return replace(self, reference=int(np.argmax(_eyes_open(self.points))))

    @property
    def portrait(self) -> NDArray[np.uint8]:
        """`[256, 256, 3]`."""
        portrait: NDArray[np.uint8] = self.frames[self.reference]
        return portrait


def _eyes_open(points: Floats) -> NDArray[np.bool_]:
    """In which frames `[N, 68, 2]` the eyes are open, `[N]`."""
    eyes = eye_opening(points).mean(axis=-1)
    opened: NDArray[np.bool_] = eyes >= OPEN_EYES * np.median(eyes)
    return opened


@dataclass(frozen=True)
class GroundTruth:
    """A reference clip as the networks take it."""

    real: ReferenceClip
    geometry: Geometry

    @classmethod
    def of(cls, real: ReferenceClip, morphable: MorphableModel) -> GroundTruth:
        """The portrait is the clip's own reference frame."""
        clip, n = real.clip, real.reference
        landmarks, poses = clip.landmarks, clip.pose
        rest = np.broadcast_to(landmarks[n] + morphable.mean_68, landmarks.shape)
        geometry = Geometry(
            torch.from_numpy(poses[n].project(rest[0])[None, :, :2]).float(),
            torch.from_numpy(poses.project(rest)[None, :, :, :2]).float(),
            torch.from_numpy(poses.project(landmarks + morphable.mean_68)[None, :, :, :2]).float(),
        )
        return cls(real, geometry)

    @cached_property
    def picture(self) -> Tensor:
        """The portrait `[1, 3, 256, 256]` in [-1, 1]."""
        return to_tensor(self.portrait[None])

    @property
    def portrait(self) -> NDArray[np.uint8]:
        """RGB `[256, 256, 3]`."""
        return self.real.portrait

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """The portrait's offsets from the mean face `[68, 3]`, interocular distances."""
        landmarks: NDArray[np.float32] = self.real.clip.landmarks[self.real.reference]
        return landmarks

    @property
    def pose(self) -> Pose:
        """The portrait's."""
        return self.real.clip.pose[self.real.reference]
