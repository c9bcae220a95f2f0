"""HTTP middleware, one function for each concern: JSON errors, trusted host, CORS, authentication.

The token of the server opens everything, that of a room the room alone.

    app = web.Application(middlewares=[json_errors, trusted_host(server), same_origin(token), authentication(token)])
    app.on_response_prepare.append(cors_headers(token))

Health checks pass all of them. Pages of other origins may use `/whep` and `/whip`: with a token any page that has it,
without one the pages that this machine serves.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from urllib.parse import SplitResult, urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from avatard.config import Server
from avatard.errors import UserError
from avatard.gateways.dispatch import PREFIX, RoomMatch
from avatard.gateways.login import login_page, wants_login_page
from avatard.protocols.network import is_loopback

logger = logging.getLogger(__name__)

TOKEN_COOKIE = "avatard_token"
ROOM_COOKIE = "avatard_room_token"  # a browser sends both, and of two with one name only one would be read
ROOM_PATH = re.compile(rf"{PREFIX}/[^/]*(?=/)")
HEALTH_PATHS = ("/healthz", "/readyz")
CORS_PATHS = ("/whep", "/whip")
CORS_HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match",
    "Access-Control-Expose-Headers": "Location, ETag, Link, Accept-Patch, Retry-After",
}
#: The `code` of an error that has none of its own. Not the phrases of `http.HTTPStatus`, which change with Python.
CODES = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    406: "not-acceptable",
    408: "timeout",
    412: "precondition-failed",
    413: "too-large",
    415: "unsupported-media-type",
    422: "unprocessable",
    500: "internal",
    503: "unavailable",
}
KEPT_HEADERS = (hdrs.RETRY_AFTER, hdrs.WWW_AUTHENTICATE, hdrs.ALLOW)


@web.middleware
async def json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as `{"error": TEXT, "code": CODE}` with the fields of the error.

    Code and fields are those of a `UserError`, raised by itself (400) or the cause of an `HTTPException`.
    """
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        response = error_response(error.status, error.text or error.reason, error.__cause__)
        response.headers.update({name: error.headers[name] for name in KEPT_HEADERS if name in error.headers})
        return response
    except UserError as error:
        return error_response(HTTPStatus.BAD_REQUEST, str(error), error)
    except ConnectionError:
        raise  # the client is gone
    except Exception:
        logger.exception("request failed", extra={"path": request.path})
        return error_response(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")


def error_response(status: int, text: str, cause: BaseException | None = None) -> web.Response:
    """The answer to a failed request."""
    code, fields = CODES.get(status, f"http-{status}"), {}
    if isinstance(cause, UserError):
        code, fields = cause.code, cause.fields
    return web.json_response({**fields, "error": " ".join(text.split()), "code": code}, status=status)


def trusted_host(server: Server) -> Middleware:
    """On loopback and without a token, serve only the names of loopback.

    A page whose name was made to point at this machine (DNS rebinding) has this server's origin.
    """
    names = dict.fromkeys(("localhost", "127.0.0.1", "::1", server.host.lower()))
    restricted = is_loopback(server.host) and not server.token

    @web.middleware
    async def check_host(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get(hdrs.HOST)
        if (
            restricted
            and host is not None
            and not _is_health_check(request)
            and _split(f"//{host}").hostname not in names
        ):
            raise web.HTTPForbidden(text=f"got Host {host}, expected {', '.join(names)}; other names need a token")
        return await handler(request)

    return check_host


def same_origin(token: str) -> Middleware:
    """Refuse what another site's page sends in the name of this user, but for what CORS shares."""

    @web.middleware
    async def check_origin(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get(hdrs.ORIGIN)
        foreign = origin is not None and _split(origin).netloc != request.host
        if foreign and not _is_shared(request, token) and not _is_health_check(request):
            cure = "; with --token they would be" if path_in_room(request).startswith(CORS_PATHS) else ""
            raise web.HTTPForbidden(text=f"requests from pages of {origin} are not accepted{cure}")
        return await handler(request)

    return check_origin


def cors_headers(token: str) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """A signal that lets pages of other origins read the answers of `/whep` and `/whip`."""

    async def allow(request: web.Request, response: web.StreamResponse) -> None:
        if _is_shared(request, token):
            response.headers.update(CORS_HEADERS)

    return allow


def authentication(token: str) -> Middleware:
    """Ask for the token of the server, or of the room: in `Authorization: Bearer`, the page's cookie or `?token=`.

    A room that is not there asks for a token, too: nobody without the server's learns which rooms there are.
    """

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        match = request.match_info
        tokens = (match.token, token) if isinstance(match, RoomMatch) else (token,)
        if not tokens[0] or _is_health_check(request) or _has_token(request, tokens):
            return await handler(request)
        if request.method == hdrs.METH_OPTIONS and _is_shared(request, token):
            return web.Response(status=204)  # a page's preflight, which carries no token
        if wants_login_page(request, path_in_room(request)):
            return login_page(request)
        raise web.HTTPUnauthorized(text="expected Authorization: Bearer", headers={hdrs.WWW_AUTHENTICATE: "Bearer"})

    return authenticate


def _is_health_check(request: web.Request) -> bool:
    return request.path in HEALTH_PATHS


def path_in_room(request: web.Request) -> str:
    """The path of a request without the room that it names."""
    return ROOM_PATH.sub("", request.path, count=1)


def _is_shared(request: web.Request, token: str) -> bool:
    """Whether the page of another origin may send this request."""
    local = is_loopback(_split(request.headers.get(hdrs.ORIGIN, "")).hostname or "")
    guarded = bool(token) or isinstance(request.match_info, RoomMatch)
    return path_in_room(request).startswith(CORS_PATHS) and (guarded or local)


def _has_token(request: web.Request, tokens: tuple[str, ...]) -> bool:
    kind, _, bearer = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    given = bearer if kind.lower() == "bearer" else ""
    cookies = (request.cookies.get(name, "") for name in (TOKEN_COOKIE, ROOM_COOKIE))
    candidates = [text for text in (given, *cookies, request.query.get("token", "")) if text]
    # A header may have any bytes, which aiohttp hands on as surrogates.
    return any(
        hmac.compare_digest(candidate.encode(errors="surrogatepass"), token.encode())
        for candidate in candidates
        for token in tokens
    )


def _split(url: str) -> SplitResult:
    """The parts of a URL; empty ones where it is malformed."""
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult("", "", "", "", "")
