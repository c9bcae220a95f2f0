"""The face over UDP to programs that know trackers: VMC, Live Link Face and OpenSeeFace, one sender for all three.

A sender is a sink of the session only while somebody listens, so that nothing is generated for a port that is closed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, NamedTuple

from avatard.clock import wall_us
from avatard.config import Engines
from avatard.frame import Frame
from avatard.models.face.arkit import ARKIT_NAMES
from avatard.playout.scheduler import PlayoutFrame
from avatard.protocols import live_link_face, open_see_face, vmc
from avatard.protocols.face_motion import FaceMotion
from avatard.protocols.network import udp_target
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.session import Session
from avatard.timebase import FRAME_SECONDS

logger = logging.getLogger(__name__)

Encode = Callable[[FaceMotion], list[bytes]]

#: Between two tries to reach a receiver: the first wait, and the longest.
RETRY_SECONDS: Final = 1.0
MAX_RETRY_SECONDS: Final = 8.0
#: For the answer of another machine that nobody listens there.
ANSWER_SECONDS: Final = 0.2


class Target(NamedTuple):
    """Somewhere that packets go."""

    protocol: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class UdpSender:
    """Sends frames to one receiver, which may come and go.

    Args:
        target: the receiver.
        encode: makes the datagrams of a frame.
        probe: gives a frame to try with, whether anybody listens.
        on_change: called when somebody listens, and when nobody does any more.
        retry_seconds: the first wait between two tries.
    """

    def __init__(
        self,
        target: Target,
        encode: Encode,
        probe: Callable[[], FaceMotion | None],
        on_change: Callable[[], None],
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.target = target
        self.sent = 0  # frames
        self.dropped = 0  # frames that the system's queue had no room for
        self._encode = encode
        self._probe = probe
        self._on_change = on_change
        self._retry_seconds = retry_seconds
        self._socket: socket.socket | None = None
        self._lost = asyncio.Event()
        self._complained = False

    @property
    def live(self) -> bool:
        """Whether frames are sent: nobody said that nobody listens."""
        return self._socket is not None

    def send(self, motion: FaceMotion) -> None:
        """Send a frame now, or not at all."""
        if self._socket is None:
            return
        try:
            for datagram in self._encode(motion):
                self._socket.send(datagram)
            self.sent += 1
        except BlockingIOError:
            self.dropped += 1
        except OSError as error:  # what came back for an earlier packet
            self._close(error)

    async def run(self) -> None:
        """Look for the receiver, and again whenever it is lost; for ever."""
        wait = self._retry_seconds
        while True:
            self._lost.clear()
            try:
                self._socket = await self._opened()
            except OSError as error:
                self._complain(error)
            else:
                if self._complained or not self.sent:
                    logger.info("sending", extra=self._names())
                self._complained, wait = False, self._retry_seconds
                self._on_change()
                await self._lost.wait()
            await asyncio.sleep(wait)
            wait = min(2 * wait, MAX_RETRY_SECONDS)

    def close(self) -> None:
        """Send no more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _opened(self) -> socket.socket:
        """A socket that a frame was sent through without a refusal. Raises `OSError`."""
        found = await asyncio.get_running_loop().getaddrinfo(
            self.target.host, self.target.port, type=socket.SOCK_DGRAM, proto=socket.IPPROTO_UDP
        )
        # What listens on all addresses listens on IPv4, and "localhost" is often IPv6 first.
        family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setblocking(False)
            opened.connect(address)  # so that a refusal comes back to it
            motion = self._probe()
            if motion is not None:
                for datagram in self._encode(motion):
                    opened.send(datagram)
                await asyncio.sleep(ANSWER_SECONDS)
                if refused := opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(refused, "nobody listens")
        except BaseException:
            opened.close()
            raise
        return opened

    def _close(self, error: OSError) -> None:
        self.close()
        self._complain(error)
        self._lost.set()
        self._on_change()

    def _complain(self, error: OSError) -> None:
        """One line each time that the receiver is lost, not one each try."""
        if not self._complained:
            reason = "nobody listens" if isinstance(error, ConnectionRefusedError) else error.strerror or str(error)
            logger.warning("no receiver; trying again", extra=self._names() | {"reason": reason})
            self._complained = True

    def _names(self) -> dict[str, object]:
        return {"protocol": self.target.protocol, "to": str(self.target)}


class MotionGateway:
    """The session's face, to all receivers that the configuration names.

    Args:
        config: the section `engines`.
        retry_seconds: as of `UdpSender`.

    Raises:
        TargetError: a receiver's address is malformed.
    """

    def __init__(self, config: Engines, retry_seconds: float = RETRY_SECONDS) -> None:
        self.senders = [
            UdpSender(target, encode, self._at_rest, self._on_change, retry_seconds)
            for target, encode in _receivers(config)
        ]
        self._session: Session | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, session: Session) -> None:
        """Look for the receivers; the session is warm."""
        self._session = session
        self._tasks = [
            asyncio.create_task(sender.run(), name=f"{sender.target.protocol}-sender") for sender in self.senders
        ]

    async def stop(self) -> None:
        """Send no more."""
        await cancel_and_wait(self._tasks)
        for sender in self.senders:
            sender.close()
        self._on_change()

    def play(self, entry: PlayoutFrame) -> None:
        """Send a frame that is due now."""
        if entry.picture is not None and (motion := self._motion(entry.index, entry.picture)):
            for sender in self.senders:
                sender.send(motion)

    def _on_change(self) -> None:
        if self._session is not None:
            self._session.detach(self)
            if any(sender.live for sender in self.senders):
                self._session.attach(self)

    def _at_rest(self) -> FaceMotion | None:
        if self._session is None or (at_rest := self._session.generation.at_rest) is None:
            return None
        return self._motion(max(self._session.scheduler.next_frame - 1, 0), at_rest)

    def _motion(self, index: int, frame: Frame) -> FaceMotion | None:
        assert self._session is not None
        at_rest = self._session.generation.at_rest
        height, width, _ = frame.pixels.shape
        return FaceMotion(
            index=index,
            seconds=index * FRAME_SECONDS,
            unix_seconds=wall_us() / 1e6,
            landmarks=frame.landmarks,
            rest=frame.landmarks if at_rest is None else at_rest.landmarks,
            weights=dict(zip(ARKIT_NAMES, frame.blendshapes.tolist(), strict=True)),
            head=frame.head,
            size=(width, height),
        )


def _receivers(config: Engines) -> list[tuple[Target, Encode]]:
    """Whom to send to, and what. Raises `TargetError`."""
    kinds: list[tuple[str, tuple[str, ...], int, Callable[[], Encode]]] = [
        ("vmc", config.vmc, vmc.PORT, lambda: vmc.VmcEncoder(config.vmc_names, ARKIT_NAMES)),
        (
            "livelink",
            config.livelink,
            live_link_face.PORT,
            lambda: live_link_face.LiveLinkFaceEncoder(config.livelink_subject),
        ),
        ("openseeface", config.openseeface, open_see_face.PORT, open_see_face.OpenSeeFaceEncoder),
    ]
    # All addresses first: a mistake is told before anything is made.
    targets = [(Target(name, *udp_target(text, port)), make) for name, texts, port, make in kinds for text in texts]
    return [(target, make()) for target, make in targets]
