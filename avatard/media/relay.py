"""FFmpeg's program as a way to receivers whose protocol PyAV's build does not know: its wheels have no SRT."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import IO

from avatard.errors import UserError


class RelayError(UserError):
    """The program is not installed."""


class Relay:
    """Sends on what is written to its pipe. The address is in a command line, which users of this machine can read.

    Args:
        url: of the receiver.
        container: what is written, as FFmpeg names it.
        metadata: title, comment and others.

    Raises:
        RelayError: there is no FFmpeg.
    """

    def __init__(self, url: str, container: str, metadata: Mapping[str, str]) -> None:
        self._url = url
        program = shutil.which("ffmpeg")
        if program is None:
            scheme = url.partition(":")[0]
            raise RelayError(
                f"this build of PyAV has no {scheme}://: install the program ffmpeg (Debian: apt install ffmpeg), or "
                "push to rtmp://"
            )
        marks = [text for key, value in metadata.items() for text in ("-metadata", f"{key}={value}")]
        quick = ("-loglevel", "error", "-fflags", "nobuffer", "-analyzeduration", "500000")
        self._process = subprocess.Popen(
            [program, *quick, "-f", container, "-i", "pipe:0", "-c", "copy", *marks, "-f", container, url],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._ended: str | None = None

    @property
    def pipe(self) -> IO[bytes]:
        """Where to write."""
        assert self._process.stdin is not None
        return self._process.stdin

    def end(self) -> str:
        """Wait until everything was sent; why that failed, without the address, which may have secrets in it."""
        if self._ended is None:
            assert self._process.stderr is not None
            with self._process.stderr as errors:
                with suppress(OSError):  # it may have ended before
                    self.pipe.close()
                said = errors.read().decode(errors="replace").strip()
            failed = self._process.wait() != 0
            self._ended = said.replace(self._url, "").rpartition("\n")[2].strip(" :") if failed else ""
        return self._ended
