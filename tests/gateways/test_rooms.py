"""Rooms: who gets in, that nothing of one reaches another, how they end, and what is left of them."""

import asyncio
import gc
import threading
from functools import partial

import cv2
import numpy as np
import psutil
import pytest

from avatard.commands.bench_client import LiveClient
from avatard.gateways.room import Room
from avatard.gateways.rooms import LAST_CLIENT_SECONDS
from avatard.inference.ipc import FramesReady
from avatard.media.pcm import to_pcm16
from tests.support.memory import long
from tests.support.room_server import ADMIN, room_server
from tests.support.serving import Screen, beeps, until


@pytest.fixture
async def serving():
    async with room_server() as found:
        yield found


def brightness(jpeg: bytes) -> int:
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return int(pixels[-20, 20, 0])


async def test_a_room_has_the_routes_of_the_default_one(serving):
    base, key, room = await serving.create()
    path = base.removeprefix(serving.url)
    for name in (
        "/",
        "/web/app.js",
        "/api/status",
        "/api/portrait",
        "/healthz",
        "/readyz",
        "/metrics",
        "/api/identity",
    ):
        assert (await serving.ask("GET", f"{path}{name}", key))[0] == 200, name
    _, status = await serving.ask("GET", f"{path}/api/status", key)
    assert status["room"] == room.name and status["ready"] and "rooms" not in status
    assert (await serving.ask("POST", f"{path}/api/interrupt", key))[1]["dropped_ms"] == 0
    assert (await serving.ask("GET", f"{path}/nothing", key))[0] == 404
    assert (await serving.ask("DELETE", f"{path}/api/offer", key))[0] == 405
    async with serving.http.get(f"{base}?a=b", headers=key, allow_redirects=False) as response:
        assert response.status == 308 and response.headers["Location"] == f"{room.name}/?a=b"
    async with serving.http.get(f"{base}/?token={room.token}") as response:
        cookie = response.cookies["avatard_room_token"]
        assert cookie["path"] == f"/rooms/{room.name}/" and cookie["httponly"] and cookie["samesite"] == "Strict"


async def test_the_answer_names_the_routes(serving):
    async with serving.http.post(
        f"{serving.url}/api/rooms", json={}, headers={**ADMIN, "X-Forwarded-Prefix": "/avatars"}
    ) as response:
        made = await response.json()
        assert response.status == 201 and len(made["id"]) >= 32 and len(made["token"]) >= 32
    assert made["urls"]["page"] == f"/avatars/rooms/{made['id']}/"
    assert made["urls"]["whep"] == f"/avatars/rooms/{made['id']}/whep"
    _, listed = await serving.ask("GET", "/api/rooms", ADMIN)
    assert [room["id"] for room in listed["rooms"]] == [made["id"]] and made["token"] not in str(listed)


async def test_only_the_token_of_a_room_or_of_the_server_opens_it(serving):
    base, key, room = await serving.create()
    other, other_key, _ = await serving.create()
    for path in ("/", "/api/status", "/ws/audio", "/mjpeg", "/api/portrait", "/healthz", "/readyz", "/nothing"):
        inside = f"/rooms/{room.name}{path}"
        for wrong in ({}, other_key, {"Authorization": "Bearer"}, {"Cookie": "avatard_room_token="}):
            assert (await serving.ask("GET", inside, wrong))[0] == 401, path
    for method, path in (("POST", "/whep"), ("POST", "/api/offer"), ("POST", "/api/interrupt"), ("DELETE", "")):
        assert (await serving.ask(method, f"/rooms/{room.name}{path}", other_key))[0] == 401
    assert (await serving.ask("GET", f"/rooms/{room.name}/api/status", ADMIN))[0] == 200
    assert (await serving.ask("GET", f"/rooms/{room.name}/api/status?token={room.token}"))[0] == 200
    for path in ("/", "/api/status", "/api/rooms", "/api/identities", "/metrics"):
        assert (await serving.ask("GET", path, key))[0] == 401, "the key of a room opens nothing else"
    assert (await serving.ask("DELETE", f"/api/rooms/{room.name}", key))[0] == 401
    assert serving.rooms.find(room.name) is room


