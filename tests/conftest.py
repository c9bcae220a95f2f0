"""What holds for every test."""

import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A test measures no time: a busy machine is not a failure.
settings.register_profile("avatard", parent=settings(), deadline=None)
settings.load_profile("avatard")

# Sums depend on how many threads share them: one, as in the inference process, whoever sets it first.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """A command run in this process sets up logging for the whole process: the next test starts as this one did."""
    names = (None, "aiohttp.access", "aioice", "aiortc", "asyncio")
    handlers, levels = logging.root.handlers[:], {name: logging.getLogger(name).level for name in names}
    yield
    logging.root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
