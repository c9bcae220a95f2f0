"""Decode sound that programs write while they make it: a WAV file whose length is not known yet, or raw samples."""

from __future__ import annotations

import struct

import numpy as np

from avatard.frame import Samples
from avatard.media.pcm import PcmDecoder

MAX_HEAD_BYTES = 65_536
#: Lengths from here on stand for "to the end of the stream".
UNKNOWN_BYTES = 0x7FFF0000


class WavStream:
    """Decodes 16-bit samples, from a WAV file or raw, cut anywhere.

    Args:
        rate_hz: of raw samples, mono; a WAV file has its own.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._pcm: PcmDecoder | None = None
        self._head = b""
        self._left = float("inf")  # bytes of samples that are still to come

    def push(self, data: bytes) -> Samples:
        """Decode the next bytes to mono float32 [T].

        Raises:
            ValueError: it is another kind of file, or not 16-bit PCM.
        """
        if self._pcm is None:
            self._head += data
            begin = self._begin()
            if begin is None:
                return np.zeros(0, np.float32)
            data, self._head = self._head[begin:], b""
        assert self._pcm is not None
        data = data[: int(min(len(data), self._left))]
        self._left -= len(data)
        return self._pcm.push(data)

    def _begin(self) -> int | None:
        """Where the samples begin, once enough has come to say so."""
        if len(self._head) < 4:
            return None
        if not self._head.startswith(b"RIFF"):
            self._pcm = PcmDecoder("s16le", 1)
            return 0
        at, channels = 12, 0
        while len(self._head) >= at + 8:
            name, length = struct.unpack_from("<4sI", self._head, at)
            if name == b"data":
                self._pcm = PcmDecoder("s16le", 2 if channels == 2 else 1)
                self._left = length if 0 < length < UNKNOWN_BYTES else float("inf")
                return at + 8
            if name == b"fmt " and len(self._head) >= at + 24:
                kind, channels, self.rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", self._head, at + 8)
                if kind not in (1, 0xFFFE) or bits != 16 or channels not in (1, 2):
                    raise ValueError(f"got a WAV file of {channels} channels and {bits} bits, expected 16-bit PCM")
            at += 8 + length + length % 2
        if at > MAX_HEAD_BYTES:
            raise ValueError(f"got a WAV file without samples in its first {MAX_HEAD_BYTES:,} bytes")
        return None
