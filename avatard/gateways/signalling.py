"""WebRTC signalling over HTTP: `/api/offer` for the page, WHEP for viewers, WHIP for speech."""

from __future__ import annotations

from typing import Any

from aiohttp import hdrs, web

from avatard.gateways.webrtc import Client, PeerRegistry, StackingError, UnavailableError
from avatard.protocols.http_body import read_text
from avatard.protocols.json_text import parse_object
from avatard.protocols.offer import Candidate, OfferError, parse_candidate
from avatard.protocols.peer import Peer
from avatard.protocols.whep import MAX_SDP_BYTES, SignallingEndpoint, refusal


class Signalling:
    """The routes that connect WebRTC clients.

    Args:
        registry: gives each client its seat.
    """

    def __init__(self, registry: PeerRegistry) -> None:
        self._registry = registry

    def add_routes(self, app: web.Application) -> None:
        """Add `/api/ice`, `/api/offer`, `/whep` and `/whip`."""
        app.router.add_get("/api/ice", self._ice)
        app.router.add_post("/api/offer", self._offer)
        app.router.add_patch("/api/offer", self._add_candidates)
        SignallingEndpoint("/whep", self._registry.ice_servers, self._admit_viewer).add_routes(app)
        SignallingEndpoint("/whip", self._registry.ice_servers, self._admit_speaker).add_routes(app)

    async def _admit_viewer(self, request: web.Request) -> Peer:
        return (await self._admit("whep", _wants_stacked(request))).peer

    async def _admit_speaker(self, request: web.Request) -> Peer:
        return (await self._admit("whip")).peer

    async def _admit(self, kind: str, stacked: bool = False) -> Client:
        try:
            return await self._registry.admit(kind, stacked)
        except UnavailableError as error:
            raise unavailable(error) from error
        except StackingError as error:
            raise web.HTTPNotAcceptable(text=str(error)) from error

    async def _ice(self, request: web.Request) -> web.Response:
        servers = self._registry.ice_servers.for_browsers()
        return web.json_response({"ice_servers": servers}, headers={hdrs.CACHE_CONTROL: "no-store"})

    async def _offer(self, request: web.Request) -> web.Response:
        body = await _read_json(request)
        offer = body.get("sdp")
        if not isinstance(offer, str) or body.get("type") != "offer":
            raise web.HTTPBadRequest(text='expected {"sdp": "...", "type": "offer"}')
        stacked = _wants_stacked(request)
        before = self._registry.find(body.get("pc_id"))
        if before is not None:
            await before.peer.close()  # the client comes back: its old connection is of no use
        client = await self._admit("page", stacked)
        try:
            answer = await client.peer.answer(offer)
        except OfferError as error:
            raise refusal(error) from error
        return web.json_response({"sdp": answer, "type": "answer", "pc_id": client.name})

    async def _add_candidates(self, request: web.Request) -> web.Response:
        body = await _read_json(request)
        pc_id, candidates = body.get("pc_id"), body.get("candidates")
        if not isinstance(pc_id, str) or not isinstance(candidates, list):
            raise web.HTTPBadRequest(text='expected {"pc_id": "...", "candidates": [...]}')
        client = self._registry.find(pc_id)
        if client is None:
            raise web.HTTPNotFound(text="there is no such connection")
        try:
            parsed = [_parse_candidate(candidate) for candidate in candidates]
        except OfferError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        known = [candidate for candidate in parsed if candidate is not None]
        client.peer.add_candidates(known, ended=len(known) < len(parsed))
        return web.json_response({"status": "success"})


def _wants_stacked(request: web.Request) -> bool:
    """Whether a client asks for colour over matte. Raises `web.HTTPBadRequest` where it asks for something else."""
    alpha = request.query.get("alpha")
    if alpha not in (None, "stacked"):
        raise web.HTTPBadRequest(text=f"got alpha={alpha[:20]}, expected alpha=stacked or none")
    return alpha == "stacked"


def unavailable(error: UnavailableError) -> web.HTTPException:
    """The answer where there is no seat, or no avatar yet; raise it from the error."""
    return web.HTTPServiceUnavailable(text=str(error), headers={hdrs.RETRY_AFTER: str(error.retry_after_s)})


def _parse_candidate(candidate: Any) -> Candidate | None:
    """An `RTCIceCandidateInit`; None for the empty one, which says that there are no more."""
    if not isinstance(candidate, dict) or not isinstance(candidate.get("candidate"), str):
        raise OfferError('a candidate is {"candidate": "...", "sdpMid": "0", "sdpMLineIndex": 0}')
    if not candidate["candidate"]:
        return None
    mid = candidate.get("sdpMid", candidate.get("sdp_mid"))
    line = candidate.get("sdpMLineIndex", candidate.get("sdp_mline_index"))
    if not isinstance(mid, str | None) or not isinstance(line, int | None) or (line is not None and line < 0):
        raise OfferError("a candidate's sdpMid is a text, its sdpMLineIndex a number from 0")
    return parse_candidate(candidate["candidate"], mid, line)


async def _read_json(request: web.Request) -> dict[str, Any]:
    text = await read_text(request, "application/json", MAX_SDP_BYTES)
    try:
        return parse_object(text)
    except ValueError as error:
        raise web.HTTPBadRequest(text=str(error)) from None
