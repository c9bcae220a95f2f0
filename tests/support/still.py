"""A session that plays nothing by itself: a test gives its sinks their frames."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from avatard.session.metrics import Metrics
from tests.support.flashes import frame_of, picture


class StillSession:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.generation = SimpleNamespace(at_rest=frame_of(picture(0)))
        self.sinks: list[Any] = []

    def attach(self, sink: Any) -> None:
        self.sinks.append(sink)

    def detach(self, sink: Any) -> None:
        if sink in self.sinks:
            self.sinks.remove(sink)
