"""Local sources of speech: a sound file and the microphone of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from avatard.errors import UserError
from avatard.frame import Samples
from avatard.media.audio_file import read_audio
from avatard.session.session import Session

if TYPE_CHECKING:
    import sounddevice

MICROPHONE_BLOCK_SECONDS = 0.02
MICROPHONE_QUEUE_BLOCKS = 50  # one second; what the event loop cannot take by then is lost


class MicrophoneError(UserError):
    """This machine's microphone cannot be used."""

    CODE = "microphone"


async def speak_file(session: Session, path: Path) -> None:
    """Say all of a sound file; it is decoded beside the event loop and only as fast as it is taken.

    Raises:
        AudioFileError: there is no such file, or no sound in it.
    """
    speaker = session.open_speaker()
    speaker.begin()  # a file without a sample is an utterance, too
    chunks = read_audio(path)
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        speaker.push_audio(*chunk)
        await speaker.room()
    await speaker.close()


async def speak_microphone(session: Session, device: str | int | None = None) -> None:
    """Say what a local microphone hears, for ever.

    Raises:
        MicrophoneError: there is no microphone, or no PortAudio.
    """
    microphone = session.open_microphone()
    async for samples, rate_hz in microphone_blocks(device):
        microphone.push_audio(samples, rate_hz)


def check_microphone(device: str | int | None = None) -> int:
    """The rate in Hz of a local microphone. Raises `MicrophoneError` where there is none."""
    try:
        import sounddevice
    except OSError as error:
        raise MicrophoneError(f"no microphone: {error} (Debian: apt install libportaudio2)") from None
    try:
        return int(sounddevice.query_devices(device, "input")["default_samplerate"])
    except (sounddevice.PortAudioError, ValueError) as error:
        raise MicrophoneError(f"no microphone: {' '.join(str(error).split())}") from None


async def microphone_blocks(device: str | int | None = None) -> AsyncIterator[tuple[Samples, int]]:
    """Blocks of 20 ms of a local microphone, mono float32, and their rate in Hz. Raises `MicrophoneError`."""
    rate_hz = check_microphone(device)
    import sounddevice

    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[Samples] = asyncio.Queue(MICROPHONE_QUEUE_BLOCKS)

    def put(block: Samples) -> None:
        if not queue.full():
            queue.put_nowait(block)

    def on_block(block: Samples, frames: int, time: object, status: sounddevice.CallbackFlags) -> None:
        loop.call_soon_threadsafe(put, block[:, 0].copy())

    try:
        block_frames = round(rate_hz * MICROPHONE_BLOCK_SECONDS)
        with sounddevice.InputStream(rate_hz, block_frames, device, 1, "float32", callback=on_block):
            while True:
                yield await queue.get(), rate_hz
    except (sounddevice.PortAudioError, ValueError) as error:
        raise MicrophoneError(f"no microphone: {' '.join(str(error).split())}") from None
