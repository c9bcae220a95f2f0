"""`/api/outputs`: pushes and recordings are begun, listed and ended while the daemon runs."""

from __future__ import annotations

import msgspec
from aiohttp import hdrs, web

from avatard.gateways.outputs import ForbiddenOutputError, ManyOutputsError, Outputs
from avatard.protocols.http_body import read_text

MAX_BYTES = 4096
RETRY_SECONDS = 10


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to be begun: one of both."""

    url: str = ""
    file: str = ""


def add_outputs(app: web.Application, outputs: Outputs) -> None:
    """Add the routes.

    Args:
        app: gets them.
        outputs: what they control.
    """

    async def show(request: web.Request) -> web.Response:
        return web.json_response({"outputs": [output.describe() for output in outputs]})

    async def begin(request: web.Request) -> web.Response:
        text = await read_text(request, "application/json", MAX_BYTES)
        try:
            asked = msgspec.json.decode(text, type=Request)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f'expected {{"url": URL}} or {{"file": NAME}}: {error}') from None
        if bool(asked.url) == bool(asked.file):
            raise web.HTTPBadRequest(text='expected either {"url": URL} or {"file": NAME}')
        try:
            output = outputs.push(asked.url) if asked.url else outputs.record(asked.file)
        except ForbiddenOutputError as error:
            raise web.HTTPForbidden(text=str(error)) from error
        except ManyOutputsError as error:
            raise web.HTTPServiceUnavailable(text=str(error), headers={hdrs.RETRY_AFTER: str(RETRY_SECONDS)}) from error
        return web.json_response(output.describe(), status=201)

    async def end(request: web.Request) -> web.Response:
        output = await outputs.remove(request.match_info["name"])
        if output is None:
            raise web.HTTPNotFound(text="there is no such output")
        return web.json_response(output.describe())

    app.router.add_get("/api/outputs", show)
    app.router.add_post("/api/outputs", begin)
    app.router.add_delete("/api/outputs/{name}", end)
