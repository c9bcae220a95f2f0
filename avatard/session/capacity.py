"""What rooms cost on this machine, and whether one more fits: in core-milliseconds for each second.

A second of a core is 1,000 of them. A room that speaks costs what its frames take; one that is quiet counts for a part
of it, because it will speak again and others are quiet then; and a fifth of the machine is left to everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avatard.config import PROFILES, Config, Profile
from avatard.timebase import FPS

SPARE: Final = 0.2  # of the machine
#: How the seconds of a hop are shared by motion, generate and render, until frames have told.
FIRST_SHARES: Final = np.array([0.1, 0.3, 0.6])
PIECE_FRAMES: Final = 4  # of a hop are rendered when the warm-up measures
#: Weights of a new measurement. A stage's seconds include its waiting for a core, so a lower one is believed sooner.
LOWER, HIGHER = 0.5, 0.05
#: What is proposed instead of a room that does not fit, the largest first; pixels of the longer side.
SIZES: Final = (1080, 720, 512, 384, 256, 192, 128)


class Kind(NamedTuple):
    """What the cost of a room depends on."""

    clip_frames: int
    hop_frames: int
    motion_steps: int
    video_steps: int
    size: int  # pixels of the longer side
    framing: str

    @classmethod
    def of(cls, config: Config) -> Kind:
        """Of a room with this configuration."""
        stream, picture = config.stream, config.picture
        steps = stream.motion_steps, stream.video_steps
        return cls(stream.clip_frames, stream.hop_frames, *steps, picture.size, picture.framing)

    def changed(self, profile: Profile, size: int) -> Kind:
        """The same with another profile and size."""
        keys = PROFILES[profile]
        clip, steps = (keys["clip_frames"], keys["hop_frames"]), (keys["motion_steps"], keys["video_steps"])
        return Kind(*clip, *steps, size, self.framing)


class Alternative(NamedTuple):
    """A cheaper room."""

    profile: Profile
    size: int


class Capacity:
    """Knows what kinds of rooms cost, and what the machine has.

    Args:
        cores: of the machine.
        quiet_share: what a quiet room counts for, as a part of its full cost.
    """

    def __init__(self, cores: int, quiet_share: float) -> None:
        self.total = 1000 * cores * (1 - SPARE)
        self._quiet_share = quiet_share
        self._known: dict[Kind, NDArray[np.float64]] = {}  # core-ms a second of each stage
        self._followed: set[Kind] = set()  # those whose frames were measured, and not only their warm-up

    def warmed_up(self, kind: Kind, hop_seconds: float) -> None:
        """Note what a hop took in a warm-up, through all stages to its first frames."""
        if kind not in self._known:
            seen = np.array([1, 1, min(1, PIECE_FRAMES / kind.hop_frames)])
            whole = hop_seconds / (FIRST_SHARES * seen).sum()
            self._known[kind] = 1000 * FPS / kind.hop_frames * whole * FIRST_SHARES

    def measured(self, kind: Kind, stages: Sequence[float] | NDArray[np.float64]) -> None:
        """Note what a second of video takes each stage, in seconds, at full quality."""
        new = 1000 * np.asarray(stages, np.float64)
        if kind in self._followed:
            before = self._known[kind]
            new = before + (LOWER if new.sum() < before.sum() else HIGHER) * (new - before)
        self._followed.add(kind)
        self._known[kind] = new

    def cost(self, kind: Kind) -> float:
        """What a room of this kind takes while it speaks: as measured, or estimated from the kind most like it."""
        if kind in self._known:
            return float(self._known[kind].sum())
        if not self._known:
            return 0.0
        like = min(self._known, key=lambda known: (known.framing != kind.framing, *_differences(known, kind)))
        return float((self._known[like] * _growth(like, kind)).sum())

    def demand(self, rooms: Iterable[tuple[Kind, bool]]) -> float:
        """What rooms take together; of each the kind, and whether it speaks."""
        return sum(self.cost(kind) * (1 if speaks else self._quiet_share) for kind, speaks in rooms)

    def alternative(self, kind: Kind, headroom: float) -> Alternative | None:
        """The best room like this one that would fit, if any."""
        choices = (Alternative(profile, size) for size in SIZES if size <= kind.size for profile in PROFILES)
        fitting = [(self.cost(kind.changed(*choice)), choice) for choice in choices]
        fitting = [(cost, choice) for cost, choice in fitting if cost <= headroom]
        return max(fitting, key=lambda found: (found[1].size, found[0]))[1] if fitting else None


def _differences(known: Kind, kind: Kind) -> tuple[bool, float]:
    return known[:4] != kind[:4], abs(known.size - kind.size)


def _growth(known: Kind, kind: Kind) -> NDArray[np.float64]:
    """How much more of each stage another kind takes.

    The video network denoises a clip for each hop, the motion network makes each frame once; rendering was measured to
    grow about as the sides do.
    """
    clips = (kind.clip_frames / kind.hop_frames) / (known.clip_frames / known.hop_frames)
    return np.array(
        [
            kind.motion_steps / known.motion_steps,
            clips * kind.video_steps / known.video_steps,
            kind.size / known.size,
        ]
    )
