"""The daemon's two ZeroMQ sockets: what plays out is published, what is received is spoken.

The protocol is documented in `protocols/README.md`. With nobody subscribed to face, video or audio the gateway is no
sink of the session, so that nothing is generated for it.
"""

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from avatard import __version__
from avatard.clock import wall_us
from avatard.config import Zmq
from avatard.frame import HeadPose
from avatard.gateways.room import Room
from avatard.inference.supervisor import WorkerError
from avatard.media.pcm import FileHeaderError, refuse_file, to_pcm16
from avatard.models.face.arkit import ARKIT_NAMES
from avatard.playout.scheduler import PlayoutFrame
from avatard.portrait import Portrait, PortraitError
from avatard.protocols import events, messages
from avatard.protocols.curve import ServerKeys, load_server_keys
from avatard.protocols.endpoint import check_address, check_endpoint
from avatard.protocols.events import Event
from avatard.protocols.image import Encoding, ImageFormat
from avatard.protocols.messages import EndOfUtterance, Head, Interrupt, Meta, Speech, State, Topic, UtteranceState
from avatard.protocols.tasks import cancel_and_wait
from avatard.protocols.zmq_sockets import Channel, Publisher, Receiver, Stamp
from avatard.session.session import Session
from avatard.session.speaker import MAX_WAITING_SECONDS, PushedSpeaker
from avatard.timebase import FPS, FRAME_US, SAMPLE_RATE_HZ

logger = logging.getLogger(__name__)

STATS_SECONDS: Final = 1.0
FRAME_TOPICS: Final = (Topic.FACE, Topic.VIDEO, Topic.AUDIO)


def checked_keys(config: Zmq) -> ServerKeys | None:
    """The daemon's CURVE keys if it has any, once both endpoints are known to be allowed with them.

    Raises:
        EndpointError: an endpoint is malformed, or reachable from other machines without keys.
        KeysError: a key file cannot be used.
    """
    keys = None
    if config.secret_key_file:
        clients = Path(config.allowed_clients_file) if config.allowed_clients_file else None
        keys = load_server_keys(Path(config.secret_key_file), clients)
    for endpoint in filter(None, (config.publish, config.audio)):
        check_endpoint(endpoint, keys)
    return keys


class ZmqGateway:
    """Publishes avatars and speaks what is sent; each of the two sockets is there if the configuration names it.

    The default room is always there, others if they ask for it.

    Args:
        config: the section `zmq`.

    Raises:
        EndpointError, KeysError: as of `checked_keys`.
    """

    def __init__(self, config: Zmq) -> None:
        self._config = config
        self._keys = checked_keys(config)
        self.publisher: Publisher | None = None
        self.receiver: Receiver | None = None
        self._default: _Voice
        self._rooms: dict[str, tuple[str, _Voice]] = {}  # token and voice by id
        self._receiving: asyncio.Task[None] | None = None

    def check_addresses(self) -> None:
        """Refuse addresses that cannot be bound, before anything slow is done. Raises `EndpointError`."""
        for endpoint in filter(None, (self._config.publish, self._config.audio)):
            check_address(endpoint)

    async def start(self, session: Session) -> None:
        """Bind and serve; the session is warm.

        Raises:
            EndpointError: an address cannot be bound.
        """
        config = self._config
        self._default = _Voice(session, config)
        if config.publish:
            self.publisher = Publisher(
                config.publish,
                **self._default.channel_options(),
                single_part=config.single_part,
                keys=self._keys,
                queue=config.send_queue_messages,
            )
            await self.publisher.start()
            self._default.publish(self.publisher, self._received)
            logger.info("publishing", extra={"endpoint": self.publisher.endpoint, "curve": self._keys is not None})
        if config.audio:
            self.receiver = Receiver(config.audio, on_error=self._default.on_error, keys=self._keys)
            await self.receiver.start()
            self._default.open_speaker()
            self._receiving = asyncio.create_task(self._receive(self.receiver), name="zmq-speech")
            self._receiving.add_done_callback(_report)
            logger.info("listening", extra={"endpoint": self.receiver.endpoint, "curve": self._keys is not None})

    async def stop(self) -> None:
        """Say that this is the end, and close the sockets."""
        await cancel_and_wait(self._receiving)
        for _, voice in (*self._rooms.values(), ("", self._default)):
            await voice.stop()
        self._rooms.clear()
        if self.publisher is not None:
            await self.publisher.stop()
        if self.receiver is not None:
            await self.receiver.stop()

    def room_opened(self, room: Room) -> None:
        """See `Guest`."""
        voice = _Voice(room.session, self._config)
        self._rooms[room.name] = room.token, voice
        if self.publisher is not None:
            voice.publish(self.publisher.open(room.name, **voice.channel_options()))
        if self.receiver is not None:
            voice.open_speaker()

    async def room_closed(self, room: Room) -> None:
        """See `Guest`."""
        found = self._rooms.pop(room.name, None)
        if found is not None:
            await found[1].stop()
            if self.publisher is not None and found[1].channel is not None:
                self.publisher.close(found[1].channel)

    def _received(self) -> dict[str, float]:
        received = self.receiver.received if self.receiver is not None else {}
        return {f"zmq_received_{name.lower()}": float(count) for name, count in received.items()}

    async def _receive(self, receiver: Receiver) -> None:
        async for request in receiver:
            if not request.room:
                await self._default.obey(request)
                continue
            token, voice = self._rooms.get(request.room, ("", None))
            given = request.token or ""
            if voice is None or not hmac.compare_digest(given.encode(), token.encode()):
                text = "there is no such room on ZeroMQ, or the token is another"
                self._default.on_error(text, request.id, "unauthorized")
            elif voice.full:
                # The other rooms' messages are behind this one.
                voice.on_error("minutes of speech wait to be said; send it again later", request.id, "full")
            else:
                await voice.obey(request)


