"""Tells everybody who listens what happens in a session."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

from avatard.protocols.events import Event

logger = logging.getLogger(__name__)

Listener: TypeAlias = Callable[[Event], None]


class EventBus:
    """Passes each event to all listeners, in the order in which they came."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` for every event from now on; return what ends it."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def emit(self, event: Event) -> None:
        """Notify all listeners; an exception in one does not affect the rest."""
        for listener in list(self._listeners):
            try:
                listener(event)
            except Exception:
                logger.exception("event listener failed", extra={"event": event.TYPE})
