"""WebRTC: the connection of one client.

peer = Peer(broadcaster, ice_servers, handler)
answer = await peer.answer(offer)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import av
import numpy as np
from aioice import Connection
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceCandidate,
    RTCIceServer,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from numpy.typing import NDArray

from avatard.protocols.aiortc_internals import (
    IceRestart,
    PeerConnection,
    bypass_jitter_buffer,
    limit_retransmissions,
    on_feedback,
    on_key_frame_request,
)
from avatard.protocols.broadcast import Broadcaster, Rendition, Track
from avatard.protocols.events import Error, Event, to_message
from avatard.protocols.json_text import parse_object
from avatard.protocols.media_ports import MediaPorts
from avatard.protocols.offer import Candidate, Fragment, OfferError, Served, negotiate

logger = logging.getLogger(__name__)

MAX_EVENT_BYTES = 64 * 1024
VANISHED_SECONDS = 10.0  # without a packet: receivers report every second, and ICE alone would take a minute
CONNECT_SECONDS = 20.0
LOST_SECONDS = 0.5  # sound missing for longer was not lost but paused


@dataclass(frozen=True)
class IceServers:
    """STUN and TURN; aioice uses the first of each."""

    urls: tuple[str, ...] = ()
    username: str = ""
    credential: str = ""

    def configuration(self) -> RTCConfiguration:
        """In aiortc's form: without servers an empty list, because None means a public server."""
        servers = [RTCIceServer(url, self.username or None, self.credential or None) for url in self.urls]
        # Not MAX_BUNDLE: aiortc 1.16 then stops the one transport, unless the offer begins with the kind added first.
        return RTCConfiguration(servers)

    def for_browsers(self) -> list[dict[str, object]]:
        """As `RTCPeerConnection` takes them. It refuses a TURN server without both name and password."""
        stun = [url for url in self.urls if url.startswith("stun")]
        turn = [url for url in self.urls if url.startswith("turn")]
        found: list[dict[str, object]] = [{"urls": stun}] if stun else []
        if turn and self.username and self.credential:
            found.append({"urls": turn, "username": self.username, "credential": self.credential})
        return found


