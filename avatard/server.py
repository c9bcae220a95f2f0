"""The HTTP side of the daemon: page, signalling, speech in, control, health and metrics."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import WSCloseCode, hdrs, web
from numpy.typing import NDArray

from avatard.audio.resample import Resampler, to_pcm16
from avatard.clock import monotonic
from avatard.config import Config
from avatard.gate import TOKEN_COOKIE, admission, answer_errors
from avatard.pipeline.scheduler import PlayOut
from avatard.pipeline.supervisor import Portrait, PortraitError, WorkerError
from avatard.protocols import whep
from avatard.protocols.image import ImageFormat, encode_image
from avatard.protocols.media import Encoding, Hub
from avatard.protocols.webrtc import IceServers, OfferError, Peer
from avatard.session import Session
from avatard.voice_agent import serve_agent

logger = logging.getLogger(__name__)

MAX_PORTRAIT_BYTES = 8 * 1024 * 1024
MAX_FACES = 64
MAX_VIEWERS = 64
RETRY_SECONDS = 10
LEAVING_SECONDS, LEAVING_TRIES = 1.0, 20
PANEL_SECONDS = 1.0
PORTRAIT_SUFFIXES = {"image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp", "image/bmp": ".bmp"}


class ServerError(RuntimeError):
    """The server cannot listen; one line."""


class _Client:
    """A WebRTC client: what its peer tells goes to the session, the session's events go to it."""

    def __init__(self, server: Server, kind: str) -> None:
        self.server, self.kind = server, kind
        self.peer: Peer | None = None
        self._resampler: Resampler | None = None
        self._rate_hz = 0
        self._unlisten = server.session.listen(self.on_event)

    def on_audio(self, samples: NDArray[np.float32], rate_hz: int) -> None:
        if self._resampler is None or rate_hz != self._rate_hz:
            self._resampler, self._rate_hz = Resampler(rate_hz), rate_hz
        self.server.session.speak_live(self._resampler.push(samples), self)

    def on_message(self, message: dict[str, Any]) -> None:
        if message.get("type") == "interrupt":
            self.server.session.interrupt()
        elif self.peer is not None:
            text = "unknown message; expected type interrupt"
            self.peer.send_event("error", {"message": text, "fatal": False}, str(message.get("id", "")))

    def on_event(self, kind: str, data: Mapping[str, Any]) -> None:
        if self.peer is not None:
            self.peer.send_event(kind, dict(data))

    def on_first_frame(self, seconds: float) -> None:
        self.server.session.metrics.first_frame.observe(seconds)

    def on_closed(self) -> None:
        self._unlisten()
        self.server.session.end_of_utterance(self)
        self.server.forget(self)


