"""Whether somebody is speaking, by loudness."""

from __future__ import annotations

import math

import numpy as np

from avatard.frame import Samples

SPEAKING_RMS, QUIET_FRAMES = 0.008, 12


def rms(samples: Samples) -> float:
    """Root mean square, of full scale; 0 of nothing."""
    return math.sqrt(float(np.mean(np.square(samples)))) if len(samples) else 0.0


class VoiceActivity:
    """Speech begins with a loud frame and ends after half a second without one, unless more is known to follow."""

    def __init__(self) -> None:
        self.speaking = False
        self._quiet = 0  # frames

    def update(self, samples: Samples, speech: bool, more: bool) -> bool:
        """Take the next frame; return whether `speaking` changed with it.

        Args:
            samples: its sound.
            speech: whether that is speech that may be loud.
            more: whether more is waiting to be said, so that quiet is a pause.
        """
        loud = speech and rms(samples) > SPEAKING_RMS
        self._quiet = 0 if loud else self._quiet + 1
        before = self.speaking
        self.speaking = loud or (before and (more or self._quiet < QUIET_FRAMES))
        return self.speaking != before

    def stop(self) -> bool:
        """End the speech now; return whether there was any."""
        before, self.speaking = self.speaking, False
        return before
