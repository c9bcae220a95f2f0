"""The two ZeroMQ sockets of the daemon: XPUB for what the avatar does, PULL for what it is to say.

    publisher = Publisher("tcp://127.0.0.1:5556", sid=..., meta=..., now=...)
    await publisher.start()
    publisher.face(stamp, landmarks, blendshapes, head, speaking=True)  # when the frame is due

    receiver = Receiver("tcp://127.0.0.1:5557", on_interrupt=..., on_error=publisher.error)
    await receiver.start()
    async for request in receiver: ...

Neither reads a clock: the caller publishes a frame when its media clock says it is due. Nothing here blocks, and a
slow, dead or malicious peer costs a bounded amount of memory and none of the others' frames.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple, Self, cast

import msgspec
import numpy as np
import zmq
import zmq.asyncio
from numpy.typing import NDArray

from avatard.protocols.curve import ServerKeys
from avatard.protocols.endpoint import Endpoint
from avatard.protocols.image import ImageFormat, encode_image
from avatard.protocols.messages import (
    MAX_REQUEST_BYTES,
    AnyMessage,
    AnyRequest,
    Audio,
    Face,
    Head,
    MessageError,
    Meta,
    State,
    Stats,
    Topic,
    Video,
    decode_request,
    encode,
    topic_of,
)
from avatard.timebase import BLENDSHAPES, LANDMARKS

SNAPSHOT_SECONDS: Final = 1.0
SEND_QUEUE_MESSAGES: Final = 32  # ten frames of three topics: what a stall of 0.4 s sends at once
SEND_BUFFER_BYTES: Final = 512 * 1024
RECEIVE_QUEUE_MESSAGES: Final = 8
_TOPICS: Final[Mapping[type[AnyMessage], Topic]] = {
    Meta: Topic.META,
    State: Topic.STATE,
    Face: Topic.FACE,
    Video: Topic.VIDEO,
    Audio: Topic.AUDIO,
    Stats: Topic.STATS,
}


#: Subscriptions to one kind of message of all rooms but the default one.
ALL_ROOMS: Final = frozenset(f"{topic}/".encode() for topic in Topic)


class Stamp(NamedTuple):
    """When something is on the media clock and when that is by the wall clock (Unix time), both in microseconds."""

    pts_us: int
    cap_us: int


class Channel:
    """What one avatar publishes; nothing is encoded for a topic that nobody subscribed to.

    Args:
        send: publishes a topic and a payload.
        room: the room's id, which its topics end with; empty for the default one.
        sid: the session's id, at most 8 characters to keep `face` small.
        meta: what the session is; its header is filled in here.
        now: the media clock, for messages that belong to no frame.
        image: how pictures are encoded; must be what `meta` says.
        on_wanted: called when `wanted` changed for a topic.
    """

    def __init__(
        self,
        send: Callable[[bytes, bytes], None],
        room: str,
        *,
        sid: str,
        meta: Meta,
        now: Callable[[], Stamp],
        image: ImageFormat | None = None,
        on_wanted: Callable[[], None] | None = None,
    ) -> None:
        self.sent: Counter[Topic] = Counter()
        self._send_parts = send
        self._room = room
        self._sid = sid
        self._meta = meta
        self._now = now
        self._image = image or ImageFormat()
        self._on_wanted = on_wanted
        self._state = State(state="starting", event="snapshot")
        self._wanted: frozenset[Topic] = frozenset()

    def wanted(self, topic: Topic) -> bool:
        """Whether anybody subscribed to it: ask before computing what only this topic needs."""
        return topic in self._wanted

    def topics(self, prefix: bytes) -> set[Topic]:
        """What a subscription asks of this avatar. Those of a room name it, or end with the slash before its name."""
        return {
            kind
            for kind in Topic
            if topic_of(kind, self._room).encode().startswith(prefix) and (not self._room or len(prefix) > len(kind))
        }

    def subscribed(self, prefixes: Iterable[bytes]) -> None:
        """There are these subscriptions now."""
        before = self._wanted
        self._wanted = frozenset(topic for prefix in prefixes for topic in self.topics(prefix))
        if self._wanted != before and self._on_wanted is not None:
            self._on_wanted()

    def face(
        self,
        stamp: Stamp,
        landmarks: NDArray[np.float32],
        blendshapes: NDArray[np.float32],
        head: Head,
        *,
        speaking: bool,
    ) -> None:
        """Publish a frame's landmarks [68, 3] (interocular distances) and ARKit coefficients [52] (0..1).

        Raises:
            ValueError: an array has another shape.
        """
        if not self.wanted(Topic.FACE):
            return
        lm = _wire_floats(landmarks, (LANDMARKS, 3))
        self._send(stamp, Face(lm=lm, bs=_wire_floats(blendshapes, (BLENDSHAPES,)), head=head, speaking=speaking))

    def video(self, stamp: Stamp, picture: NDArray[np.uint8]) -> None:
        """Publish a frame's picture uint8 [h, w, 3], or [h, w, 4] with straight alpha.

        Raises:
            ValueError: the picture has another shape or type than its encoding can carry.
        """
        if not self.wanted(Topic.VIDEO):
            return
        height, width, channels = picture.shape
        data = encode_image(picture, self._image)
        self._send(stamp, Video(enc=self._image.enc, w=width, h=height, data=data, ch=channels))

    def audio(self, stamp: Stamp, samples: NDArray[np.int16], sample_rate_hz: int) -> None:
        """Publish a frame's sound int16 [n], mono.

        Raises:
            ValueError: the array has another shape or type.
        """
        if not self.wanted(Topic.AUDIO):
            return
        if samples.dtype != np.int16 or samples.ndim != 1:
            raise ValueError(f"got sound {samples.dtype} {list(samples.shape)}, expected int16 [n]")
        data = samples.astype("<i2", copy=False).tobytes()
        self._send(stamp, Audio(enc="pcm_s16le", sr=sample_rate_hz, n=len(samples), data=data))

    def state(self, state: State) -> None:
        """Publish what happened; late joiners get its `state` from now on."""
        self._state = state
        self._send(self._now(), state)

    def error(self, message: str, request_id: str = "", code: str = "") -> None:
        """Publish that a request or a part of the daemon failed; the avatar's state stays what it was."""
        state = self._state.state
        self._send(self._now(), State(state=state, event="error", message=message, id=request_id, code=code))

    def stats(self, values: Mapping[str, float]) -> None:
        """Publish counters and measurements, and this publisher's own messages per topic."""
        if self.wanted(Topic.STATS):
            sent = {f"zmq_sent_{topic.name.lower()}": float(n) for topic, n in self.sent.items()}
            self._send(self._now(), Stats(values={**values, **sent}))

    def meta(self, meta: Meta) -> None:
        """Publish what the session is now, after the portrait was swapped."""
        self._meta = meta
        self._send(self._now(), meta)

    def snapshot(self) -> None:
        """Publish what a late joiner must know."""
        now = self._now()
        self._send(now, self._meta)
        self._send(now, State(state=self._state.state, event="snapshot"))

    def _send(self, stamp: Stamp, message: AnyMessage) -> None:
        topic = _TOPICS[type(message)]
        if topic not in self._wanted:
            return
        message = msgspec.structs.replace(
            message, sid=self._sid, seq=self.sent[topic], pts_us=stamp.pts_us, cap_us=stamp.cap_us
        )
        self.sent[topic] += 1
        self._send_parts(topic_of(topic, self._room).encode(), encode(message))


