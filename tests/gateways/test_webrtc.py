"""Who is let in, with a session that makes nothing."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web

from avatard.config import Webrtc
from avatard.gateways import webrtc
from avatard.gateways.webrtc import PeerRegistry
from avatard.session.events import EventBus
from avatard.session.metrics import Metrics
from tests.support.serving import said, until


class Silent:
    """A session that is ready."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.events = EventBus()
        self.ready = True
        self.emitted: list[str] = []
        self.events.listen(lambda event: self.emitted.append(event.TYPE))
        self.broken = 0

    def listen(self, listener: Any) -> Any:
        return self.events.listen(listener)

    def attach(self, sink: Any) -> None:
        pass

    detach = attach

    def open_microphone(self) -> Any:
        return SimpleNamespace(close=lambda: None)

    def figures(self) -> dict[str, float]:
        self.broken -= 1
        if self.broken >= 0:
            raise RuntimeError("no figures")
        return {}


@pytest.fixture
async def door():
    clients = PeerRegistry(Silent(), Webrtc(), max_sessions=1)  # type: ignore[arg-type]
    yield clients
    await clients.close()


async def test_who_waits_for_a_place_does_not_keep_others_waiting(door):
    await door.admit("page")
    waiting = [asyncio.create_task(door.admit(kind)) for kind in ("page", "whip", "page")]
    await asyncio.sleep(0)
    viewer = await door.admit("whep")
    assert viewer.kind == "whep" and not any(task.done() for task in waiting)
    for task in waiting:
        with pytest.raises(web.HTTPServiceUnavailable) as refused:
            await task
        assert refused.value.text == "all 1 sessions are in use; try again later"


async def test_a_place_that_becomes_free_goes_to_one(door):
    before = await door.admit("page")
    waiting = [asyncio.create_task(door.admit("page")) for _ in range(3)]
    await asyncio.sleep(0)
    await before.peer.close()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(answer, webrtc.Client) for answer in answers) == 1 == len(door)


async def test_the_figures_go_on_after_an_error(door, monkeypatch, caplog):
    monkeypatch.setattr(webrtc, "PANEL_SECONDS", 0.01)
    door.session.broken = 2
    await door.admit("page")
    await until(lambda: "metrics" in door.session.emitted)
    assert said(caplog) == ["the figures were not told"] * 2
