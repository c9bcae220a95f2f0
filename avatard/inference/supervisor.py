"""One room as the daemon sees it: it has a process that makes its pictures, and gets another one when that is lost."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Protocol

import msgspec
import numpy as np
import zmq

from avatard.clock import monotonic
from avatard.config import Config
from avatard.errors import UserError
from avatard.frame import Backdrop, Frame, Samples
from avatard.inference import ipc
from avatard.inference.process import InferenceProcess
from avatard.portrait import Portrait, PortraitError

STEADY_SECONDS = 30.0  # a process that was lost after less is not trusted at once
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 10.0
OPEN_SECONDS = 60.0  # until a warm process has opened the room
LOAD_SECONDS = 10.0  # that the load is the mean of
QUIET_SECONDS, QUIET_LEVEL = 2.0, 0.02  # a room in which nothing louder was said for so long may move

RESTARTING = "the inference process is restarting; try again"


class WorkerError(UserError):
    """The inference process cannot do its work."""

    CODE = "unavailable"


class Listener(Protocol):
    """What the supervisor tells; called in the event loop."""

    def worker_ready(self, ready: ipc.Ready, portrait: Frame) -> None:
        """The process is warm; it waits for `begin`."""

    def frames_ready(self, made: ipc.FramesReady, pictures: list[Frame]) -> None:
        """There are pictures."""

    def worker_lost(self, reason: str) -> None:
        """The process is gone; another one is looked for, or being started."""


class Pool(Protocol):
    """What a room needs of the pool of processes."""

    def join(self, room: Supervisor) -> None:
        """Find it a process, now and whenever it has none."""

    async def leave(self, room: Supervisor) -> None:
        """It needs none any more."""

    def settle(self) -> None:
        """Look again what is to be done."""


class Supervisor:
    """A room.

    Args:
        number: no other room of the pool has it, ever.
        config: sent to the process.
        portrait: the first identity.
        pool: finds it a process.
    """

    def __init__(self, number: int, config: Config, portrait: Portrait, pool: Pool) -> None:
        self.number = number
        self.config = config
        self.portrait = portrait
        self.restarts = 0
        self.was_ready = False
        self.retry_pause = 0.0  # after the last loss, in seconds
        self._pool = pool
        self._listener: Listener
        self._first: asyncio.Future[None]
        self._process: InferenceProcess | None = None  # the room is open in it
        self._next: InferenceProcess | None = None  # the room is being opened in it
        self._late: asyncio.TimerHandle | None = None  # meanwhile
        self._open_since = 0.0
        self._retry_at = 0.0
        self._heard_at = 0.0
        self._checking = 0  # portraits
        self._backdrop: Backdrop | None = None
        self._spent: deque[tuple[float, ipc.FramesReady]] = deque()  # when, and what for

    @property
    def ready(self) -> bool:
        """Whether the room is open in a process that is not known to be gone."""
        return self._process is not None and self._process.ready

    @property
    def pid(self) -> int | None:
        """The process now, if there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def queued(self) -> int:
        """What waits in the process, of all its rooms."""
        return self._process.queued if self._process is not None else 0

    @property
    def resident_bytes(self) -> int:
        """Memory of the process, with all its rooms."""
        return self._process.resident_bytes if self._process is not None else 0

    @property
    def core_seconds(self) -> tuple[float, float, float]:
        """What motion, generate and render take for a frame now; nothing where no frame was made lately."""
        self._forget()
        frames = sum(made.count for _, made in self._spent)
        motion, generate, render = (
            sum(made.core_seconds[stage] for _, made in self._spent) / max(frames, 1) for stage in range(3)
        )
        return motion, generate, render

    @property
    def load(self) -> float:
        """Cores that the room used lately."""
        self._forget()
        return sum(sum(made.core_seconds) for _, made in self._spent) / LOAD_SECONDS

    async def start(self, listener: Listener) -> None:
        """Find a process, open the room in it and wait until it is there.

        Args:
            listener: told of everything from now on.

        Raises:
            WorkerError: it could not be opened; a mistake of the user has its text, code and fields.
        """
        self._listener = listener
        self._first = asyncio.get_running_loop().create_future()
        self._pool.join(self)
        await self._first

    async def stop(self) -> None:
        """Close the room for good."""
        self._give_up_opening()
        self._leave_process()
        await self._pool.leave(self)

    def start_epoch(self, epoch: int, first_frame: int) -> None:
        """Start a new epoch."""
        self._send(ipc.StartEpoch(self.number, epoch, first_frame))

    def push_audio(self, epoch: int, samples: Samples, zero: float = 0.0) -> None:
        """Give the epoch's next samples.

        Args:
            epoch: theirs.
            samples: float32 `[T]`.
            zero: when frame 0 would be due, in seconds of `clock.monotonic`.
        """
        if np.abs(samples).max(initial=0.0) > QUIET_LEVEL:
            self._heard_at = monotonic()
        self._send(ipc.PushAudio(self.number, epoch, zero), samples.tobytes())

    def set_quality(self, level: ipc.QualityLevel) -> None:
        """Change how much work is put in."""
        self._send(ipc.SetQuality(self.number, level))

    async def identify(self, portrait: Portrait) -> tuple[str, Frame]:
        """Check a portrait and use it from the next `begin` on; its digest, and itself as a picture at rest.

        Raises:
            PortraitError: it cannot be used.
            WorkerError: the process is not there, or went away meanwhile.
        """
        if self._process is None or not self._process.ready:
            raise WorkerError(RESTARTING)
        self._checking += 1
        self._give_up_opening()
        try:
            answer, parts = await self._process.identify(self.number, portrait)
        except ConnectionError:
            raise WorkerError(RESTARTING) from None
        finally:
            self._checking -= 1
        if answer.error:
            raise PortraitError(answer.error, code=answer.code, **answer.fields)
        self.portrait = portrait
        return answer.digest, _frames(1, answer, parts)[0]

    @property
    def homeless(self) -> bool:
        """Whether it has no process, nor is about to have one."""
        return self._process is None and self._next is None

    @property
    def patient(self) -> bool:
        """Whether it shall not have a process yet: it lost too many."""
        return monotonic() < self._retry_at

    @property
    def quiet(self) -> bool:
        """Whether it may move to another process: it is open in one, and nothing was said for a while."""
        busy = self._next is not None or self._checking or monotonic() - self._heard_at < QUIET_SECONDS
        return self.ready and not busy

    def enter(self, process: InferenceProcess) -> None:
        """Open the room in a warm process; the one it has now, if any, serves it until then."""
        self._next = process
        process.rooms[self.number] = self
        portrait = self.portrait
        opening = ipc.OpenRoom(self.number, msgspec.json.encode(self.config), portrait.name, portrait.face)
        process.send(opening, portrait.data)
        late = ipc.RoomFailed(self.number, f"the room was not open after {OPEN_SECONDS:.0f} s")
        self._late = asyncio.get_running_loop().call_later(OPEN_SECONDS, self.received, late, [])

    def lost(self, reason: str, process: InferenceProcess | None = None) -> None:
        """A process is gone, or the room cannot be opened again, or none can be started."""
        if process is self._next:
            self._give_up_opening()
            if self.ready:
                return  # it was to move, and stays
        steady = self._process is not None and monotonic() - self._open_since > STEADY_SECONDS
        self._leave_process()
        if self.was_ready:
            self.restarts += 1
            self._listener.worker_lost(reason)
        # A room that is lost again and again may be the reason, and shall not take one process after the other along.
        if self._retry_at and not steady:
            self.retry_pause = min(max(FIRST_RETRY_SECONDS, 2 * self.retry_pause), LAST_RETRY_SECONDS)
        else:
            self.retry_pause = 0.0
        self._retry_at = monotonic() + self.retry_pause
        asyncio.get_running_loop().call_later(self.retry_pause, self._pool.settle)

    def refuse(self, error: WorkerError) -> None:
        """`start` fails."""
        self._retry_at = math.inf
        if not self._first.done():
            self._first.set_exception(error)

    def received(self, event: ipc.RoomEvent, parts: list[zmq.Frame]) -> None:
        """See `process.Resident`."""
        match event:
            case ipc.FramesReady():
                self._forget()
                self._spent.append((monotonic(), event))
                self._backdrop = _backdrop(event, parts, self._backdrop)
                self._listener.frames_ready(event, _frames(event.count, event, parts, self._backdrop))
            case ipc.Ready() if self._next is not None:
                self._leave_process()
                self._process, self._next = self._next, None
                self._opening_ends()
                self._open_since, self.was_ready = monotonic(), True
                self._listener.worker_ready(event, _frames(1, event, parts)[0])
                if not self._first.done():
                    self._first.set_result(None)
            case ipc.RoomFailed() if self.was_ready:
                self.lost(event.message, self._next)
            case ipc.RoomFailed():
                self._give_up_opening()
                self.refuse(WorkerError(event.message, code=event.code, **event.fields))

    def _leave_process(self) -> None:
        """The room is not open any more."""
        if self._process is not None:
            self._close_in(self._process)
        self._process = self._backdrop = None

    def _give_up_opening(self) -> None:
        """The room is not being opened any more."""
        if self._next is not None:
            self._close_in(self._next)
        self._next = None
        self._opening_ends()

    def _opening_ends(self) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = None

    def _close_in(self, process: InferenceProcess) -> None:
        process.rooms.pop(self.number, None)
        process.send(ipc.CloseRoom(self.number))

    def _send(self, command: ipc.AnyCommand, *parts: bytes) -> None:
        if self._process is not None:
            self._process.send(command, *parts)

    def _forget(self) -> None:
        """What was spent too long ago."""
        since = monotonic() - LOAD_SECONDS
        while self._spent and self._spent[0][0] < since:
            self._spent.popleft()


def _frames(
    count: int,
    event: ipc.FramesReady | ipc.Ready | ipc.Identified,
    parts: list[zmq.Frame],
    backdrop: Backdrop | None = None,
) -> list[Frame]:
    return ipc.unpack_frames(count, event.height, event.width, parts[0].buffer, parts[1].buffer, backdrop)


def _backdrop(event: ipc.FramesReady, parts: list[zmq.Frame], known: Backdrop | None) -> Backdrop | None:
    """What the frames of an event belong into: what came with it, or before."""
    if event.moving is None:
        return None
    if len(parts) < 3:
        return known
    pixels = np.frombuffer(parts[2].buffer, np.uint8).reshape(event.height, event.width, -1)
    return Backdrop(pixels, event.moving)