class Publisher(Endpoint, Channel):
    """Publishes the avatar of the default room, and those of the rooms that are opened in it.

    A subscriber that does not keep up loses messages once its queue of `queue` messages and the kernel's buffer are
    full; `seq` shows it the gap, and nobody else notices.

    Args:
        endpoint: `tcp://ADDRESS:PORT` (port `*` takes a free one) or `ipc://PATH`; only loopback without `keys`.
        sid: as of `Channel`.
        meta: as of `Channel`.
        now: as of `Channel`.
        image: as of `Channel`; of all rooms.
        single_part: topic and payload in one part, for subscribers with ZMQ_CONFLATE.
        keys: CURVE.
        queue: messages that wait for one slow subscriber.
        on_wanted: as of `Channel`.

    Raises:
        EndpointError: the endpoint is malformed, or reachable from elsewhere without keys.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        sid: str,
        meta: Meta,
        now: Callable[[], Stamp],
        image: ImageFormat | None = None,
        single_part: bool = False,
        keys: ServerKeys | None = None,
        queue: int = SEND_QUEUE_MESSAGES,
        on_wanted: Callable[[], None] | None = None,
    ) -> None:
        Endpoint.__init__(self, endpoint, zmq.XPUB, keys)
        Channel.__init__(self, self._publish, "", sid=sid, meta=meta, now=now, image=image, on_wanted=on_wanted)
        self._channels: list[Channel] = [self]
        self._single_part = single_part
        self._queue = queue
        self._prefixes: set[bytes] = set()
        self._joined = asyncio.Event()

    def _configure(self, socket: zmq.asyncio.Socket) -> None:
        socket.sndhwm = self._queue
        socket.sndbuf = SEND_BUFFER_BYTES  # the kernel's own choice grows to megabytes of stale frames
        socket.maxmsgsize = 4096  # subscriptions and handshakes; nobody has more to say here
        # Every new subscription is reported, not only a topic's first, so that each late joiner gets its snapshot;
        # unsubscribing is reported when the last one leaves, which is exactly what a set of prefixes needs.
        socket.xpub_verbose = True

    async def start(self) -> None:
        """Bind and serve subscriptions.

        Raises:
            EndpointError: the address cannot be bound.
        """
        self._socket = self._bind()
        self._tasks = [
            asyncio.create_task(self._watch_subscriptions(), name="zmq-subscriptions"),
            asyncio.create_task(self._repeat_snapshots(), name="zmq-snapshots"),
        ]

    def open(
        self,
        room: str,
        *,
        sid: str,
        meta: Meta,
        now: Callable[[], Stamp],
        image: ImageFormat,
        on_wanted: Callable[[], None],
    ) -> Channel:
        """Publish the avatar of a room, too; the arguments are those of `Channel`."""
        channel = Channel(self._publish, room, sid=sid, meta=meta, now=now, image=image, on_wanted=on_wanted)
        self._channels.append(channel)
        channel.subscribed(self._prefixes)
        return channel

    def close(self, channel: Channel) -> None:
        """The room has ended."""
        self._channels.remove(channel)
        channel.subscribed(())
        self._prefixes = {prefix for prefix in self._prefixes if self._means_anything(prefix)}

    def _publish(self, topic: bytes, payload: bytes) -> None:
        # XPUB never waits: it drops for the subscriber whose queue is full, so the future is done when it returns.
        parts = [topic + payload] if self._single_part else [topic, payload]
        cast("asyncio.Future[None]", self._socket.send_multipart(parts, zmq.NOBLOCK)).result()

    def _means_anything(self, prefix: bytes) -> bool:
        """Whether a subscription asks for what there is, or for every room that there will be."""
        return prefix in ALL_ROOMS or any(channel.topics(prefix) for channel in self._channels)

    async def _watch_subscriptions(self) -> None:
        while True:
            event = (await self._socket.recv_multipart())[0]
            prefix = event[1:]
            # A prefix of no topic is ignored, so that a peer cannot make this set grow.
            if not self._means_anything(prefix):
                continue
            if event[:1] == b"\1":
                self._prefixes.add(prefix)
            elif event[:1] == b"\0":
                self._prefixes.discard(prefix)
            for channel in self._channels:
                channel.subscribed(self._prefixes)
            asked = {topic for channel in self._channels for topic in channel.topics(prefix)}
            if event[:1] == b"\1" and {Topic.META, Topic.STATE} & asked:
                self._joined.set()

    async def _repeat_snapshots(self) -> None:
        while True:
            # Not wait_for: until Python 3.12 it swallows a cancellation that comes as the event is set.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SNAPSHOT_SECONDS):
                    await self._joined.wait()
            self._joined.clear()
            for channel in self._channels:
                channel.snapshot()


class Receiver(Endpoint):
    """Reads audio and control from any number of PUSH sockets; iterate over it to get checked requests.

    Malformed messages are counted and reported to `on_error`, never fatal. While nobody iterates the socket is not
    read: PUSH sockets fill their own queue and their `send` waits; nothing is lost.

    Args:
        endpoint: as of `Publisher`.
        on_error: gets what was wrong with a message, in one line, and the message's id where it has one.
        keys: CURVE.

    Raises:
        EndpointError: the endpoint is malformed, or reachable from elsewhere without keys.
    """

    def __init__(self, endpoint: str, *, on_error: Callable[[str, str], None], keys: ServerKeys | None = None) -> None:
        super().__init__(endpoint, zmq.PULL, keys)
        self.received: Counter[str] = Counter()
        """Requests by type, and `malformed`."""
        self._on_error = on_error

    def _configure(self, socket: zmq.asyncio.Socket) -> None:
        socket.rcvhwm = RECEIVE_QUEUE_MESSAGES
        socket.maxmsgsize = MAX_REQUEST_BYTES  # whoever sends more is disconnected

    async def start(self) -> None:
        """Bind.

        Raises:
            EndpointError: the address cannot be bound.
        """
        self._socket = self._bind()

    def __aiter__(self) -> Self:
        """One consumer, until it is cancelled."""
        return self

    async def __anext__(self) -> AnyRequest:
        while True:
            parts = await self._socket.recv_multipart()
            try:
                # A topic in front is allowed, so that what one avatar publishes can be another's input.
                if len(parts) > 2:
                    raise MessageError(f"got {len(parts)} parts, expected one msgpack map")
                request = decode_request(parts[-1])
            except MessageError as error:
                self.received["malformed"] += 1
                self._on_error(str(error), error.request_id)
                # A flood of rubbish is answered at a pace that leaves the subscribers' queues room for frames.
                if self.received["malformed"] % 8 == 0:
                    await asyncio.sleep(0.008)
            else:
                self.received[type(request).__name__] += 1
                return request


def _wire_floats(array: NDArray[np.float32], shape: tuple[int, ...]) -> bytes:
    if array.shape != shape:
        raise ValueError(f"got an array {list(array.shape)}, expected {list(shape)}")
    return array.astype("<f4", copy=False).tobytes()
