"""Live media for WebRTC: each frame is encoded once, and handed to the senders of all clients.

    hub = Broadcaster(Encoding(codec="vp8", bitrate_bps=1_500_000), now=time.monotonic)
    hub.send(index, rgb, pcm16)                      # once for each frame, when it is due

Sound and picture of a frame are encoded first and handed to the senders together, because a sender report pairs the
wall clock at sending with the last RTP timestamp: what is encoded in between would become lip-sync error. aiortc packs
ready-made packets without encoding them again, so a viewer costs packets only, and the bit rate is the one asked for
(aiortc's own encoders are bounded by module constants).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, TypeAlias

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av.audio.codeccontext import AudioCodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from numpy.typing import NDArray

from avatard.timebase import FPS, PLAYBACK_RATE_HZ

logger = logging.getLogger(__name__)

VIDEO_CLOCK_HZ = 90_000
AUDIO_CLOCK_HZ = 48_000
QUEUE_FRAMES = 25  # a viewer that is further behind starts again at a key frame
ENCODE_QUEUE_FRAMES = 10
KEY_FRAME_INTERVAL = 10 * FPS
RETRY_SECONDS = 1.0  # after an encoder that failed, before there is another

Kind: TypeAlias = Literal["video", "audio"]
KINDS: tuple[Kind, ...] = ("video", "audio")


@dataclass(frozen=True)
class Encoding:
    """How pictures and sound are encoded."""

    codec: Literal["vp8", "h264"] = "vp8"
    bitrate_bps: int = 1_500_000
    audio_bitrate_bps: int = 48_000


@dataclass(frozen=True)
class Encoded:
    """One frame on the wire."""

    index: int
    video: bytes
    key: bool
    audio: bytes


class Encoder:
    """VP8 or H.264 and Opus; one packet each for a frame of 40 ms."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._video: VideoCodecContext | None = None
        self._audio = _opus(encoding.audio_bitrate_bps)

    def encode(self, index: int, rgb: NDArray[np.uint8], pcm: NDArray[np.int16], key: bool) -> Encoded:
        """Encode a picture [H, W, 3] and its 1,920 samples.

        Raises:
            ValueError: a side is odd, which 4:2:0 cannot carry.
        """
        height, width, _ = rgb.shape
        if height % 2 or width % 2:
            raise ValueError(f"got a picture of {width}x{height}, expected even sides")
        if self._video is None or (self._video.width, self._video.height) != (width, height):
            self._video = _video(self._encoding, width, height)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        picture.pts, picture.time_base = index, Fraction(1, FPS)
        if key:
            picture.pict_type = PictureType.I
        packets = self._video.encode(picture)
        sound = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = (
            PLAYBACK_RATE_HZ,
            index * len(pcm),
            Fraction(1, PLAYBACK_RATE_HZ),
        )
        audio = self._audio.encode(sound)
        return Encoded(
            index,
            b"".join(map(bytes, packets)),
            any(packet.is_keyframe for packet in packets),
            b"".join(map(bytes, audio)),
        )