@pytest.mark.parametrize("name", ["", "0" * 32, "..", "%2e%2e", "%00", "a%2Fb", "ä", "x" * 5000, "?", "{}"])
async def test_an_unknown_room_looks_as_one_with_another_token(serving, name):
    _, key, room = await serving.create()
    wrong = await serving.ask("GET", f"/rooms/{room.name}/api/status", {"Authorization": "Bearer wrong"})
    assert wrong[0] == 401
    assert await serving.ask("GET", f"/rooms/{name}/api/status", key) == wrong
    if name not in ("..", "%2e%2e"):  # what a client makes of them is the root
        assert (await serving.ask("GET", f"/rooms/{name}/api/status", ADMIN))[0] == 404
        assert (await serving.ask("DELETE", f"/rooms/{name}", ADMIN))[0] in (404, 405)


async def test_a_person_without_the_token_of_a_room_is_asked_for_it(serving):
    _, _, room = await serving.create()
    for name in (room.name, "0" * 32):
        status, page = await serving.ask("GET", f"/rooms/{name}/?token=wrong", {"Accept": "text/html"})
        assert status == 401 and b"This room asks for its token" in page and b"not the token of this room" in page


async def test_pages_of_other_sites_may_watch_a_room_with_its_token(serving):
    _, key, room = await serving.create()
    elsewhere = {"Origin": "https://viewer.example"}
    async with serving.http.options(f"{serving.url}/rooms/{room.name}/whep", headers=elsewhere) as response:
        assert response.status == 204 and response.headers["Access-Control-Allow-Origin"] == "*"
    assert (await serving.ask("POST", f"/rooms/{room.name}/api/interrupt", {**elsewhere, **key}))[0] == 403


def note(seen: list[int], pts: int, rgb: np.ndarray) -> None:
    seen.append(int(rgb[-20, 20, 0]))


async def test_pictures_speech_and_events_stay_in_their_room(serving):
    await serving.keep("dark", 30)
    await serving.keep("bright", 220)
    dark, dark_key, dark_room = await serving.create(identity="dark")
    bright, bright_key, bright_room = await serving.create(identity="bright")
    seen: dict[str, list[int]] = {"dark": [], "bright": []}
    screens = Screen(), Screen()
    for room, screen in zip((bright_room, serving.server.room), screens, strict=True):
        room.session.attach(screen)
    clients = [
        LiveClient(url, token=room.token, on_picture=partial(note, seen[name]))
        for name, url, room in (("dark", dark, dark_room), ("bright", bright, bright_room))
    ]
    try:
        for client in clients:
            await client.connect()
        async with (
            serving.http.ws_connect(f"{dark}/ws/audio", headers=dark_key) as speaking,
            serving.http.ws_connect(f"{bright}/ws/audio", headers=bright_key) as listening,
        ):
            await speaking.send_json({"sample_rate": 16000})
            await speaking.send_bytes(to_pcm16(beeps(2)).tobytes())
            await speaking.send_json({"type": "end_of_utterance"})
            kinds: list[str] = []
            while "bot-stopped-speaking" not in kinds:
                kinds.append((await speaking.receive_json(timeout=20))["type"])
            with pytest.raises(TimeoutError):
                await listening.receive_json(timeout=0.05)
        await until(lambda: all(len(pictures) > 25 for pictures in seen.values()))
    finally:
        for client in clients:
            await client.close()
    for name, value in (("dark", 30), ("bright", 220)):
        assert max(abs(picture - value) for picture in seen[name]) < 8
    assert not any(np.abs(screen.sound).max() for screen in screens), "nobody else heard it"
    assert any(kind == "bot-started-speaking" for _, kind, _ in clients[0].events)
    assert not any(kind == "bot-started-speaking" for client in clients[1:] for _, kind, _ in client.events)
    for base, key, value in ((dark, dark_key, 30), (bright, bright_key, 220)):
        _, jpeg = await serving.ask("GET", f"{base.removeprefix(serving.url)}/api/portrait", key)
        assert abs(brightness(jpeg) - value) < 4


