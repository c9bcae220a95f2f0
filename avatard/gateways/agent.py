"""The WebSocket of LiveAvatar's LITE mode (HeyGen): agents that drive that avatar drive this one.

> {"type": "agent.speak", "event_id": "answer-1", "audio": "<base64 of 16-bit mono samples at 24 kHz>"}
> {"type": "agent.speak_end"}   or {"type": "agent.interrupt"}, "agent.start_listening", "session.keep_alive"
< {"type": "session.state_updated", "state": "connected"}
< {"type": "agent.speak_started", "event_id": "answer-1", "source_event_id": "answer-1"}
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Annotated, Any, TypeAlias

import msgspec
from aiohttp import WSMessage, WSMsgType, web

from avatard.gateways.websocket import Id, Message, serve_socket
from avatard.media.pcm import PcmDecoder
from avatard.protocols import events
from avatard.protocols.json_text import parse_object, text_of
from avatard.session.session import Session
from avatard.session.speaker import PushedSpeaker

RATE_HZ = 24_000
MAX_AUDIO_CHARACTERS = 1_400_000  # base64 of 1 MiB, 21 s
MAX_MESSAGE_BYTES = 4 * 1024 * 1024  # beyond this the connection is closed


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """What all have; other keys are ignored, as of a protocol that others extend."""

    event_id: Id = ""


class Speak(Command, frozen=True, kw_only=True, tag="agent.speak"):
    """The next samples; the first ones begin an utterance, whose id is their `event_id`."""

    audio: Annotated[str, msgspec.Meta(max_length=MAX_AUDIO_CHARACTERS)]


class SpeakEnd(Command, frozen=True, kw_only=True, tag="agent.speak_end"):
    """The utterance is complete."""


class Interrupt(Command, frozen=True, kw_only=True, tag="agent.interrupt"):
    """Drop all speech that was not heard yet."""


class StartListening(Command, frozen=True, kw_only=True, tag="agent.start_listening"):
    """A person speaks to the avatar. It is told in the state; no motion belongs to it."""


class StopListening(Command, frozen=True, kw_only=True, tag="agent.stop_listening"):
    """Nobody speaks to the avatar."""


class KeepAlive(Command, frozen=True, kw_only=True, tag="session.keep_alive"):
    """Nothing: a connection here has no end of its own."""


AnyCommand: TypeAlias = Speak | SpeakEnd | Interrupt | StartListening | StopListening | KeepAlive
COMMANDS = ", ".join(str(kind.__struct_config__.tag) for kind in AnyCommand.__args__)


async def serve_liveavatar(
    request: web.Request, session: Session, sockets: set[web.WebSocketResponse]
) -> web.WebSocketResponse:
    """Serve one connection to its end; it is in `sockets` meanwhile."""
    return await serve_socket(
        request, session, sockets, lambda speaker: LiveAvatar(session, speaker), MAX_MESSAGE_BYTES
    )


class LiveAvatar:
    """One connection: its commands as calls of its speaker, and what becomes of its utterances as messages.

    Args:
        session: the avatar.
        speaker: of this connection.
    """

    def __init__(self, session: Session, speaker: PushedSpeaker) -> None:
        self.speaker = speaker
        self._decoder = PcmDecoder("s16le", 1)
        self._open = False  # between the first samples of an utterance and its end
        self._pushing = False  # an utterance that is queued now is this connection's
        self._own: list[str] = []  # ids of this connection's utterances that have not ended
        self._listening = False
        self._speaking = session.speaking
        self._state = ""

    def greeting(self) -> Iterator[Message]:
        """The first messages."""
        yield {"type": "session.state_updated", "event_id": "", "state": "connected"}
        yield from self._state_changes()

    def receive(self, message: WSMessage) -> Iterator[Message]:
        """Obey a message; yield what answers it."""
        event_id = ""
        try:
            if message.type is not WSMsgType.TEXT:
                raise ValueError('got a binary message, expected {"type": "agent.speak", "audio": BASE64}')
            fields = parse_object(message.data)
            event_id = text_of(fields, "event_id")
            self._obey(_convert(fields))
        except ValueError as error:
            yield _error(str(error), "bad-message", event_id)
        finally:
            self._pushing = False
        yield from self._state_changes()

    def translate(self, event: events.Event) -> Iterator[Message]:
        """An event of the session, as it concerns this connection."""
        match event:
            case events.StartedSpeaking():
                self._speaking = True
            case events.StoppedSpeaking() | events.Interrupted():
                self._speaking = False
            case events.Utterance(state="queued") if self._pushing:
                self._own.append(event.id)
            case events.Utterance() if event.id in self._own:
                yield from self._tell(event)
            case events.Error():
                yield _error(event.message, event.code)
        yield from self._state_changes()

    def _obey(self, command: AnyCommand) -> None:
        self._pushing = True
        match command:
            case Speak():
                samples = self._decode(command.audio)
                if not self._open:
                    self.speaker.begin(command.event_id)
                    self._open = True
                self.speaker.push_audio(samples, RATE_HZ)
            case SpeakEnd():
                self.speaker.flush()
                self._end()
            case Interrupt():
                self.speaker.interrupt()
                self._end()
            case StartListening():
                self._listening = True
            case StopListening():
                self._listening = False

    def _decode(self, text: str) -> Any:
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise ValueError(f"audio: {error}; expected base64 of 16-bit mono samples at {RATE_HZ:,} Hz") from None
        return self._decoder.push(data)

    def _end(self) -> None:
        self._open = False
        self._decoder.reset()

    def _tell(self, event: events.Utterance) -> Iterator[Message]:
        message: Message = {"type": "agent.speak_started", "event_id": event.id, "source_event_id": event.id}
        if event.state == "ended":
            self._own.remove(event.id)
            message["type"] = "agent.speak_interrupted" if event.interrupted else "agent.speak_ended"
            message |= {"played_ms": event.played_ms, "dropped_ms": event.dropped_ms}
        yield message

    def _state_changes(self) -> Iterator[Message]:
        state = "speaking" if self._speaking else "listening" if self._listening else "idle"
        if state != self._state:
            self._state = state
            yield {"type": "session.state_updated", "event_id": "", "state": state}


def _error(message: str, code: str, event_id: str = "") -> Message:
    return {"type": "error", "event_id": event_id, "code": code, "message": message}


def _convert(fields: dict[str, Any]) -> AnyCommand:
    """A message as a command. Raises `ValueError`, in one line."""
    try:
        command: AnyCommand = msgspec.convert(fields, AnyCommand)
    except msgspec.ValidationError as error:
        raise ValueError(f"{' '.join(str(error).split())[:200]}; expected a type of {COMMANDS}") from None
    return command
