"""Write an MP4 file: H.264 at 25 fps, AAC sound, and metadata that marks it as synthetic."""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from avatard.errors import UserError
from avatard.media.audio_file import open_audio, unreadable
from avatard.timebase import FPS

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream
    from av.container import InputContainer

SOUND_RATE_HZ: Final = 48_000
#: x264's constant rate factor and speed: about 40 kB a second of a talking head at 256².
QUALITY, PRESET = 18, "veryfast"

#: IPTC Digital Source Type of a real picture that a trained network animates.
DIGITAL_SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
#: The box that carries XMP in ISO base media files (XMP specification, part 3).
XMP_BOX: Final = uuid.UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
XMP: Final = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    f'Iptc4xmpExt:DigitalSourceType="{DIGITAL_SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


class Mp4Error(UserError):
    """A file that cannot be written."""


class Mp4Writer:
    """A context that writes a file completely or not at all: it appears if the context ends without an exception.

    Args:
        path: the file; an existing one is replaced.
        size: height and width of the pictures, even.
        sound: a file whose first audio stream starts at frame 0; None writes no sound.
        metadata: title, comment and others.

    Raises:
        Mp4Error: the file cannot be written.
        AudioFileError: the sound cannot be read.
    """

    def __init__(
        self, path: Path, size: tuple[int, int], sound: Path | None = None, metadata: Mapping[str, str] | None = None
    ):
        self._path, self._size, self._sound, self._metadata = path, size, sound, dict(metadata or {})
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._frames = 0

    def __enter__(self) -> Mp4Writer:
        import av
        from av.error import FFmpegError

        with ExitStack() as undo:
            undo.callback(self._temporary.unlink, missing_ok=True)
            try:
                # The index goes first, so that a browser can play while it loads.
                options = {"movflags": "+faststart"}
                self._output = undo.enter_context(av.open(str(self._temporary), "w", format="mp4", options=options))
            except FFmpegError as error:
                raise Mp4Error(f"{self._path} cannot be written: {error.strerror}") from None
            self._output.metadata.update(self._metadata)
            self._video = self._output.add_stream("libx264", rate=FPS, options={"crf": f"{QUALITY}", "preset": PRESET})
            self._video.height, self._video.width = self._size
            self._video.pix_fmt = "yuv420p"
            self._audio: AudioStream | None = None
            self._packets: Iterator[AudioFrame] = iter(())
            if self._sound is not None:
                source = undo.enter_context(open_audio(self._sound))
                layout = "mono" if source.streams.audio[0].layout.nb_channels == 1 else "stereo"
                self._audio = self._output.add_stream("aac", rate=SOUND_RATE_HZ, layout=layout)
                self._packets = _decode(self._sound, source)
            self._sounded = 0.0  # seconds
            self._undo = undo.pop_all()
        return self

    def write(self, picture: NDArray[np.uint8]) -> None:
        """Append a frame `[H, W, 3]` RGB and its sound."""
        from av import VideoFrame
        from av.error import FFmpegError

        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
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
            raise Mp4Error(f"{self._path} cannot be written: {error.strerror}") from None

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
                with self._temporary.open("ab") as file:
                    file.write(_xmp_box())
                self._temporary.replace(self._path)
            except (FFmpegError, OSError) as failure:
                raise Mp4Error(f"{self._path} cannot be written: {failure.strerror}") from None


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


def _xmp_box() -> bytes:
    """The XMP data as a box at the end of the file: FFmpeg writes none, and readers skip boxes they do not know."""
    content = b"uuid" + XMP_BOX.bytes + XMP.encode()
    return struct.pack(">I", len(content) + 4) + content
