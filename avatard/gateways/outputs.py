"""Pushes and recordings: each is a sink of the session, and its encoding and network are a process of their own.

A push whose receiver is gone takes no frames, so that nothing is generated for it, and tries again with growing pauses.
A receiver or a disk that is too slow loses whole stretches of frames, and the session never waits for it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avatard.config import Output as OutputConfig
from avatard.errors import UserError
from avatard.media.live_writer import LiveWriterError, Target, host_of, target_of
from avatard.media.pcm import to_pcm16
from avatard.media.writer_process import Setup, VanishedError, WriterProcess
from avatard.playout.scheduler import PlayoutFrame
from avatard.session.session import Session
from avatard.timebase import FRAME_SECONDS

logger = logging.getLogger(__name__)

QUEUE_FRAMES: Final = 50
STUCK_FRAMES: Final = 250  # a receiver that takes nothing for so long is given up
STEADY_FRAMES: Final = 250  # after so many the next loss is a new one: its pauses are short again
RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)  # pauses; the last one again and again
STOP_SECONDS: Final = 7.0  # to end a file in good order
MAX_OUTPUTS: Final = 8
#: Names of recordings that are made by API: no folder, nothing hidden.
FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}")

State: TypeAlias = Literal["connecting", "connected", "waiting", "failed", "ended"]
Item: TypeAlias = tuple[int, NDArray[np.uint8], NDArray[np.int16]]


class OutputError(UserError):
    """A push or a recording that is not begun."""

    CODE = "output"


class ForbiddenOutputError(OutputError):
    """A push or a recording that the operator did not allow."""

    CODE = "forbidden"


class ManyOutputsError(OutputError):
    """One push or recording too many."""

    CODE = "full"


class Output:
    """A push, or a recording.

    Args:
        session: the avatar, started.
        name: of the output, for the API and the log.
        target: where it goes.
        config: the section `output`.
        losses: counts errors by kind.
        retry_seconds: pauses between attempts.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        target: Target,
        config: OutputConfig,
        losses: Counter[str],
        retry_seconds: tuple[float, ...] = RETRY_SECONDS,
    ) -> None:
        self.name = name
        self.kind = "push" if target.live else "record"
        self.state: State = "connecting"
        self.error = ""
        self.written = self.dropped = self.losses = 0  # frames, frames, times
        self._session, self._target, self._config = session, target, config
        self._all_losses = losses
        self._retry_seconds = retry_seconds
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[Item | None] = SimpleQueue()
        self._skipped = 0  # frames of the stretch that is being left out
        self._writer: WriterProcess | None = None
        self._path = Path() if target.live else Path(target.url)  # of the file that is written
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether it writes, or will."""
        return self.state not in ("failed", "ended")

    @property
    def queued(self) -> int:
        """Frames that wait to be written."""
        return self._queue.qsize()

    def describe(self) -> dict[str, Any]:
        """What the API tells; nothing secret."""
        return {
            "id": self.name,
            "kind": self.kind,
            "target": self._target.shown if self._target.live else self._path.name,
            "state": self.state,
            "seconds": round(self.written * FRAME_SECONDS, 2),
            "frames_dropped": self.dropped,
            "losses": self.losses,
            "error": self.error,
        }

    def play(self, entry: PlayoutFrame) -> None:
        """Take a frame; where too many wait, leave out all until none does."""
        if entry.picture is None:
            return
        waiting = self._queue.qsize()
        if waiting >= QUEUE_FRAMES or (self._skipped and waiting):
            self._skipped += 1
            self.dropped += 1
            if self._skipped == STUCK_FRAMES and self._writer is not None:
                self._writer.kill()
            return
        if self._skipped:
            logger.warning("output too slow, frames left out", extra={"output": self.name, "frames": self._skipped})
            self._skipped = 0
        self._queue.put((entry.index, entry.picture.pixels, to_pcm16(entry.sound.playback)))

    async def stop(self) -> None:
        """End the stream or the file in good order, if that does not take too long."""
        self._stopped.set()
        self._queue.put(None)
        if self.state == "connecting" and self._writer is not None:
            self._writer.kill()
        await asyncio.to_thread(self._thread.join, STOP_SECONDS)
        if self._thread.is_alive() and self._writer is not None:
            self._writer.kill()
            await asyncio.to_thread(self._thread.join)
        self._session.detach(self)

    def _run(self) -> None:
        """The thread: connect, write, and after an error connect again."""
        pauses = iter(self._retry_seconds)
        while not self._stopped.is_set():
            before = self.written
            try:
                self._write_until_stopped()
            except LiveWriterError as error:
                if self._stopped.is_set():
                    # One that was stopped while it connected has not failed.
                    self.error = str(error) if self.state == "connected" else ""
                    break
                if self.written - before >= STEADY_FRAMES:
                    pauses = iter(self._retry_seconds)
                if not self._lost(error, next(pauses, self._retry_seconds[-1]), known=self.written == before):
                    return
            except Exception as error:  # a bug: the session goes on, and the API tells
                logger.exception("output failed", extra={"output": self.name})
                self.state, self.error = "failed", str(error)
                return
        self.state = "ended"
        logger.info("output ended", extra={"output": self.name, "seconds": round(self.written * FRAME_SECONDS, 2)})

    def _lost(self, error: LiveWriterError, pause: float, known: bool) -> bool:
        """Tell of an error, and wait; False where another attempt is of no use.

        Args:
            error: what happened.
            pause: seconds until the next attempt.
            known: whether nothing was written since the last error, which then is not told twice.
        """
        again = self._target.live or isinstance(error, VanishedError)
        level = logging.DEBUG if known and self.error == str(error) else logging.WARNING
        self.error = str(error)
        self.losses += 1
        self._all_losses[self.kind] += 1
        self.state = "waiting" if again else "failed"
        fields = {"output": self.name, "reason": self.error} | ({"retry_seconds": pause} if again else {})
        logger.log(level, "output lost" if again else "output failed", extra=fields)
        self._stopped.wait(pause if again else 0)
        return again

    def _write_until_stopped(self) -> None:
        """One connection, or one file. Raises `LiveWriterError`."""
        self._queue, self._skipped = SimpleQueue(), 0
        before = self.written
        self.state = "connecting"
        target = self._target
        if not target.live:
            self._path = _claim(Path(target.url))
            target = target_of(str(self._path))
        at_rest = self._session.generation.at_rest
        assert at_rest is not None, "the session has started"
        height, width, channels = at_rest.pixels.shape
        setup = Setup(
            target.url, (height, width), self._config.push_kbps * 1000, channels == 4, badge=self._config.badge
        )
        self._writer = None
        try:
            writer = self._writer = WriterProcess(setup)
            if self._stopped.is_set():  # `stop` has not seen this writer and this queue
                return
            writer.connect()
            self.state, self.error = "connected", ""
            logger.info("output connected", extra={"output": self.name, "target": target.shown})
            self._on_loop(self._session.attach)
            queue = self._queue
            while not self._stopped.is_set() or queue.qsize():
                item = queue.get()
                if item is None:
                    break
                writer.write(*item)
                self.written += 1
            writer.finish()
        finally:
            self._on_loop(self._session.detach)
            if self._writer is not None:
                self._writer.close()
            if not target.live and self.written == before:
                self._path.unlink(missing_ok=True)

    def _on_loop(self, change: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(change, self)


class Outputs:
    """All pushes and recordings of a session: those of the configuration, and those that the API adds.

    Args:
        config: the section `output`.
        session: the avatar.

    Raises:
        LiveWriterError: a push or the recording of the configuration cannot be understood.
        OutputError: a folder of the configuration does not exist.
    """

    def __init__(self, config: OutputConfig, session: Session) -> None:
        self._config, self._session = config, session
        self._configured = [target_of(text) for text in (*config.push, *([config.record] if config.record else []))]
        for target in self._configured[len(config.push) :]:
            _check_folder(Path(target.url).absolute().parent, f"{target.url} cannot be written")
        if config.record_directory:
            _check_folder(Path(config.record_directory), "output.record_directory")
        self._outputs: dict[str, Output] = {}
        self._numbers = itertools.count(1)
        self._losses: Counter[str] = Counter(push=0, record=0)
        self._past = {"output_written": 0, "output_dropped": 0}  # frames of outputs that were removed
        session.metrics.watch("frames", lambda: self._frames(*self))
        session.metrics.watch("outputs", lambda: Counter(output.state for output in self._outputs.values()))
        session.metrics.watch("output_losses", lambda: self._losses)
        session.metrics.watch("queue_depth", lambda: {"outputs": sum(o.queued for o in self._outputs.values())})

    def __iter__(self) -> Iterator[Output]:
        return iter(self._outputs.values())

    def start(self) -> None:
        """Begin what the configuration asks for; the session has started."""
        for target in self._configured:
            self._begin(target)

    async def stop(self) -> None:
        """End everything."""
        await asyncio.gather(*(output.stop() for output in self._outputs.values()))

    def push(self, url: str) -> Output:
        """Begin a push that somebody asks for.

        Raises:
            LiveWriterError: the address is malformed.
            ForbiddenOutputError: the operator did not name its host.
            ManyOutputsError: there are as many outputs as there may be.
        """
        target = target_of(url if "://" in url else f"{url[:20]}://")
        if "*" not in self._config.push_hosts and host_of(url) not in map(str.lower, self._config.push_hosts):
            raise ForbiddenOutputError(f"pushing to {host_of(url)} is not allowed: name it in output.push_hosts")
        return self._begin(target)

    def record(self, name: str) -> Output:
        """Begin a recording that somebody asks for, in the folder for it.

        Raises:
            LiveWriterError: no kind of file has such a name.
            OutputError: it is no plain name, or there is such a file.
            ForbiddenOutputError: the operator named no folder.
            ManyOutputsError: there are as many outputs as there may be.
        """
        if not self._config.record_directory:
            raise ForbiddenOutputError("recording is not allowed: name a folder in output.record_directory")
        if not FILE_NAME.fullmatch(name):
            raise OutputError(f"got the file name {name[:100]!r}, expected letters, digits, spaces and ._- only")
        path = Path(self._config.record_directory) / name
        target = target_of(str(path))
        if path.exists():
            raise OutputError(f"{name} exists: give another name", code="exists")
        return self._begin(target)

    async def remove(self, name: str) -> Output | None:
        """End an output and forget it; None where there is none of this name."""
        output = self._outputs.get(name)
        if output is not None:
            await output.stop()
            if self._outputs.pop(name, None) is not None:
                self._past = self._frames(output)
        return output

    def _begin(self, target: Target) -> Output:
        if sum(output.running for output in self) >= MAX_OUTPUTS:
            raise ManyOutputsError(f"all {MAX_OUTPUTS} outputs are in use: end one with DELETE /api/outputs/ID")
        name = f"{'push' if target.live else 'record'}-{next(self._numbers)}"
        output = self._outputs[name] = Output(self._session, name, target, self._config, self._losses)
        return output

    def _frames(self, *outputs: Output) -> dict[str, int]:
        """Frames by what became of them, of these outputs and those that were removed."""
        return {
            "output_written": self._past["output_written"] + sum(output.written for output in outputs),
            "output_dropped": self._past["output_dropped"] + sum(output.dropped for output in outputs),
        }


def _check_folder(path: Path, what: str) -> None:
    if not path.is_dir():
        raise OutputError(f"{what}: {path} is not a folder")


def _claim(path: Path) -> Path:
    """Make an empty file of this name, or of NAME-2, NAME-3 and so on where there is one: nothing is overwritten.

    Raises:
        LiveWriterError: its folder cannot be written to.
    """
    number, name = 1, path
    while True:
        try:
            name.open("xb").close()
            return name
        except FileExistsError:
            number += 1
            name = path.with_stem(f"{path.stem}-{number}")
        except OSError as error:
            raise LiveWriterError(f"{name}: {error.strerror}") from None
