"""The inference process: speech in, pictures out, on three threads that never touch the daemon's event loop.

    python -m avatard.inference.worker COMMANDS EVENTS ENGINE

Five threads: this one moves messages and says several times a second that it is alive, one for each stage of a stream
(motion, generate, render; see `engine_api.Stream`), and one looks at new portraits. Rendering is more work than the
other two stages together: the engine decodes the next frames on another thread while it composes these. Each thread
has one torch thread: two OpenMP threads per stage were measured slower than one. The process leaves when its standard
input closes, which happens however the daemon dies.
"""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec
import numpy as np
import psutil
import zmq

from avatard.clock import monotonic
from avatard.config import Config
from avatard.errors import UserError
from avatard.frame import Backdrop, Samples
from avatard.inference import ipc
from avatard.inference.engine_api import Engine, MakeEngine, Stream
from avatard.log import setup
from avatard.portrait import Portrait
from avatard.timebase import SAMPLES_PER_FRAME

BEAT_SECONDS = 0.25
QUEUE_EPOCHS = 16  # jobs of the motion thread: one an epoch
QUEUE_HOPS = 4  # motion may not run further ahead of the video network than this
QUEUE_CLIPS = 2  # nor that of rendering: volumes are large, and what an interrupt drops was made in vain
QUEUE_PORTRAITS = 4  # more at once are refused
NICENESS = 2  # the event loop, which must send every 40 ms, goes first
WARM_UP_HOPS = 8
PIECE_SAMPLES = 1_280
FLUSH_SECONDS = 0.1


@dataclass
class _Epoch:
    """An epoch and its stream."""

    number: int
    stream: Stream[Any, Any]
    inbox: deque[Samples] = field(default_factory=deque)  # samples that the motion thread has not taken yet


class _Stage:
    """A thread that works through a bounded queue, and says how long it has been at its current job."""

    def __init__(self, name: str, size: int, fail: Callable[[BaseException], None]) -> None:
        self.queue: queue.Queue[Callable[[], None]] = queue.Queue(size)
        self._since = 0.0
        self._fail = fail
        threading.Thread(target=self._work, name=name, daemon=True).start()

    @property
    def busy_seconds(self) -> float:
        since = self._since
        return monotonic() - since if since else 0.0

    def _work(self) -> None:
        while True:
            job = self.queue.get()
            self._since = monotonic()
            try:
                job()
            except BaseException as error:  # whatever it was, the daemon must know and start a new process
                self._fail(error)
                return
            self._since = 0.0


