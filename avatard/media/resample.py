"""Streaming sample-rate conversion (libsoxr)."""

import numpy as np
import soxr

from avatard.frame import Samples, Sound
from avatard.timebase import PLAYBACK_RATE_HZ, PLAYBACK_RATIO, SAMPLE_RATE_HZ

SHIFT_SAMPLES = 2  # extra delay of soxr's variable-rate filter when it reduces the rate


class Resampler:
    """Converts a mono stream to another rate; sample k of the output is the signal at k / `to_hz` s of the input.

    The filter looks ahead, so the output ends `delay_samples` before the input: latency, not a shift. `flush` returns
    these samples when the stream ends.

    Args:
        rate_hz: of the input.
        to_hz: of the output.

    Raises:
        ValueError: the rate is not in 8,000-192,000 Hz.
    """

    def __init__(self, rate_hz: int, to_hz: int = SAMPLE_RATE_HZ) -> None:
        if not 8_000 <= rate_hz <= 192_000:
            raise ValueError(f"sample rate is {rate_hz} Hz, expected 8,000 to 192,000")
        self._rate_hz, self._to_hz = rate_hz, to_hz
        self._variable = False
        self._stream = self._make_stream() if rate_hz != to_hz else None
        self._begin()

    def _make_stream(self) -> soxr.ResampleStream:
        # soxr's fixed-rate filters work in blocks of 33 ms or more. Its variable-rate filter (the rate never varies
        # here) returns as much as went in, 5 to 30 ms late; its pass band is 92 % of the lower rate's.
        rates = self._rate_hz, self._to_hz
        try:
            stream = soxr.ResampleStream(*rates, 1, dtype="float32", quality="HQ", vr=True)
            self._variable = True
        except TypeError:  # soxr 1.0, which pipecat 1.14 asks for, has only the others: live sound comes a little later
            stream = soxr.ResampleStream(*rates, 1, dtype="float32", quality="HQ")
        return stream

    def _begin(self) -> None:
        self._taken = self._given = 0
        self._shift = SHIFT_SAMPLES if self._variable and self._rate_hz > self._to_hz else 0

    @property
    def delay_samples(self) -> int:
        """Output samples that the filter still holds."""
        return round(self._taken * self._to_hz / self._rate_hz) - self._given

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
        """Return the rest of the stream and begin a new one."""
        rest = np.zeros(0, np.float32)
        if self._stream is not None:
            rest = np.asarray(self._stream.resample_chunk(rest, last=True), np.float32)
            # Of a stream of a few milliseconds nothing has come before, and the extra delay is still to be left out.
            missing = max(0, self.delay_samples + self._shift - len(rest))
            rest = np.append(rest, np.zeros(missing, np.float32))[self._shift :]
            self._stream.clear()
        self._begin()
        return rest


class SoundConverter:
    """Converts a mono stream of any rate to 16 kHz for the networks and 48 kHz for playback.

    Args:
        rate_hz: of the stream.

    Raises:
        ValueError: as of `Resampler`.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._speech, self._playback = Resampler(rate_hz), Resampler(rate_hz, PLAYBACK_RATE_HZ)
        self._begin()

    def _begin(self) -> None:
        self._waiting = (
            np.zeros(0, np.float32),
            np.zeros(0, np.float32),
        )  # output of one filter that the other has not reached

    def push(self, samples: Samples) -> Sound:
        """Convert the next samples, float32 [T]; the output may be empty."""
        return self._join(self._speech.push(samples), self._playback.push(samples))

    def flush(self) -> Sound:
        """Return the rest of the stream and begin a new one."""
        sound = self._join(self._speech.flush(), self._playback.flush())
        speech, playback = self._waiting
        self._begin()
        # The two lengths are rounded differently: they differ by two samples at most.
        wanted = PLAYBACK_RATIO * len(speech)
        playback = np.pad(playback[:wanted], (0, max(0, wanted - len(playback))))
        return sound.then(Sound(speech, playback))

    def _join(self, speech: Samples, playback: Samples) -> Sound:
        speech = np.concatenate([self._waiting[0], speech])
        playback = np.concatenate([self._waiting[1], playback])
        both = min(len(speech), len(playback) // PLAYBACK_RATIO)
        self._waiting = speech[both:], playback[PLAYBACK_RATIO * both :]
        return Sound(speech[:both], playback[: PLAYBACK_RATIO * both])
