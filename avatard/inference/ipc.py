"""What the daemon and its inference process say to each other: msgpack over two ZeroMQ ipc sockets.

Commands go one way, events the other. Each is one message part; samples, portraits and pictures follow as raw parts, so
that nothing is copied into an envelope.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from avatard.inference.engine_api import Picture

FACE_FLOATS = 68 * 3 + 52 + 8


class Command(msgspec.Struct, frozen=True, tag=True):
    """From the daemon to the inference process."""


class Start(Command, frozen=True):
    """Load the networks, warm up and answer `Ready`; the portrait's bytes follow."""

    config: bytes  # JSON of avatard.config.Config
    suffix: str  # of the portrait's file name
    face: int  # which one, from the left and from 1; 0: its only one


class Begin(Command, frozen=True):
    """A new epoch: drop what is queued and in flight."""

    epoch: int
    first_frame: int


class Hear(Command, frozen=True):
    """The next samples of the epoch, float32, follow."""

    epoch: int


class Identify(Command, frozen=True):
    """Check a portrait, whose bytes follow, and use it from the next `Begin` on; answered by `Identified`."""

    request: int
    suffix: str
    face: int


class Effort(Command, frozen=True):
    """How much work to put in; see `interfaces.Engine.effort`. Under overload the daemon asks for less."""

    motion_steps: int
    video_steps: int
    stride: int = 1


class Stop(Command, frozen=True):
    """Leave."""


class Event(msgspec.Struct, frozen=True, tag=True):
    """From the inference process to the daemon."""


class Ready(Event, frozen=True):
    """Warmed up; the portrait at rest follows as one picture: its face and its pixels."""

    digest: str
    height: int
    width: int
    hop_seconds: float  # median of a hop through motion and to its first pictures, in the warm-up
    delay_frames: int  # frames the engine holds back beyond hop and fade


class Identified(Event, frozen=True):
    """The answer to `Identify`; without an error the portrait follows as in `Ready`."""

    request: int
    digest: str = ""
    height: int = 0
    width: int = 0
    error: str = ""


class Made(Event, frozen=True):
    """Pictures of frames [first, first + count); their faces and their pixels follow."""

    epoch: int
    first: int
    count: int
    height: int
    width: int
    motion_seconds: float
    video_seconds: float


class Beat(Event, frozen=True):
    """Sent several times a second: alive, and how long the current job of the slower thread has been running."""

    busy_seconds: float
    queued: int
    resident_bytes: int


class Failed(Event, frozen=True):
    """The process cannot go on; it exits after this."""

    message: str
    user: bool = False  # the user's mistake: no restart cures it


AnyCommand = Start | Begin | Hear | Identify | Effort | Stop
AnyEvent = Ready | Identified | Made | Beat | Failed


def pack_faces(pictures: Sequence[Picture]) -> bytes:
    """Landmarks, blendshapes and head of each picture, float32 [K, 264]."""
    rows = [np.concatenate([p.landmarks.ravel(), p.blendshapes, p.head]) for p in pictures]
    return np.asarray(rows, np.float32).tobytes()


def unpack_pictures(count: int, height: int, width: int, faces: memoryview, pixels: memoryview) -> list[Picture]:
    """Pictures from their two raw parts, without a copy.

    Raises:
        ValueError: a part does not have the announced size.
    """
    rows = np.frombuffer(faces, np.float32).reshape(count, FACE_FLOATS)
    frames: NDArray[np.uint8] = np.frombuffer(pixels, np.uint8).reshape(count, height, width, 3)
    return [
        Picture(frame, row[:204].reshape(68, 3), row[204:256], row[256:])
        for row, frame in zip(rows, frames, strict=True)
    ]
