"""What `/api/livekit` answers without LiveKit's packages; with them see tests/integrations/test_livekit.py."""

import sys

import aiohttp
import pytest

from tests.support.paths import ROOT
from tests.support.serving import running_server


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setitem(sys.modules, "livekit", None)
    for name in ("avatard.integrations.livekit", "avatard.integrations.livekit_room"):
        monkeypatch.delitem(sys.modules, name, raising=False)


async def test_invitations_that_cannot_be_accepted():
    async with running_server() as (session, url), aiohttp.ClientSession() as http:

        async def invite(body: object) -> tuple[int, str, str]:
            async with http.post(f"{url}/api/livekit", json=body) as response:
                answer = await response.json()
                return response.status, answer["code"], answer["error"]

        good: dict[str, object] = {"url": "wss://livekit.example", "token": "a.b.c"}
        status, code, text = await invite(good)
        assert (status, code) == (501, "not-installed")
        assert text == "livekit is not installed: pip install 'avatard[livekit]'"
        bodies: tuple[object, ...] = (
            [],
            {},
            good | {"url": "ftp://x"},
            good | {"token": ""},
            good | {"token": 5},
            good | {"room": "x"},
        )
        for body in bodies:
            status, code, text = await invite(body)
            assert (status, code) == (400, "bad-request")
            assert text.endswith('expected {"url": "wss://...", "token": "..."}') and "\n" not in text
        async with http.post(f"{url}/api/livekit", data=b"\xff", headers={"Content-Type": "text/plain"}) as response:
            assert response.status == 415
        async with http.get(f"{url}/api/livekit") as response:
            assert await response.json() == {"id": None, "room": None, "identity": None, "agent": None}
        async with http.delete(f"{url}/api/livekit") as response:
            assert response.status == 404
        await session.generation.stop()
        assert not session.ready
        assert (await invite(good))[0] == 503
