"""A live stream or recording in a process of its own, so that nothing it waits for can hold up the daemon.

    writer = WriterProcess(Setup(target="rtmp://live.example/app/key", size=(512, 512)))
    writer.connect()                                # waits for the receiver
    writer.write(index, pixels, pcm16)              # waits until the process has taken the frame
    writer.finish()

The process reads from standard input: one line of JSON, then frames, each a header and its raw pixels and samples. At
the end of input, also when the daemon was killed, it ends the file in good order. It writes one line to standard
output once it is connected, and another if it fails. A stream key is in no command line, where other users could read
it.
"""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from avatard.media.live_writer import PCM_SAMPLES, LiveWriter, LiveWriterError, target_of
from avatard.media.synthetic import metadata

#: Number of the frame; height, width and channels of its picture.
HEADER: Final = struct.Struct("<qIII")
CONNECT_SECONDS: Final = 15.0
FINISH_SECONDS: Final = 5.0


class Setup(msgspec.Struct, frozen=True):
    """What the process is told first; see `LiveWriter`."""

    target: str
    size: tuple[int, int]
    bitrate_bps: int = 2_500_000
    transparent: bool = False
    badge: bool = False


class Report(msgspec.Struct):
    """What the process tells: an error, or without one that it is connected."""

    error: str = ""


class VanishedError(LiveWriterError):
    """The process ended and gave no reason, or it was ended because it did nothing for too long."""


class WriterProcess:
    """The daemon's end. Its methods block: they belong in a thread.

    Args:
        setup: what is written, and where to.

    Raises:
        VanishedError: this machine cannot start another process now.
    """

    def __init__(self, setup: Setup) -> None:
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "avatard.media.writer_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is the daemon's
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise VanishedError(f"{target_of(setup.target).shown}: no process for it: {error.strerror}") from None
        assert self._process.stdin is not None and self._process.stdout is not None
        self._frames, self._reports = self._process.stdin, self._process.stdout
        self._setup = setup

    def connect(self) -> None:
        """Wait until the first frame can be written.

        Raises:
            LiveWriterError: there is no connection, also after 15 s; or the file cannot be written.
        """
        with _deadline(CONNECT_SECONDS, self.kill):
            self._send(msgspec.json.encode(self._setup) + b"\n")
            self._next_report()

    def write(self, index: int, pixels: NDArray[np.uint8], pcm: NDArray[np.int16]) -> None:
        """Write a frame; see `LiveWriter.write`.

        Raises:
            LiveWriterError: the receiver is gone, or the file cannot be written.
        """
        header = HEADER.pack(index, *pixels.shape)
        self._send(header, np.ascontiguousarray(pixels).data, np.ascontiguousarray(pcm).data)

    def finish(self) -> None:
        """End the stream or file, and wait for it.

        Raises:
            LiveWriterError: the end could not be written, or took more than 5 s.
        """
        with _deadline(FINISH_SECONDS, self.kill):
            with suppress(OSError):  # the report says why
                self._frames.close()
            rest = self._reports.read()
            if self._process.wait() != 0:
                raise self._failure(rest)

    def kill(self) -> None:
        """End the process at once; from any thread."""
        self._process.kill()

    def close(self) -> None:
        """Leave nothing of the process behind."""
        self.kill()
        self._process.wait()
        for pipe in (self._frames, self._reports):
            with suppress(OSError):  # what was not sent yet
                pipe.close()

    def _send(self, *parts: bytes | memoryview) -> None:
        try:
            for part in parts:
                self._frames.write(part)
            self._frames.flush()
        except (OSError, ValueError):
            raise self._failure(self._reports.read()) from None

    def _next_report(self) -> None:
        line = self._reports.readline()
        if not line or msgspec.json.decode(line, type=Report).error:
            raise self._failure(line)

    def _failure(self, reported: bytes) -> LiveWriterError:
        for line in reported.splitlines():
            if error := msgspec.json.decode(line, type=Report).error:
                return LiveWriterError(error)
        return VanishedError(f"{target_of(self._setup.target).shown}: no answer, or its process was ended")


@contextmanager
def _deadline(seconds: float, late: Callable[[], None]) -> Iterator[None]:
    """Call `late` if what is done within takes longer."""
    timer = threading.Timer(seconds, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def run(frames: IO[bytes], reports: IO[bytes]) -> int:
    """Write what comes until it ends; the exit code of the process."""

    def report(error: str = "") -> None:
        reports.write(msgspec.json.encode(Report(error)) + b"\n")
        reports.flush()

    try:
        setup = msgspec.json.decode(frames.readline(), type=Setup)
        with LiveWriter(
            target_of(setup.target),
            setup.size,
            metadata("live"),
            bitrate_bps=setup.bitrate_bps,
            transparent=setup.transparent,
            badge=setup.badge,
        ) as writer:
            report()
            while len(header := frames.read(HEADER.size)) == HEADER.size:
                index, *shape = HEADER.unpack(header)
                pixels = frames.read(int(np.prod(shape)))
                pcm = frames.read(2 * PCM_SAMPLES)
                if len(pcm) < 2 * PCM_SAMPLES:
                    break  # the daemon was killed within this frame
                writer.write(index, np.frombuffer(pixels, np.uint8).reshape(shape), np.frombuffer(pcm, np.int16))
    except LiveWriterError as error:
        with suppress(OSError):  # the daemon is gone
            report(str(error))
        return 1
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    # A service manager ends all processes at once: the file is ended when the daemon has ended.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(run(sys.stdin.buffer, sys.stdout.buffer))
