"""What speaks a text: an endpoint or a program; see `avatard.tts.configured`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from avatard.errors import UserError
from avatard.frame import Samples


class TtsError(UserError):
    """A text could not be spoken."""

    CODE = "tts-failed"


class TtsUnavailableError(TtsError):
    """The program is not installed, or the endpoint cannot be reached."""

    CODE = "tts-unavailable"


class Synthesizer(Protocol):
    """Speaks one sentence after the other."""

    def speak(self, text: str, voice: str) -> AsyncGenerator[tuple[Samples, int]]:
        """Speak a sentence: mono float32 [T] and its rate in Hz, as it is made. Closing the generator stops it.

        Args:
            text: one line.
            voice: by name; empty: the configured one.

        Raises:
            TtsError: it cannot be spoken.
        """

    async def close(self) -> None:
        """Free what is held between two sentences."""
