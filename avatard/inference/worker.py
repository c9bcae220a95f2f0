"""The inference process: speech in, pictures out, on three threads that never touch the daemon's event loop.

    python -m avatard.inference.worker COMMANDS EVENTS ENGINE

It has the networks once, and rooms that share them: each is a portrait, a configuration and an epoch.

Five threads: this one moves messages and says several times a second that it is alive, one for each stage of a stream
(motion, generate, render; see `engine_api.Stream` and `pipeline`), and one looks at new portraits. Rendering is more
work than the other two stages together: the engine decodes the next frames on another thread while it composes these.
Each thread has one torch thread: two OpenMP threads per stage were measured slower. Where an engine serves several
rooms at once, on a GPU, each stage has as many threads. The process leaves when its standard input closes, which
happens however the daemon dies.
"""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil
import zmq

from avatard.clock import monotonic, process_cpu, thread_cpu
from avatard.config import Config
from avatard.errors import UserError
from avatard.frame import Backdrop, Frame
from avatard.inference import ipc
from avatard.inference.engine_api import Engine, MakeEngine
from avatard.inference.pipeline import Made, Pipeline, Stage, Turns
from avatard.log import setup
from avatard.portrait import Portrait
from avatard.timebase import SAMPLES_PER_FRAME

BEAT_SECONDS = 0.25
QUEUE_PORTRAITS = 4  # more at once are refused
NICENESS = 2  # the event loop, which must send every 40 ms, goes first
BACKGROUND_NICENESS = 15  # a process that is started while others serve rooms
WARM_UP_HOPS = 8
FLUSH_SECONDS = 0.1


class _Elsewhere:
    """An engine's timer: core-seconds of the parts that it runs on threads of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = 0.0

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Measure a part, unless it runs on a stage's thread, which is measured anyway."""
        began = thread_cpu()
        try:
            yield
        finally:
            if threading.current_thread().name not in STAGE_NAMES:
                with self._lock:
                    self._seconds += thread_cpu() - began

    def take(self) -> float:
        """What was used since it was asked last."""
        with self._lock:
            seconds, self._seconds = self._seconds, 0.0
        return seconds


STAGE_NAMES = frozenset(stage.name.lower() for stage in Stage)


class _Room:
    """A room of this process."""

    def __init__(self, number: int, config: Config, engine: Engine) -> None:
        self.number = number
        self.engine = engine
        self.hop_frames = config.stream.hop_frames
        self.elsewhere = _Elsewhere()
        self.backdrop: Backdrop | None = None  # that the daemon has; the render thread's
        engine.timer = self.elsewhere


