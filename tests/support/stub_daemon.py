"""What a cluster needs of a daemon: rooms, capacity, and routes that say what they were asked.

`python -m tests.support.stub_daemon --host ADDRESS` is one as a process.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import sys
from typing import Any

import aiohttp
from aiohttp import web

TOKEN = "s3cret"


class StubDaemon:
    """A daemon whose rooms take 200 of 1,000 core-ms a second."""

    def __init__(self, capacity: float = 1000.0) -> None:
        self.capacity = capacity
        self.rooms: dict[str, str] = {}  # token by id
        self.requests: list[web.Request] = []
        self.streams = 0
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, host: str = "127.0.0.1") -> str:
        app = web.Application()
        app.router.add_get("/api/rooms", self._show)
        app.router.add_post("/api/rooms", self._create)
        app.router.add_delete("/api/rooms/{name}", self._end)
        app.router.add_route("*", "/api/identities", self._echo)
        app.router.add_get("/rooms/{name}/mjpeg", self._stream)
        app.router.add_get("/rooms/{name}/ws/{kind}", self._socket)
        app.router.add_route("*", "/rooms/{name}/{tail:.*}", self._echo)
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, 0)
        await site.start()
        self.url = f"http://{host}:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @property
    def headroom(self) -> float:
        return self.capacity - 200 * len(self.rooms)

    def _figures(self) -> dict[str, float]:
        headroom = self.headroom
        return {"count": len(self.rooms), "capacity_core_ms": self.capacity, "headroom_core_ms": headroom}

    def _check(self, request: web.Request) -> None:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})

    async def _show(self, request: web.Request) -> web.Response:
        self._check(request)
        return web.json_response({"rooms": [{"id": name, "size": 512} for name in self.rooms], **self._figures()})

    async def _create(self, request: web.Request) -> web.Response:
        self._check(request)
        self.requests.append(request)
        if self.headroom < 200:
            body = {"error": "no room", "code": "no-capacity", "retry_after_s": 10}
            return web.json_response(body, status=503, headers={"Retry-After": "10"})
        await request.read()
        name, token = secrets.token_urlsafe(16), secrets.token_urlsafe(24)
        self.rooms[name] = token
        prefix = request.headers.get("X-Forwarded-Prefix", "")
        urls = {"whep": f"{prefix}/rooms/{name}/whep"}
        return web.json_response({"id": name, "token": token, "urls": urls}, status=201)

    async def _end(self, request: web.Request) -> web.Response:
        self._check(request)
        del self.rooms[request.match_info["name"]]
        return web.Response(status=204)

    async def _echo(self, request: web.Request) -> web.Response:
        self.requests.append(request)
        body: dict[str, Any] = {"method": request.method, "path": request.raw_path, "url": self.url}
        body |= {"headers": dict(request.headers), "body": (await request.read()).decode()}
        response = web.json_response(body, status=201 if request.method == "POST" else 200)
        response.headers["Location"] = request.headers.get("X-Forwarded-Prefix", "") + request.path + "/resource"
        response.headers.add("Link", "<stun:a>")
        response.headers.add("Link", "<turn:b>")
        return response

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        self.streams += 1
        try:
            while True:
                await response.write(b"picture")
                await asyncio.sleep(0.01)
        finally:
            self.streams -= 1

    async def _socket(self, request: web.Request) -> web.WebSocketResponse:
        if request.query.get("token") == "wrong":
            raise web.HTTPUnauthorized
        socket = web.WebSocketResponse(protocols=("speech",))
        await socket.prepare(request)
        await socket.send_str(json.dumps({"url": self.url, "host": request.host}))
        async for message in socket:
            if message.data == "bye":
                await socket.close(code=4001)
            elif message.type is aiohttp.WSMsgType.TEXT:
                await socket.send_str(message.data)
            else:
                await socket.send_bytes(message.data)
        return socket


async def serve(host: str) -> None:
    """Serve until a signal comes."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    daemon = StubDaemon()
    print(await daemon.start(host), flush=True)
    await stopped.wait()
    await daemon.stop()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[sys.argv.index("--host") + 1]))
