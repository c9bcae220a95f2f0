"""`DELETE /api/identity`: back to the portrait that the server was started with; `GET` tells which is shown."""

from __future__ import annotations

from aiohttp import hdrs, web

from avatard.inference.supervisor import WorkerError
from avatard.portrait import PortraitError
from avatard.session.session import Session


def add_first_portrait(app: web.Application, session: Session) -> None:
    """Add the routes.

    Args:
        app: gets them.
        session: the avatar.
    """

    async def show(request: web.Request) -> web.Response:
        first = session.shown_portrait is session.first_portrait
        return web.json_response({"identity": session.generation.digest, "first": first})

    async def restore(request: web.Request) -> web.Response:
        try:
            digest = await session.identify(session.first_portrait)
        except PortraitError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from error
        except WorkerError as error:
            raise web.HTTPServiceUnavailable(text=str(error), headers={hdrs.RETRY_AFTER: "5"}) from error
        return web.json_response({"identity": digest})

    app.router.add_get("/api/identity", show)
    app.router.add_delete("/api/identity", restore)
