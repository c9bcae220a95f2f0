"""Ending asyncio tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None | Iterable[asyncio.Task[Any]]) -> list[object]:
    """Cancel tasks and wait until they have ended; return what each gave or raised. `None` is no task."""
    running: list[asyncio.Task[Any]] = []
    for task in tasks:
        if isinstance(task, asyncio.Task):
            running.append(task)
        elif task is not None:
            running += task
    for task in running:
        task.cancel()
    ended: list[object] = await asyncio.gather(*running, return_exceptions=True)
    return ended
