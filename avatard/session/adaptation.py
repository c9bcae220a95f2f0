"""Adaptation to the machine: the latency follows what generation takes, and under overload the quality level falls.

The terms are those of libwebrtc's overuse detection: load, adaptation, quality level.
"""

from __future__ import annotations

import logging
from collections import deque

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from avatard.clock import monotonic
from avatard.config import Stream
from avatard.inference.ipc import FramesReady, QualityLevel
from avatard.inference.pool import cores
from avatard.playout.audio_timeline import MAX_COMPUTE_FRAMES
from avatard.playout.scheduler import AudioChunk, Scheduler
from avatard.session.load import STAGES, StageLoad
from avatard.timebase import FPS, SAMPLES_PER_FRAME

logger = logging.getLogger(__name__)

MEASURED_CLIPS = 60  # parts of clips that the time given to generation follows
SPARE_FRAMES = 0.5  # a clip should be there this long before it is due
BEHIND_GROWTH = 1.5  # of the time that generation is given
CALM_LOAD, BUSY_LOAD = 0.8, 0.95  # of a stage, after and before a change of level: in between nothing changes
LOAD_CLIPS = 12, 40  # parts of clips that the load is the mean of: at least, at most
LEVEL_SECONDS = 5.0  # a level is kept for at least this long
MAX_STRIDE = 4  # 6.25 pictures a second
FAR_LOAD = 1.8  # half the size, without painted teeth, about halves rendering at 512 pixels: beyond, that is not enough
WHOLE_SIZE_GROWTH = 2.0  # of the load of rendering when pictures get their whole size back
LIVE_GROWTH = 1.4  # of what a frame takes, beside the warm-up, when nothing else runs
LEAST_SIDE = 192  # pixels: smaller pictures are not composed at half of their size, which would save little


class LatencyEstimator:
    """Measures how long frames take from the last sample of their hop on, and gives generation that time."""

    def __init__(self) -> None:
        self._sent: deque[tuple[int, int, float]] = deque(maxlen=1000)  # samples from, to, and when
        self._took: deque[float] = deque(maxlen=MEASURED_CLIPS)
        self._behind = False

    @property
    def known(self) -> bool:
        """Whether enough clips were measured."""
        return len(self._took) == MEASURED_CLIPS

    def epoch_started(self) -> None:
        """Forget what was sent before."""
        self._sent.clear()

    def audio_sent(self, chunk: AudioChunk, now: float) -> None:
        """Note that samples were handed out at the play position `now`."""
        self._sent.append((chunk.first, chunk.first + len(chunk.samples), now))

    def frames_ready(self, ready: FramesReady, scheduler: Scheduler, now: float) -> None:
        """Note how long frames took; those due later may take longer."""
        hop, offset, heard = scheduler.hop_of(ready.first)
        while self._sent and self._sent[0][1] < heard:
            self._sent.popleft()
        if ready.epoch != scheduler.epoch or hop == 0 or not self._sent:
            return
        first, _, sent_at = self._sent[0]
        # Of several hops sent at once, at an epoch's start, the later ones wait for the first.
        if heard - first <= scheduler.timing.hop_frames * SAMPLES_PER_FRAME:
            self._took.append(now - sent_at - offset)

    def fell_behind(self) -> None:
        """Frames were given up: generation needs more time than it has."""
        self._behind = True

    def retime(self, scheduler: Scheduler) -> None:
        """Give generation the time that it really takes; to be called in a pause of the speech."""
        compute = given = scheduler.timing.compute_frames
        if self._behind:
            # How long it takes is not known: what comes late has no successors to measure.
            compute = BEHIND_GROWTH * given
            self._took.clear()
        elif self.known:
            compute = max(1.0, float(np.percentile(self._took, 95)) + SPARE_FRAMES)
        compute, self._behind = min(compute, MAX_COMPUTE_FRAMES), False
        if abs(compute - given) > 2 * SPARE_FRAMES:
            scheduler.retime(compute)
            logger.info("latency", extra={"ms": round(1000 * scheduler.timing.delay_frames / FPS)})