class Worker:
    """Moves commands to the stages and their pictures to the daemon."""

    def __init__(self, commands: str, events: str, engine: str) -> None:
        self._commands: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._commands.connect(commands)
        self._events = events
        self._local = threading.local()  # a socket for each thread: they may not be shared
        self._engine_name = engine
        self._engine: Engine | None = None  # without a portrait: those of the rooms are made from it
        self._warm: tuple[tuple[bytes, Portrait], _Shown] | None = None  # of the warm-up, until the first room
        self._warmed_up = WarmUp(0.0, 0.0)
        self._rooms: dict[int, _Room] = {}
        self._turns = Turns()
        self._since: dict[int, float] = {}  # by stage thread: when its current step began; 0 without one
        self._portraits: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._start("portraits", lambda: self._portraits.get()())

    def _start(self, name: str, once: Callable[[], None]) -> None:
        """Do something for ever on a thread of its own."""

        def work() -> None:
            try:
                while True:
                    once()
            except BaseException as error:  # whatever it was, the daemon must know and start a new process
                self._failure = error

        threading.Thread(target=work, name=name, daemon=True).start()

    def _serve_stage(self, stage: Stage, number: int) -> None:
        def began() -> None:
            self._since[number] = monotonic()

        self._turns.serve(stage, began)
        self._since[number] = 0.0

    def serve(self) -> None:
        """Obey commands until `Stop`."""
        decoder = msgspec.msgpack.Decoder(ipc.AnyCommand)
        beat_due = 0.0
        while True:
            if self._failure is not None:
                raise self._failure
            if (now := monotonic()) >= beat_due:
                busy = max((now - since for since in self._since.values() if since), default=0.0)
                self._send(ipc.Heartbeat(busy, self._turns.queued, _resident_bytes()))
                beat_due = now + BEAT_SECONDS
            if not self._commands.poll(int(BEAT_SECONDS * 1000)):
                continue
            head, *parts = self._commands.recv_multipart()
            command = decoder.decode(head)
            if isinstance(command, ipc.Stop):
                return
            self._obey(command, parts)

    def _obey(self, command: ipc.AnyCommand, parts: list[bytes]) -> None:
        match command:
            case ipc.Start():
                config = msgspec.json.decode(command.config, type=Config)
                setup(config.log)
                portrait = Portrait(parts[0], command.face, command.name)
                load = partial(_load, self._engine_name, config, portrait)
                shown = _in_background(load) if command.gently else load()
                engine = shown.engine
                self._warmed_up = _warm_up(engine, config.stream.hop_frames, command.gently)
                self._engine = engine.another(config)
                self._warm = (command.config, portrait), shown
                for number, stage in enumerate(list(Stage) * engine.at_once):
                    self._since[number] = 0.0
                    self._start(stage.name.lower(), partial(self._serve_stage, stage, number))
                self._send(ipc.Started(engine.at_once))
            case ipc.OpenRoom():
                self._portraits.put(lambda: self._open(command, Portrait(parts[0], command.face, command.name)))
            case ipc.CloseRoom():
                # Also one that is being opened now.
                self._portraits.put(lambda: self._close(command.room))
                self._turns.end(command.room)
            case ipc.StartEpoch():
                if (room := self._rooms.get(command.room)) is not None:
                    stream = room.engine.begin(command.first_frame)
                    made = partial(self._send_frames, room, command.epoch)
                    parted = room.hop_frames, made, room.elsewhere.take
                    self._turns.begin(room.number, Pipeline(command.epoch, stream, command.first_frame, *parted))
            case ipc.PushAudio():
                samples = np.frombuffer(parts[0], np.float32)
                self._turns.push(command.room, command.epoch, samples, command.zero)
            case ipc.Identify():
                if self._portraits.qsize() < QUEUE_PORTRAITS:
                    self._portraits.put(lambda: self._identify(command, parts[0]))
                else:
                    self._send(ipc.Identified(command.request, error="other portraits are being checked; try again"))
            case ipc.SetQuality(level=level):
                if (room := self._rooms.get(command.room)) is not None:
                    room.engine.set_quality(
                        level.motion_steps, level.video_steps, level.frame_stride, level.size_divisor
                    )

    def _open(self, command: ipc.OpenRoom, portrait: Portrait) -> None:
        """Portraits thread."""
        assert self._engine is not None
        config = msgspec.json.decode(command.config, type=Config)
        warm, self._warm = self._warm, None
        try:
            if warm is not None and warm[0] == (command.config, portrait):
                shown = warm[1]  # the process was started for this room
            else:
                shown = _show(self._engine.another(config), portrait)
            shown.engine.begin(0, warm_up=True)  # tells now if the configuration does not fit
        except UserError as error:
            self._send(ipc.RoomFailed(command.room, _one_line(error), error.code, error.fields))
            return
        self._rooms[command.room] = _Room(command.room, config, shown.engine)
        height, width, _ = shown.picture.pixels.shape
        hop_seconds = self._warmed_up.seconds * config.stream.hop_frames
        ready = ipc.Ready(shown.digest, height, width, hop_seconds, command.room, self._warmed_up.core_seconds)
        self._send(ready, *_raw(shown.picture))

    def _close(self, number: int) -> None:
        """Portraits thread."""
        self._rooms.pop(number, None)

    def _identify(self, command: ipc.Identify, data: bytes) -> None:
        """Portraits thread."""
        room = self._rooms.get(command.room)
        if room is None:
            self._send(ipc.Identified(command.request, error="the room is closed"))
            return
        try:
            digest, picture = room.engine.identify(Portrait(data, command.face, command.name))
        except UserError as error:
            self._send(ipc.Identified(command.request, "", 0, 0, str(error), error.code, error.fields))
            return
        height, width, _ = picture.pixels.shape
        self._send(ipc.Identified(command.request, digest, height, width), *_raw(picture))

    def _send_frames(self, room: _Room, epoch: int, made: Made) -> None:
        """Render thread."""
        frames = made.frames
        height, width, _ = frames[0].pixels.shape
        backdrop = frames[0].backdrop
        moving = backdrop.moving if backdrop is not None else None
        seconds, core_seconds = zip(*made.costs, strict=True)
        ready = ipc.FramesReady(
            epoch, made.first, len(frames), height, width, *seconds, moving, core_seconds, room.number
        )
        new = [np.ascontiguousarray(backdrop.pixels)] if backdrop is not None and backdrop is not room.backdrop else []
        self._send(ready, ipc.pack_faces(frames), ipc.pack_pixels(frames), *new)
        room.backdrop = backdrop

    def _send(self, event: ipc.AnyEvent, *parts: Any) -> None:
        socket: zmq.Socket[bytes] | None = getattr(self._local, "socket", None)
        if socket is None:
            socket = self._local.socket = zmq.Context.instance().socket(zmq.PUSH)
            socket.connect(self._events)
        socket.send_multipart([msgspec.msgpack.encode(event), *parts])

    def fail(self, error: BaseException) -> None:
        """Tell the daemon why this process ends."""
        if isinstance(error, UserError):
            self._send(ipc.WorkerFailed(_one_line(error), error.code, error.fields))
        else:
            self._send(ipc.WorkerFailed(f"{type(error).__name__}: {error}"))


