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


@pytest.fixture(scope="session", autouse=True)
def first_levels() -> dict[str | None, int]:
    """Of the loggers that `log.setup` changes."""
    names = (None, "aiohttp.access", "aioice", "aiortc", "asyncio")
    return {name: logging.getLogger(name).level for name in names}


@pytest.fixture(autouse=True)
def restored_logging(first_levels: dict[str | None, int]) -> Iterator[None]:
    """A command that ran in this process set up logging for all of it: each test starts as the first one did."""
    for name, level in first_levels.items():
        logging.getLogger(name).setLevel(level)
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers
