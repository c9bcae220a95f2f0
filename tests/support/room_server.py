"""A server of rooms whose networks are the test engine, in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp

from avatard.config import Config
from avatard.config import Server as ServerConfig
from avatard.gateways.http import Server
from avatard.gateways.room import Room
from avatard.gateways.rooms import Rooms
from avatard.media.identities import Identities
from avatard.session.session import Session
from tests.support.serving import config, portrait
from tests.support.virtual import InlineSupervisor

ADMIN = {"Authorization": "Bearer s3cret"}


class Clock:
    """Stands still unless it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Serving(NamedTuple):
    server: Server
    url: str
    http: aiohttp.ClientSession
    clock: Clock

    @property
    def rooms(self) -> Rooms:
        return self.server.rooms

    async def create(self, **wanted: Any) -> tuple[str, dict[str, str], Room]:
        """A room: the address of its page without the slash, the headers that open it, and itself."""
        async with self.http.post(f"{self.url}/api/rooms", json=wanted, headers=ADMIN) as response:
            made = await response.json()
            assert response.status == 201, made
        room = self.rooms.find(made["id"])
        assert room is not None
        return f"{self.url}/rooms/{made['id']}", {"Authorization": f"Bearer {made['token']}"}, room

    async def keep(self, name: str, brightness: int) -> None:
        """Upload an even picture."""
        headers = {**ADMIN, "Content-Type": "image/png"}
        picture = portrait(brightness).data
        assert (await self.ask("POST", f"/api/identities?name={name}", headers, data=picture))[0] == 201

    async def ask(self, method: str, path: str, headers: Any = None, **request: Any) -> tuple[int, Any]:
        """Status and body."""
        async with self.http.request(method, f"{self.url}{path}", headers=headers or {}, **request) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.read())


@asynccontextmanager
async def room_server(settings: Config | None = None, **server: Any) -> AsyncIterator[Serving]:
    """A server with the token `s3cret`."""
    settings = settings or config(server=ServerConfig(port=0, token="s3cret", **server))
    clock = Clock()
    session = Session(settings, portrait(), make_supervisor=InlineSupervisor)

    def make_rooms(config: Config, room: Room) -> Rooms:
        return Rooms(config, room, Identities(None), make_supervisor=InlineSupervisor, now=clock)

    await session.start()
    serving = Server(settings, session, make_rooms=make_rooms)
    url = (await serving.start()).rstrip("/")
    try:
        async with aiohttp.ClientSession() as http:
            yield Serving(serving, url, http, clock)
    finally:
        await serving.stop()
        await session.stop()