async def test_a_connection_of_whep_is_found_where_it_was_made(serving):
    from tests.protocols.test_offer import offer

    base, key, room = await serving.create()
    _, other_key, other = await serving.create()
    sdp = {"Content-Type": "application/sdp"}
    async with serving.http.post(f"{base}/whep", data=offer("chrome_page"), headers={**key, **sdp}) as response:
        assert response.status == 201
        location = response.headers["Location"]
    assert location.startswith(f"/rooms/{room.name}/whep/")
    elsewhere = location.replace(room.name, other.name)
    assert (await serving.ask("DELETE", elsewhere, other_key))[0] == 404
    assert (await serving.ask("DELETE", location, key))[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "expected JSON"),
        (b"{", 400, "expected JSON"),
        (b"[" * 4000, 400, "expected JSON"),
        (b"[]", 400, "expected a JSON object"),
        (b"\xff", 400, "the body is not UTF-8"),
        (b'{"portrait": "ada"}', 400, "unknown field `portrait`"),
        (b'{"profile": "best"}', 400, "Invalid enum value 'best'"),
        (b'{"size": 4096}', 400, "<= 1080"),
        (b'{"background": "/etc/passwd"}', 400, "matching regex"),
        (b'{"end_with_last_client": 1}', 400, "Expected `bool`"),
        (b'{"identity": "nobody"}', 422, "there is no identity named 'nobody'"),
        (b" " * 5000, 413, "Maximum request body size"),
    ],
)
async def test_a_room_that_cannot_be_is_one_line(serving, body, status, said):
    headers = {**ADMIN, "Content-Type": "application/json"}
    got, answer = await serving.ask("POST", "/api/rooms", headers, data=body)
    assert got == status and said in answer["error"] and "\n" not in answer["error"]
    assert (await serving.ask("POST", "/api/rooms", ADMIN, data=body))[0] == 415
    assert not len(serving.rooms)


async def test_a_picture_without_the_face_is_refused_and_nothing_is_left(serving):
    image = {**ADMIN, "Content-Type": "image/png"}
    two = cv2.imencode(".png", np.full((64, 128, 3), 9, np.uint8))[1].tobytes()
    assert (await serving.ask("POST", "/api/identities?name=two", image, data=two))[0] == 201
    status, answer = await serving.ask("POST", "/api/rooms", ADMIN, json={"identity": "two"})
    assert (status, answer["code"], answer["faces"]) == (422, "several-faces", 2)
    assert not len(serving.rooms)
    assert (await serving.ask("POST", "/api/identities?name=left&face=1", image, data=two))[0] == 201
    await serving.create(identity="left")


async def test_there_are_so_many_rooms_and_no_more():
    async with room_server(max_rooms=1) as serving:
        _, _, room = await serving.create()
        async with serving.http.post(f"{serving.url}/api/rooms", json={}, headers=ADMIN) as response:
            answer = await response.json()
            assert response.status == 503 and response.headers["Retry-After"] == "10"
            assert (answer["code"], answer["rooms"]) == ("full", 1)
        assert (await serving.ask("DELETE", f"/api/rooms/{room.name}", ADMIN))[0] == 204
        assert (await serving.ask("DELETE", f"/api/rooms/{room.name}", ADMIN))[0] == 404
        await serving.create()


async def test_a_room_is_what_was_asked_for(serving):
    _, _, room = await serving.create(profile="low-latency", size=256, framing="face", background="#00ff00", seed=7)
    config = room.config
    assert (config.stream.profile, config.stream.hop_frames, config.stream.seed) == ("low-latency", 4, 7)
    assert (config.picture.size, config.picture.framing, config.picture.background) == (256, "face", "#00ff00")
    assert not config.output.push and not config.output.record
    _, listed = await serving.ask("GET", "/api/rooms", ADMIN)
    assert (listed["rooms"][0]["profile"], listed["rooms"][0]["size"]) == ("low-latency", 256)


async def test_who_is_in_a_room_may_end_it_and_all_are_told(serving):
    base, key, room = await serving.create()
    async with serving.http.ws_connect(f"{base}/ws/audio", headers=key) as socket:
        ending = asyncio.create_task(serving.ask("DELETE", base.removeprefix(serving.url), key))
        message = await socket.receive(timeout=20)
        if message.type.name == "TEXT":
            assert message.json()["data"] == {
                "message": "the room has ended: its client ended it",
                "code": "room-ended",
                "fatal": True,
            }
            message = await socket.receive(timeout=20)
        assert message.data == 1001
        assert (await ending)[0] == 204
    assert serving.rooms.find(room.name) is None and not room.session.ready
    assert (await serving.ask("GET", f"/rooms/{room.name}/api/status", key))[0] == 401


