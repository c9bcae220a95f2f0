"""The seats of clients, with a session that generates nothing."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from avatard.config import Webrtc
from avatard.gateways import webrtc
from avatard.gateways.webrtc import PeerRegistry, UnavailableError
from avatard.session.events import EventBus
from avatard.session.metrics import Metrics
from tests.support.serving import said, until


class ReadySession:
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
async def registry():
    clients = PeerRegistry(ReadySession(), Webrtc(max_viewers=2), max_sessions=1)  # type: ignore[arg-type]
    yield clients
    await clients.close()


async def test_who_waits_for_a_place_does_not_keep_others_waiting(registry):
    await registry.admit("page")
    waiting = [asyncio.create_task(registry.admit(kind)) for kind in ("page", "whip", "page")]
    await asyncio.sleep(0)
    viewer = await registry.admit("whep")
    assert viewer.kind == "whep" and not any(task.done() for task in waiting)
    for task in waiting:
        with pytest.raises(UnavailableError, match="^the one seat is taken; try again in 10 s$") as refused:
            await task
        assert refused.value.code == "full" and refused.value.fields == {"retry_after_s": 10, "seats": 1}


async def test_a_place_that_becomes_free_goes_to_one(registry):
    before = await registry.admit("page")
    waiting = [asyncio.create_task(registry.admit("page")) for _ in range(3)]
    await asyncio.sleep(0)
    await before.peer.close()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert sum(isinstance(answer, webrtc.Client) for answer in answers) == 1 == len(registry)


async def test_the_figures_go_on_after_an_error(registry, monkeypatch, caplog):
    monkeypatch.setattr(webrtc, "STATISTICS_SECONDS", 0.01)
    registry.session.broken = 2
    await registry.admit("page")
    await until(lambda: "metrics" in registry.session.emitted)
    assert said(caplog) == ["could not emit statistics"] * 2


async def test_the_number_of_viewers_is_configured(registry):
    for _ in range(2):
        await registry.admit("whep")
    with pytest.raises(UnavailableError, match="^all 2 viewer seats are taken; try again in 10 s$"):
        await registry.admit("whep")
    assert (await registry.admit("page")).kind == "page"


async def test_a_silent_client_loses_its_seat_to_the_next(registry):
    crashed = await registry.admit("page")
    crashed.peer.silent_seconds = 3.0
    client = await registry.admit("page")
    assert crashed.peer.closed and len(registry) == 1 and registry.find(client.name) is client


@pytest.mark.parametrize(
    ("attribute", "value", "code"), [("closing", True, "shutting-down"), ("session.ready", False, "starting")]
)
async def test_who_comes_too_early_or_too_late_is_told_when_to_come_back(registry, attribute, value, code):
    owner, _, name = attribute.rpartition(".")
    setattr(registry.session if owner else registry, name, value)
    with pytest.raises(UnavailableError) as refused:
        await registry.admit("whep")
    assert refused.value.code == code and refused.value.retry_after_s == 2