class LoadController:
    """Lowers the quality level of what cannot keep up, and raises it when there is time again.

    Fewer denoising steps come first; then pictures are composed at half their size and enlarged; then every second
    picture is left out, and at last three of four.

    The stages run side by side on a few cores. The pipeline falls behind when one stage takes longer than its frames
    last, or when all together need more than the cores have. The second is seen in the first: seconds of a stage
    include its waiting for a core, and what is not done in time piles up before some stage, which then never rests. So
    the level falls when the slowest stage does not keep up, and not for a sum that the cores are still equal to. It
    rises when after that both would hold with time to spare: a step more may double the load of its network, twice as
    many pictures that of the video network and of rendering.

    It begins a level lower where the warm-up says that the cores will not do: to find that out with the first viewer
    would cost them seconds of repeated frames.

    Args:
        stream: the configuration; its steps are what is wanted.
        core_seconds: what a frame took in the warm-up, in all stages.
        side: of the pictures, the longer one, in pixels.
    """

    def __init__(self, stream: Stream, core_seconds: float = 0.0, side: int = 0) -> None:
        self.level = self.wanted = QualityLevel(stream.motion_steps, stream.video_steps)
        self._hop_frames = stream.hop_frames
        self._side = side
        demand = LIVE_GROWTH * core_seconds * FPS / cores()
        if demand > CALM_LOAD and self.wanted.video_steps > 1:
            self.level = structs.replace(self.wanted, video_steps=self.wanted.video_steps // 2)
        elif demand > CALM_LOAD:
            divisor = 2 if side >= 2 * LEAST_SIDE else 1
            stride = stride_within(stream.hop_frames, 2) if demand > BUSY_LOAD else 1
            self.level = structs.replace(self.wanted, size_divisor=divisor, frame_stride=stride)
        self._level_at = monotonic()
        self._load = StageLoad(LOAD_CLIPS[1])

    def frames_ready(self, ready: FramesReady) -> None:
        """Note what frames cost."""
        self._load.add(ready)
        self._side = max(ready.width, ready.height)

    def forget(self) -> None:
        """What comes from now on is made with more work, or less, than before."""
        self._load.clear()

    @property
    def busy(self) -> bool:
        """Whether some stage does not keep up."""
        return len(self._load) >= LOAD_CLIPS[0] and bool(self._load.stages.max() > BUSY_LOAD)

    def decide(self, patient: bool = False) -> QualityLevel | None:
        """Return another level to use from now on, if the load asks for it or allows it.

        Args:
            patient: do not lower it yet, because others give way first.
        """
        if monotonic() - self._level_at < LEVEL_SECONDS or len(self._load) < LOAD_CLIPS[0]:
            return None
        if self.busy and patient:
            return None
        level = self._next_level()
        if level == self.level:
            return None
        loads = dict(zip(STAGES, self._load.stages.round(2).tolist(), strict=True))
        self.level, self._level_at = level, monotonic()
        self._load.clear()
        logger.warning("quality level changed", extra={**figures(level), **loads})
        return level

    def _next_level(self) -> QualityLevel:
        loads, now = self._load.stages, self.level
        if not self.busy:
            return self._higher(loads)
        motion_busy, generate_busy, render_busy = loads > BUSY_LOAD
        motion, video, divisor, stride = now.motion_steps, now.video_steps, now.size_divisor, now.frame_stride
        if motion_busy:
            motion = max(1, motion // 2)
        # Fewer steps do not make rendering faster, but they leave it a core where there are too few.
        if video > 1 and (generate_busy or (render_busy and self._load.short_of_cores)):
            video //= 2
        elif generate_busy or render_busy:
            smaller = render_busy and divisor == 1 and self._side >= 2 * LEAST_SIDE
            divisor = 2 if smaller else divisor
            wider = 2 * stride
            far = loads[1:].max() > FAR_LOAD
            if (not smaller or far) and wider <= MAX_STRIDE and self._hop_frames % wider == 0:
                stride = wider
        return QualityLevel(motion, video, stride, divisor)

    def _higher(self, loads: NDArray[np.float64]) -> QualityLevel:
        """The next higher level, or this one if that would not be calm."""
        now, wanted = self.level, self.wanted
        if now.frame_stride > 1:
            level, growth = structs.replace(now, frame_stride=now.frame_stride // 2), (1.0, 2.0, 2.0)
        elif now.size_divisor > 1:
            level, growth = structs.replace(now, size_divisor=1), (1.0, 1.0, WHOLE_SIZE_GROWTH)
        else:
            motion = min(wanted.motion_steps, 2 * now.motion_steps)
            video = min(wanted.video_steps, 2 * now.video_steps)
            level = QualityLevel(motion, video)
            growth = (motion / now.motion_steps, video / now.video_steps, 1.0)
        return level if self._load.demand(loads * growth) < CALM_LOAD else now


def figures(level: QualityLevel) -> dict[str, float]:
    """A quality level for the log."""
    steps = {"motion_steps": level.motion_steps, "video_steps": level.video_steps}
    return {**steps, "scale": level.picture_scale, "pictures_per_second": FPS / level.frame_stride}


def stride_within(hop_frames: int, stride: int) -> int:
    """The widest frame stride up to this one that a hop can have."""
    while hop_frames % stride:
        stride //= 2
    return stride


def first_estimate(hop_seconds: float) -> float:
    """What a hop is given at first, in frames: a good third more than in the warm-up, when nothing else ran."""
    return min(LIVE_GROWTH * hop_seconds * FPS + SPARE_FRAMES, MAX_COMPUTE_FRAMES)
