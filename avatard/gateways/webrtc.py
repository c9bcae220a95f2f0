"""The WebRTC clients of the daemon: who is let in, what they see and hear, and what they say."""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

import numpy as np
from aiohttp import hdrs, web
from numpy.typing import NDArray

from avatard.clock import monotonic
from avatard.config import Webrtc
from avatard.media.pcm import to_pcm16
from avatard.playout.scheduler import PlayoutFrame
from avatard.protocols.broadcast import Broadcaster, Encoding
from avatard.protocols.events import Error, Event, Metrics, to_message
from avatard.protocols.peer import IceServers, Peer
from avatard.session.session import Session

logger = logging.getLogger(__name__)

MAX_VIEWERS = 64
RETRY_SECONDS = 10
LEAVING_SECONDS, LEAVING_TRIES = 1.0, 20
PANEL_SECONDS = 1.0
KINDS = ("page", "whep", "whip")


class Client:
    """What its peer tells goes to the session, the session's events go to it."""

    def __init__(self, clients: PeerRegistry, kind: str, watches: bool, listens: bool) -> None:
        self.kind = kind
        self.name = secrets.token_urlsafe(12)
        self._clients = clients
        self._session = clients.session
        self.peer = Peer(clients.hub if watches else None, clients.ice_servers, self, listens)
        self._microphone = self._session.open_microphone()
        self._unlisten = self._session.listen(self.on_event)

    def on_audio(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        """Its microphone."""
        self._microphone.push_audio(samples, rate_hz)

    def on_message(self, message: dict[str, Any]) -> None:
        """A request over the data channel."""
        if message.get("type") == "interrupt":
            self._session.interrupt()
        else:
            error = Error(message="unknown message; expected type interrupt", code="bad-message")
            self._send(error, str(message.get("id", "")))

    def on_event(self, event: Event) -> None:
        """Pass an event of the session on."""
        self._send(event)

    def _send(self, event: Event, request_id: str = "") -> None:
        message = to_message(event, request_id)
        self.peer.send_event(message["type"], message["data"], message["id"])

    def on_first_frame(self, seconds: float) -> None:
        """It saw its first picture."""
        self._session.metrics.first_frame.observe(seconds)

    def on_closed(self) -> None:
        """It is gone."""
        self._unlisten()
        self._microphone.close()
        self._clients.forget(self)


class PeerRegistry:
    """All of them; they share one stream, generated and encoded once.

    Args:
        session: the avatar.
        config: the section `webrtc`.
        max_sessions: how many may talk.
    """

    def __init__(self, session: Session, config: Webrtc, max_sessions: int) -> None:
        self.session = session
        self.ice_servers = IceServers(config.ice_servers, config.ice_username, config.ice_credential)
        self.hub = Broadcaster(Encoding(config.codec, config.bitrate_kbps * 1000), monotonic, session.metrics.skewed)
        self.closing = False
        self._max_sessions = max_sessions
        self._clients: dict[str, Client] = {}
        self._panel: asyncio.Task[None] | None = None
        hub, metrics = self.hub, session.metrics
        metrics.watch("frames", lambda: {"encoded": hub.encoded, "sent": hub.sent, "dropped": hub.dropped})
        metrics.watch("stage_seconds", lambda: {"encoder": hub.encoding_seconds})
        metrics.watch("queue_depth", lambda: {"encoder": hub.queued})

    def __len__(self) -> int:
        return len(self._clients)

    def find(self, name: object) -> Client | None:
        """The client of this name."""
        return self._clients.get(name) if isinstance(name, str) else None

    async def admit(self, kind: str) -> Client:
        """Let one more in: `page` watches and talks, `whep` watches, `whip` talks.

        Raises:
            web.HTTPServiceUnavailable: there is no room, or no avatar yet.
        """
        watches, talks = kind != "whip", kind != "whep"
        kinds, most = (("page", "whip"), self._max_sessions) if talks else (("whep",), MAX_VIEWERS)
        await self._wait_for_room(kinds, most)
        # No await from here on: the place that is free now must not be given to two.
        self._check_room(kinds, most)
        client = Client(self, kind, watches, listens=talks)
        self._clients[client.name] = client
        self._count()
        if self._panel is None:
            self._panel = asyncio.create_task(self._tell_figures(), name="panel")
        return client

    def forget(self, client: Client) -> None:
        """The client is gone."""
        self._clients.pop(client.name, None)
        self._count()

    def play(self, entry: PlayoutFrame) -> None:
        """Send a frame to all: the session calls it when the frame is due."""
        if entry.picture is not None:
            self.hub.send(entry.index, entry.picture.pixels, to_pcm16(entry.sound.playback))

    async def close(self) -> None:
        """Say good-bye to everyone."""
        self.closing = True
        if self._panel is not None:
            self._panel.cancel()
            await asyncio.gather(self._panel, return_exceptions=True)
        await asyncio.gather(*(client.peer.close() for client in list(self._clients.values())))
        await self.hub.close()

    def _count(self) -> None:
        kinds = [client.kind for client in self._clients.values()]
        for kind in KINDS:
            self.session.metrics.sessions.labels(kind).set(kinds.count(kind))
        self.session.detach(self)
        if any(kind != "whip" for kind in kinds):
            self.session.attach(self)

    async def _tell_figures(self) -> None:
        while True:
            await asyncio.sleep(PANEL_SECONDS)
            try:
                if self._clients:
                    self.session.events.emit(Metrics(values=self.session.figures()))
            except Exception:
                logger.exception("the figures were not told")

    def _full(self, kinds: tuple[str, ...], most: int) -> bool:
        return sum(client.kind in kinds for client in self._clients.values()) >= most

    async def _wait_for_room(self, kinds: tuple[str, ...], most: int) -> None:
        """Whoever is just leaving, as before a reload, is given a moment."""
        for _ in range(LEAVING_TRIES):
            if not self._full(kinds, most):
                break
            await asyncio.sleep(LEAVING_SECONDS / LEAVING_TRIES)

    def _check_room(self, kinds: tuple[str, ...], most: int) -> None:
        """Raise 503 where there is no room."""
        if self.closing or not self.session.ready:
            why = "shutting down" if self.closing else "the avatar is starting"
            raise web.HTTPServiceUnavailable(text=why, headers={hdrs.RETRY_AFTER: "2"})
        if self._full(kinds, most):
            headers = {hdrs.RETRY_AFTER: str(RETRY_SECONDS)}
            raise web.HTTPServiceUnavailable(text=f"all {most} sessions are in use; try again later", headers=headers)
