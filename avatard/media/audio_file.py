"""Read the sound of any file that FFmpeg reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avatard.errors import UserError
from avatard.frame import Samples
from avatard.media.resample import Resampler

if TYPE_CHECKING:
    from av.container import InputContainer


class AudioFileError(UserError):
    """A file without readable sound."""

    CODE = "audio"


def open_audio(path: Path) -> InputContainer:
    """Open a file that has an audio stream; the caller closes it. Raises `AudioFileError`."""
    import av
    from av.error import FFmpegError

    try:
        container = av.open(str(path))
    except (FFmpegError, OSError, ValueError) as error:
        raise unreadable(path, error) from None
    if fault := _fault_of(container):
        container.close()
        raise AudioFileError(f"{path} {fault}")
    return container


def _fault_of(container: InputContainer) -> str:
    """Why the sound of a file cannot be used, if it cannot."""
    if not container.streams.audio:
        return "has no sound in it"
    if container.streams.audio[0].codec_context is None:
        return "cannot be read as sound: its codec is not known here"
    try:
        Resampler(container.streams.audio[0].rate)  # refuses impossible rates here, and not in the middle
    except ValueError as error:
        return f"cannot be used: {error}"
    return ""


def read_audio(path: Path) -> Iterator[tuple[Samples, int]]:
    """Decode the first audio stream; yield mono float32 chunks and their rate in Hz.

    Raises:
        AudioFileError: the file is missing, or has no readable sound.
    """
    from av.audio.resampler import AudioResampler
    from av.error import FFmpegError

    with open_audio(path) as container:
        stream = container.streams.audio[0]
        # Rate and channels stay; their mean cannot clip. Packed: PyAV writes beyond planes of more than 8 channels.
        packed = AudioResampler(format="flt")
        try:
            for frame in container.decode(stream):
                for part in packed.resample(frame):
                    channels = part.to_ndarray().reshape(-1, part.layout.nb_channels)
                    mono = np.nan_to_num(channels.mean(axis=1, dtype=np.float32), nan=0.0, posinf=1.0, neginf=-1.0)
                    yield mono.clip(-1, 1), stream.rate
        except (FFmpegError, OSError, ValueError) as error:
            raise unreadable(path, error) from None


def read_speech(path: Path) -> Iterator[Samples]:
    """Chunks of `read_audio` at 16 kHz. Raises `AudioFileError`."""
    resampler: Resampler | None = None
    for chunk, rate_hz in read_audio(path):
        resampler = resampler or Resampler(rate_hz)
        yield resampler.push(chunk)
    if resampler is not None:
        yield resampler.flush()


def unreadable(path: Path, error: Exception) -> AudioFileError:
    """The error for a file that cannot be decoded."""
    return AudioFileError(f"{path} cannot be read as sound: {getattr(error, 'strerror', None) or error}")
