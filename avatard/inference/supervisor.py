"""The daemon's side of the inference process: starts it, talks to it, and starts another one when it dies or hangs."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from typing import Protocol, cast

import msgspec
import numpy as np
import zmq
import zmq.asyncio

from avatard.clock import monotonic
from avatard.config import Config
from avatard.errors import UserError
from avatard.frame import Backdrop, Frame, Samples
from avatard.inference import ipc
from avatard.portrait import Portrait, PortraitError
from avatard.protocols.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

SILENT_SECONDS = 3.0  # without a beat
BUSY_SECONDS = 5.0  # at one job
START_SECONDS = 90.0  # until ready
STOP_SECONDS = 2.0
FIRST_RETRY_SECONDS = 0.2
LAST_RETRY_SECONDS = 10.0


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
        """The process is gone; another one is being started."""


class Supervisor:
    """One inference process at a time.

    Args:
        config: sent to the process.
        portrait: the first identity.
        engine: `module:function` that makes the engine in the process.
    """

    def __init__(self, config: Config, portrait: Portrait, engine: str) -> None:
        self.restarts = 0
        self.resident_bytes = 0
        self.queued = 0
        self._config = config
        self._portrait = portrait
        self._listener: Listener
        self._engine = engine
        self._process: asyncio.subprocess.Process | None = None
        self._commands: zmq.asyncio.Socket | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = False
        self._failed: ipc.WorkerFailed | None = None
        self._beat = 0.0
        self._busy = 0.0
        self._requests = 0
        self._answers: dict[int, asyncio.Future[tuple[str, Frame]]] = {}

    @property
    def ready(self) -> bool:
        """Whether a warm process waits for work."""
        return self._ready

    @property
    def pid(self) -> int | None:
        """The process now, if there is one."""
        return self._process.pid if self._process is not None else None

    async def start(self, listener: Listener) -> None:
        """Start the process and wait until it is warm.

        Args:
            listener: told of everything from now on.

        Raises:
            WorkerError: it could not be started; a mistake of the user has its text.
        """
        self._listener = listener
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._keep_running(first), name="supervisor")
        await first

    async def stop(self) -> None:
        """Stop the process for good."""
        await cancel_and_wait(self._task)
        self._task = None

    def start_epoch(self, epoch: int, first_frame: int) -> None:
        """Start a new epoch."""
        self._send(ipc.StartEpoch(epoch, first_frame))

    def push_audio(self, epoch: int, samples: Samples) -> None:
        """Give the epoch's next samples."""
        self._send(ipc.PushAudio(epoch), samples.tobytes())

    def set_quality(self, level: ipc.QualityLevel) -> None:
        """Change how much work is put in."""
        self._send(level)

    async def identify(self, portrait: Portrait) -> tuple[str, Frame]:
        """Check a portrait and use it from the next `begin` on; its digest, and itself as a picture at rest.

        Raises:
            PortraitError: it cannot be used.
            WorkerError: the process is not there, or went away meanwhile.
        """
        if not self._ready:
            raise WorkerError("the inference process is restarting; try again")
        self._requests += 1
        request = self._requests
        answer: asyncio.Future[tuple[str, Frame]] = asyncio.get_running_loop().create_future()
        self._answers[request] = answer
        try:
            self._send(ipc.Identify(request, portrait.name, portrait.face), portrait.data)
            digest, picture = await answer
        finally:
            del self._answers[request]
        self._portrait = portrait
        return digest, picture

    def _send(self, command: ipc.AnyCommand, *parts: bytes) -> None:
        if self._commands is None:
            return
        # zmq.Again means that the process is gone, or hangs with a full queue: the watch finds out.
        sent = cast(
            "asyncio.Future[None]",
            self._commands.send_multipart([msgspec.msgpack.encode(command), *parts], zmq.NOBLOCK),
        )
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def _keep_running(self, first: asyncio.Future[None]) -> None:
        pause = FIRST_RETRY_SECONDS
        while True:
            started = monotonic()
            try:
                reason = await self._run_once(first)
            except Exception as error:  # whatever it was, an avatar that comes back is better than none
                logger.debug("inference process not run", exc_info=True)
                reason = f"it cannot be run: {error}"
            if not first.done():  # a process that was never ready is not worth another try
                said = reason if self._failed is not None else f"the inference process did not start: {reason}"
                first.set_exception(WorkerError(said))
                return
            self.restarts += 1
            logger.error("inference process lost", extra={"reason": reason, "restarts": self.restarts})
            self._listener.worker_lost(reason)
            pause = FIRST_RETRY_SECONDS if monotonic() - started > 30 else min(2 * pause, LAST_RETRY_SECONDS)
            await asyncio.sleep(pause)

    async def _run_once(self, first: asyncio.Future[None]) -> str:
        """One process from start to end; says why it ended."""
        self._failed = None
        with tempfile.TemporaryDirectory(prefix="avatard-") as folder:
            context = zmq.asyncio.Context()
            commands, events = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            commands.linger = events.linger = 0
            tasks: list[asyncio.Task[str]] = []
            try:
                commands.bind(f"ipc://{folder}/commands")
                events.bind(f"ipc://{folder}/events")
                self._process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "avatard.inference.worker"),
                    *(f"ipc://{folder}/commands", f"ipc://{folder}/events", self._engine),
                    stdin=asyncio.subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C is the daemon's: it stops the process in good order
                    # More OpenMP threads than one per stage were measured slower; idle ones must not spin.
                    env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
                )
                self._commands = commands
                self._beat, self._busy = monotonic(), 0.0
                tasks = [
                    asyncio.create_task(self._exit(self._process)),
                    asyncio.create_task(self._watch(commands)),
                    asyncio.create_task(self._listen(events, first)),
                ]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if tasks[0] in done and self._failed is None:
                    # What it said last may still be in the socket.
                    await asyncio.wait(tasks[2:], timeout=0.2)
                return self._reason(done)
            finally:
                self._ready = False
                await self._end(tasks)
                self._commands = self._process = None
                commands.close()
                events.close()
                context.term()

    def _reason(self, done: set[asyncio.Task[str]]) -> str:
        """Why the process is gone: its own words if it had any."""
        return self._failed.message if self._failed is not None else done.pop().result()

    async def _end(self, tasks: list[asyncio.Task[str]]) -> None:
        await cancel_and_wait(tasks)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(WorkerError("the inference process is restarting; try again"))
        process = self._process
        if process is None or process.returncode is not None:
            return
        self._send(ipc.Stop())
        try:
            await asyncio.wait_for(process.wait(), STOP_SECONDS if self._responsive else 0.01)
        except TimeoutError:
            process.kill()
            await process.wait()

    @property
    def _responsive(self) -> bool:
        return monotonic() - self._beat < 1.0 and self._busy < 1.0

    async def _exit(self, process: asyncio.subprocess.Process) -> str:
        code = await process.wait()
        return f"it was killed by signal {-code}" if code < 0 else f"it exited with code {code}"

    async def _watch(self, commands: zmq.asyncio.Socket) -> str:
        """Send the first command, and return when the process hangs."""
        started = monotonic()
        start = ipc.Start(msgspec.json.encode(self._config), self._portrait.name, self._portrait.face)
        # Waits for the process to connect, which no other command has to.
        await commands.send_multipart([msgspec.msgpack.encode(start), self._portrait.data])
        while True:
            await asyncio.sleep(0.25)
            if not self._ready:
                if monotonic() - started > START_SECONDS:
                    return f"it was not ready after {START_SECONDS:.0f} s"
            elif monotonic() - self._beat > SILENT_SECONDS:
                return f"it was silent for {SILENT_SECONDS:.0f} s"
            elif self._busy > BUSY_SECONDS:
                return f"it was busy with one job for {self._busy:.0f} s"

    async def _listen(self, events: zmq.asyncio.Socket, first: asyncio.Future[None]) -> str:
        decoder = msgspec.msgpack.Decoder(ipc.AnyEvent)
        backdrop: Backdrop | None = None
        while True:
            head, *parts = await events.recv_multipart(copy=False)
            event = decoder.decode(head.buffer)
            match event:
                case ipc.Heartbeat():
                    self._beat, self._busy = monotonic(), event.busy_seconds
                    self.queued, self.resident_bytes = event.queued, event.resident_bytes
                case ipc.FramesReady():
                    backdrop = _backdrop(event, parts, backdrop)
                    self._listener.frames_ready(event, _frames(event.count, event, parts, backdrop))
                case ipc.Ready():
                    self._ready, self._beat = True, monotonic()
                    self._listener.worker_ready(event, _frames(1, event, parts)[0])
                    if not first.done():
                        first.set_result(None)
                case ipc.Identified():
                    answer = self._answers.get(event.request)
                    if answer is not None and not answer.done():
                        if event.error:
                            answer.set_exception(PortraitError(event.error, code=event.code, **event.fields))
                        else:
                            answer.set_result((event.digest, _frames(1, event, parts)[0]))
                case ipc.WorkerFailed():
                    self._failed = event
                    return event.message


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
