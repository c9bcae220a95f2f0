"""The session's two ZeroMQ sockets: what plays out is published, what is received is spoken.

The protocol is documented in `protocols/README.md`. With nobody subscribed to face, video or audio the gateway is no
sink of the session, so that nothing is generated for it.
"""

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from avatard import __version__
from avatard.clock import wall_us
from avatard.config import Zmq
from avatard.frame import HeadPose
from avatard.inference.supervisor import WorkerError
from avatard.media.resample import Resampler, to_pcm16
from avatard.models.face.arkit import ARKIT_NAMES
from avatard.playout.scheduler import PlayoutFrame
from avatard.portrait import Portrait, PortraitError
from avatard.protocols import messages
from avatard.protocols.curve import ServerKeys, load_server_keys
from avatard.protocols.endpoint import check_endpoint
from avatard.protocols.image import ImageFormat
from avatard.protocols.messages import EndOfUtterance, Head, Interrupt, Meta, Speech, State, Topic
from avatard.protocols.zmq_sockets import Publisher, Receiver, Stamp
from avatard.session.floor_control import FloorError
from avatard.session.session import Session
from avatard.timebase import FPS, FRAME_US, SAMPLE_RATE_HZ

logger = logging.getLogger(__name__)

STATS_SECONDS: Final = 1.0
FRAME_TOPICS: Final = (Topic.FACE, Topic.VIDEO, Topic.AUDIO)
_EVENTS: Final[
    Mapping[str, Literal["ready", "started-speaking", "stopped-speaking", "interrupted", "identity", "error"]]
] = {
    "bot-ready": "ready",
    "bot-started-speaking": "started-speaking",
    "bot-stopped-speaking": "stopped-speaking",
    "bot-interrupted": "interrupted",
    "identity": "identity",
    "error": "error",
}


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
        self._resampler: Resampler | None = None
        self._rate_hz = 0
        self._refused = False
        self._answers: dict[str, str] = {}  # events that answer a request, and its id

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
                on_interrupt=self._on_interrupt,
                on_error=self._on_error,
                keys=self._keys,
            )
            await self.receiver.start()
            self._spawn(self._hear(self.receiver), "zmq-speech")
            logger.info("listening", extra={"endpoint": self.receiver.endpoint, "curve": self._keys is not None})

    async def stop(self) -> None:
        """Say that this is the end, and close the sockets."""
        self._unlisten()
        self._session.detach(self)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
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
        height, width = session.size
        meta = Meta(
            server=f"avatard/{__version__}",
            identity=session.digest,
            fps=FPS,
            enc=config.video_encoding,
            w=width,
            h=height,
            sr=SAMPLE_RATE_HZ,
            arkit=list(ARKIT_NAMES),
        )
        self._meta = meta
        return Publisher(
            config.publish,
            sid=secrets.token_hex(4),
            meta=meta,
            now=self._now,
            image=ImageFormat(config.video_encoding, config.jpeg_quality),
            single_part=config.single_part,
            keys=self._keys,
            queue=config.send_queue_messages,
            on_wanted=self._on_wanted,
        )

    # -- out ----------------------------------------------------------------------------------------------------------

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

    def _on_event(self, kind: str, data: Mapping[str, Any]) -> None:
        if self.publisher is None or kind not in _EVENTS:
            return
        event = _EVENTS[kind]
        if event == "error":
            self.publisher.error(str(data["message"]))
            return
        if event == "identity":
            self._meta = msgspec.structs.replace(self._meta, identity=str(data["digest"]))
            self.publisher.meta(self._meta)
        played_us = max(int(data["frame"]) - 1, 0) * FRAME_US if event == "interrupted" else None
        # The session hears the silence after an interrupt only later.
        speaking = self._session.speaking and event != "interrupted"
        state: Literal["idle", "speaking"] = "speaking" if speaking else "idle"
        request_id = self._answers.pop(event, "")
        self.publisher.state(State(state=state, event=event, id=request_id, played_us=played_us))

    async def _publish_stats(self, publisher: Publisher) -> None:
        while True:
            await asyncio.sleep(STATS_SECONDS)
            received = self.receiver.received if self.receiver is not None else {}
            requests = {f"zmq_received_{name.lower()}": float(count) for name, count in received.items()}
            publisher.stats({**self._session.figures(), **requests})

    # -- in -----------------------------------------------------------------------------------------------------------

    async def _hear(self, receiver: Receiver) -> None:
        async for request in receiver:
            match request:
                case Speech():
                    await self._push(self._resample(request), request.id)
                case EndOfUtterance():
                    if self._resampler is not None:
                        await self._push(self._resampler.flush(), request.id)
                    self._session.end_of_utterance(self)
                case messages.Portrait():
                    self._swap(request)

    def _resample(self, speech: Speech) -> NDArray[np.float32]:
        """The sound at 16 kHz; a sender that changes its rate begins a new stream."""
        if self._resampler is None or speech.sr != self._rate_hz:
            rest = self._resampler.flush() if self._resampler is not None else np.zeros(0, np.float32)
            self._resampler, self._rate_hz = Resampler(speech.sr), speech.sr
            return np.concatenate([rest, self._resampler.push(speech.samples())])
        return self._resampler.push(speech.samples())

    async def _push(self, samples: NDArray[np.float32], request_id: str) -> None:
        """Speak, waiting while the session's buffer is full, until an interrupt."""
        try:
            await self._session.speak(samples, self)
        except FloorError as error:
            if not self._refused:  # once, not for every packet of the speech
                self._on_error(str(error), request_id)
            self._refused = True
        else:
            self._refused = False

    def _on_interrupt(self, request: Interrupt) -> None:
        self._resampler = None
        self._answers["interrupted"] = request.id
        self._session.interrupt()
        # It came in line with the speech, so what follows it is new, and not the rest of what was cut off.
        self._session.end_of_utterance(self)

    def _swap(self, request: messages.Portrait) -> None:
        if self._swapping is not None and not self._swapping.done():
            self._on_error("another portrait is being checked; send it again after the answer", request.id)
        else:
            self._swapping = self._spawn(self._identify(request), "zmq-identity")

    async def _identify(self, request: messages.Portrait) -> None:
        self._answers["identity"] = request.id
        try:
            await self._session.identify(Portrait(request.data, request.face))
        except (PortraitError, WorkerError) as error:
            self._answers.pop("identity", None)
            self._on_error(str(error), request.id)

    def _on_error(self, message: str, request_id: str = "") -> None:
        logger.debug("request refused", extra={"reason": message})
        if self.publisher is not None:
            self.publisher.error(message, request_id)


def _head(head: HeadPose) -> Head:
    return Head(q=head.quaternion, t=head.translation, s=head.scale)
