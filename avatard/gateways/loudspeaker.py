"""The avatar's sound on an output device of this machine: headphones, or a virtual cable beside a virtual camera."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

import numpy as np

from avatard.errors import UserError
from avatard.frame import Samples
from avatard.playout.scheduler import PlayoutFrame
from avatard.session.session import Session
from avatard.timebase import PLAYBACK_RATE_HZ

if TYPE_CHECKING:
    import sounddevice

logger = logging.getLogger(__name__)

DEFAULT: Final = "default"
START_SAMPLES: Final = 2 * PLAYBACK_RATE_HZ // 25  # 80 ms: what waits before the first sample is heard
MOST_SAMPLES: Final = 6 * PLAYBACK_RATE_HZ // 25  # 240 ms: a device whose clock is slow, or that paused


class LoudspeakerError(UserError):
    """A sound output that cannot be used."""

    CODE = "sound"


class PlaybackBuffer:
    """Samples between the play-out, which gives 40 ms at a time, and a device, which takes any number.

    It begins with 80 ms, plays silence where it has run out, and drops the oldest down to that where 240 ms wait. Safe
    for one thread that pushes and one that pulls.
    """

    def __init__(self) -> None:
        self.dropped = self.gaps = 0  # samples, times
        self._blocks: deque[Samples] = deque()
        self._waiting = 0
        self._playing = False
        self._lock = threading.Lock()

    def push(self, samples: Samples) -> None:
        """Add samples, float32 [T]."""
        with self._lock:
            self._blocks.append(samples)
            self._waiting += len(samples)
            if self._waiting > MOST_SAMPLES:
                while self._waiting > START_SAMPLES:
                    oldest = self._blocks.popleft()
                    self._waiting -= len(oldest)
                    self.dropped += len(oldest)

    def pull(self, count: int) -> Samples:
        """The next samples, float32 [count]."""
        taken = np.zeros(count, np.float32)
        with self._lock:
            if not self._playing and self._waiting < START_SAMPLES:
                return taken
            self._playing = True
            done = 0
            while done < count and self._blocks:
                block = self._blocks.popleft()
                part = block[: count - done]
                taken[done : done + len(part)] = part
                done += len(part)
                if len(part) < len(block):
                    self._blocks.appendleft(block[len(part) :])
            self._waiting -= done
            if done < count:
                self._playing = False
                self.gaps += 1
        return taken


def check_loudspeaker(device: str) -> None:
    """Refuse a sound output that is not there, before the networks are loaded. Raises `LoudspeakerError`."""
    try:
        import sounddevice
    except OSError as error:
        raise LoudspeakerError(f"no sound output: {error} (Debian: apt install libportaudio2)") from None
    try:
        sounddevice.check_output_settings(_device(device), 1, "float32", samplerate=PLAYBACK_RATE_HZ)
    except (sounddevice.PortAudioError, ValueError) as error:
        names = [found["name"] for found in sounddevice.query_devices() if found["max_output_channels"]]
        known = f"there are {', '.join(names)}" if names else "this machine has none"
        raise LoudspeakerError(f"no sound output {device!r}: {' '.join(str(error).split())}; {known}") from None


class Loudspeaker:
    """A sink of the session whose sound is played.

    Args:
        session: the avatar, started.
        device: the name of an output device, or a part of it that no other has; or `default`.

    Raises:
        LoudspeakerError: there is no such device, or it cannot be opened.
    """

    def __init__(self, session: Session, device: str) -> None:
        check_loudspeaker(device)
        import sounddevice

        self._session = session
        self.buffer = PlaybackBuffer()

        def fill(out: Samples, frames: int, time: object, status: sounddevice.CallbackFlags) -> None:
            out[:, 0] = self.buffer.pull(frames)

        try:
            self._stream = sounddevice.OutputStream(
                PLAYBACK_RATE_HZ, 0, _device(device), 1, "float32", latency="low", callback=fill
            )
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise LoudspeakerError(f"no sound output {device!r}: {' '.join(str(error).split())}") from None
        session.attach(self)
        logger.info("sound output connected", extra={"device": device, "rate_hz": PLAYBACK_RATE_HZ})

    def play(self, entry: PlayoutFrame) -> None:
        """Play the sound of a frame."""
        self.buffer.push(entry.sound.playback)

    async def stop(self) -> None:
        """Release the device."""
        self._session.detach(self)
        await asyncio.to_thread(self._stream.close)


def _device(name: str) -> str | None:
    return None if name == DEFAULT else name