class Server:
    """One avatar over HTTP.

    Args:
        config: the effective configuration.
        session: the avatar, started.
    """

    def __init__(self, config: Config, session: Session) -> None:
        self.session = session
        self._config = config
        webrtc = config.webrtc
        self._ice_servers = IceServers(webrtc.ice_servers, webrtc.ice_username, webrtc.ice_credential)
        encoding = Encoding(webrtc.codec, webrtc.bitrate_kbps * 1000)
        self._hub = Hub(encoding, monotonic, session.metrics.skewed)
        self._clients: set[_Client] = set()
        self._by_id: dict[str, _Client] = {}
        self._sockets: set[web.WebSocketResponse] = set()
        self._closing = False
        self._door = asyncio.Lock()
        self._runner: web.AppRunner | None = None
        self._panel: asyncio.Task[None] | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """Listen; gives the page's URL.

        Raises:
            ServerError: the address is taken, or the TLS files cannot be used.
        """
        server = self._config.server
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=2.0)
        await self._runner.setup()
        try:
            tls = _tls(server.tls_certificate_file, server.tls_key_file)
            await web.TCPSite(self._runner, server.host, server.port, ssl_context=tls).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ServerError(f"cannot listen on {server.host}:{server.port}: {error.strerror or error}") from None
        if server.host not in ("127.0.0.1", "::1", "localhost") and not server.token:
            logger.warning("reachable from elsewhere without a token", extra={"host": server.host})
        host = f"[{server.host}]" if ":" in server.host else server.host
        return f"{'https' if tls else 'http'}://{host}:{self._runner.addresses[0][1]}/"

    async def stop(self) -> None:
        """Say good-bye to every client and stop listening."""
        self._closing = True
        if self._panel is not None:
            self._panel.cancel()
            await asyncio.gather(self._panel, return_exceptions=True)
        await asyncio.gather(*(client.peer.close() for client in list(self._clients) if client.peer is not None))
        await asyncio.gather(
            *(socket.close(code=WSCloseCode.GOING_AWAY, message=b"shutting down") for socket in list(self._sockets))
        )
        if self._runner is not None:
            await self._runner.cleanup()
        await self._hub.close()

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(
            middlewares=[answer_errors, admission(self._config.server.token)], client_max_size=MAX_PORTRAIT_BYTES
        )
        app.router.add_get("/", self._page)
        app.router.add_static("/web", _web_folder(), append_version=False)
        app.router.add_post("/api/offer", self._offer)
        app.router.add_patch("/api/offer", self._candidates)
        app.router.add_post("/api/interrupt", self._interrupt)
        app.router.add_post("/api/identity", self._identity)
        app.router.add_get("/api/status", self._status)
        app.router.add_get("/api/portrait", self._portrait)
        app.router.add_get("/ws/audio", self._audio)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        whep.add_routes(app, "/whep", self._ice_servers, self._new_viewer)
        whep.add_routes(app, "/whip", self._ice_servers, self._new_voice)
        return app

    # -- frames -------------------------------------------------------------------------------------------------------

    def play(self, entry: PlayOut) -> None:
        """Send a frame to all clients: the session calls it when the frame is due."""
        if entry.picture is not None:
            self._hub.send(entry.index, entry.picture.pixels, to_pcm16(entry.samples))

    def _connect(self, kind: str, watches: bool, listens: bool) -> Peer:
        client = _Client(self, kind)
        client.peer = Peer(self._hub if watches else None, self._ice_servers, client, listens)
        self._clients.add(client)
        self._count()
        if self._panel is None:
            self._panel = asyncio.create_task(self._tell_figures(), name="panel")
        return client.peer

    def forget(self, client: _Client) -> None:
        """The client is gone."""
        self._clients.discard(client)
        self._by_id = {name: other for name, other in self._by_id.items() if other is not client}
        self._count()

    def _count(self) -> None:
        for kind in ("page", "whep", "whip"):
            count = sum(client.kind == kind for client in self._clients)
            self.session.metrics.sessions.labels(kind).set(count)
        watched = any(client.kind != "whip" for client in self._clients)
        self.session.detach(self)
        if watched:
            self.session.attach(self)

    async def _tell_figures(self) -> None:
        while True:
            await asyncio.sleep(PANEL_SECONDS)
            if self._clients:
                self.session.emit("metrics", **self.session.figures())

    async def _check_room(self, kinds: tuple[str, ...], most: int) -> None:
        """Let one more client in, or raise 503; whoever is just leaving, as before a reload, is given a moment."""
        async with self._door:
            for _ in range(LEAVING_TRIES):
                if sum(client.kind in kinds for client in self._clients) < most:
                    break
                await asyncio.sleep(LEAVING_SECONDS / LEAVING_TRIES)
        if self._closing or not self.session.ready:
            why = "shutting down" if self._closing else "the avatar is starting"
            raise web.HTTPServiceUnavailable(text=why, headers={hdrs.RETRY_AFTER: "2"})
        if sum(client.kind in kinds for client in self._clients) >= most:
            headers = {hdrs.RETRY_AFTER: str(RETRY_SECONDS)}
            raise web.HTTPServiceUnavailable(text=f"all {most} sessions are in use; try again later", headers=headers)

    # -- signalling ---------------------------------------------------------------------------------------------------

    async def _new_viewer(self, request: web.Request) -> Peer:
        await self._check_room(("whep",), MAX_VIEWERS)
        return self._connect("whep", watches=True, listens=False)

    async def _new_voice(self, request: web.Request) -> Peer:
        await self._check_room(("page", "whip"), self._config.server.max_sessions)
        return self._connect("whip", watches=False, listens=True)

    async def _offer(self, request: web.Request) -> web.Response:
        body = await _read_json(request)
        offer, pc_id = body.get("sdp"), body.get("pc_id")
        if not isinstance(offer, str) or body.get("type") != "offer":
            raise web.HTTPBadRequest(text='expected {"sdp": "...", "type": "offer"}')
        before = self._by_id.get(pc_id) if isinstance(pc_id, str) else None
        if before is not None and before.peer is not None:
            await before.peer.close()  # it comes back: its old connection is of no use any more
        await self._check_room(("page", "whip"), self._config.server.max_sessions)
        peer = self._connect("page", watches=True, listens=True)
        client = next(client for client in self._clients if client.peer is peer)
        try:
            answer = await peer.answer(offer)
        except OfferError as error:
            raise web.HTTPBadRequest(text=str(error)) from None
        name = f"{id(peer):x}-{len(self._by_id)}"
        self._by_id[name] = client
        return web.json_response({"sdp": answer, "type": "answer", "pc_id": name})

    async def _candidates(self, request: web.Request) -> web.Response:
        body = await _read_json(request)
        pc_id, candidates = body.get("pc_id"), body.get("candidates")
        if not isinstance(pc_id, str) or not isinstance(candidates, list):
            raise web.HTTPBadRequest(text='expected {"pc_id": "...", "candidates": [...]}')
        client = self._by_id.get(pc_id)
        if client is None or client.peer is None:
            raise web.HTTPNotFound(text="no such connection")
        for candidate in candidates:
            if not isinstance(candidate, dict) or not isinstance(candidate.get("candidate"), str):
                raise web.HTTPBadRequest(text='a candidate is {"candidate": "...", "sdpMid": "0", "sdpMLineIndex": 0}')
            mid = candidate.get("sdpMid", candidate.get("sdp_mid"))
            line = candidate.get("sdpMLineIndex", candidate.get("sdp_mline_index"))
            try:
                await client.peer.add_candidate(candidate["candidate"], mid, line)
            except OfferError as error:
                raise web.HTTPBadRequest(text=str(error)) from None
        return web.json_response({"status": "success"})

    # -- control ------------------------------------------------------------------------------------------------------

    async def _interrupt(self, request: web.Request) -> web.Response:
        cut = self.session.interrupt()
        return web.json_response(
            {"frame": cut.frame, "played_ms": cut.played_samples // 16, "dropped_ms": cut.dropped_samples // 16}
        )

    async def _identity(self, request: web.Request) -> web.Response:
        suffix = PORTRAIT_SUFFIXES.get(request.content_type)
        if suffix is None:
            known = ", ".join(PORTRAIT_SUFFIXES)
            raise web.HTTPUnsupportedMediaType(text=f"got {request.content_type}, expected one of {known}")
        face = request.query.get("face", "0")
        if not (face.isascii() and face.isdigit() and int(face) <= MAX_FACES):
            raise web.HTTPBadRequest(text=f"got face={face}, expected 1 to {MAX_FACES}, counted from the left")
        data = await request.read()
        try:
            digest = await self.session.identify(Portrait(data, suffix, int(face)))
        except PortraitError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from None
        except WorkerError as error:
            raise web.HTTPServiceUnavailable(text=str(error), headers={hdrs.RETRY_AFTER: "5"}) from None
        return web.json_response({"identity": digest})

    async def _portrait(self, request: web.Request) -> web.Response:
        picture = self.session.portrait
        if picture is None:
            raise web.HTTPServiceUnavailable(text="the avatar is starting", headers={hdrs.RETRY_AFTER: "2"})
        data = await asyncio.to_thread(encode_image, picture.pixels, ImageFormat("jpeg", 90))
        return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def _status(self, request: web.Request) -> web.Response:
        body = {"ready": self.session.ready, "identity": self.session.digest, "speaking": self.session.speaking}
        return web.json_response(body | {"figures": self.session.figures(), "clients": len(self._clients)})

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        return await serve_agent(request, self.session, self._sockets)

    # -- pages and health ---------------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.StreamResponse:
        response = web.FileResponse(_web_folder() / "index.html", headers=PAGE_HEADERS)
        token = self._config.server.token
        if token:
            # The page's own requests, its styles and its WebSocket cannot all carry a header.
            secure = self._config.server.tls_certificate_file != ""
            response.set_cookie(TOKEN_COOKIE, token, httponly=True, samesite="Strict", secure=secure)
        return response

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self._closing or not self.session.ready:
            return web.Response(status=503, text="not ready\n", headers={hdrs.RETRY_AFTER: "2"})
        return web.Response(text="ready\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.session.collect(), headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4"})


PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; object-src 'none'; base-uri 'none'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


async def _read_json(request: web.Request) -> dict[str, Any]:
    text = await whep.read_text(request, "application/json")
    try:
        body = json.loads(text)
    except ValueError:
        raise web.HTTPBadRequest(text="the body is not JSON") from None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(text="expected a JSON object")
    return body


def _tls(certificate: str, key: str) -> ssl.SSLContext | None:
    if not certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ServerError(f"cannot use the TLS files {certificate} and {key}: {error}") from None
    return context


def _web_folder() -> Path:
    return Path(__file__).parent / "web"
