"""The Ray Serve application on a local Ray with two replicas, whose daemons are stubs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import warnings
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import psutil
import pytest

from avatard.cluster.options import OptionsError
from tests.support.stub_daemon import TOKEN

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ray.serve", reason="needs pip install 'avatard[cluster]'")
    import ray
    from ray import serve

    from avatard.cluster import app

pytestmark = pytest.mark.filterwarnings("ignore")
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE = 120.0  # seconds, in which a slow machine starts a replica


class Client:
    """Talks to the ingress."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self.url, self.http = url, http

    async def ask(self, method: str, path: str, **request: Any) -> tuple[int, Any]:
        """Status and JSON, or text."""
        async with self.http.request(method, f"{self.url}{path}", **{"headers": ADMIN, **request}) as response:
            is_json = response.content_type == "application/json"
            return response.status, await (response.json() if is_json else response.text())

    async def create(self) -> str:
        status, made = await self.ask("POST", "/api/rooms", json={})
        assert status == 201, made
        return str(made["id"])

    async def states(self) -> dict[str, str]:
        _, status = await self.ask("GET", "/api/status")
        return {replica["name"]: replica["state"] for replica in status["replicas"]}

    async def homes(self) -> dict[str, str]:
        _, listed = await self.ask("GET", "/api/rooms")
        return {room["id"]: room["replica"] for room in listed["rooms"]}

    async def states_become(self, *expected: str) -> None:
        async with asyncio.timeout(PATIENCE):
            while sorted((await self.states()).values()) != sorted(expected):  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.2)


@pytest.fixture
async def client(monkeypatch) -> AsyncIterator[Client]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # a token of Ray's would be written to the user's home
    monkeypatch.setenv(app.TOKEN_VARIABLE, TOKEN)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = {
        "portrait": "me.png",
        "program": [sys.executable, "-P", "-m", "tests.support.stub_daemon"],
        "cpus": 0.5,
        "min_replicas": 2,
        "max_replicas": 3,
        "downscale_seconds": 1,
        "drain_seconds": 600,
    }

    def up() -> None:
        ray.init(num_cpus=4, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(app.build(arguments), name="avatard", route_prefix="/")

    def down() -> None:
        serve.shutdown()
        ray.shutdown()

    await asyncio.to_thread(up)
    try:
        async with aiohttp.ClientSession() as http:
            yield Client(f"http://127.0.0.1:{port}", http)
    finally:
        await asyncio.to_thread(down)


async def test_rooms_live_and_move_on_two_replicas(client):
    await client.states_become("ready", "ready")
    rooms = [await client.create() for _ in range(4)]
    homes = await client.homes()
    assert sorted(map(list(homes.values()).count, set(homes.values()))) == [2, 2]
    room = rooms[0]
    status, said = await client.ask("POST", f"/rooms/{room}/whep", data="v=0", headers={})
    assert status == 201 and said["path"] == f"/rooms/{room}/whep"
    speech = await client.http.ws_connect(f"{client.url}/rooms/{room}/ws/audio")
    daemon = (await speech.receive_json())["url"]
    await speech.send_bytes(bytes(1 << 20))
    assert await speech.receive_bytes() == bytes(1 << 20)

    # Its daemon dies: the client is told, the room is gone, and a new one is made elsewhere.
    (pid,) = [process.pid for process in psutil.process_iter() if listens(process, daemon)]
    os.kill(pid, signal.SIGKILL)
    event = await speech.receive_json()
    assert event["type"] == "error" and event["data"]["code"] == "room-lost"
    assert (await speech.receive()).type is aiohttp.WSMsgType.CLOSE and speech.close_code == 1012
    assert await client.ask("POST", f"/rooms/{room}/whep", data="v=0") == (
        410,
        {"error": "the machine of this room was lost: make a new room", "code": "room-lost"},
    )
    new = await client.create()
    assert (await client.ask("POST", f"/rooms/{new}/whep", data="v=0"))[0] == 201
    await client.states_become("ready", "ready")
    assert homes[room] not in await client.states()

    # Many rooms: a third replica. Few rooms: one drains, and keeps its rooms until they end.
    for _ in range(6):
        await client.create()
    await client.states_become("ready", "ready", "ready")
    await client.create()
    homes = await client.homes()
    kept = {home: room for room, home in homes.items()}
    assert len(kept) == 3
    for ended in homes.keys() - kept.values():
        assert (await client.ask("DELETE", f"/api/rooms/{ended}"))[0] == 204
    await client.states_become("ready", "ready", "draining")
    (draining,) = [name for name, state in (await client.states()).items() if state == "draining"]
    assert (await client.ask("GET", f"/rooms/{kept[draining]}/api/status"))[0] == 200
    assert (await client.ask("DELETE", f"/api/rooms/{kept[draining]}"))[0] == 204
    await client.states_become("ready", "ready")
    assert draining not in await client.states()
    for room in kept.values():
        await client.ask("DELETE", f"/api/rooms/{room}")  # so that the end need not wait for them


def listens(process: psutil.Process, url: str) -> bool:
    """Whether a stub daemon listens at this address."""
    try:
        port = int(url.rpartition(":")[2])
        return "tests.support.stub_daemon" in process.cmdline() and any(
            connection.laddr.port == port and connection.status == psutil.CONN_LISTEN
            for connection in process.net_connections()
        )
    except psutil.Error:
        return False


def test_without_a_token_there_is_no_cluster(monkeypatch):
    monkeypatch.delenv(app.TOKEN_VARIABLE, raising=False)
    with pytest.raises(OptionsError, match=f"set {app.TOKEN_VARIABLE}$"):
        app.build({"portrait": "me.png"})
