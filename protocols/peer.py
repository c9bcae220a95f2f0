"""WebRTC: the connection of one client.

peer = Peer(hub, ice_servers, handler)
answer = await peer.answer(offer)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import av
import numpy as np
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCDataChannel,
    RTCIceServer,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.jitterbuffer import JitterFrame
from aiortc.mediastreams import MediaStreamError
from aiortc.rtp import RtpPacket
from aiortc.sdp import SessionDescription, candidate_from_sdp
from aiortc.utils import uint16_gt
from numpy.typing import NDArray

from avatard.protocols.broadcast import KINDS, Broadcaster, Kind, Track
from avatard.protocols.json_text import parse_object

logger = logging.getLogger(__name__)

MAX_EVENT_BYTES = 64 * 1024
VANISHED_SECONDS = 10.0  # without a packet: receivers report every second, and ICE alone would take a minute
CONNECT_SECONDS = 20.0
EVENT_LABEL = "rtvi-ai"
LOST_SECONDS = 0.5  # sound missing for longer was not lost but paused


class OfferError(ValueError):
    """An offer, or a candidate, cannot be used; one line."""


@dataclass(frozen=True)
class IceServers:
    """STUN and TURN; aioice uses the first of each."""

    urls: tuple[str, ...] = ()
    username: str = ""
    credential: str = ""

    def configuration(self) -> RTCConfiguration:
        """As aiortc wants it: without servers an empty list, because None means somebody's public one."""
        servers = [RTCIceServer(url, self.username or None, self.credential or None) for url in self.urls]
        # Not MAX_BUNDLE: aiortc 1.16 then stops the one transport, unless the offer begins with the kind added first.
        return RTCConfiguration(servers)


