"""The events of an avatar, and their one encoding for clients: data channel, WebSocket and page.

The envelope is that of RTVI (Real-Time Voice Inference): {"label": "rtvi-ai", "type": …, "id": …, "data": {…}}.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

LABEL = "rtvi-ai"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened."""

    TYPE: ClassVar[str]


class Ready(Event, frozen=True, kw_only=True):
    """The networks are warm."""

    TYPE = "bot-ready"
    identity: str  # digest of the portrait


class StartedSpeaking(Event, frozen=True, kw_only=True):
    """A viewer hears speech from this frame on, whoever sent it."""

    TYPE = "bot-started-speaking"
    frame: int


class StoppedSpeaking(Event, frozen=True, kw_only=True):
    """A viewer hears no speech any more; more may follow."""

    TYPE = "bot-stopped-speaking"
    frame: int


class Interrupted(Event, frozen=True, kw_only=True):
    """All speech that was not heard yet is dropped."""

    TYPE = "bot-interrupted"
    frame: int  # the first silent one
    played_ms: int  # of the utterance that was being played
    dropped_ms: int  # taken from all senders and never heard


class Utterance(Event, frozen=True, kw_only=True):
    """Every utterance is `queued`, `started` and `ended`, once each and in this order, whatever becomes of it."""

    TYPE = "utterance"
    id: str  # the sender's, or one that avatard made
    state: Literal["queued", "started", "ended"]
    played_ms: int | None = None  # of `ended`, as are the following
    dropped_ms: int | None = None
    interrupted: bool | None = None


class Caption(Event, frozen=True, kw_only=True):
    """A sentence begins to be heard, whose text is known."""

    TYPE = "caption"
    id: str  # of the utterance
    text: str
    at_ms: int  # where in the utterance


class Identity(Event, frozen=True, kw_only=True):
    """Another portrait is shown from now on."""

    TYPE = "identity"
    digest: str


class Quality(Event, frozen=True, kw_only=True):
    """The load asks for another quality level, or allows it."""

    TYPE = "quality"
    pictures_per_second: float
    motion_steps: int
    video_steps: int
    picture_scale: float = 1.0  # sides of pictures as they are composed, beside those that are shown


class Metrics(Event, frozen=True, kw_only=True):
    """Figures of the last seconds; their names become the fields of `data`."""

    TYPE = "metrics"
    values: dict[str, float]


class Error(Event, frozen=True, kw_only=True):
    """Something went wrong; `fields` become fields of `data`."""

    TYPE = "error"
    message: str  # for people
    code: str  # for programs
    fatal: bool = False  # whether the connection is of no use any more
    fields: dict[str, Any] = {}


def to_message(event: Event, request_id: str = "") -> dict[str, Any]:
    """An event as JSON values.

    Args:
        event: what happened.
        request_id: of the request that it answers.
    """
    data: dict[str, Any] = msgspec.to_builtins(event)
    if isinstance(event, Error):
        data = {**event.fields, "message": event.message, "code": event.code, "fatal": event.fatal}
    elif isinstance(event, Metrics):
        data = event.values
    return {"label": LABEL, "type": event.TYPE, "id": request_id, "data": data}
