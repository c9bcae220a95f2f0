"""Write a live stream: to a receiver (RTMP, SRT, RTSP), or to a file that can be played whenever the writing ends.

    with LiveWriter(target_of("rtmp://live.example/app/key"), (512, 512), {}) as writer:
        writer.write(index, pixels, pcm16)          # 25 times a second

Time is the frame number: a gap in the numbers is a picture that stands still and silence, so that picture and sound
stay in step whatever was left out. Recordings have a key frame and end a fragment every second, streams a key frame
every two.

PyAV holds the interpreter's lock while it connects and while it ends a stream, for minutes where nobody answers:
only a process of its own may write to a receiver (`avatard.media.writer_process`).
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.errors import UserError
from avatard.frame import over_chequers
from avatard.media.relay import Relay, RelayError
from avatard.media.synthetic import DIGITAL_SOURCE_TYPE, with_badge, xmp_box
from avatard.timebase import FPS, PLAYBACK_RATE_HZ

if TYPE_CHECKING:
    from av.video.reformatter import VideoReformatter

PCM_SAMPLES: Final = PLAYBACK_RATE_HZ // FPS  # of a frame
STREAM_KEY_FRAMES: Final = 2 * FPS
FILE_KEY_FRAMES: Final = FPS
AUDIO_BPS: Final = 128_000
#: What FFmpeg makes of RGB; where a stream does not say so, players guess by its size.
COLOURS: Final = {"colorspace": "smpte170m", "color_range": "tv"}
#: x264 without a look-ahead: what was encoded is written at once.
X264: Final = {"preset": "veryfast", "tune": "zerolatency", "forced-idr": "1", "sc_threshold": "0", **COLOURS}
X264_QUALITY: Final = "20"  # of recordings: a constant rate factor
VP9: Final = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", **COLOURS}


class LiveWriterError(UserError):
    """A stream or file that cannot be written."""

    CODE = "output"


class Format(NamedTuple):
    """What is in a stream or file of one kind."""

    container: str  # FFmpeg's name
    video: str  # encoders
    audio: str
    options: Mapping[str, str]  # of the container
    boxes: bool = False  # ISO base media
    transparent: bool = False  # whether it can be


#: By suffix. Fragments of MP4 become a common file when it is ended in good order.
FILES: Final = MappingProxyType(
    {
        ".mp4": Format("mp4", "libx264", "aac", {"movflags": "+hybrid_fragmented+frag_keyframe"}, boxes=True),
        ".mkv": Format("matroska", "libx264", "aac", {"cluster_time_limit": "1000"}),
        ".webm": Format("webm", "libvpx-vp9", "libopus", {"cluster_time_limit": "1000"}, transparent=True),
    }
)
#: By scheme.
STREAMS: Final = MappingProxyType(
    {
        "rtmp": Format("flv", "libx264", "aac", {"flvflags": "no_duration_filesize"}),
        "rtmps": Format("flv", "libx264", "aac", {"flvflags": "no_duration_filesize"}),
        "srt": Format("mpegts", "libx264", "aac", {}),
        "rtsp": Format("rtsp", "libx264", "aac", {"rtsp_transport": "tcp"}),
        "rtsps": Format("rtsp", "libx264", "aac", {"rtsp_transport": "tcp"}),
    }
)


class Target(NamedTuple):
    """Where a stream goes."""

    url: str  # or a file's path
    format: Format
    live: bool  # a receiver, not a file

    @property
    def shown(self) -> str:
        """The target for people and logs: of a URL without what may be a secret."""
        if not self.live:
            return self.url
        parts = urlsplit(self.url)
        host = parts.netloc.rpartition("@")[2]
        # The last part of an RTMP path is the stream key.
        path = parts.path.rpartition("/")[0] + "/***" if parts.scheme.startswith("rtmp") else parts.path
        return f"{parts.scheme}://{host}{path}"


def target_of(text: str) -> Target:
    """The target of a URL or a file name.

    Raises:
        LiveWriterError: neither a URL nor a name that can be written to; the message has no secret in it.
    """
    if "://" not in text:
        made = FILES.get(Path(text).suffix.lower())
        if made is None:
            raise LiveWriterError(f"{text}: expected a name that ends in {', '.join(FILES)}")
        return Target(text, made, live=False)
    scheme = text.partition("://")[0].lower()
    if scheme not in STREAMS:
        raise LiveWriterError(
            f"cannot push to {scheme[:20]}://: expected {', '.join(f'{name}://' for name in STREAMS)}"
        )
    if re.search(r"[\s\x00-\x1f\x7f]", text) or not host_of(text):
        raise LiveWriterError(f"the address of a {scheme} push is malformed: expected {scheme}://HOST[:PORT][/PATH]")
    return Target(text, STREAMS[scheme], live=True)


def host_of(url: str) -> str:
    """The host of a URL, in lower case; empty where there is none, or the URL is malformed."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return ""
    return parts.hostname or ""


