"""Half requests and too many connections, over real sockets."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from avatard.gateways import connections
from avatard.gateways.connections import ConnectionLimiter
from avatard.gateways.middleware import json_errors
from avatard.protocols import http_body
from avatard.protocols.http_body import read_body
from tests.support.serving import until

HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\n"


class Client:
    """A socket that sends bytes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def read(self) -> str:
        """Everything, to the end of the connection."""
        async with asyncio.timeout(10):
            try:
                return (await self.reader.read()).decode()
            except ConnectionResetError:
                return ""


@asynccontextmanager
async def serving(most: int = 100, answer: asyncio.Event | None = None):
    """The limiter, and a way to connect; with an event, `/` is answered when it is set."""

    async def index(request: web.Request) -> web.Response:
        if answer is not None:
            await answer.wait()
        return web.Response(text="in")

    async def post(request: web.Request) -> web.Response:
        return web.Response(text=str(len(await read_body(request, ("text/plain",), 100))))

    limiter = ConnectionLimiter(most)
    app = web.Application(middlewares=[limiter.middleware, json_errors])
    app.router.add_get("/", index)
    app.router.add_post("/", post)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    assert runner.server is not None
    server = await asyncio.get_running_loop().create_server(limiter.limited(runner.server), "127.0.0.1", 0)
    clients: list[Client] = []

    async def connect(data: bytes = b"") -> Client:
        clients.append(Client(*await asyncio.open_connection(*server.sockets[0].getsockname())))
        clients[-1].send(data)
        return clients[-1]

    yield limiter, connect
    for client in clients:
        client.writer.close()
        await asyncio.gather(client.writer.wait_closed(), return_exceptions=True)
    server.close()
    await runner.cleanup()
    limiter.close()


def logged(caplog: Any) -> list[Any]:
    return [record for record in caplog.records if record.name.startswith("avatard")]


async def test_half_requests_are_told_and_closed_and_logged_in_one_line(monkeypatch, caplog):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(connections, "LOG_SECONDS", 0.5)
    async with serving() as (limiter, connect):
        clients = [await connect(HALF) for _ in range(20)]
        silent = await connect()
        for client in clients:
            answer = await client.read()
            assert answer.startswith("HTTP/1.1 408 Request Timeout\r\n") and '"code": "timeout"' in answer
        assert await silent.read() == "", "a connection without a byte is closed without one"
        await until(lambda: not len(limiter) and logged(caplog))
        (record,) = logged(caplog)
        assert record.getMessage() == "HTTP connections closed" and record.timed_out == 20


async def test_a_later_half_request_has_its_own_clock(monkeypatch):
    async with serving() as (limiter, connect):
        client = await connect(HALF + b"\r\n")
        assert b"200 OK" in await client.reader.readuntil(b"\r\n\r\nin")
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
        client.send(HALF)
        assert "408 Request Timeout" in await client.read()
        await until(lambda: not len(limiter))


async def test_an_idle_connection_is_closed(monkeypatch):
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
    async with serving() as (limiter, connect):
        client = await connect(HALF + b"\r\n")
        assert (await client.read()).endswith("in")


async def test_a_request_in_progress_is_never_closed(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.1)
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.1)
    answer = asyncio.Event()
    async with serving(1, answer) as (limiter, connect):
        client = await connect(HALF + b"\r\n")
        await until(lambda: limiter.busy == 1)
        late = await (await connect(HALF)).read()
        assert late.startswith("HTTP/1.1 503 ") and "Retry-After: 10" in late and "too many connections" in late
        asyncio.get_running_loop().call_later(0.3, answer.set)
        assert (await client.read()).endswith("in")


async def test_half_requests_make_room_for_whole_ones(caplog):
    async with serving(5) as (limiter, connect):
        half = [await connect(HALF) for _ in range(5)]
        await until(lambda: len(limiter) == 5)
        client = await connect(HALF + b"Connection: close\r\n\r\n")
        assert (await client.read()).endswith("in")
        assert await half[0].read() == "", "the oldest one"


async def test_a_body_that_does_not_arrive_is_told(monkeypatch):
    monkeypatch.setattr(http_body, "BODY_SECONDS", 0.1)
    async with serving() as (_, connect):
        head = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\n"
        client = await connect(head + b"half")
        answer = (await client.reader.readuntil(b"}")).decode()
        assert answer.startswith("HTTP/1.1 408") and "the body did not arrive" in answer and '"timeout"' in answer


@pytest.mark.parametrize(
    ("kind", "body", "status"), [("text/plain", b"x" * 100, 200), ("text/plain", b"x" * 101, 413), ("a/b", b"x", 415)]
)
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_are_checked_while_they_are_read(kind, body, status, chunked):
    async with serving() as (_, connect):
        head = f"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nConnection: close\r\n".encode()
        size = b"Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}".encode()
        sent = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
        client = await connect(head + size + b"\r\n\r\n" + sent)
        assert (await client.read()).startswith(f"HTTP/1.1 {status} ")
