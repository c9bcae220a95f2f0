"""The session's two ZeroMQ sockets: what plays out is published, what is received is spoken.

The protocol is documented in `protocols/README.md`. With nobody subscribed to face, video or audio the gateway is no
sink of the session, so that nothing is generated for it.
"""

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from avatard import __version__
from avatard.clock import wall_us
from avatard.config import Zmq
from avatard.frame import HeadPose
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
from avatard.protocols.zmq_sockets import Publisher, Receiver, Stamp
from avatard.session.session import Session
from avatard.session.speaker import PushedSpeaker
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
    """Publishes a session and speaks what is sent; each of the two sockets is there if the configuration names it.

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
        self._tasks: list[asyncio.Task[None]] = []
        self._swapping: asyncio.Task[None] | None = None
        self._interrupt_id = self._identity_id = ""  # requests that an event will answer
        self._utterance_id = ""  # of the speech that is being received
        self._heard = False  # whether any of it was taken

    def check_addresses(self) -> None:
        """Refuse addresses that cannot be bound, before anything slow is done. Raises `EndpointError`."""
        for endpoint in filter(None, (self._config.publish, self._config.audio)):
            check_address(endpoint)

    async def start(self, session: Session) -> None:
        """Bind and serve; the session is warm.

        Raises:
            EndpointError: an address cannot be bound.
        """
        self._session = session
        self._unlisten = session.listen(self._on_event)
        if self._config.publish:
            self.publisher = self._make_publisher(session)
            await self.publisher.start()
            self.publisher.state(State(state="idle", event="ready"))
            self._spawn(self._publish_stats(self.publisher), "zmq-stats")
            logger.info("publishing", extra={"endpoint": self.publisher.endpoint, "curve": self._keys is not None})
        if self._config.audio:
            self.receiver = Receiver(
                self._config.audio,
                on_error=self._on_error,
                keys=self._keys,
            )
            await self.receiver.start()
            self._spawn(self._receive(self.receiver, session.open_speaker()), "zmq-speech")
            logger.info("listening", extra={"endpoint": self.receiver.endpoint, "curve": self._keys is not None})

    async def stop(self) -> None:
        """Say that this is the end, and close the sockets."""
        self._unlisten()
        self._session.detach(self)
        await cancel_and_wait(self._tasks)
        if self.publisher is not None:
            self.publisher.state(State(state="stopped", event="stopped"))
            await self.publisher.stop()
        if self.receiver is not None:
            await self.receiver.stop()

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        def report(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                logger.error("%s ended", name, exc_info=error)

        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(report)
        self._tasks = [*(running for running in self._tasks if not running.done()), task]
        return task

    def _make_publisher(self, session: Session) -> Publisher:
        config = self._config
        assert session.generation.at_rest is not None
        height, width, channels = session.generation.at_rest.pixels.shape
        # JPEG has no alpha; a PNG of 512x512 would take the event loop 10 ms.
        encoding: Encoding = config.video_encoding
        if channels == 4 and encoding != "png":
            encoding = "rgba32"
        meta = Meta(
            server=f"avatard/{__version__}",
            identity=session.generation.digest,
            fps=FPS,
            enc=encoding,
            w=width,
            h=height,
            sr=SAMPLE_RATE_HZ,
            arkit=list(ARKIT_NAMES),
            ch=channels,
        )
        self._meta = meta
        return Publisher(
            config.publish,
            sid=secrets.token_hex(4),
            meta=meta,
            now=self._now,
            image=ImageFormat(encoding, config.jpeg_quality),
            single_part=config.single_part,
            keys=self._keys,
            queue=config.send_queue_messages,
            on_wanted=self._on_wanted,
        )

    def play(self, entry: PlayoutFrame) -> None:
        """Publish a frame that is due now."""
        assert self.publisher is not None
        late_us = round(self._session.clock.lateness(entry.index) * 1e6)
        stamp = Stamp(entry.index * FRAME_US, wall_us() - late_us)
        picture = entry.picture
        if picture is not None:
            head, speaking = _head(picture.head), self._session.speaking
            self.publisher.face(stamp, picture.landmarks, picture.blendshapes, head, speaking=speaking)
        self.publisher.audio(stamp, to_pcm16(entry.samples), SAMPLE_RATE_HZ)
        if picture is not None:
            self.publisher.video(stamp, picture.pixels)

    def _now(self) -> Stamp:
        """The frame that was played last."""
        return Stamp(max(self._session.scheduler.next_frame - 1, 0) * FRAME_US, wall_us())

    def _on_wanted(self) -> None:
        assert self.publisher is not None
        self._session.detach(self)
        if any(self.publisher.wanted(topic) for topic in FRAME_TOPICS):
            self._session.attach(self)

    def _on_event(self, event: Event) -> None:
        """Publish an event of the session as a state."""
        publisher = self.publisher
        if publisher is None:
            return
        # The session hears the silence after an interrupt only later.
        speaking = self._session.speaking and not isinstance(event, events.Interrupted)
        state: Literal["idle", "speaking"] = "speaking" if speaking else "idle"
        match event:
            case events.Ready():
                publisher.state(State(state=state, event="ready"))
            case events.StartedSpeaking():
                publisher.state(State(state=state, event="started-speaking"))
            case events.StoppedSpeaking():
                publisher.state(State(state=state, event="stopped-speaking"))
            case events.Interrupted():
                request_id, self._interrupt_id = self._interrupt_id, ""
                played_us = max(event.frame - 1, 0) * FRAME_US
                publisher.state(State(state=state, event="interrupted", id=request_id, played_us=played_us))
            case events.Identity():
                request_id, self._identity_id = self._identity_id, ""
                self._meta = msgspec.structs.replace(self._meta, identity=event.digest)
                publisher.meta(self._meta)
                publisher.state(State(state=state, event="identity", id=request_id))
            case events.Utterance():
                publisher.state(State(state=state, event="utterance", id=event.id, utterance=_utterance(event)))
            case events.Error():
                publisher.error(event.message, code=event.code)

    async def _publish_stats(self, publisher: Publisher) -> None:
        while True:
            await asyncio.sleep(STATS_SECONDS)
            received = self.receiver.received if self.receiver is not None else {}
            requests = {f"zmq_received_{name.lower()}": float(count) for name, count in received.items()}
            publisher.stats({**self._session.figures(), **requests})

    async def _receive(self, receiver: Receiver, speaker: PushedSpeaker) -> None:
        async for request in receiver:
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
            self._on_error(str(error), request.id)
            return
        self._heard = True
        speaker.push_audio(request.samples(), request.sr)

    def _swap(self, request: messages.Portrait) -> None:
        if self._swapping is not None and not self._swapping.done():
            self._on_error("another portrait is being checked; send it again after the answer", request.id, "busy")
        else:
            self._swapping = self._spawn(self._identify(request), "zmq-identity")

    async def _identify(self, request: messages.Portrait) -> None:
        self._identity_id = request.id
        try:
            await self._session.identify(Portrait(request.data, request.face))
        except (PortraitError, WorkerError) as error:
            self._identity_id = ""
            self._on_error(str(error), request.id, error.code)

    def _on_error(self, message: str, request_id: str = "", code: str = "bad-message") -> None:
        logger.debug("request refused", extra={"reason": message})
        if self.publisher is not None:
            self.publisher.error(message, request_id, code)


def _head(head: HeadPose) -> Head:
    return Head(q=head.quaternion, t=head.translation, s=head.scale)


def _utterance(event: events.Utterance) -> UtteranceState:
    return UtteranceState(
        state=event.state,
        played_ms=event.played_ms or 0,
        dropped_ms=event.dropped_ms or 0,
        interrupted=bool(event.interrupted),
    )
