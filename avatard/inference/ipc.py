"""The messages between the daemon and its inference process: msgpack over two ZeroMQ ipc sockets.

Commands go one way, events the other. Each is one message part; samples, portraits and frames follow as raw parts, so
that nothing is copied into an envelope.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from avatard.frame import Backdrop, Frame, HeadPose, Rectangle
from avatard.timebase import BLENDSHAPES, LANDMARKS

FACE_FLOATS = 3 * LANDMARKS + BLENDSHAPES + 8


class Command(msgspec.Struct, frozen=True, tag=True):
    """From the daemon to the inference process. Rooms have numbers, of which none is used twice."""


class Start(Command, frozen=True):
    """Load the networks, warm up with a portrait, whose bytes follow, and answer `Started`."""

    config: bytes  # JSON of avatard.config.Config
    name: str  # of the portrait, for messages
    face: int  # which one, from the left and from 1; 0: its only one
    gently: bool = False  # others need the cores: take longer


class OpenRoom(Command, frozen=True):
    """Another room; answered by `Ready` or `RoomFailed`. The portrait's bytes follow."""

    room: int
    config: bytes
    name: str
    face: int


class CloseRoom(Command, frozen=True):
    """Forget all that belongs to a room."""

    room: int


class StartEpoch(Command, frozen=True):
    """A new epoch: drop what of the room is queued and in flight."""

    room: int
    epoch: int
    first_frame: int


class PushAudio(Command, frozen=True):
    """The next samples of the epoch, float32, follow."""

    room: int
    epoch: int
    zero: float  # when frame 0 would be due, in seconds of the daemon's clock: the room that is in a hurry goes first


class Identify(Command, frozen=True):
    """Check a portrait, whose bytes follow, and use it from the next `StartEpoch` on; answered by `Identified`."""

    room: int
    request: int
    name: str
    face: int


class QualityLevel(msgspec.Struct, frozen=True):
    """How much work a frame may cost; see `Engine.set_quality`. Under overload the daemon asks for less."""

    motion_steps: int
    video_steps: int
    frame_stride: int = 1
    size_divisor: int = 1

    @property
    def picture_scale(self) -> float:
        """Sides of pictures as they are composed, beside those that are shown."""
        return 1 / self.size_divisor


class SetQuality(Command, frozen=True):
    """Another level for a room."""

    room: int
    level: QualityLevel


class Stop(Command, frozen=True):
    """Leave."""


class Event(msgspec.Struct, frozen=True, tag=True):
    """From the inference process to the daemon."""


class Started(Event, frozen=True):
    """The process is warm: rooms may be opened."""

    at_once: int = 1  # rooms that it serves at the same time; see `engine_api.Engine`


class Ready(Event, frozen=True):
    """A room is open; its portrait at rest follows as one frame: its face and its pixels."""

    digest: str
    height: int
    width: int
    hop_seconds: float  # of a hop through all stages to its first frames, as measured in the warm-up of the process
    room: int = 0
    core_seconds: float = 0.0  # of a frame in all stages, as measured in the same warm-up


class RoomFailed(Event, frozen=True):
    """A room cannot be opened: a `UserError`, its message, code and fields."""

    room: int
    message: str
    code: str = ""
    fields: dict[str, Any] = {}


class Identified(Event, frozen=True):
    """The answer to `Identify`; without an error the portrait follows as in `Ready`."""

    request: int
    digest: str = ""
    height: int = 0
    width: int = 0
    error: str = ""  # a `UserError`: its message, code and fields
    code: str = ""
    fields: dict[str, Any] = {}


class FramesReady(Event, frozen=True):
    """Frames [first, first + count); their faces and their pixels follow.

    Where only a rectangle moves, the pixels are the rectangle's; what it belongs into follows as a third part with the
    first frames of a person, and is kept until another one comes.

    What each stage took for them is told twice. Seconds by the wall count from when the stage could have begun, so
    that they include its waiting for a core and for other rooms: their rate says whether it keeps up. Core-seconds are
    what it used, on all threads: they are the same on a busy machine, and add up over rooms.
    """

    epoch: int
    first: int
    count: int
    height: int
    width: int
    motion_seconds: float
    generate_seconds: float
    render_seconds: float
    moving: Rectangle | None = None
    core_seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)  # motion, generate, render
    room: int = 0


class Heartbeat(Event, frozen=True):
    """Sent several times a second: the process is alive; how long the slowest stage has been at its current job."""

    busy_seconds: float
    queued: int
    resident_bytes: int


class WorkerFailed(Event, frozen=True):
    """The process cannot go on; it exits after this."""

    message: str
    code: str = ""  # of a `UserError`, which no restart cures, with its fields
    fields: dict[str, Any] = {}


AnyCommand = Start | OpenRoom | CloseRoom | StartEpoch | PushAudio | Identify | SetQuality | Stop
#: What a room is told of.
RoomEvent = Ready | RoomFailed | FramesReady
AnyEvent = Started | RoomEvent | Identified | Heartbeat | WorkerFailed


def pack_faces(frames: Sequence[Frame]) -> bytes:
    """Landmarks, blend shapes and head pose of each frame, float32 [K, 264]."""
    rows = [np.concatenate([f.landmarks.ravel(), f.blendshapes, _head_floats(f.head)]) for f in frames]
    return np.asarray(rows, np.float32).tobytes()


def pack_pixels(frames: Sequence[Frame]) -> NDArray[np.uint8]:
    """What moves in frames of one person, `[K, h, w, 3 or 4]`."""
    backdrop = frames[0].backdrop
    where = backdrop.moving.slices if backdrop is not None else ()
    return np.stack([frame.pixels[where] for frame in frames])


def unpack_frames(
    count: int, height: int, width: int, faces: memoryview, pixels: memoryview, backdrop: Backdrop | None = None
) -> list[Frame]:
    """Frames `[height, width]` from their two raw parts: without a copy, or put into a backdrop.

    Raises:
        ValueError: a part does not have the announced size.
    """
    rows = np.frombuffer(faces, np.float32).reshape(count, FACE_FLOATS)
    if backdrop is None:
        images = _images(pixels, count, height, width)
        return [_unpack(row, image) for row, image in zip(rows, images, strict=True)]
    moving = backdrop.moving
    parts = _images(pixels, count, moving.height, moving.width)
    return [_unpack(row, backdrop.with_moved(part)) for row, part in zip(rows, parts, strict=True)]


def _images(pixels: memoryview, count: int, height: int, width: int) -> NDArray[np.uint8]:
    """Bytes as `count` pictures of 3 or 4 channels. Raises `ValueError` where they are another number."""
    images: NDArray[np.uint8] = np.frombuffer(pixels, np.uint8).reshape(count, height, width, -1)
    if images.shape[3] not in (3, 4):
        raise ValueError(f"got {len(pixels)} bytes, expected {count} pictures of {width}x{height} pixels")
    return images


def _unpack(row: NDArray[np.float32], pixels: NDArray[np.uint8]) -> Frame:
    landmarks, blendshapes, head = np.split(row, [3 * LANDMARKS, 3 * LANDMARKS + BLENDSHAPES])
    qx, qy, qz, qw, tx, ty, tz, scale = map(float, head)
    pose = HeadPose((qx, qy, qz, qw), (tx, ty, tz), scale)
    return Frame(pixels, landmarks.reshape(LANDMARKS, 3), blendshapes, pose)


def _head_floats(head: HeadPose) -> list[float]:
    return [*head.quaternion, *head.translation, head.scale]
