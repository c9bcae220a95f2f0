"""`/api/rooms` and `/api/identities`: rooms are made, listed and ended, and portraits are kept for them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from aiohttp import hdrs, web

from avatard.gateways.dispatch import RoomsResource
from avatard.gateways.room import Room, read_portrait, unusable
from avatard.gateways.rooms import RETRY_SECONDS, RoomError, Rooms, Wanted
from avatard.inference.supervisor import WorkerError
from avatard.media.identities import IdentityError, KnownIdentityError, ManyIdentitiesError, UnknownIdentityError
from avatard.media.image_file import ImageError
from avatard.portrait import PortraitError
from avatard.protocols.http_body import read_text
from avatard.protocols.json_text import parse_object
from avatard.protocols.whep import forwarded_prefix

MAX_BYTES = 4096
#: What a room's routes are called in the answer that makes it.
URLS = {
    "page": "/",
    "offer": "/api/offer",
    "whep": "/whep",
    "whip": "/whip",
    "audio": "/ws/audio",
    "agent": "/ws/agent",
    "say": "/api/say",
    "interrupt": "/api/interrupt",
    "identity": "/api/identity",
    "status": "/api/status",
    "portrait": "/api/portrait",
    "mjpeg": "/mjpeg",
}


def add_rooms(app: web.Application, rooms: Rooms) -> None:
    """Add `/api/rooms`, and everything below `/rooms`.

    Args:
        app: gets the routes.
        rooms: what they control.
    """

    async def show(request: web.Request) -> web.Response:
        return web.json_response({"rooms": rooms.describe(), **rooms.figures()})

    async def create(request: web.Request) -> web.Response:
        wanted = _parse(await read_text(request, "application/json", MAX_BYTES))
        try:
            room = await rooms.create(wanted)
        except PortraitError as error:
            raise unusable(error) from error
        except UnknownIdentityError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from error
        except (RoomError, WorkerError) as error:
            if isinstance(error, WorkerError) and error.code != WorkerError.CODE:
                raise unusable(error) from error  # a mistake in what was asked for, which the networks found
            headers = {hdrs.RETRY_AFTER: str(RETRY_SECONDS)}
            raise web.HTTPServiceUnavailable(text=str(error), headers=headers) from error
        return web.json_response({"id": room.name, "token": room.token, "urls": _urls(request, room)}, status=201)

    async def end(request: web.Request) -> web.Response:
        try:
            await rooms.end(request.match_info["name"], "it was ended")
        except KeyError:
            raise web.HTTPNotFound(text="there is no such room") from None
        return web.Response(status=204)

    app.router.add_get("/api/rooms", show)
    app.router.add_post("/api/rooms", create)
    app.router.add_delete("/api/rooms/{name}", end)
    app.router.register_resource(RoomsResource(rooms.door))


def add_identities(app: web.Application, rooms: Rooms) -> None:
    """Add `/api/identities`.

    Args:
        app: gets the routes.
        rooms: whose identities they control.
    """
    identities = rooms.identities

    async def show(request: web.Request) -> web.Response:
        return web.json_response({"identities": [msgspec.to_builtins(identity) for identity in identities]})

    async def add(request: web.Request) -> web.Response:
        portrait = await read_portrait(request)
        try:
            added = await asyncio.to_thread(identities.add, request.query.get("name", ""), portrait)
        except ImageError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from error
        except KnownIdentityError as error:
            raise web.HTTPConflict(text=str(error)) from error
        except ManyIdentitiesError as error:
            headers = {hdrs.RETRY_AFTER: str(RETRY_SECONDS)}
            raise web.HTTPServiceUnavailable(text=str(error), headers=headers) from error
        except IdentityError as error:
            kind = web.HTTPInsufficientStorage if error.code == "disk" else web.HTTPBadRequest
            raise kind(text=str(error)) from error
        return web.json_response(msgspec.to_builtins(added), status=201)

    async def remove(request: web.Request) -> web.Response:
        try:
            await asyncio.to_thread(identities.remove, request.match_info["name"])
        except UnknownIdentityError as error:
            raise web.HTTPNotFound(text=str(error)) from error
        return web.Response(status=204)

    app.router.add_get("/api/identities", show)
    app.router.add_post("/api/identities", add)
    app.router.add_delete("/api/identities/{name}", remove)


def _parse(text: str) -> Wanted:
    """The body of a request. Raises `web.HTTPBadRequest`, in one line."""
    body: dict[str, Any] = {}
    try:
        body = parse_object(text)
        return msgspec.convert(body, Wanted)
    except ValueError as error:  # msgspec's are, too
        keys = ", ".join(Wanted.__struct_fields__)
        raise web.HTTPBadRequest(text=f"{' '.join(str(error).split())[:200]}; keys are {keys}, all optional") from None


def _urls(request: web.Request, room: Room) -> dict[str, str]:
    prefix = forwarded_prefix(request) + room.path
    return {name: prefix + path for name, path in URLS.items()}
