"""Whether a process grows while it repeats something; for tests that take minutes."""

from __future__ import annotations

import gc
import os
from collections.abc import Awaitable, Callable

import psutil
import pytest

REPEATS, SETTLED = 200, 40
MOST_BYTES = 12_000_000  # for caches and arenas; one picture of 512 x 512 an utterance would be 150 MB

long = pytest.mark.skipif("AVATARD_LONG_TESTS" not in os.environ, reason="takes minutes: set AVATARD_LONG_TESTS")


async def growth(once: Callable[[int], Awaitable[None]]) -> int:
    """Bytes that this process gains from the 40th to the 200th time, which it prints."""
    sizes: list[int] = []
    for number in range(REPEATS):
        await once(number)
        if number + 1 in (SETTLED, REPEATS):
            gc.collect()
            sizes.append(psutil.Process().memory_info().rss)
    grown = sizes[1] - sizes[0]
    print(f"resident after {SETTLED}: {sizes[0] / 1e6:.1f} MB, after {REPEATS}: {sizes[1] / 1e6:.1f} MB")
    return grown
