"""Who is let in: the token, pages of other sites, and names that were made to point at this machine."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from avatard.config import Server
from avatard.gateways.middleware import admission, allow_origins, answer_errors

ELSEWHERE = {"Origin": "https://evil.example"}


@asynccontextmanager
async def gate(**server: Any):
    """A client of an application that answers whatever the gate lets through."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="in")

    config = Server(**server)
    app = web.Application(middlewares=[answer_errors, admission(config)])
    app.on_response_prepare.append(allow_origins(config.token))
    for path in ("/", "/healthz", "/whep", "/whip/{name}", "/api/interrupt"):
        app.router.add_route("*", path, answer)
    async with TestClient(TestServer(app)) as client:
        yield client


async def status(client, path: str, method: str = "POST", **headers: str) -> tuple[int, str]:
    """The status, and who may read the answer."""
    async with client.request(method, path, headers=headers) as response:
        return response.status, response.headers.get("Access-Control-Allow-Origin", "")


@pytest.mark.parametrize("path", ["/whep", "/whip/name", "/api/interrupt", "/"])
async def test_without_a_token_no_page_of_another_site_is_served(path):
    async with gate() as client:
        for method in ("OPTIONS", "POST", "DELETE"):
            assert await status(client, path, method, **ELSEWHERE) == (403, "")
        for origin in ("null", "http://[", ""):
            assert await status(client, path, Origin=origin) == (403, "")
        for origin in ("http://localhost.evil.example", "http://127.0.0.1.evil.example"):
            assert await status(client, path, Origin=origin) == (403, "")
        assert (await status(client, path, Origin=str(client.make_url("")).rstrip("/")))[0] == 200
        assert await status(client, path) == (200, ""), "OBS and ffmpeg send no Origin"


async def test_without_a_token_pages_of_this_machine_may_use_whep_and_whip():
    async with gate() as client:
        for origin in ("http://localhost:3000", "https://127.0.0.1:9", "http://[::1]"):
            assert await status(client, "/whep", "OPTIONS", Origin=origin) == (200, "*")
            assert await status(client, "/whip/name", Origin=origin) == (200, "*")
            assert await status(client, "/api/interrupt", Origin=origin) == (403, "")


async def test_a_token_of_bytes_that_are_no_text_is_a_wrong_one():
    async with gate(token="s3cret") as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
        await writer.wait_closed()


async def test_with_a_token_any_page_that_has_it_may_use_whep_and_whip():
    token = {"Authorization": "Bearer s3cret"}
    async with gate(token="s3cret") as client:
        assert await status(client, "/whep", "OPTIONS", **ELSEWHERE) == (204, "*"), "a preflight"
        assert await status(client, "/whep", "OPTIONS", **ELSEWHERE, **token) == (200, "*")
        assert await status(client, "/whep", **ELSEWHERE) == (401, "*")
        assert await status(client, "/whep", **ELSEWHERE, **token) == (200, "*")
        assert await status(client, "/api/interrupt", **ELSEWHERE, **token) == (403, "")
        assert await status(client, "/whep", **token, Host="avatar.example") == (200, "*"), "behind a proxy"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.5"])
async def test_on_loopback_only_its_own_names_are_served(host):
    async with gate(host=host) as client:
        own = f"[{host}]" if ":" in host else host
        for name in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]", "[::1]:8080", f"{own}:80"):
            assert await status(client, "/api/interrupt", Host=name) == (200, "")
        for name in ("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.9", "[", ""):
            assert (await status(client, "/whep", Host=name, Origin=f"http://{name}"))[0] == 403
        async with client.get("/", headers={"Host": "evil.example"}) as response:
            said = (await response.json())["error"]
        assert said.startswith("got Host evil.example, expected localhost, 127.0.0.1") and "token" in said


async def test_elsewhere_any_name_is_served():
    async with gate(host="0.0.0.0") as client:
        assert await status(client, "/whep", Host="avatar.example") == (200, "")
