"""What every HTTP request passes: the token, the origin, and errors as one line of JSON."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from aiohttp import hdrs, web

logger = logging.getLogger(__name__)

TOKEN_COOKIE = "avatard_token"
#: What anybody may fetch from another origin: media, with its own authorisation.
CORS_PATHS = ("/whep", "/whip")
CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match",
    "Access-Control-Expose-Headers": "Location, ETag, Link, Accept-Patch",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def admission(token: str) -> Any:
    """A middleware that asks for the token, and refuses what another site's page sends in the name of this user."""

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        cross = request.path.startswith(CORS_PATHS)
        if request.path == "/healthz" or (cross and request.method == hdrs.METH_OPTIONS):
            return await handler(request)
        if token and not _authorised(request, token):
            raise web.HTTPUnauthorized(text="expected Authorization: Bearer", headers={"WWW-Authenticate": "Bearer"})
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not cross and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text=f"requests from pages of {origin} are not taken")
        return await handler(request)

    return admit


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as one line of JSON."""
    response: web.StreamResponse
    try:
        response = await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = web.json_response({"error": error.text}, status=error.status)
        kept = (hdrs.RETRY_AFTER, "WWW-Authenticate", hdrs.ALLOW)
        response.headers.update({name: error.headers[name] for name in kept if name in error.headers})
    except ConnectionError:
        raise  # the client is gone
    except Exception:
        logger.exception("request failed", extra={"path": request.path})
        response = web.json_response({"error": "internal error"}, status=500)
    if request.path.startswith(CORS_PATHS) and not response.prepared:
        response.headers.update(CORS_HEADERS)
    return response


def _authorised(request: web.Request, token: str) -> bool:
    kind, _, bearer = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    given = bearer if kind.lower() == "bearer" else ""
    shown = (given, request.cookies.get(TOKEN_COOKIE, ""), request.query.get("token", ""))
    return any(hmac.compare_digest(candidate.encode(), token.encode()) for candidate in shown)
