"""How many sessions the networks keep up with on a GPU, and what each takes of its memory.

Sessions run on threads of their own, as fast as they can, and share passes as they do when they serve. The compositor,
which works on the processor, is not among this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avatard.clock import monotonic
from avatard.config import Stream
from avatard.engine.identity import Identity
from avatard.engine.motion_stream import MotionStream
from avatard.engine.networks import Networks
from avatard.engine.video_stream import PreparedPortrait, VideoStream
from avatard.models.device import DeviceError, allocated_bytes, refused_when_full
from avatard.timebase import FPS, SAMPLES_PER_FRAME

#: Numbers of sessions are doubled up to this.
MOST: Final = 512
#: Hops that are not counted: passes are recorded in them.
WARM_UP_HOPS: Final = 6
HOPS: Final = 12


class Load(NamedTuple):
    """So many sessions at once."""

    sessions: int
    hop_ms: float  # what a session waits for a hop, on average
    bytes_each: int | None  # of the device's memory, where it has some of its own


class _Session:
    """The networks' part of a session: a hop at a time, up to what a compositor gets."""

    def __init__(self, networks: Networks, identity: Identity, mean: NDArray[np.float32], stream: Stream) -> None:
        self._identity = identity
        self._hop = stream.hop_frames
        passes = networks.passes
        self._motion = MotionStream(
            networks.atom,
            networks.speech,
            identity,
            hop_frames=stream.hop_frames,
            lookahead_ms=stream.lookahead_ms,
            steps=stream.motion_steps,
            hops=passes.motion,
        )
        self._video = VideoStream(
            networks.mcvdm,
            PreparedPortrait.of(networks.mcvdm, identity, mean),
            clip=stream.clip_frames,
            hop=stream.hop_frames,
            fade=stream.fade_frames,
            steps=stream.video_steps,
            hops=passes.hops,
            layers=passes.layers,
        )

    def run(self, hops: int, voice: NDArray[np.float32]) -> None:
        """Make so many hops of a voice `[T]`, over and over."""
        samples = self._hop * SAMPLES_PER_FRAME
        for n in range(hops):
            chunk = np.take(voice, range(n * samples, (n + 1) * samples), mode="wrap")
            for motion in self._motion.push(chunk):
                poses = [self._identity.pose] * len(motion.landmarks)
                for clip in self._video.generate(motion.landmarks, poses):
                    for _ in self._video.layers(clip):
                        pass


def loads(
    networks: Networks,
    identity: Identity,
    mean: NDArray[np.float32],
    stream: Stream,
    voice: NDArray[np.float32],
    most: int = MOST,
    hops: int = HOPS,
) -> Iterator[Load]:
    """Measure 1, 2, 4 and so on sessions, as long as they find place in the memory.

    Args:
        networks: to measure.
        identity: whom all sessions show.
        mean: the 3DMM's mean face `[68, 3]`.
        stream: sizes and steps.
        voice: what they say.
        most: sessions.
        hops: that are counted, of each session.
    """
    sessions: list[_Session] = []
    before = allocated_bytes(networks.device)
    count = 1
    while count <= most:
        try:
            with refused_when_full("another session"):
                while len(sessions) < count:
                    sessions.append(_Session(networks, identity, mean, stream))
            _together(sessions, WARM_UP_HOPS, voice)
            seconds = _together(sessions, hops, voice)
        except DeviceError:
            return
        after = allocated_bytes(networks.device)
        each = None if before is None or after is None else (after - before) // count
        yield Load(count, 1000 * seconds / hops, each)
        count *= 2


def _together(sessions: list[_Session], hops: int, voice: NDArray[np.float32]) -> float:
    """Seconds in which all make so many hops."""
    with ThreadPoolExecutor(len(sessions)) as threads:
        began = monotonic()
        for done in [threads.submit(session.run, hops, voice) for session in sessions]:
            done.result()
        return monotonic() - began


def summary(measured: Iterable[Load], stream: Stream) -> dict[str, Any]:
    """What was measured, up to the first number of sessions that does not keep up with speech."""
    budget_ms = 1000 * stream.hop_frames / FPS
    tried: list[Load] = []
    kept: Load | None = None
    for load in measured:
        tried.append(load)
        if load.hop_ms > budget_ms:
            break
        kept = load
    return {
        "networks": 0 if kept is None else kept.sessions,
        "memory_mb_each": None if kept is None or kept.bytes_each is None else kept.bytes_each / 1e6,
        "measured": [{"sessions": load.sessions, "hop_ms": load.hop_ms} for load in tried],
    }