def _video(encoding: Encoding, width: int, height: int) -> VideoCodecContext:
    name = {"vp8": "libvpx", "h264": "libx264"}[encoding.codec]
    context = av.CodecContext.create(name, "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.bit_rate = encoding.bitrate_bps
    context.framerate, context.time_base = Fraction(FPS), Fraction(1, FPS)
    context.gop_size = KEY_FRAME_INTERVAL
    context.thread_count = 1
    rate = {"maxrate": str(encoding.bitrate_bps), "bufsize": str(encoding.bitrate_bps)}
    if encoding.codec == "vp8":
        context.qmin, context.qmax = 2, 56
        context.options = rate | {
            "minrate": str(encoding.bitrate_bps),
            "deadline": "realtime",
            "cpu-used": "-6",
            "lag-in-frames": "0",
            "error-resilient": "1",
            "static-thresh": "1",
        }
    else:
        context.profile = "Baseline"
        # Baseline's key frames must carry the parameter sets, and be real ones when they are asked for.
        context.options = rate | {"preset": "veryfast", "tune": "zerolatency", "level": "31", "forced-idr": "1"}
    return context


def _opus(bitrate_bps: int) -> AudioCodecContext:
    context = av.CodecContext.create("libopus", "w")
    assert isinstance(context, AudioCodecContext)
    context.sample_rate, context.layout, context.format = PLAYBACK_RATE_HZ, "mono", "s16"
    context.bit_rate, context.time_base = bitrate_bps, Fraction(1, PLAYBACK_RATE_HZ)
    context.options = {"application": "lowdelay", "frame_duration": "40", "fec": "1", "packet_loss": "3"}
    return context


class Track(MediaStreamTrack):
    """Packets for one client; nothing is kept before it is connected, which the first `recv` shows."""

    def __init__(self, kind: Kind, hub: Broadcaster, on_sent: Callable[[str, int], None]) -> None:
        super().__init__()
        self.kind = kind
        self._hub = hub
        self._on_sent = on_sent
        self._rate_hz = VIDEO_CLOCK_HZ if kind == "video" else AUDIO_CLOCK_HZ
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._connected = False
        self._wait_for_key = True

    def put(self, encoded: Encoded) -> None:
        """Queue a frame; a client that is too far behind starts again at a key frame."""
        if not self._connected:
            return
        if self._queue.qsize() >= QUEUE_FRAMES:
            while not self._queue.empty():
                self._queue.get_nowait()
                self._hub.dropped += self.kind == "video"
            self._wait_for_key = True
            self._hub.request_key_frame()
        if self.kind == "video":
            if self._wait_for_key and not encoded.key:
                return
            self._wait_for_key = False
            self._queue.put_nowait((encoded.index, encoded.video))
        else:
            self._queue.put_nowait((encoded.index, encoded.audio))

    async def recv(self) -> Any:
        """The next packet, for aiortc's sender."""
        if self.readyState != "live":
            raise MediaStreamError
        if not self._connected:
            self._connected = True
            self._hub.request_key_frame()
        item = await self._queue.get()
        if item is None:
            raise MediaStreamError
        index, data = item
        packet = av.Packet(data)
        packet.pts, packet.time_base = index * (self._rate_hz // FPS), Fraction(1, self._rate_hz)
        self._on_sent(self.kind, index)
        return packet

    def stop(self) -> None:
        """End the track, also for a sender that waits in `recv`."""
        super().stop()
        self._queue.put_nowait(None)


class Broadcaster:
    """Encodes each frame once, for all clients.

    Args:
        encoding: codec and bit rates.
        now: seconds, to measure with.
        on_skew: told of each frame's sound sent minus picture sent, in seconds.
    """

    def __init__(
        self,
        encoding: Encoding,
        now: Callable[[], float],
        on_skew: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.encoding = encoding
        self.now = now
        self.encoded = 0  # frames
        self.sent = 0  # frames, each client's counted
        self.dropped = 0  # frames that were not encoded, or not sent to a client, because it could not keep up
        self.encoding_seconds = 0.0
        self._encoder: Encoder | None = Encoder(encoding)
        self._executor = ThreadPoolExecutor(1, "encoder")
        self._queue: asyncio.Queue[tuple[int, NDArray[np.uint8], NDArray[np.int16]]] = asyncio.Queue()
        self._tracks: list[Track] = []
        self._key_wanted = True
        self._task: asyncio.Task[None] | None = None
        self._on_skew = on_skew
        self._sent: dict[int, tuple[str, float]] = {}

    @property
    def queued(self) -> int:
        """Frames that wait for the encoder."""
        return self._queue.qsize()

    def request_key_frame(self) -> None:
        """Make the next picture one that decoding can start at."""
        self._key_wanted = True

    def send(self, index: int, rgb: NDArray[np.uint8], pcm: NDArray[np.int16]) -> None:
        """Send a frame to every client; returns at once."""
        if not self._tracks:
            return
        if self._queue.qsize() >= ENCODE_QUEUE_FRAMES:
            self.dropped += 1
            return
        self._queue.put_nowait((index, rgb, pcm))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="encoder")

    async def close(self) -> None:
        """Stop encoding."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._executor.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            index, rgb, pcm = await self._queue.get()
            key, self._key_wanted = self._key_wanted, False
            since = self.now()
            try:
                encoded = await loop.run_in_executor(self._executor, self._encode, index, rgb, pcm, key)
            except Exception:
                # Whatever it was, pictures that stand still for a moment are better than none.
                logger.exception("encoding failed", extra={"frame": index})
                await self._restart()
                continue
            self.encoding_seconds += self.now() - since
            self.encoded += 1
            for track in list(self._tracks):
                track.put(encoded)

    def _encode(self, index: int, rgb: NDArray[np.uint8], pcm: NDArray[np.int16], key: bool) -> Encoded:
        if self._encoder is None:
            self._encoder = Encoder(self.encoding)
        return self._encoder.encode(index, rgb, pcm, key)

    async def _restart(self) -> None:
        """Go on with a fresh encoder, which begins at a key frame, and without what became late meanwhile."""
        self._encoder = None
        await asyncio.sleep(RETRY_SECONDS)
        self.dropped += 1 + self._queue.qsize()
        while not self._queue.empty():
            self._queue.get_nowait()

    def tracks(self, kinds: Sequence[Kind], on_sent: Callable[[str, int], None]) -> list[Track]:
        """A track of each of these kinds for one more client."""

        def sent(kind: str, index: int) -> None:
            self.sent += kind == "video"
            self._measure_skew(kind, index)
            on_sent(kind, index)

        tracks = [Track(kind, self, sent) for kind in kinds]
        self._tracks += tracks
        return tracks

    def release(self, tracks: Sequence[Track]) -> None:
        """The client is gone."""
        self._tracks = [track for track in self._tracks if track not in tracks]
        for track in tracks:
            track.stop()

    def _measure_skew(self, kind: str, index: int) -> None:
        other = self._sent.pop(index, None)
        if other is not None and other[0] != kind:
            later = self.now() - other[1]
            self._on_skew(later if kind == "audio" else -later)
        else:
            self._sent = {n: at for n, at in self._sent.items() if n > index - QUEUE_FRAMES}
            self._sent[index] = (kind, self.now())
