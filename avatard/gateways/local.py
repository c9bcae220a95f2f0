"""Local sources of speech: a sound file and the microphone. Each is an asynchronous stream of 16 kHz mono chunks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avatard.errors import UserError
from avatard.frame import Samples
from avatard.media.resample import Resampler

if TYPE_CHECKING:
    import sounddevice

MICROPHONE_BLOCK_SECONDS = 0.02
MICROPHONE_QUEUE_BLOCKS = 50  # one second; what the event loop cannot take by then is lost


class SourceError(UserError):
    """A source of speech cannot be used; the message is one line."""


def read_file(path: Path) -> Iterator[Samples]:
    """The first audio stream of any file that PyAV reads, as chunks of 16 kHz mono float32.

    Raises:
        SourceError: there is no such file, or no sound in it.
    """
    import av
    from av.audio.resampler import AudioResampler
    from av.error import FFmpegError

    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise SourceError(f"{path} has no sound in it")
            stream = container.streams.audio[0]
            planar = AudioResampler(
                format="fltp"
            )  # keeps rate and channels: soxr converts better, and a mean cannot clip
            resampler = Resampler(stream.rate)
            for frame in container.decode(stream):
                for part in planar.resample(frame):
                    yield resampler.push(part.to_ndarray().mean(axis=0, dtype=np.float32))
            yield resampler.flush()
    except SourceError:
        raise
    except FFmpegError as error:
        raise SourceError(f"{path} cannot be read as sound: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read as sound: {error}") from None


async def file_source(path: Path) -> AsyncIterator[Samples]:
    """The chunks of `read_file`, decoded beside the event loop and only as fast as they are taken."""
    chunks = read_file(path)
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        if len(chunk):
            yield chunk


async def microphone_source(device: str | int | None = None) -> AsyncIterator[Samples]:
    """What a local microphone hears, in chunks of 20 ms.

    Raises:
        SourceError: there is no microphone, or no PortAudio.
    """
    try:
        import sounddevice
    except OSError as error:
        raise SourceError(f"no microphone: {error} (Debian: apt install libportaudio2)") from None
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Samples] = asyncio.Queue(MICROPHONE_QUEUE_BLOCKS)

    def put(block: Samples) -> None:
        if not queue.full():
            queue.put_nowait(block)

    def on_block(block: Samples, frames: int, time: object, status: sounddevice.CallbackFlags) -> None:
        loop.call_soon_threadsafe(put, block[:, 0].copy())

    try:
        rate_hz = int(sounddevice.query_devices(device, "input")["default_samplerate"])
        resampler = Resampler(rate_hz)
        block_frames = round(rate_hz * MICROPHONE_BLOCK_SECONDS)
        stream = sounddevice.InputStream(rate_hz, block_frames, device, 1, "float32", callback=on_block)
        with stream:
            while True:
                chunk = resampler.push(await queue.get())
                if len(chunk):
                    yield chunk
    except (sounddevice.PortAudioError, ValueError) as error:
        raise SourceError(f"no microphone: {' '.join(str(error).split())}") from None