async def test_a_room_in_which_nobody_is_ends(serving):
    base, key, room = await serving.create(idle_seconds=60)
    _, _, longer = await serving.create(idle_seconds=0)
    async with serving.http.ws_connect(f"{base}/ws/audio", headers=key):
        await until(lambda: room.clients == 1)
        serving.clock.now += 1000
        serving.rooms.look()
        assert serving.rooms.find(room.name) is room
    await until(lambda: not room.occupied)
    serving.clock.now += 59
    serving.rooms.look()
    assert serving.rooms.find(room.name) is room
    serving.clock.now += 2
    await until(lambda: serving.rooms.find(room.name) is None)  # the registry looks by itself
    await until(lambda: not room.session.ready)
    serving.clock.now += 1e6
    serving.rooms.look()
    assert serving.rooms.find(longer.name) is longer


async def test_a_room_ends_with_its_last_client_if_that_was_asked_for(serving):
    base, key, room = await serving.create(end_with_last_client=True)
    serving.clock.now += LAST_CLIENT_SECONDS
    serving.rooms.look()
    assert serving.rooms.find(room.name) is room, "nobody has come yet"
    async with serving.http.ws_connect(f"{base}/ws/audio", headers=key):
        await until(lambda: room.clients == 1)
        serving.rooms.look()
    await until(lambda: not room.occupied)
    serving.clock.now += LAST_CLIENT_SECONDS - 1
    serving.rooms.look()
    assert serving.rooms.find(room.name) is room, "a page may be reloading"
    serving.clock.now += 1
    serving.rooms.look()
    assert serving.rooms.find(room.name) is None


async def test_metrics_and_status_tell_the_rooms(serving):
    _, _, room = await serving.create()
    room.session.attach(Screen())
    await until(lambda: room.session.scheduler.counters.played > 3)
    text = (await serving.ask("GET", "/metrics", ADMIN))[1].decode()
    assert "\navatard_rooms 1.0\n" in text and "\navatard_capacity_core_ms " in text
    assert f'avatard_frames_total{{fate="played",room="{room.name}"}}' in text
    assert 'avatard_frames_total{fate="played"} 0.0' in text, "the default room's are what they were"
    assert text.count("# TYPE avatard_frames_total counter") == 1
    _, status = await serving.ask("GET", "/api/status", ADMIN)
    assert status["rooms"]["count"] == 1
    code, ready = await serving.ask("GET", "/readyz")
    assert code == 200 and ready.startswith(b"ready\ncount 1\n") and b"headroom_core_ms " in ready
    await serving.rooms.end(room.name, "test")
    assert room.name not in (await serving.ask("GET", "/metrics", ADMIN))[1].decode()


async def test_a_room_without_viewers_and_speech_generates_nothing(serving):
    _, _, room = await serving.create()
    supervisor = room.session.generation.supervisor
    serving.rooms.look()
    await asyncio.sleep(0)
    assert supervisor.chunks == [] and not room.session.playout.playing


def left() -> tuple[int, int, int]:
    return len(asyncio.all_tasks()), threading.active_count(), psutil.Process().num_fds()


async def come_and_go(serving, times: int) -> None:
    for _ in range(times):
        base, key, room = await serving.create()
        path = base.removeprefix(serving.url)
        assert (await serving.ask("GET", f"{path}/api/status", key))[0] == 200
        assert (await serving.ask("DELETE", path, key))[0] == 204
    gc.collect()


async def test_fifty_rooms_in_a_row_leave_nothing(serving):
    await come_and_go(serving, 3)
    before = left()
    await come_and_go(serving, 50)
    await until(lambda: all(now <= then for now, then in zip(left(), before, strict=True)))
    rooms = [found for found in gc.get_objects() if isinstance(found, Room) and found.name]
    assert len(rooms) <= 1, "the connection may know its last request"


@long
async def test_five_hundred_rooms_in_a_row_take_no_memory(serving):
    await come_and_go(serving, 50)
    before = psutil.Process().memory_info().rss
    await come_and_go(serving, 500)
    grown = psutil.Process().memory_info().rss - before
    print(f"resident: {before / 1e6:.1f} MB, {grown / 1e6:+.1f} MB after 500 rooms")
    assert grown < 5e6


