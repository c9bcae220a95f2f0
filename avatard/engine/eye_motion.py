"""What eyes do in a frame: how far they are shut, and where they look."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from avatard.engine.eyes import MAX_GAZE, Eyes
from avatard.engine.idle_motion import Idle
from avatard.models.face.arkit import ARKIT_NAMES
from avatard.models.face.pose import Pose
from avatard.protocols.face_motion import FULL_LOOK

Floats = NDArray[np.float32]

#: Idle motion that brings lids closer by this share of their distance shuts eyes: the mesh that its statistics are of
#: shows no more of a blink. What stays below the second share is no blink.
SHUT: Final = 0.33
STILL: Final = 0.06


class EyeMotion:
    """Blinks and gaze of one person.

    Args:
        pose: of the photographed head: there its eyes look at the camera.
        idle: says when they blink and where they wander.
        liveliness: of the wandering, 0 to 2.
    """

    def __init__(self, pose: Pose, idle: Idle, liveliness: float) -> None:
        self._photographed = pose
        self._idle = idle
        self._liveliness = liveliness

    def open_lids(self, first: int, landmarks: Floats) -> tuple[Floats, Floats]:
        """Landmarks `[k, 68, 3]` from frame `first` on without blinks, and how far those shut the eyes `[k, 2]`.

        The compositor closes eyes better than the video network, which would squash them.
        """
        count = len(landmarks)
        shut = self._idle.closure(first, count)
        return landmarks - self._idle.lids(shut), np.clip((shut - STILL) / (SHUT - STILL), 0, 1)

    def eyes(self, frame: int, pose: Pose, closure: NDArray[np.floating]) -> Eyes:
        """Both eyes in an absolute frame with this pose and closure `[2]`: they look at the camera, nearly always."""
        yaw, pitch, _ = Pose(pose.rotation @ self._photographed.rotation.T, pose.scale, pose.translation).yaw_pitch_roll
        right, down = self._liveliness * self._idle.gaze(frame)
        gaze = np.clip([right - yaw, down + pitch], -MAX_GAZE, MAX_GAZE)
        return Eyes((float(closure[0]), float(closure[1])), (float(gaze[0]), float(gaze[1])))


def look(blendshapes: Floats, eyes: Eyes) -> Floats:
    """ARKit coefficients `[52]` with those of the gaze, and with lids as shut as they are shown."""
    right, down = (angle / FULL_LOOK for angle in eyes.gaze)
    shut = {name: float(blendshapes[ARKIT_NAMES.index(name)]) for name in ("eyeBlinkRight", "eyeBlinkLeft")}
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
        "eyeBlinkRight": max(eyes.closure[0], shut["eyeBlinkRight"]),
        "eyeBlinkLeft": max(eyes.closure[1], shut["eyeBlinkLeft"]),
    }
    looking = blendshapes.copy()
    for name, share in shares.items():
        looking[ARKIT_NAMES.index(name)] = min(max(share, 0.0), 1.0)
    return looking
