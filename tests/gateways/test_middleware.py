"""The token, pages of other sites, names that were made to point at this machine, and errors as JSON."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from avatard.config import Server
from avatard.errors import UserError
from avatard.gateways.middleware import authentication, cors_headers, json_errors, same_origin, trusted_host

ELSEWHERE = {"Origin": "https://evil.example"}


@asynccontextmanager
async def serving(handler: Any = None, **server: Any):
    """A client of an application that answers whatever passes the middleware."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text="in")

    config = Server(**server)
    token = config.token
    app = web.Application(middlewares=[json_errors, trusted_host(config), same_origin(token), authentication(token)])
    app.on_response_prepare.append(cors_headers(token))
    for path in ("/", "/healthz", "/readyz", "/whep", "/whip/{name}", "/api/interrupt"):
        app.router.add_route("*", path, handler or answer)
    async with TestClient(TestServer(app)) as client:
        yield client


async def status(client, path: str, method: str = "POST", **headers: str) -> tuple[int, str]:
    """The status, and who may read the answer."""
    async with client.request(method, path, headers=headers) as response:
        return response.status, response.headers.get("Access-Control-Allow-Origin", "")


@pytest.mark.parametrize("path", ["/whep", "/whip/name", "/api/interrupt", "/"])
async def test_without_a_token_no_page_of_another_site_is_served(path):
    async with serving() as client:
        for method in ("OPTIONS", "POST", "DELETE"):
            assert await status(client, path, method, **ELSEWHERE) == (403, "")
        for origin in ("null", "http://[", ""):
            assert await status(client, path, Origin=origin) == (403, "")
        for origin in ("http://localhost.evil.example", "http://127.0.0.1.evil.example"):
            assert await status(client, path, Origin=origin) == (403, "")
        assert (await status(client, path, Origin=str(client.make_url("")).rstrip("/")))[0] == 200
        assert await status(client, path) == (200, ""), "OBS and ffmpeg send no Origin"


async def test_without_a_token_pages_of_this_machine_may_use_whep_and_whip():
    async with serving() as client:
        for origin in ("http://localhost:3000", "https://127.0.0.1:9", "http://[::1]"):
            assert await status(client, "/whep", "OPTIONS", Origin=origin) == (200, "*")
            assert await status(client, "/whip/name", Origin=origin) == (200, "*")
            assert await status(client, "/api/interrupt", Origin=origin) == (403, "")


async def test_a_token_of_bytes_that_are_no_text_is_a_wrong_one():
    async with serving(token="s3cret") as client:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\nConnection: close\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401")
        writer.close()
        await writer.wait_closed()


async def test_with_a_token_any_page_that_has_it_may_use_whep_and_whip():
    token = {"Authorization": "Bearer s3cret"}
    async with serving(token="s3cret") as client:
        assert await status(client, "/whep", "OPTIONS", **ELSEWHERE) == (204, "*"), "a preflight"
        assert await status(client, "/whep", "OPTIONS", **ELSEWHERE, **token) == (200, "*")
        assert await status(client, "/whep", **ELSEWHERE) == (401, "*")
        assert await status(client, "/whep", **ELSEWHERE, **token) == (200, "*")
        assert await status(client, "/api/interrupt", **ELSEWHERE, **token) == (403, "")
        assert await status(client, "/whep", **token, Host="avatar.example") == (200, "*"), "behind a proxy"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.5"])
async def test_on_loopback_only_its_own_names_are_served(host):
    async with serving(host=host) as client:
        own = f"[{host}]" if ":" in host else host
        for name in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]", "[::1]:8080", f"{own}:80"):
            assert await status(client, "/api/interrupt", Host=name) == (200, "")
        for name in ("evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.9", "[", ""):
            assert (await status(client, "/whep", Host=name, Origin=f"http://{name}"))[0] == 403
        async with client.get("/", headers={"Host": "evil.example"}) as response:
            said = (await response.json())["error"]
        assert said.startswith("got Host evil.example, expected localhost, 127.0.0.1") and "token" in said


async def test_elsewhere_any_name_is_served():
    async with serving(host="0.0.0.0") as client:
        assert await status(client, "/whep", Host="avatar.example") == (200, "")


async def test_health_checks_need_neither_token_nor_name():
    async with serving(token="s3cret") as client:
        for path in ("/healthz", "/readyz"):
            assert (await status(client, path, "GET"))[0] == 200
    async with serving() as client:
        assert (await status(client, "/readyz", "GET", Host="10.0.0.7:8080"))[0] == 200


async def answer_to(error: Exception, cause: Exception | None = None) -> tuple[int, dict[str, Any]]:
    async def fail(request: web.Request) -> web.Response:
        raise error from cause

    async with serving(fail) as client, client.get("/") as response:
        return response.status, await response.json()


async def test_errors_have_a_code_and_the_fields_of_their_cause():
    several = UserError("the portrait has 2 faces", code="several-faces", faces=2)
    body = {"error": "the portrait has 2 faces", "code": "several-faces", "faces": 2}
    assert await answer_to(web.HTTPUnprocessableEntity(text=str(several)), several) == (422, body)
    assert await answer_to(several) == (400, body)
    assert await answer_to(web.HTTPNotFound(text="no such thing")) == (
        404,
        {"error": "no such thing", "code": "not-found"},
    )
    assert await answer_to(web.HTTPConflict(text="no")) == (409, {"error": "no", "code": "http-409"})


async def test_a_bug_is_logged_and_not_told(caplog):
    assert await answer_to(RuntimeError("secret")) == (500, {"error": "internal error", "code": "internal"})
    assert [record.getMessage() for record in caplog.records if record.name.startswith("avatard")] == ["request failed"]
