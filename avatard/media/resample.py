"""Streaming sample-rate conversion to 16 kHz (libsoxr)."""

import numpy as np
import soxr

from avatard.frame import Samples
from avatard.timebase import SAMPLE_RATE_HZ

SHIFT_SAMPLES = 2  # by which soxr's filter for a variable rate is late, beyond its latency, where it reduces the rate


class Resampler:
    """Converts a mono stream of `rate_hz` to 16 kHz; sample k of the output is the signal at k / 16,000 s of the input.

    The filter needs some of the signal's future, so the output ends `delay_samples` before the input does: latency, not
    a shift. `flush` gives these samples when the stream ends.

    Raises:
        ValueError: the rate is not in 8,000-192,000 Hz.
    """

    def __init__(self, rate_hz: int) -> None:
        if not 8_000 <= rate_hz <= 192_000:
            raise ValueError(f"sample rate is {rate_hz} Hz, expected 8,000 to 192,000")
        self._rate_hz = rate_hz
        # The filters for a fixed rate work in blocks of 33 ms or more. That for a variable rate, which never varies
        # here, gives for each packet as much as went in, 10 to 30 ms late by the rate; its pass band ends at 7.9 kHz.
        self._stream = (
            soxr.ResampleStream(rate_hz, SAMPLE_RATE_HZ, 1, dtype="float32", quality="HQ", vr=True)
            if rate_hz != SAMPLE_RATE_HZ
            else None
        )
        self._begin()

    def _begin(self) -> None:
        self._taken = self._given = 0
        self._shift = SHIFT_SAMPLES if self._rate_hz > SAMPLE_RATE_HZ else 0

    @property
    def delay_samples(self) -> int:
        """Output samples (16 kHz) that are still inside the filter."""
        return round(self._taken * SAMPLE_RATE_HZ / self._rate_hz) - self._given

    def push(self, samples: Samples) -> Samples:
        """Convert the next samples, float32 [T]; the output is float32 [T'], and may be empty."""
        self._taken += len(samples)
        if self._stream is None:
            converted = samples
        else:
            converted = np.asarray(self._stream.resample_chunk(samples), np.float32)
            skipped = min(self._shift, len(converted))
            converted, self._shift = converted[skipped:], self._shift - skipped
        self._given += len(converted)
        return converted

    def flush(self) -> Samples:
        """The rest of a stream that ended; afterwards the resampler is at the start of a new one."""
        rest = np.zeros(0, np.float32)
        if self._stream is not None:
            rest = np.asarray(self._stream.resample_chunk(rest, last=True), np.float32)
            rest = np.append(rest, np.zeros(max(0, self.delay_samples - len(rest)), np.float32))[self._shift :]
            self._stream.clear()
        self._begin()
        return rest


def from_pcm16(data: bytes, channels: int = 1) -> Samples:
    """Little-endian 16-bit PCM, interleaved, to mono float32 [T] in [-1, 1).

    Raises:
        ValueError: the bytes are not a whole number of sample frames.
    """
    if len(data) % (2 * channels):
        raise ValueError(f"got {len(data)} bytes, expected a multiple of {2 * channels}")
    mono: Samples = np.frombuffer(data, "<i2").reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono / np.float32(32768)


def to_pcm16(samples: Samples) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Float32 [T] to int16 [T]; what is louder than full scale is clipped."""
    return np.clip(np.rint(samples * 32768), -32768, 32767).astype(np.int16)
