"""What eyes do in a frame: how far the landmarks say that they blink, and where they look."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from avatard.engine.eyes import MAX_GAZE, Eyes
from avatard.engine.idle_motion import LOWER_LID_SHARE, LOWER_LIDS, UPPER_LIDS, Idle
from avatard.models.face.arkit import ARKIT_NAMES
from avatard.models.face.pose import Pose

Floats = NDArray[np.float32]

#: Landmarks whose lids come closer by this share of their distance have shut eyes: the mesh they are learnt from shows
#: no more of a blink. What stays below the second share is no blink.
SHUT: Final = 0.33
STILL: Final = 0.06
#: The angle that ARKit's coefficients of gaze call 1.
FULL_LOOK: Final = 30.0


class EyeMotion:
    """Blinks and gaze of one person.

    Args:
        mean: the 3DMM's mean face `[68, 3]`.
        neutral: the face at rest, its eyes open, offsets from it `[68, 3]`.
        pose: of the photographed head: there its eyes look at the camera.
        idle: says where the eyes wander.
        liveliness: of what idle says, 0 to 2.
    """

    def __init__(
        self,
        mean: NDArray[np.floating],
        neutral: NDArray[np.floating],
        pose: Pose,
        idle: Idle,
        liveliness: float,
    ) -> None:
        rest = (mean + neutral).astype(np.float32)
        self._mean = mean.astype(np.float32)
        self._gap = rest[LOWER_LIDS] - rest[UPPER_LIDS]  # [2, 2, 3]
        self._height = self._gap[..., 1].mean(axis=1)
        self._photographed = pose
        self._idle = idle
        self._liveliness = liveliness

    def open_lids(self, landmarks: Floats) -> tuple[Floats, Floats]:
        """Landmarks `[k, 68, 3]` with their lids as far apart as at rest, and how far they were shut `[k, 2]`.

        The compositor closes eyes better than the video network, which would squash them.
        """
        face = self._mean + landmarks
        gap = (face[:, LOWER_LIDS, 1] - face[:, UPPER_LIDS, 1]).mean(axis=2)
        shut = np.clip(1 - gap / self._height, 0, 1).astype(np.float32)
        way = shut[:, :, None, None] * self._gap
        opened = landmarks.copy()
        opened[:, UPPER_LIDS] -= (1 - LOWER_LID_SHARE) * way
        opened[:, LOWER_LIDS] += LOWER_LID_SHARE * way
        return opened, np.clip((shut - STILL) / (SHUT - STILL), 0, 1)

    def eyes(self, frame: int, pose: Pose, closure: NDArray[np.floating]) -> Eyes:
        """Both eyes in an absolute frame with this pose and closure `[2]`: they look at the camera, nearly always."""
        yaw, pitch, _ = Pose(pose.rotation @ self._photographed.rotation.T, pose.scale, pose.translation).yaw_pitch_roll
        right, down = self._liveliness * self._idle.gaze(frame)
        gaze = np.clip([right - yaw, down + pitch], -MAX_GAZE, MAX_GAZE)
        return Eyes((float(closure[0]), float(closure[1])), (float(gaze[0]), float(gaze[1])))


def look(blendshapes: Floats, eyes: Eyes) -> Floats:
    """ARKit coefficients `[52]` with those of the gaze."""
    right, down = (angle / FULL_LOOK for angle in eyes.gaze)
    # Right of the picture is towards the subject's left.
    shares = {
        "eyeLookOutLeft": right,
        "eyeLookInRight": right,
        "eyeLookInLeft": -right,
        "eyeLookOutRight": -right,
        "eyeLookDownLeft": down,
        "eyeLookDownRight": down,
        "eyeLookUpLeft": -down,
        "eyeLookUpRight": -down,
    }
    looking = blendshapes.copy()
    for name, share in shares.items():
        looking[ARKIT_NAMES.index(name)] = min(max(share, 0.0), 1.0)
    return looking
