"""What there is to do in each stage for the rooms of a process, and whose turn it is: the earliest deadline's.

A stage serves a room one step at a time, and what is once begun is finished. So steps are short: a piece of sound, a
clip, a few pictures. Among the rooms that have a step ready, the one goes first whose frames are due first
(earliest deadline first). A step is ready where there is something to work on, and a place for what becomes of it:
no room's queue can stop another room.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from avatard.clock import monotonic, thread_cpu
from avatard.frame import Frame, Samples
from avatard.inference.engine_api import Piece, Stream
from avatard.timebase import FPS

QUEUE_HOPS = 4  # motion may not run further ahead of the video network than this
QUEUE_CLIPS = 2  # nor that of rendering: volumes are large, and what an interrupt drops was made in vain
PIECE_SAMPLES = 1_280

T = TypeVar("T")


class Stage(IntEnum):
    """The stages of a stream, in their order."""

    MOTION = 0
    GENERATE = 1
    RENDER = 2


class Cost(NamedTuple):
    """What a stage took for something."""

    seconds: float  # by the wall, from when it could have begun
    core_seconds: float


#: Of something that was made: what each stage took for it; nothing where the stage did not come yet.
Costs = tuple[Cost, Cost, Cost]
FREE = Cost(0.0, 0.0)


class Made(NamedTuple):
    """Pictures that are ready."""

    first: int  # absolute frame number
    frames: list[Frame]
    costs: Costs


class _Waiting(NamedTuple, Generic[T]):
    """Something that waits for a stage."""

    what: T
    since: float
    costs: Costs


class _Queue(Generic[T]):
    """What waits for a stage of a stream. A step may make more than one thing, and so exceed the size a little."""

    def __init__(self, size: float) -> None:
        self.things: deque[_Waiting[T]] = deque()
        self.free_since = 0.0
        self._size = size

    @property
    def full(self) -> bool:
        return len(self.things) >= self._size

    def put(self, what: T, costs: Costs) -> None:
        self.things.append(_Waiting(what, monotonic(), costs))

    def take(self) -> _Waiting[T]:
        if self.full:
            self.free_since = monotonic()
        return self.things.popleft()


class _Watch:
    """Measures the steps of one stage.

    Args:
        elsewhere: core-seconds that this stage has used on other threads since it was asked last.
    """

    def __init__(self, elsewhere: Callable[[], float]) -> None:
        self._elsewhere = elsewhere
        self._kept = FREE  # of steps that made nothing
        self._from = self._core_from = self._ended = 0.0

    def begin(self, could_begin: float) -> None:
        """A step begins, which could have begun then, or when the one before ended."""
        self._from, self._core_from = max(could_begin, self._ended), thread_cpu()

    def split(self) -> Cost:
        """What was taken since the last split."""
        self.end()
        cost, self._kept = self._kept, FREE
        self._from, self._core_from = monotonic(), thread_cpu()
        return cost

    def end(self) -> None:
        """The step ends; what it took is part of the next thing that is made."""
        self._ended = monotonic()
        used = thread_cpu() - self._core_from + self._elsewhere()
        self._kept = Cost(self._kept.seconds + self._ended - self._from, self._kept.core_seconds + used)


class Pipeline:
    """One epoch of a room: a stream, and what waits for its stages.

    Each stage is one thread's at a time, and `push` a fourth one's.

    Args:
        epoch: its number.
        stream: does the work.
        first_frame: of the epoch.
        hop_frames: frames that the motion network makes at a time.
        made: called by the thread that renders, with every few pictures.
        elsewhere: core-seconds that rendering has used on other threads since it was asked last.
    """

    def __init__(
        self,
        epoch: int,
        stream: Stream[Any, Any],
        first_frame: int,
        hop_frames: int,
        made: Callable[[Made], None],
        elsewhere: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.epoch = epoch
        self._stream = stream
        self._hop = hop_frames
        self._made = made
        self._zero = math.inf  # when frame 0 would be due
        self._sound: _Queue[Samples] = _Queue(math.inf)  # the scheduler sends only what is needed soon
        self._motions: _Queue[Piece] = _Queue(QUEUE_HOPS)
        self._clips: _Queue[Piece] = _Queue(QUEUE_CLIPS)
        self._pictures: Iterator[tuple[int, list[Frame]]] | None = None  # of the clip that is being rendered
        self._clip_costs: Costs = (FREE, FREE, FREE)
        self._next_motion = self._next_picture = first_frame
        self._steps = {Stage.MOTION: self._move, Stage.GENERATE: self._generate, Stage.RENDER: self._render}
        self._watches = {stage: _Watch(elsewhere if stage is Stage.RENDER else lambda: 0.0) for stage in Stage}

    @property
    def queued(self) -> int:
        """Things that wait."""
        return bool(self._sound.things) + len(self._motions.things) + len(self._clips.things)

    def push(self, samples: Samples, zero: float) -> None:
        """Take the next samples; frame 0 would be due at `zero`."""
        self._zero = zero
        self._sound.put(samples, (FREE, FREE, FREE))

    def due(self, stage: Stage) -> float | None:
        """When the first frame of the stage's next step is due; None without a step that can be done now."""
        frame = self._next_frame(stage)
        return None if frame is None else self._zero + frame / FPS

    def run(self, stage: Stage) -> None:
        """Do the stage's next step; there must be one."""
        try:
            self._steps[stage]()
        finally:
            self._watches[stage].end()

    def _next_frame(self, stage: Stage) -> int | None:
        if stage is Stage.MOTION:
            return self._next_motion if self._sound.things and not self._motions.full else None
        if stage is Stage.GENERATE:
            return self._motions.things[0].what.first if self._motions.things and not self._clips.full else None
        if self._pictures is not None:
            return self._next_picture
        return self._clips.things[0].what.first if self._clips.things else None

    def _move(self) -> None:
        """A piece of sound, so that the video network can begin with the first hop of several."""
        watch, sound = self._watches[Stage.MOTION], self._sound
        waiting = sound.take()
        watch.begin(max(waiting.since, self._motions.free_since))
        taken, length = [waiting.what], len(waiting.what)
        while length < PIECE_SAMPLES and sound.things:
            taken.append(sound.take().what)
            length += len(taken[-1])
        samples = np.concatenate(taken)
        if length > PIECE_SAMPLES:
            sound.things.appendleft(waiting._replace(what=samples[PIECE_SAMPLES:]))
        for motion in self._stream.motion(samples[:PIECE_SAMPLES]):
            self._next_motion = motion.first + self._hop
            self._motions.put(motion, (watch.split(), FREE, FREE))

    def _generate(self) -> None:
        watch, waiting = self._watches[Stage.GENERATE], self._motions.take()
        watch.begin(max(waiting.since, self._clips.free_since))
        moved = waiting.costs[Stage.MOTION]
        for clip in self._stream.generate(waiting.what):
            self._clips.put(clip, (moved, watch.split(), FREE))
            moved = FREE

    def _render(self) -> None:
        """The next few pictures of a clip."""
        watch = self._watches[Stage.RENDER]
        if self._pictures is None:
            waiting = self._clips.take()
            watch.begin(waiting.since)
            self._pictures, self._clip_costs = iter(self._stream.render(waiting.what)), waiting.costs
        else:
            watch.begin(0.0)
        rendered = next(self._pictures, None)
        if rendered is None:
            self._pictures = None
            return
        first, frames = rendered
        self._next_picture = first + len(frames)
        moved, generated, _ = self._clip_costs
        # What comes before rendering is accounted for once a clip.
        self._clip_costs = (FREE, FREE, FREE)
        self._made(Made(first, frames, (moved, generated, watch.split())))


