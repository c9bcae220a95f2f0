"""The timeline's sound, addressed by absolute sample number."""

import numpy as np

from avatard.frame import Samples


class AudioRing:
    """A bounded window of a mono signal in which every sample keeps its absolute number.

    Samples are appended at `end`; the oldest ones fall out behind `start` when `capacity` is reached.

    Args:
        capacity: samples kept at most.
        start: absolute number of the first sample that will be appended.
    """

    def __init__(self, capacity: int, start: int = 0) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity} samples, expected at least 1")
        self._buffer = np.zeros(capacity, np.float32)
        self._start = start
        self._end = start

    @property
    def start(self) -> int:
        """Absolute number of the oldest sample still held."""
        return self._start

    @property
    def end(self) -> int:
        """Absolute number that the next appended sample gets."""
        return self._end

    def append(self, samples: Samples) -> None:
        """Append `samples` (float32 [T]), forgetting the oldest ones where they no longer fit."""
        capacity = len(self._buffer)
        kept = samples[max(0, len(samples) - capacity) :]
        at = (self._end + len(samples) - len(kept)) % capacity
        before = min(len(kept), capacity - at)  # the rest goes round to the beginning
        self._buffer[at : at + before] = kept[:before]
        self._buffer[: len(kept) - before] = kept[before:]
        self._end += len(samples)
        self._start = max(self._start, self._end - capacity)

    def read(self, first: int, count: int) -> Samples:
        """Samples [first, first + count) as float32 [count]; what is not held reads as silence."""
        samples = np.zeros(count, np.float32)
        held_from, held_to = max(first, self._start), min(first + count, self._end)
        if held_from < held_to:
            held, at = samples[held_from - first : held_to - first], held_from % len(self._buffer)
            before = min(len(held), len(self._buffer) - at)
            held[:before] = self._buffer[at : at + before]
            held[before:] = self._buffer[: len(held) - before]
        return samples

    def truncate(self, end: int) -> None:
        """Forget the samples from absolute number `end` on, so that the next one appended is `end`."""
        self._end = max(self._start, min(self._end, end))
