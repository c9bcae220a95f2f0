"""WHEP (viewers) and WHIP (speech in) over HTTP: RFC 9725 and draft-ietf-wish-whep.

    POST   /whep          application/sdp                201, Location, ETag, Accept-Patch, Link
    PATCH  /whep/ID       application/trickle-ice-sdpfrag 204
    DELETE /whep/ID                                      200

`add_routes` puts the four routes of one endpoint into an aiohttp application; who is let in is the caller's business.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import hdrs, web

from avatard.protocols.peer import IceServers, OfferError, Peer

MAX_SDP_BYTES = 256 * 1024
TRICKLE_TYPE = "application/trickle-ice-sdpfrag"

Admit = Callable[[web.Request], Awaitable[Peer]]


class Candidate(NamedTuple):
    """A line of a trickle fragment: the candidate and the media section it is for."""

    candidate: str
    mid: str | None


class Resource(NamedTuple):
    """One connection as HTTP knows it."""

    peer: Peer
    etag: str


def parse_fragment(text: str) -> list[Candidate]:
    """The candidates of a `trickle-ice-sdpfrag` (RFC 8840); a restart's credentials are not taken.

    Raises:
        OfferError: there is neither a candidate nor their end in it.
    """
    found: list[Candidate] = []
    mid: str | None = None
    ended = False
    for line in text.splitlines():
        if line.startswith("a=mid:"):
            mid = line[len("a=mid:") :].strip()
        elif line.startswith("a=candidate:"):
            found.append(Candidate(line[len("a=") :].strip(), mid))
        elif line.startswith("a=end-of-candidates"):
            ended = True
    if not found and not ended:
        raise OfferError("the fragment has no candidate in it")
    return found


def link_headers(ice_servers: IceServers) -> list[str]:
    """The `Link` header values that announce STUN and TURN (RFC 9725, section 4.6)."""
    links = []
    for url in ice_servers.urls:
        link = f'<{url}>; rel="ice-server"'
        if url.startswith("turn"):
            link += f"; username={_quoted(ice_servers.username)}; credential={_quoted(ice_servers.credential)}"
            link += '; credential-type="password"'
        links.append(link)
    return links


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


async def read_text(request: web.Request, expected_type: str) -> str:
    """The body of a request, checked.

    Raises:
        web.HTTPException: 415 for another content type, 413 for more than 256 KiB, 400 for what is no text.
    """
    if request.content_type != expected_type:
        raise web.HTTPUnsupportedMediaType(text=f"got {request.content_type}, expected {expected_type}")
    if request.content_length is not None and request.content_length > MAX_SDP_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_SDP_BYTES, request.content_length)
    body = await request.content.read(MAX_SDP_BYTES + 1)
    while len(body) <= MAX_SDP_BYTES and (more := await request.content.read(MAX_SDP_BYTES + 1 - len(body))):
        body += more
    if len(body) > MAX_SDP_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_SDP_BYTES, len(body))
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise web.HTTPBadRequest(text="the body is not UTF-8") from None


def add_routes(app: web.Application, path: str, ice_servers: IceServers, admit: Admit) -> None:
    """Serve one endpoint at `path`.

    Args:
        app: where the routes go.
        path: `/whep` or `/whip`.
        ice_servers: announced to the clients.
        admit: makes the peer of a request, or raises what the client is answered (503 when full).
    """
    resources: dict[str, Resource] = {}

    async def post(request: web.Request) -> web.Response:
        offer = await read_text(request, "application/sdp")
        peer = await admit(request)
        try:
            answer = await peer.answer(offer)
        except OfferError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        _forget_closed(resources)
        name, etag = secrets.token_urlsafe(16), f'"{secrets.token_hex(8)}"'
        resources[name] = Resource(peer, etag)
        response = web.Response(status=201, text=answer, content_type="application/sdp")
        response.headers[hdrs.LOCATION] = f"{path}/{name}"
        response.headers[hdrs.ETAG] = etag
        response.headers["Accept-Patch"] = TRICKLE_TYPE
        for link in link_headers(ice_servers):
            response.headers.add(hdrs.LINK, link)
        return response

    def find(request: web.Request) -> Resource:
        _forget_closed(resources)
        try:
            return resources[request.match_info["name"]]
        except KeyError:
            raise web.HTTPNotFound(text="no such connection") from None

    async def patch(request: web.Request) -> web.Response:
        fragment = await read_text(request, TRICKLE_TYPE)
        resource = find(request)
        expected = request.headers.get(hdrs.IF_MATCH)
        if expected not in (None, "*", resource.etag):
            raise web.HTTPPreconditionFailed(
                text="the connection has another ETag: ICE was restarted, or is not supported"
            )
        try:
            for candidate, mid in parse_fragment(fragment):
                await resource.peer.add_candidate(candidate, mid, None)
        except OfferError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        return web.Response(status=204)

    async def delete(request: web.Request) -> web.Response:
        resource = find(request)
        del resources[request.match_info["name"]]
        await resource.peer.close()
        return web.Response(status=200)

    async def options(request: web.Request) -> web.Response:
        response = web.Response(status=204, headers={"Accept-Post": "application/sdp"})
        for link in link_headers(ice_servers):
            response.headers.add(hdrs.LINK, link)
        return response

    app.router.add_post(path, post)
    app.router.add_route(hdrs.METH_OPTIONS, path, options)
    app.router.add_patch(f"{path}/{{name}}", patch)
    app.router.add_delete(f"{path}/{{name}}", delete)
    app.router.add_route(hdrs.METH_OPTIONS, f"{path}/{{name}}", options)


def _forget_closed(resources: dict[str, Resource]) -> None:
    for name in [name for name, resource in resources.items() if resource.peer.closed]:
        del resources[name]
