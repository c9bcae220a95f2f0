"""The little of ASGI (version 3) that the ingress needs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import quote

from avatard.errors import UserError

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = list[tuple[str, str]]

#: RFC 9110, section 7.6.1: these are between two neighbours.
HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}


class DisconnectedError(Exception):
    """The client is gone."""


class TooLargeError(UserError):
    """A body that is longer than it may be."""

    CODE = "too-large"


def path_of(scope: Scope) -> str:
    """The path of a request, percent-encoded, without the part below which the application is mounted."""
    raw: bytes | None = scope.get("raw_path")
    path = raw.decode("latin-1").partition("?")[0] if raw else quote(scope["path"])
    root = quote(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def headers_of(scope: Scope) -> Headers:
    """The header lines, with names in lower case."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]


def header(scope: Scope, name: str) -> str:
    """The first header of this name (lower case), or nothing."""
    return next((value for known, value in headers_of(scope) if known == name), "")


async def read_body(receive: Receive, most: int) -> bytes:
    """All of a request's body.

    Raises:
        TooLargeError: it is longer than `most` bytes.
        DisconnectedError: the client left before its end.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        body += message.get("body", b"")
        if len(body) > most:
            raise TooLargeError(f"expected at most {most:,} bytes")
        if not message.get("more_body", False):
            return bytes(body)


async def respond(send: Send, status: int, body: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
    """A whole answer."""
    lines = [*headers, ("content-length", str(len(body)))]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


async def respond_json(send: Send, status: int, value: Mapping[str, Any], headers: Headers | None = None) -> None:
    """JSON."""
    await respond(send, status, json.dumps(value).encode(), [("content-type", "application/json"), *(headers or [])])


async def respond_error(send: Send, status: int, error: UserError, retry_after_s: int = 0) -> None:
    """An error as the daemon's own: one line, a code and its fields."""
    # Players on pages of other origins are told, too: there is nothing secret in it.
    headers = [("access-control-allow-origin", "*"), ("access-control-expose-headers", "Retry-After")]
    headers += [("retry-after", str(retry_after_s))] if retry_after_s else []
    body = {**error.fields, "error": " ".join(str(error).split()), "code": error.code}
    if retry_after_s:
        body["retry_after_s"] = retry_after_s
    await respond_json(send, status, body, headers)
