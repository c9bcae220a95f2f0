"""How fast generation is, and what follows from it: the latency, and under overload less work."""

from __future__ import annotations

import logging
from collections import deque

import numpy as np

from avatard.clock import monotonic
from avatard.config import Stream
from avatard.inference import ipc
from avatard.playout.audio_timeline import MAX_COMPUTE_FRAMES
from avatard.playout.scheduler import AudioChunk, Scheduler
from avatard.timebase import FPS, SAMPLES_PER_FRAME

logger = logging.getLogger(__name__)

CALM_LOAD, BUSY_LOAD = 0.4, 0.95  # half the work costs at least half as much: in between nothing changes
LOAD_CLIPS = 12, 40  # parts of clips that the load is the mean of: at least, at most
MEASURED_CLIPS = 60  # parts of clips that the time given to generation follows
SPARE_FRAMES = 0.5  # a clip should be there this long before it is due
BEHIND_GROWTH = 1.5  # of the time that generation is given
EFFORT_SECONDS = 5.0
MAX_STRIDE = 4  # 6.25 pictures a second


class Tempo:
    """Follows one inference process.

    Args:
        stream: the configuration; its steps are what is wanted.
    """

    def __init__(self, stream: Stream) -> None:
        self.wanted = ipc.QualityLevel(stream.motion_steps, stream.video_steps)
        self._hop_frames = stream.hop_frames
        self._effort_at = monotonic()
        self._effort = self.wanted
        self._spent: deque[tuple[int, float, float]] = deque(maxlen=LOAD_CLIPS[1])  # frames; seconds: motion, video
        self._ordered: deque[tuple[int, int, float]] = deque(maxlen=1000)  # samples from, to, and when
        self._took: deque[float] = deque(maxlen=MEASURED_CLIPS)
        self._behind = False

    def began(self) -> None:
        """A new epoch begins: what was ordered before is of no interest any more."""
        self._ordered.clear()

    def ordered(self, order: AudioChunk, now: float) -> None:
        """Samples were handed out at the play position `now`."""
        self._ordered.append((order.first, order.first + len(order.samples), now))

    def made(self, made: ipc.FramesReady, scheduler: Scheduler, now: float) -> None:
        """Note how long pictures took from the last sample of their hop on; those due later may take longer."""
        self._spent.append((made.count, made.motion_seconds, made.video_seconds))
        timing, began = scheduler.timing, scheduler.epoch_first
        hop, offset = divmod(made.first - began + timing.fade_frames, timing.hop_frames)
        sample = (began + (hop + 1) * timing.hop_frames) * SAMPLES_PER_FRAME + timing.lookahead_samples
        while self._ordered and self._ordered[0][1] < sample:
            self._ordered.popleft()
        if made.epoch != scheduler.epoch or hop == 0 or not self._ordered:
            return
        first, _, ordered_at = self._ordered[0]
        # Of several hops ordered at once, at an epoch's start, the later ones wait for the first.
        if sample - first <= timing.hop_frames * SAMPLES_PER_FRAME:
            self._took.append(now - ordered_at - offset)

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
        elif len(self._took) == MEASURED_CLIPS:
            compute = max(1.0, float(np.percentile(self._took, 95)) + SPARE_FRAMES)
        compute, self._behind = min(compute, MAX_COMPUTE_FRAMES), False
        if abs(compute - given) > 2 * SPARE_FRAMES:
            scheduler.retime(compute)
            logger.info("latency", extra={"ms": round(1000 * scheduler.timing.delay_frames / FPS)})

    def effort(self) -> ipc.QualityLevel | None:
        """Another effort from now on: less of what cannot keep up, more when it is calm.

        Fewer denoising steps come first; then every second picture is left out, and at last three of four.
        """
        if monotonic() - self._effort_at < EFFORT_SECONDS or len(self._spent) < LOAD_CLIPS[0]:
            return None
        frames, *seconds = np.sum(self._spent, axis=0)
        loads = np.array(seconds) * FPS / frames  # seconds of each thread for a second of video
        motion, video, stride = self._effort.motion_steps, self._effort.video_steps, self._effort.frame_stride
        busy = loads > BUSY_LOAD
        if busy.any():
            if busy[0]:
                motion = max(1, motion // 2)
            if busy[1] and video == 1:
                wider = 2 * stride
                stride = wider if wider <= MAX_STRIDE and self._hop_frames % wider == 0 else stride
            elif busy[1]:
                video //= 2
        elif (loads < CALM_LOAD).all():
            if stride > 1:
                stride //= 2
            else:
                motion, video = min(self.wanted.motion_steps, 2 * motion), min(self.wanted.video_steps, 2 * video)
        effort = ipc.QualityLevel(motion, video, stride)
        if effort == self._effort:
            return None
        self._effort, self._effort_at = effort, monotonic()
        self._spent.clear()
        figures = {"motion_steps": motion, "video_steps": video, "pictures_per_second": FPS / stride}
        logger.warning("the load asks for another effort", extra=figures)
        return effort


def first_estimate(hop_seconds: float) -> float:
    """What a hop is given at first, in frames: a good third more than in the warm-up, when nothing else ran."""
    return min(1.4 * hop_seconds * FPS + SPARE_FRAMES, MAX_COMPUTE_FRAMES)
