"""What generation demands of the machine: seconds that each stage takes for a second of video."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from avatard.inference.ipc import FramesReady
from avatard.inference.pool import cores
from avatard.timebase import FPS

#: In the order in which a frame passes them.
STAGES: Final = ("motion", "generate", "render")


def seconds_of(ready: FramesReady) -> tuple[float, float, float]:
    """What each of the STAGES took for these frames."""
    return ready.motion_seconds, ready.generate_seconds, ready.render_seconds


class StageLoad:
    """The mean load of each stage over the parts of clips that came last.

    Args:
        parts: how many at most.
    """

    def __init__(self, parts: int) -> None:
        self._spent: deque[tuple[float, ...]] = deque(maxlen=parts)  # frames; seconds and core-seconds of each stage
        self._cores = cores()

    def __len__(self) -> int:
        """Parts of clips that are known."""
        return len(self._spent)

    def add(self, ready: FramesReady) -> None:
        """Note what frames took."""
        self._spent.append((ready.count, *seconds_of(ready), *ready.core_seconds))

    def clear(self) -> None:
        """Forget what was noted."""
        self._spent.clear()

    @property
    def stages(self) -> NDArray[np.float64]:
        """Seconds of each of the STAGES for a second of video `[3]`; at least one part must be known."""
        return self._rates[: len(STAGES)]

    @property
    def core_stages(self) -> NDArray[np.float64]:
        """Core-seconds of each of the STAGES for a second of video `[3]`: without waiting, they add up over rooms."""
        return self._rates[len(STAGES) :]

    @property
    def _rates(self) -> NDArray[np.float64]:
        frames, *seconds = np.sum(self._spent, axis=0)
        rates: NDArray[np.float64] = np.array(seconds) * FPS / frames
        return rates

    @property
    def short_of_cores(self) -> bool:
        """Whether the stages together ask for more cores than there are."""
        return bool(self.stages.sum() > self._cores)

    @property
    def rtf(self) -> float:
        """See `demand`."""
        return self.demand(self.stages)

    def demand(self, stages: NDArray[np.float64]) -> float:
        """The real-time factor of stages with these loads: of the slowest, or of all of them shared by the cores."""
        return float(max(stages.max(), stages.sum() / self._cores))