class _Voice:
    """One avatar on the two sockets.

    Args:
        session: the avatar.
        config: the section `zmq`.
    """

    def __init__(self, session: Session, config: Zmq) -> None:
        self.channel: Channel | None = None
        self._session, self._config = session, config
        self._meta = self._make_meta()
        self._unlisten = session.listen(self._on_event)
        self._speaker: PushedSpeaker | None = None
        self._stats: asyncio.Task[None] | None = None
        self._swapping: asyncio.Task[None] | None = None
        self._interrupt_id = self._identity_id = ""  # requests that an event will answer
        self._utterance_id = ""  # of the speech that is being received
        self._heard = False  # whether any of it was taken

    def channel_options(self) -> dict[str, Any]:
        """What a `Channel` for this avatar needs."""
        return {
            "sid": secrets.token_hex(4),
            "meta": self._meta,
            "now": self._now,
            "image": ImageFormat(self._meta.enc, self._config.jpeg_quality),
            "on_wanted": self._on_wanted,
        }

    def publish(self, channel: Channel, more_stats: Callable[[], dict[str, float]] = dict) -> None:
        """Publish on this channel from now on."""
        self.channel = channel
        channel.state(State(state="idle", event="ready"))
        self._on_wanted()
        self._stats = asyncio.create_task(self._publish_stats(channel, more_stats), name="zmq-stats")
        self._stats.add_done_callback(_report)

    def open_speaker(self) -> None:
        """Speak what `obey` is given from now on."""
        self._speaker = self._session.open_speaker()

    @property
    def full(self) -> bool:
        """Whether minutes of speech wait to be said."""
        return self._speaker is not None and self._speaker.waiting_seconds > MAX_WAITING_SECONDS

    async def stop(self) -> None:
        """Say that this is the end; the speaker ends with the session."""
        self._unlisten()
        self._session.detach(self)
        await cancel_and_wait(self._stats, self._swapping)
        if self.channel is not None:
            self.channel.state(State(state="stopped", event="stopped"))

    def _make_meta(self) -> Meta:
        generation = self._session.generation
        assert generation.at_rest is not None, "the session has started"
        height, width, channels = generation.at_rest.pixels.shape
        # JPEG has no alpha; a PNG of 512x512 would take the event loop 10 ms.
        encoding: Encoding = self._config.video_encoding
        if channels == 4 and encoding != "png":
            encoding = "rgba32"
        return Meta(
            server=f"avatard/{__version__}",
            identity=generation.digest,
            fps=FPS,
            enc=encoding,
            w=width,
            h=height,
            sr=SAMPLE_RATE_HZ,
            arkit=list(ARKIT_NAMES),
            ch=channels,
        )

    def play(self, entry: PlayoutFrame) -> None:
        """Publish a frame that is due now."""
        channel = self.channel
        assert channel is not None
        late_us = round(self._session.clock.lateness(entry.index) * 1e6)
        stamp = Stamp(entry.index * FRAME_US, wall_us() - late_us)
        picture = entry.picture
        if picture is not None:
            head, speaking = _head(picture.head), self._session.speaking
            channel.face(stamp, picture.landmarks, picture.blendshapes, head, speaking=speaking)
        channel.audio(stamp, to_pcm16(entry.samples), SAMPLE_RATE_HZ)
        if picture is not None:
            channel.video(stamp, picture.pixels)

    def _now(self) -> Stamp:
        """The frame that was played last."""
        return Stamp(max(self._session.scheduler.next_frame - 1, 0) * FRAME_US, wall_us())

    def _on_wanted(self) -> None:
        self._session.detach(self)
        if self.channel is not None and any(self.channel.wanted(topic) for topic in FRAME_TOPICS):
            self._session.attach(self)

    def _on_event(self, event: Event) -> None:
        """Publish an event of the session as a state."""
        channel = self.channel
        if channel is None:
            return
        # The session hears the silence after an interrupt only later.
        speaking = self._session.speaking and not isinstance(event, events.Interrupted)
        state: Literal["idle", "speaking"] = "speaking" if speaking else "idle"
        match event:
            case events.Ready():
                channel.state(State(state=state, event="ready"))
            case events.StartedSpeaking():
                channel.state(State(state=state, event="started-speaking"))
            case events.StoppedSpeaking():
                channel.state(State(state=state, event="stopped-speaking"))
            case events.Interrupted():
                request_id, self._interrupt_id = self._interrupt_id, ""
                played_us = max(event.frame - 1, 0) * FRAME_US
                channel.state(State(state=state, event="interrupted", id=request_id, played_us=played_us))
            case events.Identity():
                request_id, self._identity_id = self._identity_id, ""
                self._meta = msgspec.structs.replace(self._meta, identity=event.digest)
                channel.meta(self._meta)
                channel.state(State(state=state, event="identity", id=request_id))
            case events.Utterance():
                channel.state(State(state=state, event="utterance", id=event.id, utterance=_utterance(event)))
            case events.Error():
                channel.error(event.message, code=event.code)

    async def _publish_stats(self, channel: Channel, more: Callable[[], dict[str, float]]) -> None:
        while True:
            await asyncio.sleep(STATS_SECONDS)
            channel.stats({**self._session.figures(), **more()})

    async def obey(self, request: messages.AnyRequest) -> None:
        """Do what a request asks for; waits while minutes of speech wait to be said."""
        speaker = self._speaker
        assert speaker is not None
        match request:
            case Speech():
                self._begin(speaker, request.id)
                self._push(speaker, request)
                await speaker.room()
            case EndOfUtterance():
                self._begin(speaker, request.id)
                speaker.flush()
                self._utterance_id, self._heard = "", False
            case Interrupt():
                self._interrupt_id, self._utterance_id, self._heard = request.id, "", False
                speaker.interrupt()
            case messages.Portrait():
                self._swap(request)

    def _begin(self, speaker: PushedSpeaker, utterance_id: str) -> None:
        """Begin an utterance where the sender names another one than before."""
        if utterance_id and utterance_id != self._utterance_id:
            speaker.begin(utterance_id)
            self._utterance_id, self._heard = utterance_id, False

    def _push(self, speaker: PushedSpeaker, request: Speech) -> None:
        """Speak samples, unless an utterance begins with the header of a file."""
        try:
            if not self._heard:
                refuse_file(request.data, request.enc)
        except FileHeaderError as error:
            speaker.drop_rest()
            self.on_error(str(error), request.id)
            return
        self._heard = True
        speaker.push_audio(request.samples(), request.sr)

    def _swap(self, request: messages.Portrait) -> None:
        if self._swapping is not None and not self._swapping.done():
            self.on_error("another portrait is being checked; send it again after the answer", request.id, "busy")
        else:
            self._swapping = asyncio.create_task(self._identify(request), name="zmq-identity")
            self._swapping.add_done_callback(_report)

    async def _identify(self, request: messages.Portrait) -> None:
        self._identity_id = request.id
        try:
            await self._session.identify(Portrait(request.data, request.face))
        except (PortraitError, WorkerError) as error:
            self._identity_id = ""
            self.on_error(str(error), request.id, error.code)

    def on_error(self, message: str, request_id: str = "", code: str = "bad-message") -> None:
        """Tell that a request was refused."""
        logger.debug("request refused", extra={"reason": message})
        if self.channel is not None:
            self.channel.error(message, request_id, code)


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger.error("%s ended", task.get_name(), exc_info=error)


def _head(head: HeadPose) -> Head:
    return Head(q=head.quaternion, t=head.translation, s=head.scale)


def _utterance(event: events.Utterance) -> UtteranceState:
    return UtteranceState(
        state=event.state,
        played_ms=event.played_ms or 0,
        dropped_ms=event.dropped_ms or 0,
        interrupted=bool(event.interrupted),
    )
