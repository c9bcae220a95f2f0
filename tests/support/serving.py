"""A session and a server around the test engine, and what a client needs to talk to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import cv2
import msgspec
import numpy as np

from avatard.config import Config, Stream
from avatard.config import Server as ServerConfig
from avatard.gateways.http import Server, make_rooms
from avatard.playout.scheduler import PlayoutFrame
from avatard.portrait import Portrait
from avatard.session.session import Session

STREAM = Stream(hop_frames=4, fade_frames=1, clip_frames=8, lookahead_ms=80)


def config(**sections: Any) -> Config:
    return msgspec.structs.replace(Config(stream=STREAM, server=ServerConfig(port=0)), **sections)


def portrait(value: int = 128) -> Portrait:
    """A face for the test engine: even, with a gradient that shows what is up."""
    image = np.full((256, 256, 3), value, np.uint8)
    image[:64] //= 2
    return Portrait(cv2.imencode(".png", image)[1].tobytes())


@asynccontextmanager
async def running_session(settings: Config | None = None, engine: str = "make") -> AsyncIterator[Session]:
    session = Session(settings or config(), portrait(), f"tests.support.warp_engine:{engine}")
    await session.start()
    try:
        yield session
    finally:
        await session.stop()


@asynccontextmanager
async def running_server(settings: Config | None = None, engine: str = "make") -> AsyncIterator[tuple[Session, str]]:
    """The session and the server's URL, without the slash at its end."""
    settings = settings or config()
    async with running_session(settings, engine) as session:
        name = f"tests.support.warp_engine:{engine}"
        server = Server(settings, session, make_rooms=partial(make_rooms, engine=name))
        url = await server.start()
        try:
            yield session, url.rstrip("/")
        finally:
            await server.stop()


async def until(condition: Any, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.01)


def said(caplog: Any) -> list[str]:
    """The events avatard logged; asyncio complains of a slow machine."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("avatard")]


def beeps(seconds: float, rate_hz: int = 16_000) -> np.ndarray:
    """Syllables: a tone that is on for 120 ms of every 400, float32."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.3 * np.sin(2 * np.pi * 300 * time) * (time % 0.4 < 0.12)).astype(np.float32)


class Screen:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.entries: list[PlayoutFrame] = []

    def play(self, entry: PlayoutFrame) -> None:
        self.entries.append(entry)

    @property
    def sound(self) -> np.ndarray:
        return np.concatenate([entry.samples for entry in self.entries])

    @property
    def pixels(self) -> np.ndarray:
        picture = self.entries[-1].picture
        assert picture is not None
        return picture.pixels

    @property
    def mouth(self) -> np.ndarray:
        return np.array([0 if e.picture is None else e.picture.landmarks[57, 1] for e in self.entries])
