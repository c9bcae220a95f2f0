"""Sound tracks to learn motion from: each clip among other speech and among silence, and sound that is no speech.

A track is a clip's waveform with something before and after it, so that the speech encoder's window is full as it is
when serving. The mouth is known during the clip; around a clip that is surrounded by silence it is closed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avatard.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

#: Frames of silence after a clip: until the mouth is long closed.
SILENT_TAIL_FRAMES = 16
#: How long the mouth takes to open before the sound starts and to close after it ends (frames).
OPENING_FRAMES, CLOSING_FRAMES = 3, 4

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Track:
    """A waveform and the frame number, in the clip's own count, at which it starts."""

    samples: Samples
    start: int

    def window(self, end: int, frames: int) -> Samples:
        """The `frames` frames before frame `end`; zeros where the track has nothing."""
        stop = (end - self.start) * SAMPLES_PER_FRAME
        begin = stop - frames * SAMPLES_PER_FRAME
        inside = self.samples[max(begin, 0) : max(stop, 0)]
        before = max(0, -begin)
        return np.pad(inside, (before, frames * SAMPLES_PER_FRAME - before - len(inside)))


def noise(samples: int, rng: np.random.Generator) -> Samples:
    """Unit-variance noise with a random spectral slope: white to brown."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    spectrum[1:] *= np.arange(1, len(spectrum)) ** -rng.uniform(0, 1)
    spectrum[0] = 0
    wave = np.fft.irfft(spectrum, samples)
    return np.asarray(wave / (wave.std() + 1e-9), np.float32)


def decibels(low: float, high: float, rng: np.random.Generator) -> float:
    """A random gain, uniform in decibels."""
    return float(10 ** (rng.uniform(low, high) / 20))


def at_tempo(samples: Samples, tempo: float) -> Samples:
    """Sound played `tempo` times as fast, pitch and formants with it: another voice."""
    import soxr  # a training on prepared bundles never resamples, and its machine may lack it

    faster: Samples = soxr.resample(samples, SAMPLE_RATE_HZ * tempo, SAMPLE_RATE_HZ)
    return faster[: len(faster) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].astype(np.float32)


def frames_at_tempo(frames: Samples, tempo: float, offset: int) -> Samples:
    """The picture `[N, ...]` for `at_tempo`, between frames linearly; `offset` from picture to sound stays."""
    count = int(len(frames) / tempo)
    middle = np.arange(count) + offset + 0.5  # of the frame, in the sound
    at = (middle * tempo - offset - 0.5).clip(0, len(frames) - 1)
    before = at.astype(int)
    after = np.minimum(before + 1, len(frames) - 1)
    share = (at - before).astype(np.float32).reshape(-1, *[1] * (frames.ndim - 1))
    between: Samples = frames[before] * (1 - share) + frames[after] * share
    return between


def among_speech(samples: Samples, before: Samples, rng: np.random.Generator) -> Track:
    """The clip right after `before`, as in running speech, at a random loudness."""
    edge = min(80, len(before))  # 5 ms: hides the cut
    before = before.copy()
    before[len(before) - edge :] *= np.linspace(1, 0, edge, dtype=np.float32)
    frames = len(before) // SAMPLES_PER_FRAME
    joined = np.concatenate([before[len(before) - frames * SAMPLES_PER_FRAME :], samples])
    return Track(np.clip(joined * decibels(-10, 6, rng), -1, 1), -frames)


def among_silence(samples: Samples, frames_before: int, rng: np.random.Generator) -> Track:
    """The clip alone in a room: silence or noise around it and, half of the time, under it."""
    before, after = frames_before * SAMPLES_PER_FRAME, SILENT_TAIL_FRAMES * SAMPLES_PER_FRAME
    track = np.pad(samples, (before, after)) * decibels(-15, 6, rng)
    floor = noise(len(track), rng) * decibels(-90, -50, rng)
    if rng.random() < 0.5:
        floor = noise(len(track), rng) * (samples.std() + 1e-4) * decibels(-35, -12, rng)
    elif rng.random() < 0.3:
        floor = np.zeros_like(track)
    return Track(np.clip(track + floor, -1, 1), -frames_before)


def no_speech(frames: int, rng: np.random.Generator) -> Track:
    """Sound that must not move the mouth: nothing, noise, clicks, hum or chords at any loudness."""
    length = frames * SAMPLES_PER_FRAME
    time = np.arange(length) / SAMPLE_RATE_HZ
    kind = rng.integers(5)
    wave = np.zeros(length)
    if kind == 0:
        pass
    elif kind == 1:
        wave += noise(length, rng) * decibels(-80, -15, rng)
    elif kind == 2:  # clicks: keys, knocks
        hits = (rng.random(length) < 3 / SAMPLE_RATE_HZ) * rng.uniform(-1, 1, length)
        wave = np.convolve(hits, np.exp(-np.arange(400) / rng.uniform(5, 80)))[:length] * decibels(-30, 0, rng)
    elif kind == 3:  # mains hum and fans
        for harmonic in range(1, 9):
            wave += np.sin(2 * np.pi * 50 * harmonic * time + rng.uniform(0, 6)) * rng.random() / harmonic
        wave = wave * decibels(-60, -20, rng)
    else:  # chords that change every half second
        for start in range(0, length, SAMPLE_RATE_HZ // 2):
            part = slice(start, start + SAMPLE_RATE_HZ // 2)
            for tone in 220 * 2 ** (rng.integers(-12, 24, 4) / 12):
                for harmonic in (1, 2, 3):
                    wave[part] += np.sin(2 * np.pi * tone * harmonic * time[part]) / harmonic
        wave = wave / 8 * decibels(-30, 0, rng)
    return Track(np.clip(wave, -1, 1).astype(np.float32), 0)
