"""What a living face does besides speaking: blinks, brows, breath and a head that is never quite still.

Everything is a function of (seed, absolute frame): any stretch can be asked for, in any order, with the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avatard.frame import raised_cosine
from avatard.models.face.pose import rotation_matrix
from avatard.models.face.topology import LEFT_BROW, RIGHT_BROW
from avatard.timebase import FPS

Array = NDArray[np.float32]

#: Upper lid points and the lower ones that they meet: right eye, then left.
UPPER_LIDS, LOWER_LIDS = np.array([[37, 38], [43, 44]]), np.array([[41, 40], [47, 46]])
#: Of the way between the lids, what the lower one covers.
LOWER_LID_SHARE = 0.12
#: Sinusoids per band-limited signal.
TONES = 7


@dataclass(frozen=True)
class IdleStatistics:
    """How lively a face is. The defaults are what scripts/measure_idle.py finds in news presenters (LRW-AR).

    Head motion lies between theirs and that of GRID's reader, who sits still. The bands and the breath are chosen: the
    clips are too short to show them.
    """

    blink_interval_s: float = 2.7
    blink_closing_frames: float = 2.5
    blink_opening_frames: float = 5.0
    blink_depth: float = 0.45  # of the distance between the lids: what the mesh shows of a shut eye
    blink_asymmetry: float = 0.05  # standard deviation of the two eyes' relative depth
    brow_iod: float = 0.006  # standard deviation of the brows' height
    brow_hz: tuple[float, float] = (0.1, 0.8)
    head_degrees: tuple[float, float, float] = (1.0, 1.2, 0.6)  # yaw, pitch, roll: standard deviations
    head_iod: tuple[float, float] = (0.04, 0.03)  # horizontal, vertical
    head_hz: tuple[float, float] = (0.08, 0.6)
    breath_hz: float = 0.25
    breath_iod: float = 0.012
    gaze_interval_s: float = 1.2
    gaze_degrees: tuple[float, float] = (0.9, 0.6)  # horizontal, vertical: around the camera
    gaze_away: float = 0.18  # share of the intervals that begin with a look elsewhere
    gaze_away_degrees: tuple[float, float] = (6.0, 3.0)
    gaze_away_s: float = 0.5


def wander(key: tuple[int, ...], frames: NDArray[np.int64], band_hz: tuple[float, float]) -> NDArray[np.float64]:
    """A smooth random signal `[k]` of unit deviation with nothing outside the band: sinusoids of random phase."""
    rng = np.random.default_rng(key)
    low_hz, high_hz = band_hz
    tone_hz = low_hz * (high_hz / low_hz) ** rng.uniform(size=TONES)
    phase = rng.uniform(0, 2 * np.pi, TONES)
    waves = np.sin(2 * np.pi * tone_hz * (frames[:, None] / FPS) + phase)
    unit: NDArray[np.float64] = waves.sum(axis=1) / np.sqrt(TONES / 2)
    return unit


class Idle:
    """Idle motion of one face.

    Args:
        points: the neutral face `[68, 3]` in the canonical frame (interocular distances).
        seed: of the session.
        statistics: how lively.
    """

    def __init__(self, points: NDArray[np.floating], seed: int, statistics: IdleStatistics | None = None) -> None:
        self._statistics, self._seed = statistics or IdleStatistics(), seed
        self._gap = (points[LOWER_LIDS] - points[UPPER_LIDS]).astype(np.float32)  # [2, 2, 3], from upper to lower lid

    def _blink(self, cell: int) -> tuple[float, float, NDArray[np.float64]]:
        """The one blink of a cell of the timeline: when the lids meet (frame), its speed and both eyes' depth `[2]`."""
        s, rng = self._statistics, np.random.default_rng((self._seed, 1, cell))
        length = s.blink_interval_s * FPS
        depth = s.blink_depth * np.exp(rng.normal(0, 0.08) + s.blink_asymmetry * np.array([0.5, -0.5]) * rng.normal())
        # A tenth of the cell stays free at each end, so that neighbours never run into each other.
        return (cell + rng.uniform(0.1, 0.9)) * length, float(np.exp(rng.normal(0, 0.15))), depth.clip(max=1)

    def closure(self, first: int, count: int) -> Array:
        """How far both lids are closed `[count, 2]` (right, left), 0 open to 1 shut, from frame `first` on."""
        s, frames = self._statistics, np.arange(first, first + count)
        length, shut = s.blink_interval_s * FPS, np.zeros((count, 2))
        for cell in range(max(0, int(first / length) - 1), int((first + count) / length) + 2):
            meet, speed, depth = self._blink(cell)
            late = (frames - meet) * speed
            phase = np.where(late < 0, -late / s.blink_closing_frames, late / s.blink_opening_frames).clip(0, 1)
            shut = np.maximum(shut, raised_cosine(1 - phase)[:, None] * depth)
        return shut.astype(np.float32)

    def face(self, first: int, count: int) -> Array:
        """Offsets `[count, 68, 3]` (interocular distances) of lids and brows from frame `first` on."""
        offsets = self.lids(self.closure(first, count))
        lift = self._statistics.brow_iod * wander((self._seed, 2), self._frames(first, count), self._statistics.brow_hz)
        for brow in (RIGHT_BROW, LEFT_BROW):
            offsets[:, brow, 1] = -lift[:, None]
        return offsets

    def lids(self, closure: Array) -> Array:
        """Offsets `[k, 68, 3]` (interocular distances) of lids that are closed `[k, 2]`."""
        offsets = np.zeros((len(closure), 68, 3), np.float32)
        way = closure[:, :, None, None] * self._gap  # [k, eye, point, 3]
        offsets[:, UPPER_LIDS] = (1 - LOWER_LID_SHARE) * way
        offsets[:, LOWER_LIDS] = -LOWER_LID_SHARE * way
        return offsets

    def head(self, first: int, count: int) -> tuple[Array, Array]:
        """Rotations `[count, 3, 3]`, to apply after the portrait's own, and shifts `[count, 2]` (interocular)."""
        s, frames = self._statistics, self._frames(first, count)
        angles = [s.head_degrees[k] * wander((self._seed, 3, k), frames, s.head_hz) for k in range(3)]
        rotations = np.stack([rotation_matrix(*angle) for angle in zip(*angles, strict=True)])
        shifts = np.stack([s.head_iod[k] * wander((self._seed, 4, k), frames, s.head_hz) for k in range(2)], axis=1)
        near = (s.breath_hz * 0.85, s.breath_hz * 1.15)
        shifts[:, 1] += s.breath_iod * wander((self._seed, 5), frames, near)
        return rotations.astype(np.float32), shifts.astype(np.float32)

    def _look(self, cell: int) -> tuple[float, float, NDArray[np.float64], NDArray[np.float64]]:
        """A cell's fixation: when it begins and a look elsewhere has ended, that look and the one at the camera."""
        s, rng = self._statistics, np.random.default_rng((self._seed, 6, max(0, cell)))
        start = (cell + rng.uniform(0, 0.5)) * s.gaze_interval_s * FPS
        here = rng.normal(0, s.gaze_degrees)
        away = rng.uniform() < s.gaze_away
        there = here + rng.choice([-1, 1], 2) * np.array(s.gaze_away_degrees) * rng.uniform(0.6, 1.4) if away else here
        return start, start + (s.gaze_away_s * FPS if away else 0), there, here

    def gaze(self, frame: int) -> NDArray[np.float64]:
        """Where the eyes wander in a frame: degrees to the right of the picture and down `[2]`, 0 at the camera.

        They jump from one fixation to the next within two frames, and rest in between.
        """
        cell = int(frame // (self._statistics.gaze_interval_s * FPS))
        while self._look(cell)[0] > frame and cell >= 0:
            cell -= 1
        before = self._look(cell - 1)[3]
        start, back, there, here = self._look(cell)
        looks = ((start, before, there), (back, there, here))
        at, old, new = looks[1] if frame >= back else looks[0]
        arrived = np.clip((frame - at + 1) / 2, 0, 1)
        looking: NDArray[np.float64] = old + (new - old) * arrived
        return looking

    @staticmethod
    def _frames(first: int, count: int) -> NDArray[np.int64]:
        return np.arange(first, first + count)
