"""The messages of avatard's ZeroMQ sockets: msgpack maps with a common header, version 1.

`README.md` beside this file documents every field, unit and axis for readers in other languages. Arrays of numbers
travel as little-endian `bin`, because every language can view those bytes without decoding each number.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Final, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from avatard.protocols.image import Encoding
from avatard.timebase import BLENDSHAPES, LANDMARKS

VERSION: Final = 1
MAX_SPEECH_SECONDS: Final = 10
MAX_ERROR_LENGTH: Final = 200
MAX_IMAGE_BYTES: Final = 8 * 1024 * 1024
MAX_REQUEST_BYTES: Final = MAX_IMAGE_BYTES + 1024
"""The longest message the incoming socket reads: one portrait and its fields."""

Micros = Annotated[int, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Id = Annotated[str, msgspec.Meta(max_length=64)]
Weights = Annotated[bytes, msgspec.Meta(min_length=BLENDSHAPES * 4, max_length=BLENDSHAPES * 4)]
Points = Annotated[bytes, msgspec.Meta(min_length=LANDMARKS * 12, max_length=LANDMARKS * 12)]


class MessageError(ValueError):
    """A message that does not follow the protocol; the text says what was wrong with it.

    Args:
        message: for people.
        request_id: of the message, where it could be read.
    """

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__(message)
        self.request_id = request_id


class Topic(StrEnum):
    """What a subscriber may ask for. Subscriptions match by prefix: `avatard/1/` means everything."""

    META = "avatard/1/meta"
    STATE = "avatard/1/state"
    FACE = "avatard/1/face"
    VIDEO = "avatard/1/video"
    AUDIO = "avatard/1/audio"
    STATS = "avatard/1/stats"


def topic_of(kind: Topic, room: str) -> str:
    """The topic of a room: that of the default one, and the room's id behind it."""
    return f"{kind}/{room}" if room else str(kind)


class Header(msgspec.Struct, frozen=True, kw_only=True, tag_field="t"):
    """What every outgoing message starts with, beside `t`, its type; the publisher fills it in."""

    v: Literal[1] = VERSION
    sid: str = ""  # the session: a new one starts seq and pts_us again
    seq: Count = 0  # counts the messages of one topic: a gap is what this subscriber lost
    pts_us: Micros = 0  # media time, from the session's start; frame n has n * 1e6 / fps
    cap_us: Micros = 0  # Unix time at which pts_us was due


class Meta(Header, frozen=True, kw_only=True, tag="meta"):
    """What does not change from frame to frame; sent to late joiners and every second."""

    server: str  # program and version
    identity: str  # digest of the portrait
    fps: float
    enc: Encoding
    w: int
    h: int
    sr: int  # Hz, of the topic audio
    arkit: list[str]  # the names of face.bs, in its order
    synthetic: bool = True  # picture and face are generated; whoever shows them must say so
    ch: int = 3  # of the topic video: 3, or 4 with alpha


class UtteranceState(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an utterance: each is queued, started and ended, once and in this order."""

    state: Literal["queued", "started", "ended"]
    played_ms: Count = 0  # of `ended`, as are the following
    dropped_ms: Count = 0  # taken from the sender and never heard
    interrupted: bool = False


class State(Header, frozen=True, kw_only=True, tag="state"):
    """What the avatar does and what happened; repeated as `snapshot` to late joiners and every second."""

    state: Literal["starting", "idle", "speaking", "stopped"]
    event: Literal[
        "snapshot",
        "ready",
        "started-speaking",
        "stopped-speaking",
        "interrupted",
        "utterance",
        "identity",
        "error",
        "stopped",
    ]
    id: Id = ""  # the request this answers; of `utterance`: which one
    message: str = ""  # for people; of an error: what was wrong
    code: str = ""  # for programs; of an error: which kind
    utterance: UtteranceState | None = None  # of `utterance`
    played_us: Micros | None = None  # of `interrupted`: the media time of the last frame that spoke


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """Scaled orthographic pose: image_xy = (w, h) / 2 + s * (R(q) @ lm + t)[:2]."""

    q: tuple[float, float, float, float]  # unit quaternion x, y, z, w
    t: tuple[float, float, float]  # interocular distances; z is 0
    s: float  # pixels per interocular distance


class Face(Header, frozen=True, kw_only=True, tag="face"):
    """One frame's landmarks, ARKit coefficients and head pose."""

    lm: Points  # f32 [68, 3] iBUG points without the head's pose, in interocular distances
    bs: Weights  # f32 [52] in 0..1, named by meta.arkit
    head: Head
    speaking: bool


class Video(Header, frozen=True, kw_only=True, tag="video"):
    """One frame's picture."""

    enc: Encoding
    w: int
    h: int
    data: bytes
    ch: int = 3  # RGB, or 4: RGB and straight alpha


class Audio(Header, frozen=True, kw_only=True, tag="audio"):
    """One frame's sound, mono; pts_us is that of its first sample."""

    enc: Literal["pcm_s16le"]
    sr: int
    n: int
    data: bytes


class Stats(Header, frozen=True, kw_only=True, tag="stats"):
    """Counters and measurements by name; the names are the daemon's."""

    values: dict[str, float]


class Request(msgspec.Struct, frozen=True, kw_only=True, tag_field="t"):
    """What every incoming message has, beside `t`, its type."""

    v: Literal[1] = VERSION
    id: Id = ""  # comes back in the state that answers this request
    room: Id | msgspec.UnsetType = msgspec.UNSET  # that it is for; the default one unless named
    token: Id | msgspec.UnsetType = msgspec.UNSET  # that opens the room


class Speech(Request, frozen=True, kw_only=True, tag="audio"):
    """Sound for the avatar to speak: interleaved samples, whole ones, at most ten seconds."""

    enc: Literal["pcm_s16le", "f32le"]
    sr: Annotated[int, msgspec.Meta(ge=8_000, le=192_000)]
    ch: Literal[1, 2] = 1
    data: bytes

    def __post_init__(self) -> None:
        """Refuse what cannot be cut into whole samples."""
        frame = self.ch * (2 if self.enc == "pcm_s16le" else 4)
        if not self.data or len(self.data) % frame:
            raise ValueError(f"audio data is {len(self.data)} bytes, expected a positive multiple of {frame}")
        if self.seconds > MAX_SPEECH_SECONDS:
            raise ValueError(f"audio data is {self.seconds:.6g} s, expected at most {MAX_SPEECH_SECONDS}")

    @property
    def seconds(self) -> float:
        """The length of the sound."""
        return len(self.data) / (self.ch * (2 if self.enc == "pcm_s16le" else 4) * self.sr)

    def samples(self) -> NDArray[np.float32]:
        """The sound as mono f32 [T] in [-1, 1]; stereo is averaged, what is louder is clipped.

        Raises:
            MessageError: a sample is not a finite number.
        """
        if self.enc == "pcm_s16le":
            flat = np.frombuffer(self.data, "<i2").astype(np.float32) / np.float32(32768)
        else:
            flat = np.frombuffer(self.data, "<f4").astype(np.float32)
            if bad := int(np.count_nonzero(~np.isfinite(flat))):
                raise MessageError(f"audio data has {bad} samples that are not finite numbers")
        mono: NDArray[np.float32] = flat.clip(-1, 1).reshape(-1, self.ch).mean(axis=1, dtype=np.float32)
        return mono


class Interrupt(Request, frozen=True, kw_only=True, tag="interrupt"):
    """Barge-in: forget what was sent and close the mouth."""


class EndOfUtterance(Request, frozen=True, kw_only=True, tag="end_of_utterance"):
    """Nothing follows for now: do not wait for more sound before speaking the last of it."""


class Portrait(Request, frozen=True, kw_only=True, tag="identity"):
    """Swap the portrait."""

    data: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_IMAGE_BYTES)]  # an image file
    face: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0  # which one, from the left and from 1; 0: its only one


