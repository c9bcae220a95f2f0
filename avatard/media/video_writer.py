"""Write a video file at 25 fps with sound, and with metadata that marks it as synthetic.

MP4 has H.264 and AAC. WebM has VP9 and Opus, QuickTime ProRes 4444 and PCM; both can be transparent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avatard.errors import UserError
from avatard.media.audio_file import open_audio, unreadable
from avatard.media.synthetic import DIGITAL_SOURCE_TYPE, xmp_box
from avatard.timebase import FPS

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream
    from av.container import InputContainer

SOUND_RATE_HZ: Final = 48_000


class Format(NamedTuple):
    """What a file of one kind has in it."""

    container: str  # FFmpeg's name
    video: str  # encoders
    audio: str
    opaque: str  # pixel formats
    transparent: str  # empty where it cannot be
    options: Mapping[str, str]  # of the video encoder
    boxes: bool  # ISO base media or QuickTime


#: By suffix. Constant quality: a second of a talking head at 512² is about 0.1 MB as H.264 or VP9, and 9 MB as ProRes.
FORMATS: Final = MappingProxyType(
    {
        ".mp4": Format("mp4", "libx264", "aac", "yuv420p", "", {"crf": "18", "preset": "veryfast"}, True),
        ".webm": Format(
            "webm",
            "libvpx-vp9",
            "libopus",
            "yuv420p",
            "yuva420p",
            # libvpx writes no alternate reference frames beside alpha.
            {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "5", "auto-alt-ref": "0"},
            False,
        ),
        ".mov": Format("mov", "prores_ks", "pcm_s16le", "yuv444p10le", "yuva444p10le", {"profile": "4444"}, True),
    }
)


class VideoWriterError(UserError):
    """A file that cannot be written."""


class VideoWriter:
    """A context that writes a file completely or not at all: it appears if the context ends without an exception.

    Args:
        path: the file, with a suffix of `FORMATS`; an existing one is replaced.
        size: height and width of the pictures, even.
        sound: a file whose first audio stream starts at frame 0; None writes no sound.
        metadata: title, comment and others.
        transparent: whether pictures have alpha.

    Raises:
        VideoWriterError: the file cannot be written.
        AudioFileError: the sound cannot be read.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        sound: Path | None = None,
        metadata: Mapping[str, str] | None = None,
        *,
        transparent: bool = False,
    ):
        self._path, self._size, self._sound, self._metadata = path, size, sound, dict(metadata or {})
        self._format = FORMATS[path.suffix.lower()]
        self._transparent = transparent
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._frames = 0

    def __enter__(self) -> VideoWriter:
        import av
        from av import AudioStream, VideoStream
        from av.error import FFmpegError

        made = self._format
        with ExitStack() as undo:
            undo.callback(self._temporary.unlink, missing_ok=True)
            try:
                # The index goes first, so that a browser can play while it loads. Without the flag, Matroska's ids are
                # random.
                options = {"movflags": "+faststart"} if made.boxes else {"fflags": "+bitexact"}
                file = av.open(str(self._temporary), "w", format=made.container, options=options)
                self._output = undo.enter_context(file)
            except FFmpegError as error:
                raise VideoWriterError(f"{self._path} cannot be written: {error.strerror}") from None
            self._output.metadata.update(self._metadata)
            if not made.boxes:
                self._output.metadata["DIGITAL_SOURCE_TYPE"] = DIGITAL_SOURCE_TYPE
            video = self._output.add_stream(made.video, rate=FPS, options=dict(made.options))
            assert isinstance(video, VideoStream)
            self._video = video
            self._video.height, self._video.width = self._size
            self._video.pix_fmt = made.transparent if self._transparent else made.opaque
            self._audio: AudioStream | None = None
            self._packets: Iterator[AudioFrame] = iter(())
            if self._sound is not None:
                source = undo.enter_context(open_audio(self._sound))
                layout = "mono" if source.streams.audio[0].layout.nb_channels == 1 else "stereo"
                audio = self._output.add_stream(made.audio, rate=SOUND_RATE_HZ, layout=layout)
                assert isinstance(audio, AudioStream)
                self._audio = audio
                self._packets = _decode(self._sound, source)
            self._sounded = 0.0  # seconds
            self._undo = undo.pop_all()
        return self

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Append a frame and its sound: `[H, W, 3]`, or `[H, W, 4]` with straight alpha for a transparent file."""
        from av import VideoFrame
        from av.error import FFmpegError

        layout = "rgba" if self._transparent else "rgb24"
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=layout)
        frame.pts, frame.time_base = self._frames, Fraction(1, FPS)
        self._frames += 1
        try:
            self._output.mux(self._video.encode(frame))
            while self._audio is not None and self._sounded < self._frames / FPS:
                sound = next(self._packets, None)
                if sound is None:
                    break
                self._sounded += sound.samples / sound.sample_rate
                self._output.mux(self._audio.encode(sound))
        except FFmpegError as error:
            raise VideoWriterError(f"{self._path} cannot be written: {error.strerror}") from None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        from av.error import FFmpegError

        with self._undo:
            if kind is not None:
                return
            try:
                self._output.mux(self._video.encode(None))
                if self._audio is not None:
                    self._output.mux(self._audio.encode(None))
                self._output.close()
                if self._format.boxes:
                    with self._temporary.open("ab") as file:
                        file.write(xmp_box())
                self._temporary.replace(self._path)
            except (FFmpegError, OSError) as failure:
                raise VideoWriterError(f"{self._path} cannot be written: {failure.strerror}") from None


def _decode(path: Path, source: InputContainer) -> Iterator[AudioFrame]:
    """The frames of the first audio stream, without gaps: the networks get them without gaps, too."""
    from av.error import FFmpegError

    samples = 0
    try:
        for frame in source.decode(source.streams.audio[0]):
            # Numbered from 0: the samples that AAC puts in front come before 0, and players skip them.
            frame.pts, frame.time_base = samples, Fraction(1, frame.sample_rate)
            samples += frame.samples
            yield frame
    except FFmpegError as error:
        raise unreadable(path, error) from None
