"""What every HTTP request passes: the token, the origin, and errors as one line of JSON."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import SplitResult, urlsplit

from aiohttp import hdrs, web

from avatard.config import Server
from avatard.errors import UserError
from avatard.gateways.login import login_page, wants_login_page
from avatard.protocols.endpoint import is_loopback

logger = logging.getLogger(__name__)

TOKEN_COOKIE = "avatard_token"
#: What pages of other origins may use: any that have the token; without one, those that this machine serves.
CORS_PATHS = ("/whep", "/whip")
CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match",
    "Access-Control-Expose-Headers": "Location, ETag, Link, Accept-Patch",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def admission(server: Server) -> Any:
    """A middleware that asks for the token, and refuses what another site's page sends in the name of this user.

    The token lets pages of any origin use `/whep` and `/whip`, and the server be called by any name. Without one they
    are for pages of this machine, and on loopback only under the names of loopback: a page whose name was made to point
    at this machine (DNS rebinding) has this server's origin.
    """
    names = dict.fromkeys(("localhost", "127.0.0.1", "::1", server.host.lower()))
    local = is_loopback(server.host) and not server.token

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        shared = _shared(request, server.token)
        if request.path == "/healthz":
            return await handler(request)
        if server.token and not _authorised(request, server.token):
            if shared and request.method == hdrs.METH_OPTIONS:  # a page's preflight, which carries no token
                return web.Response(status=204)
            if wants_login_page(request):
                return login_page(request)
            raise web.HTTPUnauthorized(text="expected Authorization: Bearer", headers={"WWW-Authenticate": "Bearer"})
        host = request.headers.get(hdrs.HOST)
        if local and host is not None and _split(f"//{host}").hostname not in names:
            raise web.HTTPForbidden(text=f"got Host {host}, expected {', '.join(names)}; other names need a token")
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and not shared and _split(origin).netloc != request.host:
            cure = "; with --token they would be" if request.path.startswith(CORS_PATHS) else ""
            raise web.HTTPForbidden(text=f"requests from pages of {origin} are not taken{cure}")
        return await handler(request)

    return admit


def allow_origins(token: str) -> Any:
    """A signal that lets pages of other origins read what `/whep` and `/whip` answer."""

    async def allow(request: web.Request, response: web.StreamResponse) -> None:
        if _shared(request, token):
            response.headers.update(CORS_HEADERS)

    return allow


def _shared(request: web.Request, token: str) -> bool:
    """Whether a page of another origin may ask for this."""
    local = is_loopback(_split(request.headers.get(hdrs.ORIGIN, "")).hostname or "")
    return request.path.startswith(CORS_PATHS) and (bool(token) or local)


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error as one line of JSON."""
    response: web.StreamResponse
    try:
        response = await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        cause = error.__cause__
        details = {**cause.fields, "code": cause.code} if isinstance(cause, UserError) else {}
        response = web.json_response({**details, "error": error.text}, status=error.status)
        kept = (hdrs.RETRY_AFTER, "WWW-Authenticate", hdrs.ALLOW)
        response.headers.update({name: error.headers[name] for name in kept if name in error.headers})
    except ConnectionError:
        raise  # the client is gone
    except Exception:
        logger.exception("request failed", extra={"path": request.path})
        response = web.json_response({"error": "internal error"}, status=500)
    return response


def _split(url: str) -> SplitResult:
    """The parts of a URL; none, if it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _authorised(request: web.Request, token: str) -> bool:
    kind, _, bearer = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    given = bearer if kind.lower() == "bearer" else ""
    shown = (given, request.cookies.get(TOKEN_COOKIE, ""), request.query.get("token", ""))
    # A header may have any bytes, which aiohttp hands on as surrogates.
    return any(hmac.compare_digest(candidate.encode(errors="surrogatepass"), token.encode()) for candidate in shown)