class Handler(Protocol):
    """What a peer tells; called in the event loop."""

    def on_audio(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        """The client's microphone, mono."""

    def on_message(self, message: dict[str, Any]) -> None:
        """A JSON object from the data channel."""

    def on_first_frame(self, seconds: float) -> None:
        """The first picture left so long after the offer came."""

    def on_closed(self) -> None:
        """The client is gone; called once."""


class Peer:
    """The connection of one client.

    Args:
        hub: what it sees and hears; None for a client that only sends.
        ice_servers: STUN and TURN.
        handler: told of everything.
        listens: whether the client's sound is wanted.
    """

    def __init__(
        self, hub: Broadcaster | None, ice_servers: IceServers, handler: Handler, listens: bool = True
    ) -> None:
        self._hub = hub
        self._handler = handler
        self._listens = listens
        self._pc = RTCPeerConnection(ice_servers.configuration())
        self._pc.on("connectionstatechange", self._on_state)
        self._pc.on("track", self._on_track)
        self._pc.on("datachannel", self._on_channel)
        self._channel: RTCDataChannel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._offered_at: float | None = hub.now() if hub is not None else None
        self._tracks: Sequence[Track] = ()

    @property
    def closed(self) -> bool:
        """Whether it was hung up."""
        return self._closed

    async def answer(self, offer: str) -> str:
        """The answer to an SDP offer.

        Raises:
            OfferError: the offer is no SDP, or nothing in it fits; the peer is closed.
        """
        try:
            asked = {section.kind for section in SessionDescription.parse(offer).media}
            kinds = [kind for kind in KINDS if kind in asked]
            if not kinds:
                raise OfferError("the offer has neither a video nor an audio section")
            # aiortc matches transceivers while it reads the offer: tracks and preferences must be there before.
            if self._hub is not None:
                self._add_tracks(self._hub, kinds)
            await self._pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except Exception as error:  # aiortc's parser meets garbage with whatever breaks first
            await self.close()
            if isinstance(error, OfferError):
                raise
            said = " ".join(str(error).split()) or type(error).__name__
            raise OfferError(f"the offer cannot be used: {said[:200]}") from None
        self._spawn(self._watch())
        return str(self._pc.localDescription.sdp)

    def _add_tracks(self, hub: Broadcaster, kinds: Sequence[Kind]) -> None:
        self._tracks = hub.tracks(kinds, self._on_sent)
        for track in self._tracks:
            sender = self._pc.addTrack(track)
            sender._send_keyframe = hub.request_key_frame  # type: ignore[method-assign]  # ready-made packets bypass it
        for transceiver in self._pc.getTransceivers():
            if transceiver.kind == "video":
                transceiver.setCodecPreferences(_preferred(hub.encoding.codec))

    async def _watch(self) -> None:
        """Hang up on a client that vanished, or never came."""
        received, silent = 0, 0.0
        while silent < (VANISHED_SECONDS if received else CONNECT_SECONDS):
            await asyncio.sleep(1.0)
            report = await self._pc.getStats()
            now = sum(stats.packetsReceived for stats in report.values() if stats.type == "transport")
            silent = silent + 1.0 if now == received else 0.0
            received = now
        self._hang_up()

    async def add_candidate(self, candidate: str, mid: str | None, line: int | None) -> None:
        """Add a trickled ICE candidate (`candidate:...`); an empty one ends them.

        Raises:
            OfferError: it cannot be read.
        """
        if not candidate:
            return
        try:
            parsed = candidate_from_sdp(candidate.removeprefix("a=").removeprefix("candidate:"))
            parsed.sdpMid, parsed.sdpMLineIndex = mid, line if mid is not None or line is not None else 0
            await self._pc.addIceCandidate(parsed)
        except Exception as error:  # as above
            raise OfferError(f"the candidate cannot be used: {str(error) or type(error).__name__}") from None

    def send_event(self, kind: str, data: dict[str, Any], event_id: str = "") -> None:
        """Send an event over the data channel, if the client opened one."""
        if self._channel is not None and self._channel.readyState == "open":
            if self._channel.bufferedAmount > MAX_EVENT_BYTES:
                return  # a client that does not read its events may miss some
            self._channel.send(json.dumps({"label": EVENT_LABEL, "type": kind, "id": event_id, "data": data}))

    async def close(self) -> None:
        """Hang up."""
        if self._closed:
            return
        self._closed = True
        if self._hub is not None:
            self._hub.release(self._tracks)
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(Exception):  # a half-open transport may refuse to be closed in order
            await self._pc.close()
        self._handler.on_closed()

    def _on_sent(self, kind: str, index: int) -> None:
        if kind == "video" and self._offered_at is not None and self._hub is not None:
            self._handler.on_first_frame(self._hub.now() - self._offered_at)
            self._offered_at = None

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # A client that nobody listens to or watches any more would keep its place for ever.
            logger.error("a connection failed", exc_info=task.exception())
            self._hang_up()

    def _on_state(self) -> None:
        if self._pc.connectionState in ("failed", "closed") and not self._closed:
            self._hang_up()

    def _hang_up(self) -> None:
        # Kept apart from `_tasks`, which `close` cancels.
        self._closing = asyncio.ensure_future(self.close())

    def _on_track(self, track: MediaStreamTrack) -> None:
        if track.kind == "audio" and self._listens:
            self._bypass_jitter_buffer()
            self._spawn(self._read(track))

    def _bypass_jitter_buffer(self) -> None:
        """Take sound as it comes."""
        for receiver in self._pc.getReceivers():
            buffer = getattr(receiver, "_RTCRtpReceiver__jitter_buffer", None)
            if buffer is not None and not buffer._is_video:
                receiver._RTCRtpReceiver__jitter_buffer = PassthroughJitterBuffer()  # type: ignore[attr-defined]

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
            self.send_event("error", {"message": str(error), "fatal": False})
        else:
            self._handler.on_message(message)


class PassthroughJitterBuffer:
    """Instead of aiortc's jitter buffer for sound, which holds back 80 ms, and 320 where a packet is lost.

    The scheduler has a margin for jitter; what is lost, or overtaken by a later packet, is silence.
    """

    def __init__(self) -> None:
        self._newest: int | None = None

    def add(self, packet: RtpPacket) -> tuple[bool, JitterFrame | None]:
        """As aiortc's: whether a key frame is needed, and the frame that can be decoded now."""
        if self._newest is not None and not uint16_gt(packet.sequence_number, self._newest):
            return False, None
        self._newest = packet.sequence_number
        return False, JitterFrame(packet._data, packet.timestamp)  # type: ignore[attr-defined]


def _preferred(codec: str) -> list[Any]:
    """The one codec that is encoded, and its retransmission."""
    wanted = {f"video/{codec}", "video/rtx"}
    return [known for known in RTCRtpSender.getCapabilities("video").codecs if known.mimeType.lower() in wanted]
