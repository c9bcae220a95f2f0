"""Ending asyncio tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None | Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended, whatever they raise; `None` is no task."""
    running: list[asyncio.Task[Any]] = []
    for task in tasks:
        if isinstance(task, asyncio.Task):
            running.append(task)
        elif task is not None:
            running += task
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
