"""The ingress before a daemon of this project: what it expects of one is what a daemon does."""

import json

import pytest

from avatard.cluster.directory import Member
from avatard.cluster.ingress import Ingress
from tests.support.asgi import connect, request

support = pytest.importorskip("tests.support.room_server", reason="needs a daemon with rooms")


async def test_a_room_is_made_used_and_ended_through_the_ingress():
    async with support.room_server() as serving:

        async def members() -> dict[str, Member]:
            return {"a": Member(serving.url)}

        ingress = Ingress(members, "s3cret")
        await ingress.start()
        (replica,) = ingress.directory.candidates()
        assert replica.headroom > 0
        sent = {**support.ADMIN, "Content-Type": "application/json", "X-Forwarded-Prefix": "/app"}
        made = (await request(ingress, "POST", "/api/rooms", sent, b'{"profile": "low-latency"}')).json()
        room, opened = made["id"], {"Authorization": f"Bearer {made['token']}"}
        assert made["urls"]["whep"] == f"/app/rooms/{room}/whep"
        page = await request(ingress, "GET", f"/rooms/{room}/?token={made['token']}", {"X-Forwarded-Prefix": "/app"})
        assert page.status == 200 and f"/app/rooms/{room}" in page.headers["set-cookie"]
        assert (await request(ingress, "GET", f"/rooms/{room}/api/status", opened)).json()["room"] == room
        assert (await request(ingress, "GET", f"/rooms/{room}/api/status")).status == 401

        speech = await connect(ingress, f"/rooms/{room}/ws/audio", headers=opened)
        assert (await speech.next())["type"] == "websocket.accept"
        speech.to_app.put_nowait({"type": "websocket.receive", "text": "nonsense"})
        assert json.loads((await speech.next())["text"])["data"]["code"] == "bad-message"
        speech.to_app.put_nowait({"type": "websocket.disconnect", "code": 1000})
        await speech.end()

        assert (await request(ingress, "DELETE", f"/api/rooms/{room}", support.ADMIN)).status == 204
        assert (await request(ingress, "GET", f"/rooms/{room}/api/status", opened)).status == 404
        await ingress.stop()
