"""The daemon of a replica: a process that ends with its parent, whatever ends that.

    python -m avatard.cluster.daemon PARENT PROGRAM ARGUMENT…

becomes the program, which gets SIGTERM when the process PARENT ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from avatard.errors import UserError

START_SECONDS: Final = 300.0
STOP_SECONDS: Final = 20.0
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h


class DaemonError(UserError):
    """A daemon that did not start."""

    CODE = "daemon"


class Daemon:
    """A child process that prints its URL.

    Args:
        command: the program and its arguments.
        environment: added to this process's own.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.url = ""  # without a slash at its end
        self._command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start it, and wait for its URL.

        Raises:
            DaemonError: it ended, or did not listen within `START_SECONDS`. Its standard error says why.
        """
        command = (sys.executable, "-P", "-m", "avatard.cluster.daemon", str(os.getpid()), *self._command)
        self._process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, env={**os.environ, **self._environment}
        )
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_SECONDS):
                line = await self._process.stdout.readline()
        except TimeoutError:
            await self.stop()
            raise DaemonError(f"the daemon did not listen within {START_SECONDS:.0f} s") from None
        self.url = line.decode().strip().rstrip("/")
        if not self.url:
            code = await self._process.wait()
            raise DaemonError(f"the daemon ended with code {code} before it listened: see its log")

    async def stop(self) -> None:
        """End it in order, or after `STOP_SECONDS` at once."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


def become(parent: int, command: Sequence[str]) -> None:
    """Run a program in the place of this one, bound to the life of `parent`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if os.getppid() != parent:  # it ended meanwhile
            return
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
