"""Bodies of HTTP requests, checked while they are read."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from aiohttp import web

BODY_SECONDS = 15.0  # for a whole body: 8 MiB at 4.5 Mb/s


async def read_body(request: web.Request, types: Collection[str], max_bytes: int) -> bytes:
    """The body of a request.

    Args:
        request: whose body has not been read yet.
        types: the content types that are accepted.
        max_bytes: the size that is accepted.

    Raises:
        web.HTTPException: 415 for another content type, 413 for a larger body, 408 for one that does not arrive within
            15 s.
    """
    if request.content_type not in types:
        expected = ", ".join(types)
        raise web.HTTPUnsupportedMediaType(
            text=f"got {request.content_type}, expected {'one of ' if len(types) > 1 else ''}{expected}"
        )
    if request.content_length is not None and request.content_length > max_bytes:
        raise web.HTTPRequestEntityTooLarge(max_bytes, request.content_length)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while len(body) <= max_bytes and (more := await request.content.read(max_bytes + 1 - len(body))):
                body += more
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"the body did not arrive within {BODY_SECONDS:.0f} s") from None
    if len(body) > max_bytes:
        raise web.HTTPRequestEntityTooLarge(max_bytes, len(body))
    return bytes(body)


async def read_text(request: web.Request, expected_type: str, max_bytes: int) -> str:
    """The body of a request as text; see `read_body`.

    Raises:
        web.HTTPException: as `read_body`, and 400 for what is not UTF-8.
    """
    try:
        return (await read_body(request, (expected_type,), max_bytes)).decode()
    except UnicodeDecodeError:
        raise web.HTTPBadRequest(text="the body is not UTF-8") from None