class Worker:
    """Moves commands to the stages and their pictures to the daemon."""

    def __init__(self, commands: str, events: str, make_engine: MakeEngine) -> None:
        self._commands: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PULL)
        self._commands.connect(commands)
        self._events = events
        self._local = threading.local()  # a socket for each thread: they may not be shared
        self._make_engine = make_engine
        self._epoch: _Epoch | None = None
        self._failure: BaseException | None = None
        self._motion = _Stage("motion", QUEUE_EPOCHS, self._fail)
        self._generate = _Stage("generate", QUEUE_HOPS, self._fail)
        self._render = _Stage("render", QUEUE_CLIPS, self._fail)
        self._portraits = _Stage("portraits", QUEUE_PORTRAITS, self._fail)
        self._engine: Engine | None = None
        self._backdrop: Backdrop | None = None  # that the daemon has; the render thread's

    def serve(self) -> None:
        """Obey commands until `Stop`."""
        decoder = msgspec.msgpack.Decoder(ipc.AnyCommand)
        beat_due = 0.0
        while True:
            if self._failure is not None:
                raise self._failure
            if monotonic() >= beat_due:
                stages = self._motion, self._generate, self._render
                busy, queued = max(s.busy_seconds for s in stages), sum(s.queue.qsize() for s in stages)
                self._send(ipc.Heartbeat(busy, queued, _resident_bytes()))
                beat_due = monotonic() + BEAT_SECONDS
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
                self._engine = self._make_engine(config)
                digest, portrait = self._engine.identify(Portrait(parts[0], command.face, command.name))
                hop_seconds = self._warm_up(self._engine, config.stream.hop_frames * SAMPLES_PER_FRAME)
                height, width, _ = portrait.pixels.shape
                ready = ipc.Ready(digest, height, width, hop_seconds)
                self._send(ready, ipc.pack_faces([portrait]), portrait.pixels.tobytes())
            case ipc.StartEpoch():
                assert self._engine is not None
                self._epoch = _Epoch(command.epoch, self._engine.begin(command.first_frame))
            case ipc.PushAudio():
                epoch = self._epoch
                if epoch is not None and epoch.number == command.epoch:
                    # A job takes all that waits, so that the queue does not grow with the number of messages.
                    epoch.inbox.append(np.frombuffer(parts[0], np.float32))
                    if len(epoch.inbox) == 1:
                        self._motion.queue.put(partial(self._run_motion, epoch))
            case ipc.Identify():
                try:
                    self._portraits.queue.put_nowait(lambda: self._send(*self._answer(command, parts[0])))
                except queue.Full:
                    self._send(ipc.Identified(command.request, error="other portraits are being checked; try again"))
            case ipc.QualityLevel():
                assert self._engine is not None
                steps = command.motion_steps, command.video_steps
                self._engine.set_quality(*steps, command.frame_stride, command.size_divisor)

    def _answer(self, command: ipc.Identify, data: bytes) -> tuple[ipc.Identified, bytes, bytes]:
        assert self._engine is not None
        try:
            digest, portrait = self._engine.identify(Portrait(data, command.face, command.name))
        except UserError as error:
            return ipc.Identified(command.request, "", 0, 0, str(error), error.code, error.fields), b"", b""
        height, width, _ = portrait.pixels.shape
        identified = ipc.Identified(command.request, digest, height, width)
        return identified, ipc.pack_faces([portrait]), portrait.pixels.tobytes()

    def _warm_up(self, engine: Engine, hop_samples: int) -> float:
        """Run silence through all stages until it is known how long the first pictures of a hop take.

        One stage after the other, on one thread: a hop of live speech finds the stages idle, or nearly so.
        """
        stream = engine.begin(0, warm_up=True)
        seconds: list[float] = []
        done = threading.Event()

        def run_all() -> None:
            # A hop at a time; a stream that makes nothing of a hundred is broken.
            for _ in range(100):
                since = monotonic()
                for motion in stream.motion(np.zeros(hop_samples, np.float32)):
                    for clip in stream.generate(motion):
                        for n, _ in enumerate(stream.render(clip)):
                            if n == 0:
                                seconds.append(monotonic() - since)
                    since = monotonic()
                if len(seconds) >= WARM_UP_HOPS:
                    break

        self._render.queue.put(run_all)
        # A job of its own: when it runs, the stage is no longer at the long one before, which would look like a hang.
        self._render.queue.put(done.set)
        while not done.wait(BEAT_SECONDS):
            if self._failure is not None:
                raise self._failure
            self._send(ipc.Heartbeat(0, 0, _resident_bytes()))
        # The first hop pays for allocations and caches.
        return float(np.median(seconds[1:] or [1.0]))

    def _run_motion(self, epoch: _Epoch) -> None:
        """Motion thread: everything that waits."""
        chunks = [np.zeros(0, np.float32)]
        while epoch.inbox:
            chunks.append(epoch.inbox.popleft())
        samples, since = np.concatenate(chunks), monotonic()
        # Piece by piece, so that the video network can begin with the first hop of several.
        for start in range(0, len(samples), PIECE_SAMPLES):
            if epoch is not self._epoch:
                return
            for motion in epoch.stream.motion(samples[start : start + PIECE_SAMPLES]):
                self._generate.queue.put(partial(self._run_generate, epoch, motion, monotonic() - since))
                since = monotonic()  # the wait for a place in a queue is nobody's work

    def _run_generate(self, epoch: _Epoch, motion: object, motion_seconds: float) -> None:
        """Generate thread."""
        if epoch is not self._epoch:
            return
        since = monotonic()
        for clip in epoch.stream.generate(motion):
            self._render.queue.put(partial(self._run_render, epoch, clip, motion_seconds, monotonic() - since))
            since, motion_seconds = monotonic(), 0.0

    def _run_render(self, epoch: _Epoch, clip: object, motion_seconds: float, generate_seconds: float) -> None:
        """Render thread."""
        if epoch is not self._epoch:
            return
        since = monotonic()
        for first, frames in epoch.stream.render(clip):
            height, width, _ = frames[0].pixels.shape
            backdrop, pixels = frames[0].backdrop, ipc.pack_pixels(frames)
            spent = motion_seconds, generate_seconds, monotonic() - since
            moving = backdrop.moving if backdrop is not None else None
            ready = ipc.FramesReady(epoch.number, first, len(frames), height, width, *spent, moving)
            new = (
                [np.ascontiguousarray(backdrop.pixels)]
                if backdrop is not None and backdrop is not self._backdrop
                else []
            )
            self._send(ready, ipc.pack_faces(frames), pixels, *new)
            self._backdrop = backdrop
            # What comes before rendering is accounted for once a clip.
            since, motion_seconds, generate_seconds = monotonic(), 0.0, 0.0

    def _send(self, event: ipc.AnyEvent, *parts: Any) -> None:
        socket: zmq.Socket[bytes] | None = getattr(self._local, "socket", None)
        if socket is None:
            socket = self._local.socket = zmq.Context.instance().socket(zmq.PUSH)
            socket.connect(self._events)
        socket.send_multipart([msgspec.msgpack.encode(event), *parts])

    def fail(self, error: BaseException) -> None:
        """Tell the daemon why this process ends."""
        user = isinstance(error, UserError)
        message = " ".join(str(error).split()) if user else f"{type(error).__name__}: {error}"
        self._send(ipc.WorkerFailed(message, user))

    def _fail(self, error: BaseException) -> None:
        self._failure = error


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
    module, _, function = engine.partition(":")
    worker = Worker(commands, events, getattr(importlib.import_module(module), function))
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
