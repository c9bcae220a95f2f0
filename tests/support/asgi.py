"""An ASGI server in memory: calls an application as a server would, without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from avatard.cluster.asgi import Message, Receive, Scope, Send

Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Answer:
    """An HTTP answer."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.lines, self.body = status, headers, body
        self.headers = dict(headers)

    def json(self) -> Any:
        return json.loads(self.body)


class Exchange:
    """A connection to an application: what the client sends and gets, as messages."""

    def __init__(self, application: Application, scope: Scope) -> None:
        self.to_app: asyncio.Queue[Message] = asyncio.Queue()
        self.to_client: asyncio.Queue[Message] = asyncio.Queue()

        async def send(message: Message) -> None:
            self.to_client.put_nowait(message)

        self.serving = asyncio.ensure_future(application(scope, self.to_app.get, send))

    async def next(self) -> Message:
        """The next message to the client."""
        async with asyncio.timeout(20):
            return await self.to_client.get()

    async def end(self) -> None:
        """Wait until the application has done."""
        async with asyncio.timeout(20):
            await self.serving


def scope(kind: str, path: str, headers: dict[str, str] | None = None, **more: Any) -> Scope:
    path, _, query = path.partition("?")
    lines = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    found = {"type": kind, "path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": lines}
    return {**found, "scheme": "http", "client": ("192.0.2.9", 5), "root_path": "", "extensions": {}, **more}


async def request(
    application: Application,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    **more: Any,
) -> Answer:
    """One request and its whole answer."""
    sent = {**(headers or {}), **({"Content-Length": str(len(body))} if body else {})}
    exchange = Exchange(application, scope("http", path, sent, method=method, **more))
    half = len(body) // 2
    exchange.to_app.put_nowait({"type": "http.request", "body": body[:half], "more_body": True})
    exchange.to_app.put_nowait({"type": "http.request", "body": body[half:]})
    start = await exchange.next()
    lines = [(name.decode(), value.decode()) for name, value in start["headers"]]
    content, more_body = b"", True
    while more_body:
        message = await exchange.next()
        content += message.get("body", b"")
        more_body = message.get("more_body", False)
    await exchange.end()
    return Answer(start["status"], lines, content)


async def connect(application: Application, path: str, **more: Any) -> Exchange:
    """A WebSocket whose handshake was sent."""
    exchange = Exchange(application, scope("websocket", path, more.pop("headers", None), **more))
    exchange.to_app.put_nowait({"type": "websocket.connect"})
    return exchange
