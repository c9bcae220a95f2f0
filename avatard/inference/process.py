"""One inference process from its start to its end: messages to it and from it, and a watch over it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Protocol, cast

import msgspec
import zmq
import zmq.asyncio

from avatard.clock import monotonic
from avatard.config import Config
from avatard.inference import ipc
from avatard.portrait import Portrait
from avatard.protocols.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

SILENT_SECONDS = 3.0  # without a beat
BUSY_SECONDS = 5.0  # at one job
START_SECONDS = 90.0  # until ready
STOP_SECONDS = 2.0


class Resident(Protocol):
    """A room, as its process knows it; called in the event loop."""

    def received(self, event: ipc.RoomEvent, parts: list[zmq.Frame]) -> None:
        """The process says something of this room."""


class InferenceProcess:
    """A process for rooms.

    Args:
        engine: `module:function` that makes the engine in the process.
        started: called when it is warm.
    """

    def __init__(self, engine: str, started: Callable[[], None]) -> None:
        self.rooms: dict[int, Resident] = {}  # open or being opened in it, by number
        self.ready = False  # warm, and not known to be gone
        self.was_ready = False
        self.at_once = 1  # rooms that it serves at the same time
        self.queued = 0
        self.resident_bytes = 0
        self.failed: ipc.WorkerFailed | None = None  # what it said last
        self._engine = engine
        self._started = started
        self._process: asyncio.subprocess.Process | None = None
        self._commands: zmq.asyncio.Socket | None = None
        self._beat = 0.0
        self._busy = 0.0
        self._requests = 0
        self._answers: dict[int, asyncio.Future[tuple[ipc.Identified, list[zmq.Frame]]]] = {}

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        return self._process.pid if self._process is not None else None

    async def run(self, config: Config, portrait: Portrait, gently: bool = False) -> str:
        """Run it until it ends or hangs, and return why; it is gone then.

        Args:
            config: of the networks and the warm-up.
            portrait: of the warm-up.
            gently: start it slowly, because other processes need the cores.
        """
        start = ipc.Start(msgspec.json.encode(config), portrait.name, portrait.face, gently)
        try:
            return await self._run(start, portrait.data)
        except Exception as error:  # whatever it was, an avatar that comes back is better than none
            logger.debug("inference process not run", exc_info=True)
            return f"it cannot be run: {error}"

    def send(self, command: ipc.AnyCommand, *parts: bytes) -> None:
        """Send a command, or drop it if the process cannot take it."""
        if self._commands is None:
            return
        # zmq.Again means that the process is gone, or hangs with a full queue: the watch finds out.
        sent = cast(
            "asyncio.Future[None]",
            self._commands.send_multipart([msgspec.msgpack.encode(command), *parts], zmq.NOBLOCK),
        )
        sent.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def identify(self, room: int, portrait: Portrait) -> tuple[ipc.Identified, list[zmq.Frame]]:
        """Check a portrait in a room; the answer, and the raw parts that follow it.

        Raises:
            ConnectionError: the process went away meanwhile.
        """
        self._requests += 1
        request = self._requests
        answer: asyncio.Future[tuple[ipc.Identified, list[zmq.Frame]]] = asyncio.get_running_loop().create_future()
        self._answers[request] = answer
        try:
            self.send(ipc.Identify(room, request, portrait.name, portrait.face), portrait.data)
            return await answer
        finally:
            del self._answers[request]

    async def _run(self, start: ipc.Start, portrait: bytes) -> str:
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
                    asyncio.create_task(self._watch(commands, start, portrait)),
                    asyncio.create_task(self._listen(events)),
                ]
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if tasks[0] in done and self.failed is None and self._process.returncode != -signal.SIGKILL:
                    # What it said last may still be in the socket.
                    await asyncio.wait(tasks[2:], timeout=0.2)
                # Its own words if it had any.
                return self.failed.message if self.failed is not None else done.pop().result()
            finally:
                self.ready = False
                await self._end(tasks)
                self._commands = self._process = None
                commands.close()
                events.close()
                context.term()

    async def _end(self, tasks: list[asyncio.Task[str]]) -> None:
        await cancel_and_wait(tasks)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the inference process is gone"))
        process = self._process
        if process is None or process.returncode is not None:
            return
        self.send(ipc.Stop())
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

    async def _watch(self, commands: zmq.asyncio.Socket, start: ipc.Start, portrait: bytes) -> str:
        """Send the first command, and return when the process hangs."""
        started = monotonic()
        # Waits for the process to connect, which no other command has to.
        await commands.send_multipart([msgspec.msgpack.encode(start), portrait])
        while True:
            await asyncio.sleep(0.25)
            if not self.ready:
                if monotonic() - started > START_SECONDS:
                    return f"it was not ready after {START_SECONDS:.0f} s"
            elif monotonic() - self._beat > SILENT_SECONDS:
                return f"it was silent for {SILENT_SECONDS:.0f} s"
            elif self._busy > BUSY_SECONDS:
                return f"it was busy with one job for {self._busy:.0f} s"

    async def _listen(self, events: zmq.asyncio.Socket) -> str:
        decoder = msgspec.msgpack.Decoder(ipc.AnyEvent)
        while True:
            head, *parts = await events.recv_multipart(copy=False)
            event = decoder.decode(head.buffer)
            match event:
                case ipc.Heartbeat():
                    self._beat, self._busy = monotonic(), event.busy_seconds
                    self.queued, self.resident_bytes = event.queued, event.resident_bytes
                case ipc.FramesReady() | ipc.Ready() | ipc.RoomFailed():
                    if (room := self.rooms.get(event.room)) is not None:
                        room.received(event, parts)
                case ipc.Started():
                    self.ready, self.was_ready, self._beat = True, True, monotonic()
                    self.at_once = event.at_once
                    self._started()
                case ipc.Identified():
                    answer = self._answers.get(event.request)
                    if answer is not None and not answer.done():
                        answer.set_result((event, parts))
                case ipc.WorkerFailed():
                    self.failed = event
                    return event.message