class Handler(Protocol):
    """Receives what a peer reports; called in the event loop."""

    def on_audio(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        """Sound from the client's microphone, mono."""

    def on_message(self, message: dict[str, Any]) -> None:
        """A JSON object from the data channel."""

    def on_first_frame(self, seconds: float) -> None:
        """The first frame was sent, this long after the offer arrived."""

    def on_closed(self) -> None:
        """The connection ended; called once."""


class Peer:
    """The connection of one client.

    Args:
        broadcaster: what the client sees and hears; None for a client that only sends.
        ice_servers: STUN and TURN.
        handler: receives sound, messages and the end of the connection.
        receives: whether the client's sound is wanted.
        stacked: whether its pictures are colour over matte; see `Rendition`.
        ports: its UDP ports and the addresses that the client is told; None: any port, this machine's addresses.
    """

    def __init__(
        self,
        broadcaster: Broadcaster | None,
        ice_servers: IceServers,
        handler: Handler,
        receives: bool = True,
        stacked: bool = False,
        ports: MediaPorts | None = None,
    ) -> None:
        self._broadcaster = broadcaster
        self._stacked = stacked
        self._handler = handler
        self._receives = receives
        self._ports = ports
        self._pc = PeerConnection(ice_servers.configuration())
        self._pc.on("connectionstatechange", self._on_state)
        self._pc.on("track", self._on_track)
        self._pc.on("datachannel", self._on_channel)
        self.silent_seconds = 0.0  # since the last packet of a client that was connected
        self._channel: RTCDataChannel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._offered_at: float | None = broadcaster.now() if broadcaster is not None else None
        self._served: Served | None = None
        self._tracks: Sequence[Track] = ()
        self._restarts: list[IceRestart] = []
        self._username = ""  # of the client's ICE agent

    @property
    def closed(self) -> bool:
        """Whether the connection ended."""
        return self._closed

    async def answer(self, offer: str) -> str:
        """The answer to an SDP offer.

        Raises:
            OfferError: the offer is malformed, or (`NotAcceptableError`) nothing in it can be served, or
                (`NoPortError`) all UDP ports are taken; the peer is closed.
        """
        try:
            codecs = self._broadcaster.encoding.codecs if self._broadcaster is not None else ()
            served = self._served = negotiate(offer, codecs, self._receives)
            self._username = served.username
            # aiortc matches transceivers while it reads the offer: the tracks must be there before.
            if self._broadcaster is not None:
                self._add_tracks(self._broadcaster, served)
            await self._pc.setRemoteDescription(RTCSessionDescription(served.offer, "offer"))
            self._restarts = [IceRestart(dtls.transport, self._ports) for dtls in self._pc.dtls_transports]
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except Exception as error:  # aiortc's parser raises whatever breaks first in a malformed offer
            await self.close()
            if isinstance(error, OfferError):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OfferError(f"the offer cannot be used: {reason[:200]}") from None
        self._spawn(self._add_candidates(served.candidates, served.ended))
        self._spawn(self._watch())
        return served.answer(str(self._pc.localDescription.sdp))

    def _add_tracks(self, broadcaster: Broadcaster, served: Served) -> None:
        rendition = Rendition(served.codec, self._stacked) if served.codec is not None else None
        self._tracks = broadcaster.add_client(served.sends, rendition, self._on_sent)
        for track in self._tracks:
            sender = self._pc.addTrack(track)
            on_key_frame_request(sender, track.request_key_frame)
            if track.kind == "video":
                on_feedback(sender, track.estimated, track.reported)
                limit_retransmissions(sender, broadcaster.now)

    async def _watch(self) -> None:
        """Close the connection of a client that vanished, or never came."""
        received, silent = 0, 0.0
        while silent < (VANISHED_SECONDS if received else CONNECT_SECONDS):
            await asyncio.sleep(1.0)
            report = await self._pc.getStats()
            now = sum(stats.packetsReceived for stats in report.values() if stats.type == "transport")
            silent = silent + 1.0 if now == received else 0.0
            received = now
            self.silent_seconds = silent if received else 0.0
        if not received:
            self._log_failure()
        self._hang_up()

    async def restart_ice(self, fragment: Fragment) -> str:
        """Change to another network path: a fragment with new credentials is answered with one (RFC 9725, 4.3.2).

        Media continue on the old path until the new one is established.

        Raises:
            OfferError: the connection is not established, or has a transport for each section, or (`NoPortError`) all
                UDP ports are taken; media go on over the old path.
        """
        if self._served is None or self._pc.connectionState != "connected":
            raise OfferError("ICE cannot be restarted: the connection is not established; send a new offer")
        if len(self._restarts) != 1:
            raise OfferError("ICE cannot be restarted: the offer bundles no sections; send a new offer")
        (restart,) = self._restarts
        new = await restart.prepare(fragment.username, fragment.password)
        self._username = fragment.username
        self._spawn(self._complete_restart(restart, new))
        self.add_candidates(fragment.candidates, fragment.ended)
        candidates = [candidate.to_sdp() for candidate in new.local_candidates]
        return self._served.restart_fragment(new.local_username, new.local_password, candidates)

    async def _complete_restart(self, restart: IceRestart, new: Connection) -> None:
        try:
            await restart.complete(new)
        except ConnectionError as error:
            logger.warning("ICE restart failed", extra={"reason": str(error)})

    def is_restart(self, fragment: Fragment) -> bool:
        """Whether a fragment has other ICE credentials than the connection."""
        return fragment.username not in ("", self._username)

    def add_candidates(self, candidates: Sequence[Candidate], ended: bool = False) -> None:
        """Add trickled ICE candidates, side by side; a name that must be resolved delays neither them nor the caller.

        Args:
            candidates: of the client.
            ended: whether these were the last.
        """
        self._spawn(self._add_candidates(candidates, ended))

    async def _add_candidates(self, candidates: Iterable[Candidate], ended: bool) -> None:
        await asyncio.gather(*map(self._add_candidate, candidates))
        if ended:
            await self._pc.addIceCandidate(None)

    async def _add_candidate(self, candidate: Candidate) -> None:
        assert self._served is not None
        mid, line = self._served.place(candidate)
        try:
            await self._pc.addIceCandidate(
                RTCIceCandidate(
                    component=candidate.component,
                    foundation=candidate.foundation,
                    ip=candidate.address,
                    port=candidate.port,
                    priority=candidate.priority,
                    protocol=candidate.protocol,
                    type=candidate.type,
                    sdpMid=mid,
                    sdpMLineIndex=line if mid is None else None,
                )
            )
        except (OSError, ValueError) as error:  # no multicast here, or it came after the end
            logger.debug("ICE candidate ignored", extra={"address": candidate.address, "reason": str(error)})

    def send(self, event: Event, request_id: str = "") -> None:
        """Send an event over the data channel, if the client opened one.

        Args:
            event: what happened.
            request_id: of the request that it answers.
        """
        if self._channel is not None and self._channel.readyState == "open":
            if self._channel.bufferedAmount > MAX_EVENT_BYTES:
                return  # a client that does not read its events may miss some
            self._channel.send(json.dumps(to_message(event, request_id)))

    async def close(self) -> None:
        """End the connection."""
        if self._closed:
            return
        self._closed = True
        if self._broadcaster is not None:
            self._broadcaster.release(self._tracks)
        for task in self._tasks:
            task.cancel()
        for restart in self._restarts:
            await restart.close()
        with contextlib.suppress(Exception):  # a half-open transport may refuse to be closed in order
            await self._pc.close()
        self._handler.on_closed()

    def _on_sent(self, kind: str, index: int) -> None:
        if kind == "video" and self._offered_at is not None and self._broadcaster is not None:
            self._handler.on_first_frame(self._broadcaster.now() - self._offered_at)
            self._offered_at = None

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Without its tasks the connection would never be closed, and keep its seat.
            logger.error("a connection failed", exc_info=task.exception())
            self._hang_up()

    def _on_state(self) -> None:
        if self._closed:
            return
        if self._pc.connectionState == "failed":
            self._log_failure()
        if self._pc.connectionState in ("failed", "closed"):
            self._hang_up()

    def _log_failure(self) -> None:
        logger.warning("WebRTC connection failed", extra={"reason": self._pc.failure()})

    def _hang_up(self) -> None:
        # Kept apart from `_tasks`, which `close` cancels.
        self._closing = asyncio.ensure_future(self.close())

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and self._receives:
            bypass_jitter_buffer(self._pc)
            self._spawn(self._read(track))

    async def _read(self, track: MediaStreamTrack) -> None:
        due: int | None = None  # sample that should come next
        with contextlib.suppress(MediaStreamError):
            while True:
                frame = await track.recv()
                assert isinstance(frame, av.AudioFrame) and frame.pts is not None
                samples = frame.to_ndarray().reshape(-1, len(frame.layout.channels)).mean(axis=1, dtype=np.float32)
                lost = 0 if due is None else frame.pts - due
                if 0 < lost <= LOST_SECONDS * frame.sample_rate:
                    samples = np.concatenate([np.zeros(lost, np.float32), samples])
                due = frame.pts + frame.samples
                self._handler.on_audio(samples / np.float32(32768), frame.sample_rate)

    def _on_channel(self, channel: RTCDataChannel) -> None:
        self._channel = channel
        channel.on("message", self._on_message)

    def _on_message(self, text: str | bytes) -> None:
        try:
            if len(text) > MAX_EVENT_BYTES:
                raise ValueError(f"got {len(text):,} characters, expected at most {MAX_EVENT_BYTES:,}")
            message = parse_object(text)
        except ValueError as error:
            self.send(Error(message=str(error), code="bad-message"))
        else:
            self._handler.on_message(message)
