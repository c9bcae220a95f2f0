"""The inference processes of a daemon, and which of them serves which room.

    pool = InferencePool(config, engine)
    session = Session(config, portrait, engine, make_supervisor=pool.open)
    ...
    await pool.stop()

A process is started with the first room, and others while there are more rooms than processes. A room goes to the warm
process that is the least loaded. If one dies or hangs, its rooms, and no others, go to another warm one at once, or to
its successor. Once a process without rooms is warm, a room in which nobody speaks moves there from a crowded one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys

from avatard.clock import monotonic
from avatard.config import Config
from avatard.inference.process import InferenceProcess
from avatard.inference.supervisor import (
    FIRST_RETRY_SECONDS,
    LAST_RETRY_SECONDS,
    STEADY_SECONDS,
    Supervisor,
    WorkerError,
)
from avatard.portrait import Portrait
from avatard.protocols.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

QUIET_ROOM_LOAD = 0.25  # cores that a room is counted for at least: it may speak at any time
BALANCE_SECONDS = 2.0
EMPTY_SECONDS = 60.0  # a process that no room needs is kept so long


def cores() -> int:
    """Cores that this process and its children may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def default_workers() -> int:
    """One process keeps two cores busy. Another one beside it would take them from who speaks while it starts."""
    return max(1, cores() // 2)


class InferencePool:
    """Processes that share the rooms.

    Args:
        config: how many there are.
        engine: `module:function` that makes the engine in a process.
        keep: keep a warm process when the last room is closed, until `stop`.
    """

    def __init__(self, config: Config, engine: str, keep: bool = True) -> None:
        self.restarts = 0
        self.engine = engine
        self._workers = config.inference.workers
        self._keep = keep
        self._numbers = itertools.count(1)
        self._rooms: dict[int, Supervisor] = {}
        self._processes: dict[InferenceProcess, asyncio.Task[None]] = {}
        self._pause = FIRST_RETRY_SECONDS
        self._retiring: asyncio.TimerHandle | None = None
        self._looking: asyncio.TimerHandle | None = None

    @property
    def processes(self) -> list[InferenceProcess]:
        """Those that run, or are being started or replaced."""
        return list(self._processes)

    def open(self, config: Config, portrait: Portrait, engine: str) -> Supervisor:
        """A room; its `start` opens it.

        Raises:
            ValueError: another engine than the pool's.
        """
        if engine != self.engine:
            raise ValueError(f"got the engine {engine}, expected {self.engine}")
        return Supervisor(next(self._numbers), config, portrait, self)

    def load(self, process: InferenceProcess) -> float:
        """Cores that the rooms of a process use, or may use soon."""
        return sum(max(room.load, QUIET_ROOM_LOAD) for room in self._rooms.values() if room.number in process.rooms)

    def join(self, room: Supervisor) -> None:
        """See `supervisor.Pool`."""
        self._rooms[room.number] = room
        self.settle()

    async def leave(self, room: Supervisor) -> None:
        """See `supervisor.Pool`."""
        if self._rooms.pop(room.number, None) is None:
            return
        if not self._rooms and not self._keep:
            await self.stop()
        elif self._retiring is None and len(self._processes) > self._wanted:
            self._retiring = asyncio.get_running_loop().call_later(EMPTY_SECONDS, self._retire)

    async def stop(self) -> None:
        """Stop all processes."""
        self._rooms.clear()
        for timer in (self._retiring, self._looking):
            if timer is not None:
                timer.cancel()
        self._retiring = self._looking = None
        await cancel_and_wait(self._processes.values())

    def settle(self) -> None:
        """Find processes for rooms that have none, and start those that are missing."""
        warm = [process for process in self._processes if process.ready]
        for room in list(self._rooms.values()):
            if warm and room.homeless and not room.patient:
                room.enter(min(warm, key=self.load))
        if warm:
            self._balance(warm)
        while self._rooms and len(self._processes) < self._wanted:
            homeless = [room for room in self._rooms.values() if room.homeless]
            sponsor = (homeless or list(self._rooms.values()))[0]
            process = InferenceProcess(self.engine, self.settle)
            task = asyncio.create_task(self._run(process, sponsor), name="inference process")
            self._processes[process] = task

    def _balance(self, warm: list[InferenceProcess]) -> None:
        """Move a quiet room to a process that has none, and look again after a while if there is none that is quiet."""
        empty, crowded = min(warm, key=lambda one: len(one.rooms)), max(warm, key=lambda one: len(one.rooms))
        if empty.rooms or len(crowded.rooms) < 2:
            return
        quiet = [room for room in self._rooms.values() if room.number in crowded.rooms and room.quiet]
        if quiet:
            min(quiet, key=lambda room: room.load).enter(empty)
        elif self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(BALANCE_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self._looking = None
        self.settle()

    @property
    def _wanted(self) -> int:
        if self._workers:
            return self._workers
        # One that serves many rooms at a time shares their passes: a second one would only take memory of its GPU.
        most = 1 if any(process.at_once > 1 for process in self._processes) else default_workers()
        return min(most, max(len(self._rooms), 1))

    async def _run(self, process: InferenceProcess, sponsor: Supervisor) -> None:
        """A process from start to end, and the pause after it; it is warmed up with the portrait of a room."""
        began = monotonic()
        try:
            # Rooms that are served meanwhile need the cores, unless others wait for this process.
            gently = any(other.ready for other in self._processes)
            reason = await process.run(sponsor.config, sponsor.portrait, gently)
            if not process.was_ready and not sponsor.was_ready and sponsor.homeless:
                # What was never ready is not worth another try.
                self._rooms.pop(sponsor.number, None)
                if (failed := process.failed) is not None:
                    sponsor.refuse(WorkerError(failed.message, code=failed.code, **failed.fields))
                else:
                    sponsor.refuse(WorkerError(f"the inference process did not start: {reason}"))
            else:
                self._lost(process, reason)
                steady = monotonic() - began > STEADY_SECONDS
                self._pause = FIRST_RETRY_SECONDS if steady else min(2 * self._pause, LAST_RETRY_SECONDS)
                await asyncio.sleep(self._pause)
        finally:
            del self._processes[process]
        self.settle()

    def _lost(self, process: InferenceProcess, reason: str) -> None:
        """Tell the rooms of a process that is gone, and those that waited for it, and find them another one."""
        self.restarts += 1
        logger.error("inference process lost", extra={"reason": reason, "restarts": self.restarts})
        for room in list(self._rooms.values()):
            if room.number in process.rooms or (room.homeless and room.was_ready):
                room.lost(reason, process)
        self.settle()

    def _retire(self) -> None:
        """Stop processes that no room needs."""
        self._retiring = None
        empty = [process for process in self._processes if process.ready and not process.rooms]
        surplus = max(0, len(self._processes) - self._wanted)
        for process in empty[:surplus]:
            process.ready = False
            self._processes[process].cancel()


def open_alone(config: Config, portrait: Portrait, engine: str) -> Supervisor:
    """A room with a process of its own."""
    return InferencePool(config, engine, keep=False).open(config, portrait, engine)
