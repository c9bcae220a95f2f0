"""Dispatches `/rooms/ID/…` to the routes of that room, which come and go while the server runs.

aiohttp's own sub-applications are fixed at the start, and its cache of middleware would keep the rooms that ended.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from aiohttp import web
from aiohttp.typedefs import Handler
from yarl import URL

PREFIX = "/rooms"


class Door:
    """The routes of a room, and the token that opens them.

    Args:
        path: what they begin with: `/rooms/ID`.
        token: what a client must send.
        app: has the routes.
    """

    def __init__(self, path: str, token: str, app: web.Application) -> None:
        self.token = token
        self._resource = web.PrefixedSubAppResource(path, app)

    async def resolve(self, request: web.Request) -> web.UrlMappingMatchInfo:
        """The route of a request, or the 404 or 405 that there is none."""
        match, _ = await self._resource.resolve(request)
        assert match is not None, "a router always answers"
        return match


class RoomMatch(web.UrlMappingMatchInfo):
    """A request to a room: its route, and the token that it needs.

    Args:
        token: what the client must send.
        inner: the match within the room.
    """

    def __init__(self, token: str, inner: web.UrlMappingMatchInfo) -> None:
        super().__init__(dict(inner), inner.route)
        self.token = token
        self.inner = inner

    @property
    def handler(self) -> Handler:
        """One handler for all rooms: aiohttp remembers those that it has seen."""
        return _handle_in_room

    @property
    def http_exception(self) -> web.HTTPException | None:
        """Told by the handler, after the token was asked for."""
        return None


class RoomsResource(web.AbstractResource):
    """Everything below `/rooms`.

    Args:
        find: the door of the room of this id, if there is one.
    """

    def __init__(self, find: Callable[[str], Door | None]) -> None:
        super().__init__()
        self._find = find
        self._nowhere = web.UrlDispatcher()

    @property
    def canonical(self) -> str:
        """What all paths begin with."""
        return PREFIX

    async def resolve(self, request: web.Request) -> tuple[web.UrlMappingMatchInfo | None, set[str]]:
        """The route within the room; a room that is not there has none, and a token that nobody knows."""
        door = self._find(request.rel_url.raw_parts[2] if len(request.rel_url.raw_parts) > 2 else "")
        if door is None:
            return RoomMatch(secrets.token_urlsafe(), await self._nowhere.resolve(request)), set()
        return RoomMatch(door.token, await door.resolve(request)), set()

    def add_prefix(self, prefix: str) -> NoReturn:
        """Not supported."""
        raise NotImplementedError

    def get_info(self) -> Any:
        """What aiohttp tells of a resource."""
        return {"prefix": PREFIX}

    def raw_match(self, path: str) -> bool:
        """Whether the resource was added with this path."""
        return path == PREFIX

    def url_for(self, **kwargs: str) -> URL:
        """The address of `/rooms`."""
        return URL.build(path=PREFIX)

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[web.AbstractRoute]:
        return iter(())


async def _handle_in_room(request: web.Request) -> web.StreamResponse:
    match = request.match_info
    assert isinstance(match, RoomMatch)
    return await match.inner.handler(request)
