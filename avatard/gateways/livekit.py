"""`/api/livekit`: the avatar joins a LiveKit room, as the face of the agent in it, and leaves it again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from aiohttp import hdrs, web

from avatard.errors import UserError
from avatard.protocols.http_body import read_body
from avatard.protocols.json_text import parse_object
from avatard.session.session import Session

if TYPE_CHECKING:
    from avatard.integrations.livekit_room import JoinedRoom

MAX_BODY_BYTES = 32 * 1024


class BusyError(UserError):
    """The avatar is in a room."""

    CODE = "busy"


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which room to join."""

    url: Annotated[str, msgspec.Meta(pattern="^(ws|http)s?://", max_length=1024)]
    token: Annotated[str, msgspec.Meta(min_length=1, max_length=16_384)]


class LiveKitRoute:
    """The routes; LiveKit's packages are imported by the first invitation. One room at a time: there is one avatar.

    Args:
        session: the avatar.
        make_room: as of `avatard.integrations.livekit_room.join`.
    """

    def __init__(self, session: Session, make_room: Any = None) -> None:
        self._session = session
        self._make_room = make_room
        self._joined: JoinedRoom | None = None
        self._joining = asyncio.Lock()
        self._closing = False

    @property
    def room(self) -> str | None:
        """The name of the room that the avatar is in."""
        return self._joined.name if self._joined is not None and not self._joined.left else None

    def add_routes(self, app: web.Application) -> None:
        """Add them."""
        app.router.add_post("/api/livekit", self._join)
        app.router.add_get("/api/livekit", self._show)
        app.router.add_delete("/api/livekit", self._leave)

    async def close(self) -> None:
        """Leave the room, if any, and join no other."""
        self._closing = True
        async with self._joining:
            await self._leave_room()

    async def _leave_room(self) -> None:
        joined, self._joined = self._joined, None
        if joined is not None:
            await joined.leave()

    async def _join(self, request: web.Request) -> web.Response:
        invitation = _parse(await read_body(request, ("application/json",), MAX_BODY_BYTES))
        if self._closing or not self._session.ready:
            raise web.HTTPServiceUnavailable(text="the avatar is starting, or leaving", headers={hdrs.RETRY_AFTER: "2"})
        if self._joining.locked():
            raise _conflict("another room")
        async with self._joining:
            if self._joined is not None and not self._joined.left:
                raise _conflict(f"room {self._joined.name}")
            try:
                self._joined = await self._join_room(invitation)
            except UserError as error:
                missing = error.code == "not-installed"
                raise (web.HTTPNotImplemented if missing else web.HTTPBadGateway)(text=str(error)) from error
        return web.json_response(self._state(), status=201)

    async def _join_room(self, invitation: Invitation) -> JoinedRoom:
        # Seconds of imports would stop the pictures.
        join = await asyncio.to_thread(_load)
        joined: JoinedRoom = await join(self._session, invitation.url, invitation.token, self._make_room)
        return joined

    async def _show(self, request: web.Request) -> web.Response:
        return web.json_response(self._state())

    async def _leave(self, request: web.Request) -> web.Response:
        wanted = request.query.get("id")
        joined = self._joined
        if joined is None or joined.left or wanted not in (None, joined.id):
            raise web.HTTPNotFound(text="the avatar is in no such room")
        await self._leave_room()
        return web.json_response(self._state())

    def _state(self) -> dict[str, str | None]:
        joined = self._joined
        if joined is None or joined.left:
            return {"id": None, "room": None, "identity": None, "agent": None}
        return {"id": joined.id, "room": joined.name, "identity": joined.identity, "agent": joined.agent or None}


def _load() -> Any:
    from avatard.integrations.livekit_room import join

    return join


def _parse(body: bytes) -> Invitation:
    """An invitation. Raises `web.HTTPBadRequest`."""
    expected = 'expected {"url": "wss://...", "token": "..."}'
    try:
        return msgspec.convert(parse_object(body), Invitation)
    except ValueError as error:
        raise web.HTTPBadRequest(text=f"{' '.join(str(error).split())[:200]}; {expected}") from None


def _conflict(where: str) -> web.HTTPException:
    cause = BusyError(f"the avatar is in {where}: DELETE /api/livekit makes it leave")
    found = web.HTTPConflict(text=str(cause))
    found.__cause__ = cause
    return found
