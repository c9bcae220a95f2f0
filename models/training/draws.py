"""Random numbers that are a function of what they are for: seed, example and purpose.

Generators give numbers in turn, so an example would depend on how many were made before it, in which batch and on
which device. These are computed from a counter instead: example n of a seed is the same in any batch, on any device
and in a run that was resumed. They are drawn on the host, where decisions cost no wait for a device.
"""

from __future__ import annotations

import zlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

#: Multipliers of the rounds and increments of the key. Source: Salmon et al., "Parallel Random Numbers: As Easy as
#: 1, 2, 3" (2011), Philox 4x32 with ten rounds.
MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
INCREMENTS: Final = (0x9E3779B9, 0xBB67AE85)
ROUNDS: Final = 10
LOW: Final = np.uint64(0xFFFFFFFF)
HALF: Final = np.uint64(32)


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Philox 4x32-10 of counters `[..., 4]` and a key, all of 32 bits: `[..., 4]`."""
    a, b, c, d = np.moveaxis(counter, -1, 0)
    first, second = key
    for _ in range(ROUNDS):
        left, right = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c  # 64 bits each
        a, b, c, d = (
            (right >> HALF) ^ b ^ np.uint64(first),
            right & LOW,
            (left >> HALF) ^ d ^ np.uint64(second),
            left & LOW,
        )
        first, second = ((word + add) & 0xFFFFFFFF for word, add in zip((first, second), INCREMENTS, strict=True))
    return np.stack([a, b, c, d], -1)


class Draws:
    """The random numbers of some examples.

    Args:
        seed: below 2^64.
        examples: their numbers `[B]`, of which 64 bits count.
    """

    def __init__(self, seed: int, examples: NDArray[np.int64]):
        self._key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
        self._examples = examples.astype(np.uint64)

    def __len__(self) -> int:
        return len(self._examples)

    def _words(self, purpose: str, count: int) -> Words:
        """`[B, count]`, of 32 bits."""
        blocks = -(-count // 4)
        counter = np.empty((len(self), blocks, 4), np.uint64)
        counter[..., 0] = np.arange(blocks, dtype=np.uint64)
        counter[..., 1] = zlib.crc32(purpose.encode())
        counter[..., 2] = (self._examples & LOW)[:, None]
        counter[..., 3] = (self._examples >> HALF)[:, None]
        return philox(counter, self._key).reshape(len(self), -1)[:, :count]

    def uniform(self, purpose: str, *shape: int) -> Floats:
        """Numbers from 0 to below 1, `[B, *shape]`."""
        words = self._words(purpose, int(np.prod(shape, dtype=np.int64)))
        return (words / 2.0**32).reshape(len(self), *shape)

    def normal(self, purpose: str, *shape: int) -> Floats:
        """Standard normal numbers, `[B, *shape]`. Source: Box and Muller (1958)."""
        count = int(np.prod(shape, dtype=np.int64))
        words = self._words(purpose, 2 * count)
        radius = np.sqrt(-2 * np.log((words[:, :count] + 1) / 2.0**32))
        found: Floats = (radius * np.cos(2 * np.pi * words[:, count:] / 2.0**32)).reshape(len(self), *shape)
        return found

    def below(self, purpose: str, share: float) -> NDArray[np.bool_]:
        """True in a share of cases, `[B]`."""
        return self.uniform(purpose) < share

    def index(self, purpose: str, sizes: NDArray[np.int64] | int) -> NDArray[np.int64]:
        """Whole numbers from 0 to below `sizes` (one, or `[B]`), `[B]`."""
        return (self.uniform(purpose) * sizes).astype(np.int64)
