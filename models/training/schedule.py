"""How far a training is, by its steps or by the clock, and what that means for the learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_cosine(progress: float, warmup: float, floor: float) -> float:
    """Factor of the learning rate: linear warm-up, then half a cosine down to `floor`.

    `progress` goes from 0 to 1; `warmup` is the share of it in which the rate rises.
    """
    if progress < warmup:
        return progress / warmup
    rest = min((progress - warmup) / max(1 - warmup, 1e-9), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * rest)) / 2


class Clock:
    """The time that a training has used, in this call and in those before it.

    Args:
        seconds: a clock that runs on; None for a training that never asks.
    """

    def __init__(self, seconds: Callable[[], float] | None = None):
        self._seconds = seconds
        self._began = seconds() if seconds else 0.0
        self.before = 0.0

    @property
    def runs(self) -> bool:
        """Whether there is a clock at all."""
        return self._seconds is not None

    @property
    def minutes(self) -> float:
        """Of all calls together."""
        return self.before + ((self._seconds() - self._began) / 60 if self._seconds else 0.0)
