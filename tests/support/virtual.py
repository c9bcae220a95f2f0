"""A session in virtual time: the event loop's clock jumps to the next timer, so that minutes pass in an instant."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from avatard.config import Config
from avatard.frame import Frame, Samples
from avatard.inference.engine_api import EngineError
from avatard.inference.ipc import FramesReady, QualityLevel, Ready
from avatard.inference.pool import InferencePool
from avatard.inference.supervisor import Listener, Supervisor, WorkerError
from avatard.portrait import Portrait, PortraitError
from tests.support.warp_engine import WarpEngine, WarpStream

COMPUTE_SECONDS = 0.04


class _Jumping(selectors.DefaultSelector):
    """Does not wait for a timer: the loop's clock is moved instead."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self.now += timeout
        return list(ready)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def jump(self, seconds: float) -> None:
        """Let so much time pass in which nothing runs."""
        self._jumping.now += seconds


def run_virtually(monkeypatch: Any, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function in virtual time, which is also what `time.monotonic` tells."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        monkeypatch.setattr(time, "monotonic", runner.get_loop().time)
        runner.run(main())
        monkeypatch.undo()


class SupervisorWithoutProcess(Supervisor):
    """A room whose frames are made in this process; `_up` while that is there."""

    def __init__(self, config: Config, portrait: Portrait, engine: str) -> None:
        super().__init__(1, config, portrait, InferencePool(config, engine))
        self._up = False

    @property
    def ready(self) -> bool:
        return self._up

    @property
    def pid(self) -> int | None:
        return None

    async def stop(self) -> None:
        self._up = False


class InlineSupervisor(SupervisorWithoutProcess):
    """The test engine in this process; its frames come `compute_seconds` after their sound."""

    compute_seconds = COMPUTE_SECONDS

    def __init__(self, config: Config, portrait: Portrait, engine: str) -> None:
        super().__init__(config, portrait, engine)
        self.engine = WarpEngine(config)
        self.engine.seconds_per_frame = 0
        self.first_portrait = portrait
        self.chunks: list[int] = []  # lengths of what was pushed
        self.level: QualityLevel | None = None
        self._epoch = -1
        self._stream: WarpStream | None = None

    async def start(self, listener: Listener) -> None:
        self.listener = listener
        try:
            self.come_back()
        except EngineError as error:
            raise PortraitError(str(error), code=error.code, **error.fields) from None

    def die(self, reason: str = "it was killed by signal 9") -> None:
        self._up, self._stream = False, None
        self.restarts += 1
        self.listener.worker_lost(reason)

    def come_back(self) -> None:
        digest, frame = self.engine.identify(self.first_portrait)
        self._up = True
        height, width, _ = frame.pixels.shape
        self.listener.worker_ready(Ready(digest, height, width, self.compute_seconds), frame)

    def start_epoch(self, epoch: int, first_frame: int) -> None:
        if self._up:
            self._epoch, self._stream = epoch, self.engine.begin(first_frame)

    def push_audio(self, epoch: int, samples: Samples, zero: float = 0.0) -> None:
        self.chunks.append(len(samples))
        if self._stream is None or epoch != self._epoch:
            return
        for motion in self._stream.motion(samples):
            for clip in self._stream.generate(motion):
                for first, frames in self._stream.render(clip):
                    asyncio.get_running_loop().call_later(self.compute_seconds, self._deliver, epoch, first, frames)

    def _deliver(self, epoch: int, first: int, frames: list[Frame]) -> None:
        if self._up:
            spent = (self.compute_seconds / 3,) * 3
            height, width, _ = frames[0].pixels.shape
            ready = FramesReady(epoch, first, len(frames), height, width, *spent, core_seconds=spent)
            self.listener.frames_ready(ready, frames)

    def set_quality(self, level: QualityLevel) -> None:
        self.level = level

    async def identify(self, portrait: Portrait) -> tuple[str, Frame]:
        if not self._up:
            raise WorkerError("the inference process is restarting; try again")
        try:
            return self.engine.identify(portrait)
        except EngineError as error:
            raise PortraitError(str(error), code=error.code, **error.fields) from None


def loudness(samples: np.ndarray) -> np.ndarray:
    """Root mean square of each frame."""
    loud: np.ndarray = np.sqrt((samples.reshape(-1, 640) ** 2).mean(axis=1))
    return loud
