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
    if not container.streams.audio:
        container.close()
        raise AudioFileError(f"{path} has no sound in it")
    return container


def read_audio(path: Path) -> Iterator[tuple[Samples, int]]:
    """Decode the first audio stream; yield mono float32 chunks and their rate in Hz.

    Raises:
        AudioFileError: the file is missing, or has no readable sound.
    """
    from av.audio.resampler import AudioResampler
    from av.error import FFmpegError

    with open_audio(path) as container:
        stream = container.streams.audio[0]
        planar = AudioResampler(format="fltp")  # keeps rate and channels; their mean cannot clip
        try:
            for frame in container.decode(stream):
                for part in planar.resample(frame):
                    yield part.to_ndarray().mean(axis=0, dtype=np.float32), stream.rate
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
