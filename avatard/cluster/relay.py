"""Passes one request on to a replica and its answer back: HTTP of any length, and WebSockets."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import WSMsgType
from yarl import URL

from avatard.cluster.asgi import (
    HOP_BY_HOP,
    DisconnectedError,
    Headers,
    Receive,
    Scope,
    Send,
    header,
    headers_of,
)
from avatard.errors import UserError
from avatard.protocols.events import Error, to_message
from avatard.protocols.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

#: RFC 6455, section 7.4.1: these are never sent; GOING_AWAY is in their place.
NOT_SENT, GOING_AWAY = (1005, 1006, 1015), 1001
CHUNK_BYTES = 64 * 1024
#: aiohttp's own headers, of which a request is not to get what its client did not send.
SKIPPED = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")


class BrokenError(UserError):
    """A replica that ended a connection before it answered."""

    CODE = "unavailable"

    def __init__(self) -> None:
        super().__init__("the machine of this room does not answer; try again")


async def pass_request(
    http: aiohttp.ClientSession, scope: Scope, receive: Receive, send: Send, url: str, lost: asyncio.Event
) -> int:
    """Pass an HTTP request on; gives the status of the answer.

    Args:
        http: makes the request.
        scope: of the request.
        receive: its body.
        send: takes the answer.
        url: what is asked for.
        lost: set when the replica is known to be lost.

    Raises:
        aiohttp.ClientConnectorError: the replica cannot be reached.
        BrokenError: it ended the connection before it answered.
        DisconnectedError: one of the two sides left in the middle of the answer.
    """
    working = asyncio.create_task(_exchange(http, scope, receive, send, url))
    losing = asyncio.create_task(lost.wait())
    try:
        await asyncio.wait([working, losing], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise DisconnectedError
    finally:
        await cancel_and_wait(working, losing)


async def _exchange(http: aiohttp.ClientSession, scope: Scope, receive: Receive, send: Send, url: str) -> int:
    read = asyncio.Event()  # the request's body, to its end

    async def body() -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            more = message.get("more_body", False)
            yield message.get("body", b"")
        read.set()

    async def gone() -> None:
        await read.wait()
        while (await receive())["type"] != "http.disconnect":
            pass

    has_body = header(scope, "content-length") not in ("", "0") or header(scope, "transfer-encoding") != ""
    if not has_body:
        read.set()
    leaving = asyncio.create_task(gone())
    answering = asyncio.create_task(
        _answer(http, scope, send, url, body() if has_body else None),
    )
    try:
        await asyncio.wait([leaving, answering], return_when=asyncio.FIRST_COMPLETED)
        if answering.done():
            return answering.result()
        raise DisconnectedError
    finally:
        await cancel_and_wait(leaving, answering)


async def _answer(
    http: aiohttp.ClientSession, scope: Scope, send: Send, url: str, body: AsyncIterator[bytes] | None
) -> int:
    started = False
    try:
        async with http.request(
            scope["method"],
            URL(url, encoded=True),
            headers=forwarded(scope),
            data=body,
            allow_redirects=False,
            skip_auto_headers=SKIPPED,
        ) as response:
            lines = [(name.lower(), value) for name, value in response.raw_headers]
            lines = [(name, value) for name, value in lines if name.decode("latin-1") not in HOP_BY_HOP]
            await send({"type": "http.response.start", "status": response.status, "headers": lines})
            started = True
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            return response.status
    except aiohttp.ClientConnectorError:
        raise
    except aiohttp.ClientError:
        if started:
            raise DisconnectedError from None
        raise BrokenError from None


async def pass_socket(
    http: aiohttp.ClientSession, scope: Scope, receive: Receive, send: Send, url: str, lost: asyncio.Event
) -> bool:
    """Pass a WebSocket on, after its `websocket.connect` was received; gives whether it was closed in order.

    Where it was not, because the replica is lost or ended the connection, the client's end is still open.

    Raises:
        aiohttp.ClientConnectorError: the replica cannot be reached.
        aiohttp.WSServerHandshakeError: it refuses; `status` says why.
        BrokenError: it ended the connection before it answered.
    """
    try:
        upstream = await http.ws_connect(
            URL(url, encoded=True),
            headers=[line for line in forwarded(scope) if not line[0].startswith("sec-websocket-")],
            protocols=scope.get("subprotocols", ()),
            max_msg_size=0,  # the daemon's limit holds
            autoclose=False,
        )
    except (aiohttp.ClientConnectorError, aiohttp.WSServerHandshakeError):
        raise
    except aiohttp.ClientError:
        raise BrokenError from None
    async with upstream:
        await send({"type": "websocket.accept", "subprotocol": upstream.protocol})
        up = asyncio.create_task(_pump_up(receive, upstream))
        down = asyncio.create_task(_pump_down(upstream, send))
        losing = asyncio.create_task(lost.wait())
        try:
            await asyncio.wait([up, down, losing], return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                code = up.result()
                await upstream.close(code=GOING_AWAY if code in NOT_SENT else code)
                return True
            closed = down.result() if down.done() else None
        finally:
            await cancel_and_wait(up, down, losing)
    if closed is not None:
        await send({"type": "websocket.close", "code": closed})
    return closed is not None


async def _pump_up(receive: Receive, upstream: aiohttp.ClientWebSocketResponse) -> int:
    """The client's messages; gives the code with which it closes."""
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return int(message.get("code") or 1000)
        try:  # each waits until the daemon reads: a client that pushes too much is held back
            if (text := message.get("text")) is not None:
                await upstream.send_str(text)
            else:
                await upstream.send_bytes(message["bytes"])
        except ConnectionError:
            await asyncio.Event().wait()  # `_pump_down` learns why


async def _pump_down(upstream: aiohttp.ClientWebSocketResponse, send: Send) -> int | None:
    """The daemon's messages; gives the code with which it closes, None where the connection broke."""
    while True:
        message = await upstream.receive()
        if message.type is WSMsgType.TEXT:
            await send({"type": "websocket.send", "text": message.data})
        elif message.type is WSMsgType.BINARY:
            await send({"type": "websocket.send", "bytes": message.data})
        elif message.type is WSMsgType.CLOSE:
            return int(message.data or 1000)
        elif message.type in (WSMsgType.CLOSED, WSMsgType.CLOSING, WSMsgType.ERROR):
            return None


def farewell(path: str, error: UserError) -> str:
    """The last message to a client, in the words of the WebSocket that it uses."""
    if path.endswith("/ws/agent"):
        return json.dumps({"type": "error", "event_id": "", "code": error.code, "message": str(error)})
    return json.dumps(to_message(Error(message=str(error), code=error.code, fatal=True)))


def forwarded(scope: Scope) -> Headers:
    """The header lines of a request for the replica: what the client sent, and where it came from."""
    lines = [(name, value) for name, value in headers_of(scope) if name not in HOP_BY_HOP]
    known = dict(lines)
    own = {
        "x-forwarded-prefix": known.get("x-forwarded-prefix", "").rstrip("/") + scope.get("root_path", ""),
        "x-forwarded-proto": known.get("x-forwarded-proto") or scope.get("scheme", "http").replace("ws", "http"),
        "x-forwarded-for": ", ".join(filter(None, [known.get("x-forwarded-for"), *(scope.get("client") or ())[:1]])),
    }
    return [line for line in lines if line[0] not in own] + [(name, value) for name, value in own.items() if value]
