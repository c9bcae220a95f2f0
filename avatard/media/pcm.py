"""Decode raw samples that arrive in messages of any length."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avatard.frame import Samples

Encoding: TypeAlias = Literal["s16le", "f32le", "mulaw"]

#: Bytes of a sample.
WIDTHS: Final[Mapping[Encoding, int]] = MappingProxyType({"s16le": 2, "f32le": 4, "mulaw": 1})
#: First bytes of files, which are no raw samples.
CONTAINERS: Final[Mapping[bytes, str]] = MappingProxyType(
    {b"RIFF": "a WAV file", b"ID3": "an MP3 file", b"OggS": "an Ogg file", b"fLaC": "a FLAC file"}
)


class FileHeaderError(ValueError):
    """Samples that begin with the header of a sound file."""


def refuse_file(data: bytes, encoding: str) -> None:
    """Refuse bytes that begin like a sound file. Raises `FileHeaderError`."""
    for magic, name in CONTAINERS.items():
        if data.startswith(magic):
            raise FileHeaderError(
                f"got {name}, expected raw {encoding} samples: decode it first; it is dropped up to its end mark"
            )


class PcmDecoder:
    """Decodes a stream of interleaved samples. A sample that a message cuts in two is completed by the next message.

    Args:
        encoding: signed 16-bit, 32-bit float (both little-endian) or G.711 µ-law.
        channels: 1 or 2; two are averaged.
    """

    def __init__(self, encoding: Encoding, channels: int) -> None:
        self._encoding = encoding
        self._channels = channels
        self.reset()

    def reset(self) -> None:
        """Begin a new stream; an incomplete sample is dropped."""
        self._rest = b""
        self._begun = False

    def push(self, data: bytes) -> Samples:
        """Decode the next bytes to mono float32 [T] in [-1, 1].

        Raises:
            FileHeaderError: the stream begins with one.
            ValueError: a sample is not a finite number.
        """
        if not self._begun:
            refuse_file(data, self._encoding)
        self._begun = True
        data = self._rest + data
        whole = len(data) - len(data) % (WIDTHS[self._encoding] * self._channels)
        self._rest = data[whole:]
        flat = self._decode(data[:whole])
        if not np.isfinite(flat).all():
            raise ValueError("some samples are not finite numbers, expected f32le in [-1, 1]")
        mono: Samples = flat.reshape(-1, self._channels).mean(axis=1, dtype=np.float32)
        return mono.clip(-1, 1)

    def _decode(self, data: bytes) -> NDArray[np.float32]:
        if self._encoding == "s16le":
            return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        if self._encoding == "f32le":
            return np.frombuffer(data, "<f4").astype(np.float32)
        return decode_mulaw(np.frombuffer(data, np.uint8))


def decode_mulaw(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """G.711 µ-law bytes as float32 in [-1, 1]. Source: ITU-T G.711 (1988), table 2a."""
    inverted = ~codes
    exponent, mantissa = (inverted >> 4) & 7, inverted & 15
    magnitude = (((mantissa.astype(np.int32) << 3) + 132) << exponent) - 132
    return np.where(inverted & 128, -magnitude, magnitude).astype(np.float32) / np.float32(32768)


def to_pcm16(samples: Samples) -> NDArray[np.int16]:
    """Float32 [T] to int16 [T], clipped at full scale."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
