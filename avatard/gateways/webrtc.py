"""The WebRTC clients of the daemon: their seats, what they are sent, and what they send."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avatard.clock import monotonic
from avatard.config import Webrtc
from avatard.errors import UserError
from avatard.media.pcm import to_pcm16
from avatard.playout.scheduler import PlayoutFrame
from avatard.protocols.broadcast import Broadcaster, Encoding
from avatard.protocols.events import Error, Event, Metrics
from avatard.protocols.json_text import text_of
from avatard.protocols.media_ports import MediaPorts
from avatard.protocols.peer import IceServers, Peer
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.session import Session

logger = logging.getLogger(__name__)

RETRY_SECONDS = 10
STARTING_SECONDS = 2
LEAVING_SECONDS, LEAVING_TRIES = 1.0, 20
SILENT_SECONDS = 3.0  # a client that is still there reports every second
STATISTICS_SECONDS = 1.0
KINDS = ("page", "whep", "whip")


class UnavailableError(UserError):
    """A client cannot be served now."""

    CODE = "unavailable"

    def __init__(self, message: str, retry_after_s: int, *, code: str | None = None, **fields: object) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s, **fields)
        self.retry_after_s = retry_after_s


class StackingError(UserError):
    """A client asks for a matte, and there is none."""

    CODE = "not-acceptable"


class Client:
    """A client: passes its sound and messages to the session, and the session's events to it."""

    def __init__(self, registry: PeerRegistry, kind: str, stacked: bool) -> None:
        self.kind = kind
        self.name = secrets.token_urlsafe(12)
        self._registry = registry
        self._session = registry.session
        broadcaster = registry.broadcaster if kind != "whip" else None
        self.peer = Peer(
            broadcaster,
            registry.ice_servers,
            self,
            receives=kind != "whep",
            stacked=stacked,
            ports=registry.ports,
        )
        self._microphone = self._session.open_microphone()
        self._unlisten = self._session.listen(self.on_event)

    def on_audio(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        """Sound from its microphone."""
        self._microphone.push_audio(samples, rate_hz)

    def on_message(self, message: dict[str, Any]) -> None:
        """A request over the data channel."""
        if message.get("type") == "interrupt":
            self._session.interrupt()
        else:
            error = Error(message="unknown message; expected type interrupt", code="bad-message")
            self.peer.send(error, text_of(message, "id"))

    def on_event(self, event: Event) -> None:
        """Pass an event of the session on."""
        self.peer.send(event)

    def on_first_frame(self, seconds: float) -> None:
        """The first frame was sent to it."""
        self._session.metrics.first_frame.observe(seconds)

    def on_closed(self) -> None:
        """Its connection ended."""
        self._unlisten()
        self._microphone.close()
        self._registry.forget(self)


class PeerRegistry:
    """All WebRTC clients; they share one stream, generated once and encoded once for each codec in use.

    Args:
        session: the avatar.
        config: the section `webrtc`.
        max_sessions: how many may talk.
    """

    def __init__(self, session: Session, config: Webrtc, max_sessions: int) -> None:
        self.session = session
        self.ice_servers = IceServers(config.ice_servers, config.ice_username, config.ice_credential)
        chosen = config.udp_ports or config.announce
        self.ports = MediaPorts(config.udp_port_range, config.announce) if chosen else None
        encoding = Encoding(config.codec, config.bitrate_kbps * 1000)
        self.broadcaster = Broadcaster(encoding, monotonic, session.metrics.skewed)
        self.closing = False
        self._max_sessions = max_sessions
        self._max_viewers = config.max_viewers
        self._clients: dict[str, Client] = {}
        self._statistics: asyncio.Task[None] | None = None
        sent, metrics = self.broadcaster, session.metrics
        metrics.watch("frames", lambda: {"encoded": sent.encoded, "sent": sent.sent, "dropped": sent.dropped})
        metrics.watch("stage_seconds", lambda: {"encoder": sent.encoding_seconds})
        metrics.watch("queue_depth", lambda: {"encoder": sent.queued})

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, name: object) -> Client | None:
        """The client of this name."""
        return self._clients.get(name) if isinstance(name, str) else None

    async def admit(self, kind: str, stacked: bool = False) -> Client:
        """Give a new client its seat: `page` watches and talks, `whep` watches, `whip` talks.

        Args:
            kind: what the client does.
            stacked: whether it wants pictures of double height, colour over matte.

        Raises:
            UnavailableError: all seats are taken, or the avatar is not ready.
            StackingError: pictures have no matte.
        """
        await self._wait_for_seat(kind)
        # No await from here on: the seat that is free now must not be given to two.
        self._check_seat(kind)
        if stacked and not self._has_matte:
            raise StackingError('there is no matte: start avatard with picture.background = "transparent"')
        client = Client(self, kind, stacked)
        self._clients[client.name] = client
        self._count()
        if self._statistics is None:
            self._statistics = asyncio.create_task(self._emit_statistics(), name="statistics")
        return client

    def forget(self, client: Client) -> None:
        """Free the seat of a client whose connection ended."""
        self._clients.pop(client.name, None)
        self._count()

    def play(self, entry: PlayoutFrame) -> None:
        """Send a frame to all: the session calls it when the frame is due."""
        if entry.picture is not None:
            self.broadcaster.send(entry.index, entry.picture.pixels, to_pcm16(entry.sound.playback))

    async def close(self) -> None:
        """Close all connections."""
        self.closing = True
        await cancel_and_wait(self._statistics)
        await asyncio.gather(*(client.peer.close() for client in list(self._clients.values())))
        await self.broadcaster.close()

    @property
    def _has_matte(self) -> bool:
        at_rest = self.session.generation.at_rest
        return at_rest is not None and at_rest.pixels.shape[2] == 4

    def _count(self) -> None:
        kinds = [client.kind for client in self._clients.values()]
        for kind in KINDS:
            self.session.metrics.sessions.labels(kind).set(kinds.count(kind))
        self.session.detach(self)
        if any(kind != "whip" for kind in kinds):
            self.session.attach(self)

    async def _emit_statistics(self) -> None:
        while True:
            await asyncio.sleep(STATISTICS_SECONDS)
            try:
                if self._clients:
                    self.session.events.emit(Metrics(values=self.session.figures()))
            except Exception:
                logger.exception("could not emit statistics")

    def _seats(self, kind: str) -> tuple[list[Client], int]:
        """The clients that share their number with one of this kind, and how many of them there may be."""
        kinds, most = (("whep",), self._max_viewers) if kind == "whep" else (("page", "whip"), self._max_sessions)
        return [client for client in self._clients.values() if client.kind in kinds], most

    async def _wait_for_seat(self, kind: str) -> None:
        """Wait a moment for a client that is just leaving, as before a reload; one that is silent loses its seat."""
        for _ in range(LEAVING_TRIES):
            taken, most = self._seats(kind)
            if len(taken) < most:
                break
            silent = next((client for client in taken if client.peer.silent_seconds >= SILENT_SECONDS), None)
            if silent is not None:
                await silent.peer.close()
            else:
                await asyncio.sleep(LEAVING_SECONDS / LEAVING_TRIES)

    def _check_seat(self, kind: str) -> None:
        if self.closing:
            raise UnavailableError("the server is shutting down", STARTING_SECONDS, code="shutting-down")
        if not self.session.ready:
            raise UnavailableError("the avatar is starting", STARTING_SECONDS, code="starting")
        taken, most = self._seats(kind)
        if len(taken) >= most:
            seat = "seat" if kind != "whep" else "viewer seat"
            which = f"the one {seat} is" if most == 1 else f"all {most} {seat}s are"
            text = f"{which} taken; try again in {RETRY_SECONDS} s"
            raise UnavailableError(text, RETRY_SECONDS, code="full", seats=most)
