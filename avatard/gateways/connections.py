"""Limits of TCP connections: how many there are, and how long a request may take to arrive.

aiohttp waits for ever for the end of a request's head, so a few hundred half requests would take all file descriptors.

    limiter = ConnectionLimiter(max_connections=256)
    app = web.Application(middlewares=[limiter.middleware])
    await loop.create_server(limiter.limited(runner.server), host, port)
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Handler

logger = logging.getLogger(__name__)

HEAD_SECONDS = 10.0  # from the connection, or from the first byte of a later request, to the end of its head
IDLE_SECONDS = 75.0  # between two requests
LOG_SECONDS = 1.0  # closed connections are counted for so long, and logged in one line


class ConnectionLimiter:
    """Closes connections whose requests do not arrive, and makes room for new ones at the cost of idle ones.

    Args:
        max_connections: at most so many; beyond that the oldest connection without a request in progress is closed,
            and where there is none the new one is answered 503.
    """

    def __init__(self, max_connections: int) -> None:
        self._max_connections = max_connections
        self._connections: dict[asyncio.BaseTransport, Connection] = {}  # the oldest first
        self._closed: Counter[str] = Counter()
        self._log_timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._connections)

    @property
    def busy(self) -> int:
        """Connections with a request in progress."""
        return sum(connection.busy for connection in self._connections.values())

    def limited(self, factory: Callable[[], asyncio.Protocol]) -> Callable[[], asyncio.Protocol]:
        """A protocol factory for `loop.create_server` that limits the connections of `factory`."""
        return lambda: Connection(self, factory())

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Stop the clock of a connection while its request is handled."""
        connection = self._connections.get(request.transport) if request.transport is not None else None
        if connection is None:
            return await handler(request)
        connection.begin_request()
        try:
            return await handler(request)
        finally:
            connection.end_request()

    def add(self, transport: asyncio.Transport, connection: Connection) -> bool:
        """Register a connection; False if there is no room for it."""
        if len(self._connections) >= self._max_connections:
            idle = next((other for other in self._connections.values() if not other.busy), None)
            if idle is None:
                self.count("refused")
                return False
            self.count("evicted")
            idle.abort()
        self._connections[transport] = connection
        return True

    def remove(self, transport: asyncio.BaseTransport) -> None:
        """Forget a connection that ended."""
        self._connections.pop(transport, None)

    def count(self, reason: str) -> None:
        """Count a connection that is closed by a limit, for the log."""
        if self._log_timer is None:
            self._log_timer = asyncio.get_running_loop().call_later(LOG_SECONDS, self._log)
        self._closed[reason] += 1

    def close(self) -> None:
        """Log what has been counted."""
        if self._log_timer is not None:
            self._log_timer.cancel()
            self._log()

    def _log(self) -> None:
        logger.warning("HTTP connections closed", extra={**self._closed, "open": len(self), "busy": self.busy})
        self._closed.clear()
        self._log_timer = None


class Connection(asyncio.Protocol):
    """One TCP connection; passes everything on to aiohttp's protocol.

    Args:
        limiter: decides whether there is room.
        protocol: of aiohttp.
    """

    def __init__(self, limiter: ConnectionLimiter, protocol: asyncio.Protocol) -> None:
        self.busy = False  # a request is being handled
        self._limiter = limiter
        self._protocol = protocol
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False  # bytes of a request arrived that has not begun

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock, or refuse."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if not self._limiter.add(transport, self):
            transport.write(_error(503, "Service Unavailable", "too many connections", "unavailable"))
            transport.close()
            return
        self._transport = transport
        self._start_clock(HEAD_SECONDS)
        self._protocol.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Pass on; the first bytes of a request start its own clock."""
        if self._transport is None:
            return
        if not self.busy and not self._in_head:
            self._in_head = True
            self._start_clock(HEAD_SECONDS)
        self._protocol.data_received(data)

    def begin_request(self) -> None:
        """The head of a request has arrived."""
        self.busy, self._in_head = True, False
        self._stop_clock()

    def end_request(self) -> None:
        """The request is answered."""
        self.busy = False
        if self._transport is not None:
            self._start_clock(IDLE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on."""
        if self._transport is not None:
            self._stop_clock()
            self._limiter.remove(self._transport)
            self._transport = None
            self._protocol.connection_lost(exc)

    def eof_received(self) -> bool | None:
        """Pass on."""
        return self._protocol.eof_received() if self._transport is not None else None

    def pause_writing(self) -> None:
        """Pass on."""
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._protocol.resume_writing()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._limiter.remove(self._transport)
            self._transport.abort()

    def _start_clock(self, seconds: float) -> None:
        self._stop_clock()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._on_timeout)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        if self._transport is None:
            return
        if self._in_head:
            self._limiter.count("timed_out")
            text = f"the request did not arrive within {HEAD_SECONDS:.0f} s"
            self._transport.write(_error(408, "Request Timeout", text, "timeout"))
        self._transport.close()


def _error(status: int, phrase: str, text: str, code: str) -> bytes:
    """An HTTP answer outside of any request."""
    body = json.dumps({"error": text, "code": code}).encode()
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Retry-After: 10\r\nConnection: close\r\n\r\n".encode() + body
