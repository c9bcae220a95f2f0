"""WHEP (viewers) and WHIP (speech in) over HTTP: draft-ietf-wish-whep and RFC 9725.

    POST   /whep     application/sdp                  201, the answer, Location, ETag, Accept-Patch, Link
    PATCH  /whep/ID  application/trickle-ice-sdpfrag  204; 200 with new credentials where ICE is restarted
    DELETE /whep/ID                                   200

An offer is refused with 400 where it is malformed, with 406 where nothing in it can be served, and with 503 where all
UDP ports are taken; the text says what can be done. Errors are `web.HTTPException`s whose cause is the `OfferError`,
for a middleware that makes JSON of them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import hdrs, web

from avatard.protocols.http_body import read_text
from avatard.protocols.media_ports import NoPortError
from avatard.protocols.offer import NotAcceptableError, OfferError, parse_fragment
from avatard.protocols.peer import IceServers, Peer

MAX_SDP_BYTES = 256 * 1024
SDP_TYPE = "application/sdp"
TRICKLE_TYPE = "application/trickle-ice-sdpfrag"
#: A path that a proxy has removed; nothing that a browser could take for another host.
FORWARDED_PREFIX = re.compile(r"(/[A-Za-z0-9._~%-]+)+")

Admit = Callable[[web.Request], Awaitable[Peer]]


@dataclass
class Resource:
    """One connection, as HTTP knows it."""

    peer: Peer
    etag: str  # of the ICE session; another one after a restart


class SignallingEndpoint:
    """One WHEP or WHIP endpoint, and the connections made through it.

    Args:
        path: `/whep` or `/whip`.
        ice_servers: announced to the clients.
        admit: makes the peer of a request, or raises what the client is answered (503 when there is no seat).
    """

    def __init__(self, path: str, ice_servers: IceServers, admit: Admit) -> None:
        self._path = path
        self._links = link_headers(ice_servers)
        self._admit = admit
        self._resources: dict[str, Resource] = {}

    def add_routes(self, app: web.Application) -> None:
        """Add the routes of this endpoint, with and without a slash at the end of the path."""
        for path in (self._path, f"{self._path}/"):
            app.router.add_post(path, self._create)
            app.router.add_route(hdrs.METH_OPTIONS, path, self._describe)
        resource = f"{self._path}/{{name}}"
        app.router.add_patch(resource, self._update)
        app.router.add_delete(resource, self._delete)
        app.router.add_route(hdrs.METH_OPTIONS, resource, self._describe)

    async def _create(self, request: web.Request) -> web.Response:
        offer = await read_text(request, SDP_TYPE, MAX_SDP_BYTES)
        peer = await self._admit(request)
        try:
            answer = await peer.answer(offer)
        except OfferError as error:
            raise refusal(error) from error
        self._forget_closed()
        name, etag = secrets.token_urlsafe(16), _new_etag()
        self._resources[name] = Resource(peer, etag)
        headers = {
            # As the client asked for it: the endpoint may be below another path, that of a room.
            hdrs.LOCATION: f"{forwarded_prefix(request)}{request.rel_url.raw_path.rstrip('/')}/{name}",
            hdrs.ETAG: etag,
            "Accept-Patch": TRICKLE_TYPE,
        }
        return self._announced(web.Response(status=201, text=answer, content_type=SDP_TYPE, headers=headers))

    async def _update(self, request: web.Request) -> web.Response:
        text = await read_text(request, TRICKLE_TYPE, MAX_SDP_BYTES)
        resource = self._find(request)
        expected = request.headers.get(hdrs.IF_MATCH)
        if expected not in (None, "*", resource.etag):
            raise web.HTTPPreconditionFailed(text=f"got If-Match {expected[:80]}, expected {resource.etag} or *")
        try:
            fragment = parse_fragment(text)
        except OfferError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if not resource.peer.is_restart(fragment):
            resource.peer.add_candidates(fragment.candidates, fragment.ended)
            return web.Response(status=204)
        try:
            answer = await resource.peer.restart_ice(fragment)
        except NoPortError as error:
            raise refusal(error) from error
        except OfferError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from error
        resource.etag = _new_etag()
        return web.Response(text=answer, content_type=TRICKLE_TYPE, headers={hdrs.ETAG: resource.etag})

    async def _delete(self, request: web.Request) -> web.Response:
        resource = self._find(request)
        del self._resources[request.match_info["name"]]
        await resource.peer.close()
        return web.Response(status=200)

    async def _describe(self, request: web.Request) -> web.Response:
        return self._announced(web.Response(status=204, headers={"Accept-Post": SDP_TYPE}))

    def _find(self, request: web.Request) -> Resource:
        self._forget_closed()
        try:
            return self._resources[request.match_info["name"]]
        except KeyError:
            raise web.HTTPNotFound(text="there is no such connection") from None

    def _forget_closed(self) -> None:
        self._resources = {name: resource for name, resource in self._resources.items() if not resource.peer.closed}

    def _announced(self, response: web.Response) -> web.Response:
        for link in self._links:
            response.headers.add(hdrs.LINK, link)
        return response


def refusal(error: OfferError) -> web.HTTPException:
    """The HTTP answer to an offer that cannot be used; raise it from the error."""
    if isinstance(error, NoPortError):
        return web.HTTPServiceUnavailable(text=str(error), headers={hdrs.RETRY_AFTER: str(error.retry_after_s)})
    kind = web.HTTPNotAcceptable if isinstance(error, NotAcceptableError) else web.HTTPBadRequest
    return kind(text=str(error))


def forwarded_prefix(request: web.Request) -> str:
    """The path that a proxy removed (`X-Forwarded-Prefix`), or nothing where the header is none or malformed."""
    prefix = request.headers.get("X-Forwarded-Prefix", "").rstrip("/")
    return prefix if FORWARDED_PREFIX.fullmatch(prefix) else ""


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


def _new_etag() -> str:
    return f'"{secrets.token_hex(8)}"'


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
