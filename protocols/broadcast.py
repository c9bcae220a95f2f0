"""Live media for WebRTC: each frame is encoded once for each rendition in use, and given to the senders of all clients.

    broadcaster = Broadcaster(Encoding(codec="vp8", bitrate_bps=1_500_000), now=time.monotonic)
    broadcaster.send(index, pixels, pcm16)           # once for each frame, when it is due

Sound and picture of a frame are encoded first and handed to the senders together, because a sender report pairs the
wall clock at sending with the last RTP timestamp: what is encoded in between would become lip-sync error. aiortc packs
ready-made packets without encoding them again, so a viewer costs packets only, and the bit rate is the one asked for
(aiortc's own encoders are bounded by module constants). Viewers whose network carries less share a rendition of a lower
bit rate (`congestion`); they change to it at a key frame.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, NamedTuple

import av
import numpy as np
from aiortc import MediaStreamTrack
from aiortc.mediastreams import MediaStreamError
from av.audio.codeccontext import AudioCodecContext
from av.codec.codec import UnknownCodecError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from numpy.typing import NDArray

from avatard.frame import over_chequers
from avatard.protocols.congestion import Congestion
from avatard.protocols.offer import Codec, Kind
from avatard.protocols.tasks import cancel_and_wait
from avatard.timebase import FPS, PLAYBACK_RATE_HZ

logger = logging.getLogger(__name__)

VIDEO_CLOCK_HZ = 90_000
AUDIO_CLOCK_HZ = 48_000
QUEUE_FRAMES = 25  # a viewer that is further behind starts again at a key frame
ENCODE_QUEUE_FRAMES = 10
KEY_FRAME_INTERVAL = 10 * FPS
KEY_FRAME_SECONDS = 0.3  # between two that are asked for, as in libwebrtc: they fill a narrow network
RETRY_SECONDS = 1.0  # after an encoder that failed, before there is another
REFERENCE_PIXELS = 512 * 512  # up to here pictures have the configured bit rate
LEVEL_31_PIXELS = 3600 * 256  # H.264, table A-1: macroblocks of a frame

#: By codec, the favourite first: the encoder in FFmpeg.
ENCODERS: Mapping[Codec, str] = MappingProxyType({"vp8": "libvpx", "h264": "libx264"})


@dataclass(frozen=True)
class Encoding:
    """How pictures and sound are encoded.

    Attributes:
        codec: the one that is sent to viewers who can decode both.
        bitrate_bps: of pictures up to 512x512; `video_bitrate_bps` has that of larger ones.
        audio_bitrate_bps: of Opus.
    """

    codec: Codec = "vp8"
    bitrate_bps: int = 1_500_000
    audio_bitrate_bps: int = 48_000

    @property
    def codecs(self) -> tuple[Codec, ...]:
        """The video codecs that this build of PyAV can encode, the preferred one first."""
        preferred = (self.codec, *(codec for codec in ENCODERS if codec != self.codec))
        return tuple(codec for codec in preferred if _is_known(ENCODERS[codec]))

    def video_bitrate_bps(self, width: int, height: int) -> int:
        """The bit rate for pictures of this size: it grows with their sides, as detail does, not with their area."""
        return round(self.bitrate_bps * max(1.0, math.sqrt(width * height / REFERENCE_PIXELS)))


class Rendition(NamedTuple):
    """What a viewer is sent of the pictures."""

    codec: Codec
    stacked: bool = False  # colour over matte in a picture of double height; else over chequers where transparent
    share: float = 1.0  # of the configured bit rate


@dataclass(frozen=True)
class EncodedVideo:
    """One encoded picture."""

    data: bytes
    key: bool  # decoding can start here


@dataclass(frozen=True)
class Encoded:
    """One frame on the wire."""

    index: int
    video: Mapping[Rendition, EncodedVideo]
    audio: bytes


class VideoEncoder:
    """VP8 or H.264; one packet for a picture. A picture of another size starts a new stream with a key frame."""

    def __init__(self, codec: Codec, encoding: Encoding, share: float = 1.0) -> None:
        self._codec = codec
        self._encoding = encoding
        self._share = share
        self._context: VideoCodecContext | None = None

    def encode(self, index: int, rgb: NDArray[np.uint8], key: bool) -> EncodedVideo:
        """Encode a picture [H, W, 3]; an odd side loses its last row or column, which 4:2:0 cannot carry."""
        rgb = rgb[: rgb.shape[0] & ~1, : rgb.shape[1] & ~1]
        height, width, _ = rgb.shape
        if self._context is None or (self._context.width, self._context.height) != (width, height):
            bitrate_bps = round(self._share * self._encoding.video_bitrate_bps(width, height))
            self._context = _video_context(self._codec, bitrate_bps, width, height)
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        picture.pts, picture.time_base = index, Fraction(1, FPS)
        if key:
            picture.pict_type = PictureType.I
        packets = self._context.encode(picture)
        return EncodedVideo(b"".join(map(bytes, packets)), any(packet.is_keyframe for packet in packets))


class AudioEncoder:
    """Opus; one packet for the sound of a frame."""

    def __init__(self, bitrate_bps: int) -> None:
        context = av.CodecContext.create("libopus", "w")
        assert isinstance(context, AudioCodecContext)
        context.sample_rate, context.layout, context.format = PLAYBACK_RATE_HZ, "mono", "s16"
        context.bit_rate, context.time_base = bitrate_bps, Fraction(1, PLAYBACK_RATE_HZ)
        context.options = {"application": "lowdelay", "frame_duration": "40", "fec": "1", "packet_loss": "3"}
        self._context = context

    def encode(self, index: int, pcm: NDArray[np.int16]) -> bytes:
        """Encode the 1,920 samples of a frame."""
        sound = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        sound.sample_rate, sound.time_base = PLAYBACK_RATE_HZ, Fraction(1, PLAYBACK_RATE_HZ)
        sound.pts = index * len(pcm)
        return b"".join(map(bytes, self._context.encode(sound)))


class Encoder:
    """Encodes frames in each rendition that is asked for."""

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._audio = AudioEncoder(encoding.audio_bitrate_bps)
        self._video: dict[Rendition, VideoEncoder] = {}

    def encode(
        self,
        index: int,
        pixels: NDArray[np.uint8],
        pcm: NDArray[np.int16],
        renditions: Collection[Rendition],
        keys: Collection[Rendition] = (),
    ) -> Encoded:
        """Encode a picture [H, W, 3 or 4] in these renditions, and its 1,920 samples.

        Args:
            index: of the frame.
            pixels: the picture, RGB or with straight alpha.
            pcm: the samples.
            renditions: what the picture is encoded in; encoders of others are closed.
            keys: the renditions that get a key frame.
        """
        self._video = {
            rendition: self._video.get(rendition) or VideoEncoder(rendition.codec, self._encoding, rendition.share)
            for rendition in renditions
        }
        # Of two codecs both get the same picture.
        shown = {stacked: _shown(pixels, stacked) for stacked in {rendition.stacked for rendition in self._video}}
        video = {
            rendition: encoder.encode(index, shown[rendition.stacked], rendition in keys)
            for rendition, encoder in self._video.items()
        }
        return Encoded(index, video, self._audio.encode(index, pcm))


def _shown(pixels: NDArray[np.uint8], stacked: bool) -> NDArray[np.uint8]:
    """The RGB of a picture `[H, W, 3 or 4]`: `[H, W, 3]`, or stacked `[2 H, W, 3]`, colour over matte."""
    has_alpha = pixels.shape[2] == 4
    if not stacked:
        return over_chequers(pixels) if has_alpha else pixels
    # An odd row would shift the matte against the colour once 4:2:0 drops the last.
    pixels = pixels[: pixels.shape[0] & ~1]
    matte = pixels[..., 3:] if has_alpha else np.full_like(pixels[..., :1], 255)
    return np.concatenate([pixels[..., :3], np.repeat(matte, 3, axis=2)])


def _is_known(encoder: str) -> bool:
    try:
        av.Codec(encoder, "w")
    except UnknownCodecError:
        return False
    return True


def _video_context(codec: Codec, bitrate_bps: int, width: int, height: int) -> VideoCodecContext:
    context = av.CodecContext.create(ENCODERS[codec], "w")
    assert isinstance(context, VideoCodecContext)
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.bit_rate = bitrate_bps
    context.framerate, context.time_base = Fraction(FPS), Fraction(1, FPS)
    context.gop_size = KEY_FRAME_INTERVAL
    context.thread_count = 1
    rate = {"maxrate": str(bitrate_bps), "bufsize": str(bitrate_bps)}
    if codec == "vp8":
        context.qmin, context.qmax = 2, 56
        context.options = rate | {
            "minrate": str(bitrate_bps),
            "deadline": "realtime",
            "cpu-used": "-6",
            "lag-in-frames": "0",
            "error-resilient": "1",
            "static-thresh": "1",
        }
    else:
        context.profile = "Baseline"
        level = "31" if width * height <= LEVEL_31_PIXELS else "40"
        # Baseline's key frames must carry the parameter sets, and be real ones when they are asked for.
        context.options = rate | {"preset": "veryfast", "tune": "zerolatency", "level": level, "forced-idr": "1"}
    return context


class Track(MediaStreamTrack):
    """Packets for one client. Nothing is queued until it is connected, which the first `recv` shows."""

    def __init__(
        self, kind: Kind, rendition: Rendition | None, broadcaster: Broadcaster, on_sent: Callable[[str, int], None]
    ) -> None:
        super().__init__()
        self.kind = kind
        self.rendition = rendition  # of video; another one where the network carries less
        self._congestion = Congestion()
        self.connected = False
        self._broadcaster = broadcaster
        self._on_sent = on_sent
        self._rate_hz = VIDEO_CLOCK_HZ if kind == "video" else AUDIO_CLOCK_HZ
        self._queue: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self._wait_for_key = True

    def request_key_frame(self) -> None:
        """Let the next picture be one that decoding can start at."""
        if self.rendition is not None:
            self._broadcaster.request_key_frame(self.rendition)

    @property
    def renditions(self) -> frozenset[Rendition]:
        """What this client is sent, and what it is to be sent from the next key frame on."""
        if self.rendition is None:
            return frozenset()
        return frozenset((self.rendition, self.rendition._replace(share=self._congestion.share)))

    def estimated(self, bits_per_second: float) -> None:
        """The client says what it can get."""
        self._congestion.estimated(bits_per_second, self._broadcaster.now())

    def reported(self, lost: float) -> None:
        """The client says which part of the packets was lost."""
        self._congestion.reported(lost, self._broadcaster.now())

    def put(self, encoded: Encoded) -> None:
        """Queue a frame; a client that is too far behind starts again at a key frame."""
        if not self.connected:
            return
        self._change_rendition(encoded)
        if self._queue.qsize() >= QUEUE_FRAMES:
            while not self._queue.empty():
                self._queue.get_nowait()
                self._broadcaster.dropped += self.kind == "video"
            self._wait_for_key = True
            self.request_key_frame()
        if self.rendition is None:
            self._queue.put_nowait((encoded.index, encoded.audio))
        elif self.rendition in encoded.video:  # not yet in the frame that was being encoded when this one connected
            picture = encoded.video[self.rendition]
            if self._wait_for_key and not picture.key:
                return
            self._wait_for_key = False
            self._congestion.sent(len(picture.data), self._broadcaster.now())
            self._queue.put_nowait((encoded.index, picture.data))

    def _change_rendition(self, encoded: Encoded) -> None:
        """Change to the bit rate that the network carries as soon as decoding can start there."""
        if self.rendition is None or self.rendition.share == self._congestion.share:
            return
        wanted = self.rendition._replace(share=self._congestion.share)
        picture = encoded.video.get(wanted)
        if picture is not None and picture.key:
            self.rendition = wanted
        elif picture is not None:  # others have it already
            self._broadcaster.request_key_frame(wanted)

    async def recv(self) -> Any:
        """The next packet, for aiortc's sender."""
        if self.readyState != "live":
            raise MediaStreamError
        if not self.connected:
            self.connected = True
            self.request_key_frame()
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
    """Encodes each frame once for each rendition that a connected client is sent.

    Args:
        encoding: codecs and bit rates.
        now: seconds, to measure with.
        on_skew: called for each frame with the time its sound was sent minus that of its picture, in seconds.
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
        self._keys_wanted: set[Rendition] = set()
        self._keyed_at: dict[Rendition, float] = {}
        self._task: asyncio.Task[None] | None = None
        self._on_skew = on_skew
        self._sent: dict[int, tuple[str, float]] = {}

    @property
    def queued(self) -> int:
        """Frames that wait for the encoder."""
        return self._queue.qsize()

    @property
    def tracks(self) -> tuple[Track, ...]:
        """The tracks of all clients."""
        return tuple(self._tracks)

    def request_key_frame(self, rendition: Rendition) -> None:
        """Let the next picture of this rendition be one that decoding can start at."""
        self._keys_wanted.add(rendition)

    def send(self, index: int, pixels: NDArray[np.uint8], pcm: NDArray[np.int16]) -> None:
        """Send a frame `[H, W, 3]`, or `[H, W, 4]` with straight alpha, to every client; returns at once."""
        if not any(track.connected for track in self._tracks):
            return
        if self._queue.qsize() >= ENCODE_QUEUE_FRAMES:
            self.dropped += 1
            return
        self._queue.put_nowait((index, pixels, pcm))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="encoder")

    async def close(self) -> None:
        """Stop encoding."""
        await cancel_and_wait(self._task)
        self._task = None
        self._executor.shutdown()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            index, pixels, pcm = await self._queue.get()
            renditions = frozenset[Rendition]().union(*(track.renditions for track in self._tracks if track.connected))
            since = self.now()
            keys = self._take_keys(renditions, since)
            try:
                encoded = await loop.run_in_executor(self._executor, self._encode, index, pixels, pcm, renditions, keys)
            except Exception:
                # Whatever it was, pictures that stand still for a moment are better than none.
                logger.exception("encoding failed", extra={"frame": index})
                await self._restart()
                continue
            self.encoding_seconds += self.now() - since
            self.encoded += 1
            for track in list(self._tracks):
                track.put(encoded)

    def _take_keys(self, renditions: Collection[Rendition], now: float) -> frozenset[Rendition]:
        """Those that get a key frame now; others of them get theirs soon."""
        self._keyed_at = {rendition: at for rendition, at in self._keyed_at.items() if now - at < KEY_FRAME_SECONDS}
        keys = frozenset(rendition for rendition in self._keys_wanted if rendition not in self._keyed_at)
        self._keys_wanted = {rendition for rendition in self._keys_wanted if rendition in renditions} - keys
        self._keyed_at |= dict.fromkeys(keys, now)
        return keys

    def _encode(
        self,
        index: int,
        pixels: NDArray[np.uint8],
        pcm: NDArray[np.int16],
        renditions: Collection[Rendition],
        keys: Collection[Rendition],
    ) -> Encoded:
        if self._encoder is None:
            self._encoder = Encoder(self.encoding)
        return self._encoder.encode(index, pixels, pcm, renditions, keys)

    async def _restart(self) -> None:
        """Continue with a new encoder, which begins with a key frame, and without the frames that are late by then."""
        self._encoder = None
        await asyncio.sleep(RETRY_SECONDS)
        self.dropped += 1 + self._queue.qsize()
        while not self._queue.empty():
            self._queue.get_nowait()

    def add_client(
        self, kinds: Sequence[Kind], rendition: Rendition | None, on_sent: Callable[[str, int], None]
    ) -> list[Track]:
        """A track of each of these kinds for one more client.

        Args:
            kinds: what the client is sent.
            rendition: of its video; None without video.
            on_sent: called with the kind and the index of each frame that was sent.
        """

        def sent(kind: str, index: int) -> None:
            self.sent += kind == "video"
            self._measure_skew(kind, index)
            on_sent(kind, index)

        tracks = [Track(kind, rendition if kind == "video" else None, self, sent) for kind in kinds]
        self._tracks += tracks
        return tracks

    def release(self, tracks: Sequence[Track]) -> None:
        """Stop and forget the tracks of a client."""
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