T = TypeVar("T")
AnyMessage = Meta | State | Face | Video | Audio | Stats
AnyRequest = Speech | Interrupt | EndOfUtterance | Portrait

#: What is expected of a request by its `t`, and of one whose `t` is none.
EXPECTED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "audio": "enc pcm_s16le or f32le, sr 8000 to 192000, ch 1 or 2, and data: whole samples, at most 10 s",
        "end_of_utterance": "nothing but v 1 and an id of at most 64 characters",
        "interrupt": "nothing but v 1 and an id of at most 64 characters",
        "identity": "data: an image file of at most 8 MiB, and face 0 to 64",
    }
)
UNKNOWN: Final = "a msgpack map with t = audio, end_of_utterance, interrupt or identity"

_encoder = msgspec.msgpack.Encoder()
_message_decoder: msgspec.msgpack.Decoder[AnyMessage] = msgspec.msgpack.Decoder(AnyMessage)
_request_decoder: msgspec.msgpack.Decoder[AnyRequest] = msgspec.msgpack.Decoder(AnyRequest)


def encode(message: Header | Request) -> bytes:
    """The message as a msgpack map."""
    return _encoder.encode(message)


def decode(payload: bytes) -> AnyMessage:
    """An outgoing message, as a subscriber reads it.

    Raises:
        MessageError: `payload` is none.
    """
    return _decode(_message_decoder, payload)


def decode_request(payload: bytes) -> AnyRequest:
    """An incoming message, checked: its samples are whole and finite.

    Raises:
        MessageError: `payload` is none; the text says why.
    """
    try:
        request = _decode(_request_decoder, payload)
        if isinstance(request, Speech):
            request.samples()
    except MessageError as error:
        found = _as_map(payload)
        kind, request_id = found.get("t"), found.get("id")
        expected = EXPECTED.get(kind, UNKNOWN) if isinstance(kind, str) else UNKNOWN
        # The text may quote what the sender sent: not megabytes of it.
        text = f"{str(error)[: MAX_ERROR_LENGTH - len(expected) - 11]}; expected {expected}"
        raise MessageError(text, request_id[:64] if isinstance(request_id, str) else "") from None
    return request


def _as_map(payload: bytes) -> dict[object, object]:
    """What can be read of a message that is malformed otherwise; empty if it is no map."""
    try:
        found = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _decode(decoder: msgspec.msgpack.Decoder[T], payload: bytes) -> T:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MessageError(" ".join(str(error).split())[:MAX_ERROR_LENGTH]) from None
    except RecursionError:
        raise MessageError("the message is nested too deeply") from None


def split(parts: list[bytes]) -> tuple[str, bytes]:
    """Topic and payload of a received message, whether it came in two parts or in one.

    Topics are ASCII and a msgpack map never starts with an ASCII byte, so the first byte from 0x80 ends the topic.

    Raises:
        MessageError: there is no topic, or neither one nor two parts.
    """
    match parts:
        case [topic, payload]:
            pass
        case [joined]:
            end = next((i for i, byte in enumerate(joined[:64]) if byte >= 0x80), 0)
            topic, payload = joined[:end], joined[end:]
        case _:
            raise MessageError(f"got {len(parts)} parts, expected topic and payload")
    if not topic.isascii() or not topic:
        raise MessageError("the message has no topic")
    return topic.decode("ascii"), payload


def floats(data: bytes) -> NDArray[np.float32]:
    """A `bin` of little-endian f32 as an array; reshape `lm` to [68, 3]."""
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
