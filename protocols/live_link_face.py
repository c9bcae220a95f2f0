"""Live Link Face, the protocol of Epic's app for Unreal Engine: one UDP packet a frame, version 6, port 11111.

All numbers are big-endian. Unreal's `EARFaceBlendShape` has the order of the 61 values.
"""

from __future__ import annotations

import struct
import uuid
from typing import Final

from avatard.protocols.face_motion import Angles, FaceMotion
from avatard.timebase import FPS

PORT: Final = 11111
VERSION: Final = 6
VALUES: Final = 61
MAX_SUBJECT_BYTES: Final = 64


class LiveLinkFaceEncoder:
    """The packet of a frame.

    Args:
        subject: the name that Unreal lists.
    """

    def __init__(self, subject: str) -> None:
        # Some readers expect the 36 characters of a UUID here, as the app sends them.
        device = str(uuid.uuid5(uuid.NAMESPACE_URL, f"avatard:{subject}")).upper()
        self._head = struct.pack(">B", VERSION) + _text(device) + _text(subject)

    def __call__(self, motion: FaceMotion) -> list[bytes]:
        """The datagram of a frame."""
        turns = (motion.angles, motion.gaze("Left"), motion.gaze("Right"))
        values = [*motion.weights.values(), *(value for turn in turns for value in _as_app(turn))]
        frame = struct.pack(">ifii", motion.index & 0x7FFF_FFFF, 0.0, FPS, 1)
        return [self._head + frame + struct.pack(f">B{VALUES}f", VALUES, *values)]


def _as_app(turn: Angles) -> tuple[float, float, float]:
    """Yaw, pitch and roll in radians as recordings of the app have them: to the avatar's right, down, to its left."""
    return -turn.yaw, -turn.pitch, turn.roll


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack(">i", len(data)) + data