class LiveWriter:
    """A context that writes while it is open. Pictures of another size are fitted into that of the stream.

    Args:
        target: a receiver or a file, which is overwritten.
        size: height and width of the pictures; an odd one loses its last row or column, which 4:2:0 cannot carry.
        metadata: title, comment and others.
        bitrate_bps: of a receiver's pictures; files have constant quality.
        transparent: whether pictures have alpha, and a file that can have it keeps it.
        badge: write "AI-generated" into the corner of each picture.

    Raises:
        LiveWriterError: there is no connection, or the file cannot be written.
    """

    def __init__(
        self,
        target: Target,
        size: tuple[int, int],
        metadata: Mapping[str, str],
        *,
        bitrate_bps: int = 2_500_000,
        transparent: bool = False,
        badge: bool = False,
    ) -> None:
        self._target, self._metadata = target, dict(metadata)
        self._height, self._width = size[0] & ~1, size[1] & ~1
        self._bitrate_bps = bitrate_bps
        self._transparent = transparent and target.format.transparent
        self._badge = badge
        self._first: int | None = None  # frame number at time 0
        self._sounded = 0  # samples
        self._relay: Relay | None = None
        self._converter: VideoReformatter | None = None

    def __enter__(self) -> LiveWriter:
        from av.error import FFmpegError, ProtocolNotFoundError

        try:
            if self._target.live:
                _resolve(self._target)  # FFmpeg says of a name that it does not know only "Input/output error"
            try:
                self._open(self._target.url)
            except ProtocolNotFoundError:
                self._relay = Relay(self._target.url, self._target.format.container, self._metadata)
                self._open(self._relay.pipe)
        except (FFmpegError, OSError) as error:
            raise self._failure(error) from None
        except RelayError as error:
            raise LiveWriterError(f"{self._target.shown}: {error}") from None
        return self

    def _open(self, file: str | IO[bytes]) -> None:
        import av
        from av import AudioStream

        made = self._target.format
        with ExitStack() as undo:
            options = {**made.options, "flush_packets": "1"}
            self._output = undo.enter_context(av.open(file, "w", format=made.container, container_options=options))
            self._output.metadata.update(self._metadata)
            if made.container in ("matroska", "webm"):
                self._output.metadata["DIGITAL_SOURCE_TYPE"] = DIGITAL_SOURCE_TYPE
            self._video = self._add_video()
            audio = self._output.add_stream(made.audio, rate=PLAYBACK_RATE_HZ, layout="mono", bit_rate=AUDIO_BPS)
            assert isinstance(audio, AudioStream)
            self._audio = audio
            self._output.start_encoding()
            undo.pop_all()

    def _add_video(self) -> Any:
        from av.codec.codec import UnknownCodecError
        from av.video.stream import VideoStream

        made, live = self._target.format, self._target.live
        options = VP9
        if made.video == "libx264":
            rate = str(self._bitrate_bps)
            options = X264 | ({"maxrate": rate, "bufsize": rate} if live else {"crf": X264_QUALITY})
        elif self._transparent:
            options = VP9 | {"auto-alt-ref": "0"}  # libvpx writes no alternate reference frames beside alpha
        try:
            video = self._output.add_stream(made.video, rate=FPS, options=options)
        except UnknownCodecError:
            raise LiveWriterError(
                f"this build of PyAV has no encoder {made.video}: install the one of the package index (pip install av)"
            ) from None
        assert isinstance(video, VideoStream)
        video.height, video.width = self._height, self._width
        video.pix_fmt = "yuva420p" if self._transparent else "yuv420p"
        video.codec_context.gop_size = STREAM_KEY_FRAMES if live else FILE_KEY_FRAMES
        video.codec_context.thread_count = 1  # the networks need the other cores
        if live:
            video.bit_rate = self._bitrate_bps
        return video

    def write(self, index: int, pixels: NDArray[np.uint8], pcm: NDArray[np.int16]) -> None:
        """Write a frame: its picture `[H, W, 3 or 4]`, and its 1,920 samples at 48 kHz.

        Raises:
            LiveWriterError: the receiver is gone, or the file cannot be written.
        """
        from av import AudioFrame, VideoFrame
        from av.error import FFmpegError
        from av.video.reformatter import VideoReformatter

        if self._first is None:
            self._first = index
        number = index - self._first
        layout = "rgba" if self._transparent else "rgb24"
        # Once for all pictures: the encoder would set up a new converter for each.
        self._converter = self._converter or VideoReformatter()
        picture = self._converter.reformat(
            VideoFrame.from_ndarray(self._fitted(pixels), format=layout), format=self._video.pix_fmt
        )
        picture.pts, picture.time_base = number, Fraction(1, FPS)
        missing = number * PCM_SAMPLES - self._sounded
        if missing:  # frames were left out: the encoder takes no gap
            pcm = np.concatenate([np.zeros(missing, np.int16), pcm])
        sound = AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        sound.sample_rate, sound.time_base = PLAYBACK_RATE_HZ, Fraction(1, PLAYBACK_RATE_HZ)
        sound.pts = self._sounded
        self._sounded += len(pcm)
        try:
            self._output.mux(self._video.encode(picture))
            self._output.mux(self._audio.encode(sound))
        except (FFmpegError, OSError) as error:
            raise self._failure(error) from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from av.error import FFmpegError

        try:
            if kind is None:
                self._output.mux(self._video.encode(None))
                self._output.mux(self._audio.encode(None))
            self._output.close()
            if self._relay is not None and (reason := self._relay.end()):
                raise OSError(0, reason)
            if kind is None and self._target.format.boxes:
                with open(self._target.url, "ab") as file:
                    file.write(xmp_box())
        except (FFmpegError, OSError) as failure:
            if kind is None:
                raise self._failure(failure) from None

    def _fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture as it is encoded."""
        if not self._transparent and pixels.shape[2] == 4:
            pixels = over_chequers(pixels)
        pixels = fitted(pixels, (self._height, self._width))
        return np.ascontiguousarray(with_badge(pixels) if self._badge else pixels)

    def _failure(self, error: Exception) -> LiveWriterError:
        reason = getattr(error, "strerror", None) or type(error).__name__
        if self._relay is not None:
            reason = self._relay.end() or reason
        return LiveWriterError(f"{self._target.shown}: {reason}")


def _resolve(target: Target) -> None:
    """Refuse a host that has no address. Raises `LiveWriterError`."""
    try:
        socket.getaddrinfo(host_of(target.url), None)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a valid host name"
        raise LiveWriterError(f"{target.shown}: {reason}") from None


def fitted(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture `[H, W, C]` in one of another height and width: whole, in the middle, beside black."""
    height, width = size
    if pixels.shape[0] & ~1 == height and pixels.shape[1] & ~1 == width:
        return pixels[:height, :width]
    factor = min(height / pixels.shape[0], width / pixels.shape[1])
    inner = max(1, round(pixels.shape[1] * factor)), max(1, round(pixels.shape[0] * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    canvas = np.zeros((height, width, pixels.shape[2]), np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = cv2.resize(pixels, inner, interpolation=method)
    return canvas