class WarmUp(NamedTuple):
    """What a frame took in the warm-up."""

    seconds: float  # of its hop through all stages to the first frames
    core_seconds: float  # in all stages


class _Shown(NamedTuple):
    """An engine with a portrait."""

    engine: Engine
    digest: str
    picture: Frame  # at rest


def _show(engine: Engine, portrait: Portrait) -> _Shown:
    return _Shown(engine, *engine.identify(portrait))


def _load(engine: str, config: Config, portrait: Portrait) -> _Shown:
    """Import an engine, load its networks and show it a portrait."""
    module, _, function = engine.partition(":")
    make_engine: MakeEngine = getattr(importlib.import_module(module), function)
    return _show(make_engine(config), portrait)


def _in_background(job: Callable[[], _Shown]) -> _Shown:
    """Do a job on a thread that leaves the cores to others, where the system has niceness by thread."""
    result: Future[_Shown] = Future()

    def run() -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)
        try:
            result.set_result(job())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return result.result()


def _warm_up(engine: Engine, hop_frames: int, gently: bool) -> WarmUp:
    """Run silence through all stages until it is known how long the first pictures of a hop take.

    One stage after the other, on one thread: a hop of live speech finds the stages idle, or nearly so. An engine's own
    threads, which may begin here, have the niceness of this one for good, so that it cannot be done in the background.

    Args:
        engine: with a portrait.
        hop_frames: of its configuration.
        gently: leave the cores to others half of the time.

    Returns:
        What it took.
    """
    stream = engine.begin(0, warm_up=True)
    silence = np.zeros(hop_frames * SAMPLES_PER_FRAME, np.float32)
    seconds: list[float] = []
    used: list[float] = []
    # A hop at a time; a stream that makes nothing of a hundred is broken.
    for _ in range(100):
        since, before = monotonic(), process_cpu()
        began = since
        for motion in stream.motion(silence):
            for clip in stream.generate(motion):
                for n, _ in enumerate(stream.render(clip)):
                    if n == 0:
                        seconds.append(monotonic() - since)
                used.append(process_cpu() - before)
            since, before = monotonic(), process_cpu()
        if len(seconds) >= WARM_UP_HOPS:
            break
        if gently:
            time.sleep(monotonic() - began)
    # The first hop pays for allocations and caches.
    return WarmUp(*(float(np.median(took[1:] or [1.0])) / hop_frames for took in (seconds, used)))


def _raw(picture: Frame) -> tuple[bytes, bytes]:
    """A portrait at rest, as it follows `Ready` and `Identified`."""
    return ipc.pack_faces([picture]), picture.pixels.tobytes()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _resident_bytes() -> int:
    return int(psutil.Process().memory_info().rss)


def _leave_with_the_daemon() -> None:
    while os.read(0, 1024):
        pass
    os._exit(0)


def main(commands: str, events: str, engine: str) -> None:
    """Run until told to stop; `engine` is `module:function` that makes one from a `Config`."""
    threading.Thread(target=_leave_with_the_daemon, name="parent", daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    worker = Worker(commands, events, engine)
    code = 0
    try:
        worker.serve()
    except BaseException as error:
        code = 1
        worker.fail(error)
        if not isinstance(error, UserError):
            traceback.print_exc()
    # The stages may be deep in a network, and nothing they hold needs an orderly end; only the last word must get out.
    time.sleep(FLUSH_SECONDS)
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