@pytest.fixture
def two_cores(monkeypatch):
    """Two cores; the test engine takes 40 ms for a hop of four frames."""
    monkeypatch.setattr("avatard.gateways.rooms.cores", lambda: 2)


async def test_a_room_that_does_not_fit_is_told_what_would(two_cores):
    async with room_server() as serving:
        serving.rooms.look()
        capacity, cost = serving.rooms.capacity, serving.rooms.capacity.cost(serving.rooms.kind())
        capacity.total = 2.75 * cost
        speaking = [await serving.create() for _ in range(2)]
        for _, _, room in speaking:
            room.session.turns._activity.speaking = True
        serving.rooms.look()
        async with serving.http.post(f"{serving.url}/api/rooms", json={}, headers=ADMIN) as response:
            answer = await response.json()
            assert response.status == 503 and response.headers["Retry-After"] == "10"
        assert answer["code"] == "no-capacity" and answer["retry_after_s"] == 10
        assert answer["needed_core_ms"] == pytest.approx(cost, abs=1)
        assert answer["headroom_core_ms"] == pytest.approx(0.75 * cost, abs=1)
        assert answer["fits"]["size"] < 512 and f"at {answer['fits']['size']} pixels would fit" in answer["error"]
        await serving.create(**answer["fits"])
        _, listed = await serving.ask("GET", "/api/rooms", ADMIN)
        assert listed["count"] == 3 and listed["headroom_core_ms"] >= 0
        for _, _, room in speaking:
            room.session.turns._activity.speaking = False
        serving.clock.now += 31
        await serving.create()


async def test_four_rooms_of_which_one_speaks_fit_where_two_that_speak_do(two_cores):
    async with room_server() as serving:
        serving.rooms.look()
        serving.rooms.capacity.total = 2.2 * serving.rooms.capacity.cost(serving.rooms.kind())
        rooms = [(await serving.create())[2] for _ in range(4)]
        rooms[0].session.turns._activity.speaking = True
        serving.rooms.look()
        assert serving.rooms.figures()["headroom_core_ms"] >= 0


async def test_the_default_room_counts_while_somebody_is_there(two_cores):
    async with room_server() as serving:
        serving.rooms.look()
        assert serving.rooms.demand == 0
        screen = Screen()
        serving.server.room.session.attach(screen)
        assert serving.rooms.demand == pytest.approx(serving.rooms.capacity.cost(serving.rooms.kind()) / 4)
        before = serving.rooms.capacity.cost(serving.rooms.kind())
        await until(lambda: len(serving.server.room.session.metrics.load) >= 12)
        serving.rooms.look()
        assert serving.rooms.capacity.cost(serving.rooms.kind()) != before, "its frames tell what a room costs"


async def test_under_overload_rooms_in_which_nobody_speaks_give_way_first():
    async with room_server() as serving:
        rooms = [(await serving.create())[2] for _ in range(2)]
        speaking, quiet = (room.session.generation for room in rooms)
        for room in rooms:
            room.session.attach(Screen())
        await until(lambda: all(room.session.playout.playing for room in rooms))
        rooms[0].session.turns._activity.speaking = True

        def look(seconds: float) -> tuple[bool, bool, bool]:
            rooms[0].session.turns._activity.speaking = True
            serving.clock.now += seconds
            serving.rooms.look()
            return speaking.pressed, speaking.patient, quiet.pressed

        assert look(1) == (False, True, False)
        for _ in range(40):
            speaking._load.frames_ready(FramesReady(0, 0, 1, 2, 2, 0.01, 0.01, 0.1))
        assert speaking.busy
        assert look(1) == (False, True, True), "the quiet one gives way, the other waits"
        assert speaking._load.decide(patient=True) is None
        for _ in range(40):
            speaking._load.frames_ready(FramesReady(0, 0, 1, 2, 2, 0.01, 0.01, 0.1))
        assert look(6) == (False, False, True), "that did not help"
        speaking._load.forget()
        assert look(25) == (False, True, False), "it is over"
        for room in rooms:
            await serving.rooms.end(room.name, "test")
        serving.rooms.look()
        assert not serving.server.room.session.generation.patient