def earliest(pipelines: Iterable[Pipeline], stage: Stage) -> Pipeline | None:
    """The one whose step of a stage is due first; None where none has one. Of equals it is the first."""
    ready = [(due, pipeline) for pipeline in pipelines if (due := pipeline.due(stage)) is not None]
    return min(ready, key=lambda one: one[0])[1] if ready else None


class Turns:
    """The rooms of a process, and the threads that wait for their work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = {stage: threading.Condition(self._lock) for stage in Stage}
        self._pipelines: dict[int, Pipeline] = {}
        self._running: set[tuple[Stage, Pipeline]] = set()

    @property
    def queued(self) -> int:
        """Things that wait in all rooms."""
        with self._lock:
            return sum(pipeline.queued for pipeline in self._pipelines.values())

    def begin(self, room: int, pipeline: Pipeline) -> None:
        """From now on this is the room's epoch; what was left of the one before is dropped."""
        with self._lock:
            self._pipelines[room] = pipeline

    def end(self, room: int) -> None:
        """Drop the room's epoch."""
        with self._lock:
            self._pipelines.pop(room, None)

    def push(self, room: int, epoch: int, samples: Samples, zero: float) -> None:
        """Give the room's epoch its next samples; those of another one are dropped."""
        with self._lock:
            pipeline = self._pipelines.get(room)
            if pipeline is not None and pipeline.epoch == epoch:
                pipeline.push(samples, zero)
                self._changed[Stage.MOTION].notify()

    def serve(self, stage: Stage, began: Callable[[], None]) -> None:
        """Wait for the stage's next step, and do it; several threads may serve a stage.

        Args:
            stage: which one.
            began: called when the wait is over.
        """
        with self._lock:
            while (pipeline := earliest(self._free(stage), stage)) is None:
                self._changed[stage].wait()
            self._running.add((stage, pipeline))
        began()
        pipeline.run(stage)
        with self._lock:
            self._running.remove((stage, pipeline))
            # The stage after has something to work on, the one before a place for what it makes.
            for other in Stage:
                if abs(other - stage) == 1:
                    self._changed[other].notify()

    def _free(self, stage: Stage) -> list[Pipeline]:
        """Those that no thread is at work for in this stage."""
        return [pipeline for pipeline in self._pipelines.values() if (stage, pipeline) not in self._running]
