"""Whether somebody is speaking, by loudness."""

from __future__ import annotations

import math

import numpy as np

from avatard.audio.ring import Samples

SPEAKING_RMS, QUIET_FRAMES = 0.008, 12


def rms(samples: Samples) -> float:
    """Root mean square, of full scale; 0 of nothing."""
    return math.sqrt(float(np.mean(np.square(samples)))) if len(samples) else 0.0


class Activity:
    """Speech begins with a loud frame and ends after half a second without one."""

    def __init__(self) -> None:
        self.speaking = False
        self._quiet = 0  # frames

    def hear(self, samples: Samples, speech: bool) -> bool:
        """The next frame, and whether it is speech that may be loud; whether `speaking` changed with it."""
        loud = speech and rms(samples) > SPEAKING_RMS
        self._quiet = 0 if loud else self._quiet + 1
        before = self.speaking
        self.speaking = loud or (before and self._quiet < QUIET_FRAMES)
        return self.speaking != before
