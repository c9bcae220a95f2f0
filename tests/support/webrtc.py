"""In-memory ends of WebRTC for the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class RecordingHandler:
    """What a peer reports."""

    def __init__(self) -> None:
        self.sound = np.zeros(0, np.float32)
        self.messages: list[dict[str, Any]] = []
        self.closed = 0

    def on_audio(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        self.sound = np.concatenate([self.sound, samples])

    def on_message(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    def on_first_frame(self, seconds: float) -> None:
        pass

    def on_closed(self) -> None:
        self.closed += 1
