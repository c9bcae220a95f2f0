"""The ingress before two stub daemons: where rooms go, that they stay there, and what their clients are told."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from avatard.cluster.directory import Member
from avatard.cluster.ingress import Ingress
from tests.support.asgi import Exchange, connect, request, scope
from tests.support.serving import until
from tests.support.stub_daemon import TOKEN, StubDaemon

ADMIN = {"Authorization": f"Bearer {TOKEN}"}


class Cluster:
    """An ingress, and the daemons before which it stands."""

    def __init__(self, daemons: dict[str, StubDaemon]) -> None:
        self.daemons = daemons
        self.draining: set[str] = set()
        self.ingress = Ingress(self.members, TOKEN)

    async def members(self) -> Mapping[str, Member]:
        return {name: Member(daemon.url, name in self.draining) for name, daemon in self.daemons.items()}

    async def create(self) -> tuple[str, str]:
        """A room, and the name of the daemon that has it."""
        made = await request(self.ingress, "POST", "/api/rooms", ADMIN, b"{}")
        assert made.status == 201, made.body
        room = made.json()["id"]
        return room, next(name for name, daemon in self.daemons.items() if room in daemon.rooms)


@asynccontextmanager
async def running(*daemons: StubDaemon) -> AsyncIterator[Cluster]:
    for daemon in daemons:
        await daemon.start()
    cluster = Cluster({f"r{number}": daemon for number, daemon in enumerate(daemons)})
    await cluster.ingress.start()
    try:
        yield cluster
    finally:
        await cluster.ingress.stop()
        for daemon in daemons:
            await daemon.stop()


async def test_rooms_go_where_most_headroom_is_and_every_request_follows():
    async with running(StubDaemon(1000), StubDaemon(1400)) as cluster:
        rooms = [await cluster.create() for _ in range(8)]
        homes = [home for _, home in rooms]
        assert homes[:2] == ["r1", "r1"] and (homes.count("r0"), homes.count("r1")) == (3, 5)
        for room, home in rooms:
            daemon = cluster.daemons[home]
            for method, path in (("POST", "whep"), ("PATCH", "whep/x"), ("GET", "api/status"), ("GET", "")):
                answer = await request(cluster.ingress, method, f"/rooms/{room}/{path}?a=%2F", body=b"v=0" * 9)
                said = answer.json()
                assert said["url"] == daemon.url and said["path"] == f"/rooms/{room}/{path}?a=%2F"
                assert said["method"] == method and said["body"] == "v=0" * 9


async def test_a_full_replica_is_passed_over_and_all_full_ones_are_told():
    async with running(StubDaemon(400), StubDaemon(300)) as cluster:
        homes = [(await cluster.create())[1] for _ in range(3)]
        assert sorted(homes) == ["r0", "r0", "r1"]
        refused = await request(cluster.ingress, "POST", "/api/rooms", ADMIN, b"{}")
        assert refused.status == 503 and refused.headers["retry-after"] == "10"
        assert refused.json()["code"] == "no-capacity"


async def test_the_daemons_decide_who_may_make_rooms():
    async with running(StubDaemon()) as cluster:
        for method, path in (("POST", "/api/rooms"), ("GET", "/api/rooms"), ("GET", "/api/status")):
            assert (await request(cluster.ingress, method, path, body=b"{}")).status == 401
        too_long = await request(cluster.ingress, "POST", "/api/rooms", ADMIN, b" " * 70_000)
        assert too_long.status == 413 and too_long.json()["code"] == "too-large"


async def test_headers_pass_both_ways():
    async with running(StubDaemon()) as cluster:
        room, _ = await cluster.create()
        sent = {"Host": "avatars.example", "Cookie": "a=b", "X-Forwarded-Prefix": "/cdn/", "Connection": "close"}
        answer = await request(cluster.ingress, "POST", f"/rooms/{room}/whep", sent, b"x", root_path="/app")
        got = answer.json()["headers"]
        got = {name.lower(): value for name, value in got.items()}
        assert got["host"] == "avatars.example" and got["cookie"] == "a=b" and got["x-forwarded-for"] == "192.0.2.9"
        assert got["x-forwarded-prefix"] == "/cdn/app" and "connection" not in got
        assert answer.headers["location"] == f"/cdn/app/rooms/{room}/whep/resource"
        assert [value for name, value in answer.lines if name == "link"] == ["<stun:a>", "<turn:b>"]


async def test_the_mount_path_is_not_part_of_the_room():
    async with running(StubDaemon()) as cluster:
        room, _ = await cluster.create()
        answer = await request(cluster.ingress, "GET", f"/app/rooms/{room}/api/status", root_path="/app")
        assert answer.json()["path"] == f"/rooms/{room}/api/status"


async def test_rooms_are_listed_and_end():
    async with running(StubDaemon(), StubDaemon()) as cluster:
        made = dict([await cluster.create() for _ in range(4)])
        listed = (await request(cluster.ingress, "GET", "/api/rooms", ADMIN)).json()
        assert {room["id"]: room["replica"] for room in listed["rooms"]} == made and listed["count"] == 4
        room, home = made.popitem()
        assert (await request(cluster.ingress, "DELETE", f"/api/rooms/{room}", ADMIN)).status == 204
        assert room not in cluster.daemons[home].rooms
        gone = await request(cluster.ingress, "GET", f"/rooms/{room}/")
        assert gone.status == 404 and gone.json()["code"] == "not-found"
        status = (await request(cluster.ingress, "GET", "/api/status", ADMIN)).json()
        assert [replica["state"] for replica in status["replicas"]] == ["ready", "ready"]


async def test_a_room_of_another_ingress_is_found():
    async with running(StubDaemon(), StubDaemon()) as cluster:
        other = Ingress(cluster.members, TOKEN)
        await other.start()
        room, home = await cluster.create()
        answer = await request(other, "GET", f"/rooms/{room}/api/status")
        assert answer.status == 200 and answer.json()["url"] == cluster.daemons[home].url
        await other.stop()


async def test_a_draining_replica_keeps_its_rooms_and_gets_no_more():
    async with running(StubDaemon(1000), StubDaemon(2000)) as cluster:
        room, home = await cluster.create()
        assert home == "r1"
        cluster.draining.add("r1")
        await until(lambda: [replica.name for replica in cluster.ingress.directory.candidates()] == ["r0"])
        assert (await cluster.create())[1] == "r0"
        assert (await request(cluster.ingress, "GET", f"/rooms/{room}/api/status")).status == 200


async def test_without_a_replica_the_answer_says_when_to_come_back():
    async with running() as cluster:
        assert (await request(cluster.ingress, "GET", "/healthz")).status == 200
        assert (await request(cluster.ingress, "GET", "/readyz")).status == 503
        refused = await request(cluster.ingress, "POST", "/api/rooms", ADMIN, b"{}")
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert refused.json() == {
            "error": "no machine takes rooms now; try again in 5 s",
            "code": "no-replica",
            "retry_after_s": 5,
        }
        assert (await request(cluster.ingress, "GET", "/")).status == 404


async def open_socket(cluster: Cluster, room: str, kind: str = "audio") -> Exchange:
    client = await connect(cluster.ingress, f"/rooms/{room}/ws/{kind}", subprotocols=["speech"])
    accepted = await client.next()
    assert accepted == {"type": "websocket.accept", "subprotocol": "speech"}
    return client


async def test_a_websocket_passes_both_ways_and_so_do_close_codes():
    async with running(StubDaemon(), StubDaemon()) as cluster:
        room, home = await cluster.create()
        client = await open_socket(cluster, room)
        assert json.loads((await client.next())["text"])["url"] == cluster.daemons[home].url
        client.to_app.put_nowait({"type": "websocket.receive", "bytes": bytes(1 << 20)})
        assert (await client.next())["bytes"] == bytes(1 << 20)
        client.to_app.put_nowait({"type": "websocket.receive", "text": "bye"})
        assert await client.next() == {"type": "websocket.close", "code": 4001}
        await client.end()
        client = await open_socket(cluster, room)
        client.to_app.put_nowait({"type": "websocket.disconnect", "code": 1001})
        await client.end()
        assert not cluster.ingress._streams


async def test_a_handshake_that_the_daemon_refuses_is_refused():
    async with running(StubDaemon()) as cluster:
        room, _ = await cluster.create()
        for path, status in (
            (f"/rooms/{room}/ws/audio?token=wrong", 401),
            ("/rooms/unknown/ws/audio", 404),
            ("/x", 404),
        ):
            client = await connect(cluster.ingress, path, extensions={"websocket.http.response": {}})
            assert (await client.next())["status"] == status
            await client.end()
            client = await connect(cluster.ingress, path)  # of a server that cannot answer a handshake with a status
            if status == 404:
                assert (await client.next())["type"] == "websocket.accept"
                assert json.loads((await client.next())["text"])["data"]["code"] == "not-found"
            assert (await client.next())["type"] == "websocket.close"
            await client.end()


async def lose(cluster: Cluster, name: str) -> None:
    await cluster.daemons[name].stop()


@pytest.mark.parametrize("kind", ["audio", "agent"])
async def test_when_a_replica_dies_its_clients_are_told_and_a_new_room_is_made(kind):
    async with running(StubDaemon(2000), StubDaemon(1000)) as cluster:
        room, home = await cluster.create()
        assert home == "r0"
        client = await open_socket(cluster, room, kind)
        await client.next()
        await lose(cluster, home)
        event = json.loads((await client.next())["text"])
        fields = event["data"] if kind == "audio" else event
        assert event["type"] == "error" and fields["code"] == "room-lost" and "make a new room" in fields["message"]
        assert await client.next() == {"type": "websocket.close", "code": 1012}
        await client.end()
        answer = await request(cluster.ingress, "POST", f"/rooms/{room}/whep", body=b"v=0")
        assert answer.status == 410 and answer.json()["code"] == "room-lost"
        again = await connect(cluster.ingress, f"/rooms/{room}/ws/{kind}")
        assert (await again.next())["type"] == "websocket.accept"
        assert "room-lost" in (await again.next())["text"]
        await again.end()
        other, home = await cluster.create()
        assert home == "r1"
        assert (await request(cluster.ingress, "POST", f"/rooms/{other}/whep", body=b"v=0")).status == 201


async def test_a_machine_that_vanishes_without_a_word_is_given_up(monkeypatch):
    """Its connections stay open, and nothing comes."""
    async with running(StubDaemon()) as cluster:
        room, home = await cluster.create()
        client = await open_socket(cluster, room)
        await client.next()
        with socket.socket() as deaf:  # takes connections, and does not answer
            deaf.bind(("127.0.0.1", 0))
            deaf.listen()
            replica = cluster.ingress.directory.find(room)
            replica.url = cluster.daemons[home].url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
            for name, seconds in (("directory.LOST", 0.3), ("watch.ANSWER", 0.1), ("watch.PERIOD", 0.1)):
                monkeypatch.setattr(f"avatard.cluster.{name}_SECONDS", seconds)
            assert "room-lost" in (await client.next())["text"]
            await client.end()
            assert (await request(cluster.ingress, "GET", f"/rooms/{room}/")).status == 410


async def test_a_stream_ends_at_both_ends():
    async with running(StubDaemon()) as cluster:
        room, home = await cluster.create()
        daemon = cluster.daemons[home]

        async def watch() -> Exchange:
            client = Exchange(cluster.ingress, scope("http", f"/rooms/{room}/mjpeg", method="GET"))
            client.to_app.put_nowait({"type": "http.request", "body": b""})
            assert (await client.next())["status"] == 200
            for _ in range(3):
                assert b"picture" in (await client.next())["body"]
            return client

        client = await watch()
        client.to_app.put_nowait({"type": "http.disconnect"})
        await client.end()
        await until(lambda: daemon.streams == 0)
        client = await watch()
        await lose(cluster, home)
        await client.end()
        assert not cluster.ingress._streams


async def test_the_application_starts_and_stops_with_its_server():
    cluster = Cluster({})
    server = Exchange(cluster.ingress, scope("lifespan", "/"))
    for phase in ("startup", "shutdown"):
        server.to_app.put_nowait({"type": f"lifespan.{phase}"})
        assert (await server.next())["type"] == f"lifespan.{phase}.complete"
    await server.end()


async def test_many_requests_for_unknown_rooms_make_few_looks(monkeypatch):
    async with running(StubDaemon()) as cluster:
        looks = 0
        look = cluster.ingress._watch.look  # type: ignore[union-attr]

        async def counted() -> None:
            nonlocal looks
            looks += 1
            await look()

        monkeypatch.setattr(cluster.ingress._watch, "look", counted)
        answers = await asyncio.gather(*(request(cluster.ingress, "GET", f"/rooms/{n}/") for n in range(50)))
        assert {answer.status for answer in answers} == {404} and looks < 25
