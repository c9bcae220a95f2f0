"""The ingress: makes rooms on the replica with most headroom, and passes every later request on to the room's replica.

An ASGI application, which Ray Serve runs. It keeps nothing that it could not learn from the replicas again, so there
may be several. Media do not pass it: they go by UDP between clients and the machines of the replicas.

    POST   /api/rooms        on the replica with most headroom; 503 where none has enough
    GET    /api/rooms        all rooms, each with its `replica`
    DELETE /api/rooms/ID     on the room's replica
           /api/identities   on any: the replicas share their data folder
           /rooms/ID/…       on the room's replica; 410 (`room-lost`) where that is lost
    GET    /api/status       replicas with capacity and headroom
    GET    /healthz, /readyz
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import msgspec

from avatard.clock import monotonic
from avatard.cluster.asgi import (
    DisconnectedError,
    Receive,
    Scope,
    Send,
    TooLargeError,
    header,
    path_of,
    read_body,
    respond,
    respond_error,
    respond_json,
)
from avatard.cluster.directory import Directory, LostRoomError, NoRoomError, Replica
from avatard.cluster.relay import BrokenError, farewell, forwarded, pass_request, pass_socket
from avatard.cluster.watch import Members, Room, Watch, is_refusal
from avatard.errors import UserError
from avatard.protocols.tasks import cancel_and_wait

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0
CREATE_SECONDS = 30.0  # a room whose portrait must be read first
MAX_ROOM_BYTES = 64 * 1024
RETRY_SECONDS = 5
ROOM_PATH = re.compile(r"/rooms/(?P<room>[^/]+)/?.*|/api/rooms/(?P<named>[^/]+)")
#: The registry of WebSocket close codes: the service is restarted; and that of RFC 6455 for what is against a policy.
RESTARTED, REFUSED = 1012, 1008
KEPT = ("content-type", "retry-after", "www-authenticate")


class NoReplicaError(UserError):
    """No replica takes a room now."""

    CODE = "no-replica"

    def __init__(self) -> None:
        super().__init__(f"no machine takes rooms now; try again in {RETRY_SECONDS} s")


class Ingress:
    """The ASGI application.

    Args:
        members: gives the replicas that are registered.
        token: of the daemons; clients send it to make rooms.
    """

    def __init__(self, members: Members, token: str) -> None:
        self.directory = Directory()
        self._members = members
        self._token = token
        self._streams: defaultdict[str, set[asyncio.Event]] = defaultdict(set)  # of rooms: set when they are lost
        self._http: aiohttp.ClientSession | None = None
        self._watch: Watch | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look at the replicas, and go on looking."""
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._watch = Watch(self.directory, self._members, self._http, self._token, self._lose)
        await self._watch.look()
        self._watching = asyncio.create_task(self._watch.run(), name="watch")

    async def stop(self) -> None:
        """End all connections to replicas."""
        await cancel_and_wait(self._watching)
        if self._http is not None:
            await self._http.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self._request(scope, receive, send)
            except DisconnectedError:
                logger.debug("a client or a replica left", extra={"path": scope["path"]})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.stop()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = path_of(scope), scope["method"]
        if found := ROOM_PATH.fullmatch(path):
            await self._pinned(scope, receive, send, found["room"] or found["named"])
        elif path == "/healthz":
            await respond(send, 200, b"ok\n")
        elif path == "/readyz":
            ready = bool(self.directory.candidates())
            await respond(send, 200 if ready else 503, b"ready\n" if ready else b"no replica takes rooms\n")
        elif path == "/api/rooms" and method == "POST":
            await self._create(scope, receive, send)
        elif path in ("/api/rooms", "/api/status") and method in ("GET", "HEAD"):
            await self._tell(scope, send, self._rooms if path == "/api/rooms" else self._status)
        elif path.startswith("/api/identities"):
            await self._anywhere(scope, receive, send)
        else:
            await respond_error(send, 404, UserError("expected /api/rooms or /rooms/ID/", code="not-found"))

    async def _create(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Ask one replica after the other for a room, the one with most headroom first."""
        try:
            body = await read_body(receive, MAX_ROOM_BYTES)
        except TooLargeError as error:
            await respond_error(send, 413, error)
            return
        refused: tuple[int, list[tuple[str, str]], bytes] | None = None
        for replica in self.directory.candidates():
            answer = await self._ask_for_room(scope, replica, body)
            if answer is None:
                continue
            status, headers, text = answer
            if status != 503:
                if status == 201:
                    self.directory.place(msgspec.json.decode(text, type=Room).id, replica.name, monotonic())
                await respond(send, status, text, headers)
                return
            refused = refused or answer
        if refused is not None:
            await respond(send, refused[0], refused[2], refused[1])
        else:
            await respond_error(send, 503, NoReplicaError(), RETRY_SECONDS)

    async def _ask_for_room(
        self, scope: Scope, replica: Replica, body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes] | None:
        """What a replica answers; None where it does not."""
        assert self._http is not None
        try:
            async with asyncio.timeout(CREATE_SECONDS):
                async with self._http.post(
                    f"{replica.url}/api/rooms", data=body, headers=forwarded(scope), allow_redirects=False
                ) as response:
                    text = await response.read()
        except (TimeoutError, aiohttp.ClientError) as error:
            self._noticed(replica, error)
            return None
        return response.status, [(name, response.headers[name]) for name in KEPT if name in response.headers], text

    async def _pinned(self, scope: Scope, receive: Receive, send: Send, room: str) -> None:
        try:
            replica = await self._find(room)
            status = await self._pass(scope, receive, send, replica, room)
        except LostRoomError as error:
            await respond_error(send, 410, error)
        except NoRoomError as error:
            await respond_error(send, 404, error)
        except BrokenError as error:
            await respond_error(send, 503, error, retry_after_s=1)
        else:
            if scope["method"] == "DELETE" and status in (200, 204) and path_of(scope).startswith("/api/rooms/"):
                self.directory.forget(room)

    async def _pass(self, scope: Scope, receive: Receive, send: Send, replica: Replica, room: str) -> int:
        """Raises `LostRoomError` and `BrokenError`."""
        assert self._http is not None
        with self._stream(room) as lost:
            try:
                return await pass_request(self._http, scope, receive, send, self._url(replica, scope), lost)
            except (aiohttp.ClientConnectorError, BrokenError) as error:
                await self._explain(replica, room, error)
        raise BrokenError

    async def _anywhere(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._http is not None
        for replica in self.directory.candidates():
            try:
                url = self._url(replica, scope)
                await pass_request(self._http, scope, receive, send, url, asyncio.Event())
                return
            except aiohttp.ClientConnectorError as error:
                self._noticed(replica, error)
            except BrokenError as error:
                await respond_error(send, 503, error, RETRY_SECONDS)
                return
        await respond_error(send, 503, NoReplicaError(), RETRY_SECONDS)

    async def _tell(self, scope: Scope, send: Send, what: Callable[[], Any]) -> None:
        kind, _, given = header(scope, "authorization").partition(" ")
        expected = self._token.encode()
        if self._token and not (kind.lower() == "bearer" and hmac.compare_digest(given.encode(), expected)):
            error = UserError("expected Authorization: Bearer", code="unauthorized")
            await respond_error(send, 401, error)
            return
        await respond_json(send, 200, what())

    def _status(self) -> dict[str, Any]:
        replicas = sorted(self.directory.replicas, key=lambda replica: replica.name)
        told = [
            {
                "name": replica.name,
                "state": "draining" if replica.draining else "ready" if replica.report else "starting",
                "rooms": len(replica.rooms),
                "capacity_core_ms": replica.report.capacity if replica.report else 0,
                "headroom_core_ms": replica.report.headroom if replica.report else 0,
            }
            for replica in replicas
        ]
        return {"replicas": told, "rooms": self._figures()}

    def _rooms(self) -> dict[str, Any]:
        rooms = [{"id": room, "replica": replica.name} for replica in self.directory.replicas for room in replica.rooms]
        return {"rooms": rooms, **self._figures()}

    def _figures(self) -> dict[str, float]:
        """Of all replicas that take rooms."""
        reports = [replica.report for replica in self.directory.candidates() if replica.report is not None]
        return {
            "count": sum(len(replica.rooms) for replica in self.directory.replicas),
            "capacity_core_ms": sum(report.capacity for report in reports),
            "headroom_core_ms": sum(report.headroom for report in reports),
        }

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert self._http is not None
        if (await receive())["type"] != "websocket.connect":
            return
        found = ROOM_PATH.fullmatch(path_of(scope))
        room = found["room"] if found else None
        try:
            if room is None:
                raise NoRoomError
            replica = await self._find(room)
            with self._stream(room) as lost:
                try:
                    in_order = await pass_socket(self._http, scope, receive, send, self._url(replica, scope), lost)
                except (aiohttp.ClientConnectorError, BrokenError) as error:
                    await self._explain(replica, room, error)
                    raise BrokenError from None
            if not in_order:
                await self._say_farewell(scope, send, replica, room)
        except LostRoomError as error:
            await self._refuse_socket(scope, send, 410, error)
        except NoRoomError as error:
            await self._refuse_socket(scope, send, 404, error)
        except BrokenError as error:
            await self._refuse_socket(scope, send, 503, error)
        except aiohttp.WSServerHandshakeError as error:
            await self._refuse_socket(scope, send, error.status)

    async def _say_farewell(self, scope: Scope, send: Send, replica: Replica, room: str) -> None:
        """The last event of a WebSocket whose replica ended it, and its end."""
        reason: UserError = BrokenError()
        try:
            await self._explain(replica, room, reason)
        except UserError as error:
            reason = error
        await send({"type": "websocket.send", "text": farewell(path_of(scope), reason)})
        await send({"type": "websocket.close", "code": RESTARTED})

    async def _refuse_socket(self, scope: Scope, send: Send, status: int, error: UserError | None = None) -> None:
        """Answer a handshake with a status where the server can; else say what happened in the socket itself."""
        if "websocket.http.response" in (scope.get("extensions") or {}):
            body = b"" if error is None else json.dumps({"error": str(error), "code": error.code}).encode()
            lines = [(b"content-type", b"application/json")] if body else []
            await send({"type": "websocket.http.response.start", "status": status, "headers": lines})
            await send({"type": "websocket.http.response.body", "body": body})
        elif error is not None:
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": farewell(path_of(scope), error)})
            await send({"type": "websocket.close", "code": RESTARTED})
        else:
            await send({"type": "websocket.close", "code": REFUSED})

    async def _find(self, room: str) -> Replica:
        """Raises `NoRoomError` and `LostRoomError`."""
        try:
            return self.directory.find(room)
        except NoRoomError:  # made by another ingress within the last second
            assert self._watch is not None
            await self._watch.look_again()
            return self.directory.find(room)

    async def _explain(self, replica: Replica, room: str, error: Exception) -> None:
        """Find out whether a replica that did not answer is lost. Raises `LostRoomError` where it is."""
        assert self._watch is not None
        if isinstance(error, aiohttp.ClientConnectorError) and is_refusal(error):
            self._watch.lost(replica)
        self.directory.find(room)
        await self._watch.ask(replica)
        self.directory.find(room)

    def _noticed(self, replica: Replica, error: Exception) -> None:
        assert self._watch is not None
        if isinstance(error, aiohttp.ClientConnectorError) and is_refusal(error):
            self._watch.lost(replica)
        else:
            logger.warning("a replica does not answer", extra={"replica": replica.name, "reason": str(error)[:200]})

    @contextmanager
    def _stream(self, room: str) -> Iterator[asyncio.Event]:
        """An event that is set when the room's replica is lost."""
        lost = asyncio.Event()
        self._streams[room].add(lost)
        try:
            yield lost
        finally:
            self._streams[room].discard(lost)
            if not self._streams[room]:
                del self._streams[room]

    def _lose(self, rooms: Iterable[str]) -> None:
        for room in rooms:
            for lost in self._streams.get(room, ()):
                lost.set()

    def _url(self, replica: Replica, scope: Scope) -> str:
        query: bytes = scope.get("query_string", b"")
        return replica.url + path_of(scope) + (f"?{query.decode('latin-1')}" if query else "")
