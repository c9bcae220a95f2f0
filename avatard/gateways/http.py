"""The HTTP side of the daemon: page, signalling, speech in, control, health and metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import ssl

import msgspec
from aiohttp import WSCloseCode, hdrs, web

from avatard.config import Config
from avatard.config import Server as ServerConfig
from avatard.errors import UserError
from avatard.gateways.agent import serve_liveavatar
from avatard.gateways.connections import HEAD_SECONDS, IDLE_SECONDS, ConnectionLimiter
from avatard.gateways.first_portrait import add_first_portrait
from avatard.gateways.livekit import LiveKitRoute
from avatard.gateways.middleware import (
    TOKEN_COOKIE,
    authentication,
    cors_headers,
    json_errors,
    same_origin,
    trusted_host,
)
from avatard.gateways.mjpeg import Mjpeg
from avatard.gateways.output_routes import add_outputs
from avatard.gateways.outputs import Outputs
from avatard.gateways.page import page, web_folder
from avatard.gateways.say import SayGateway
from avatard.gateways.signalling import Signalling
from avatard.gateways.webrtc import PeerRegistry
from avatard.gateways.websocket import serve_agent
from avatard.inference.supervisor import WorkerError
from avatard.media.image_file import MEDIA_TYPES
from avatard.portrait import Portrait, PortraitError
from avatard.protocols.http_body import read_body
from avatard.protocols.image import ImageFormat, encode_image
from avatard.protocols.network import is_loopback
from avatard.session.session import Session

logger = logging.getLogger(__name__)

MAX_PORTRAIT_BYTES = 8 * 1024 * 1024
MAX_FACES = 64


class ServerError(UserError):
    """The server cannot listen."""

    CODE = "listen"


class Server:
    """One avatar over HTTP.

    Args:
        config: the effective configuration.
        session: the avatar, started.
        outputs: what `/api/outputs` controls; by default those of the configuration.

    Raises:
        TtsUnavailableError: text to speech is configured, and cannot be had.
    """

    def __init__(self, config: Config, session: Session, outputs: Outputs | None = None) -> None:
        self.session = session
        self._config = config
        self._outputs = outputs or Outputs(config.output, session)
        self._mjpeg = Mjpeg(session, config.output)
        self._peers = PeerRegistry(session, config.webrtc, config.server.max_sessions)
        self._livekit = LiveKitRoute(session)
        self._say = SayGateway(config.tts, session)
        self._sockets: set[web.WebSocketResponse] = set()
        self._limiter = ConnectionLimiter(config.server.max_connections)
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None

    async def check_address(self) -> None:
        """Refuse an address that cannot be listened on, before anything slow is done.

        Raises:
            ServerError: no address has this name, or its port is taken.
        """
        server = self._config.server
        try:
            found = await asyncio.get_running_loop().getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
            for family, kind, protocol, _, address in found:
                with socket.socket(family, kind, protocol) as probe:
                    if os.name == "posix":  # as asyncio does: a port whose last user has just left is free
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
        except (OSError, UnicodeError) as error:
            raise _cannot_listen(server, error) from None

    async def start(self) -> str:
        """Listen; gives the page's URL.

        Raises:
            ServerError: the address is taken, or the TLS files cannot be used.
        """
        server = self._config.server
        # The limiter closes idle connections; aiohttp's own clock only starts after a first request.
        self._runner = web.AppRunner(
            self.application(), access_log=None, shutdown_timeout=2.0, keepalive_timeout=2 * IDLE_SECONDS
        )
        await self._runner.setup()
        assert self._runner.server is not None
        try:
            tls = _tls(server.tls_certificate_file, server.tls_key_file)
            self._listener = await asyncio.get_running_loop().create_server(
                self._limiter.limited(self._runner.server),
                server.host,
                server.port,
                ssl=tls,
                ssl_handshake_timeout=HEAD_SECONDS if tls else None,
            )
        except (OSError, UnicodeError) as error:
            await self._runner.cleanup()
            raise _cannot_listen(server, error) from None
        except ServerError:
            await self._runner.cleanup()
            raise
        if not is_loopback(server.host) and not server.token:
            logger.warning("reachable from other machines without a token", extra={"host": server.host})
        host = socket.gethostname() if server.host in ("0.0.0.0", "::") else server.host
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if tls else 'http'}://{host}:{self._listener.sockets[0].getsockname()[1]}/"

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        await self._peers.close()
        await self._mjpeg.close()
        await self._livekit.close()
        await self._say.close()
        await asyncio.gather(
            *(socket.close(code=WSCloseCode.GOING_AWAY, message=b"shutting down") for socket in list(self._sockets))
        )
        if self._listener is not None:
            self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()
        self._limiter.close()

    def application(self) -> web.Application:
        """The routes."""
        server = self._config.server
        app = web.Application(
            middlewares=[
                self._limiter.middleware,
                json_errors,
                trusted_host(server),
                same_origin(server.token),
                authentication(server.token),
            ]
        )
        app.on_response_prepare.append(cors_headers(server.token))
        app.router.add_get("/", self._page)
        app.router.add_static("/web", web_folder(), append_version=False)
        app.router.add_post("/api/interrupt", self._interrupt)
        app.router.add_post("/api/identity", self._identity)
        add_first_portrait(app, self.session)
        add_outputs(app, self._outputs)
        app.router.add_get("/mjpeg", self._mjpeg.serve)
        app.router.add_get("/api/status", self._status)
        app.router.add_get("/api/portrait", self._portrait)
        app.router.add_get("/ws/audio", self._audio)
        app.router.add_get("/ws/agent", self._agent)
        self._say.add_routes(app)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        Signalling(self._peers).add_routes(app)
        self._livekit.add_routes(app)
        return app

    async def _interrupt(self, request: web.Request) -> web.Response:
        cut = self.session.interrupt()
        return web.json_response(msgspec.to_builtins(cut))

    async def _identity(self, request: web.Request) -> web.Response:
        face = request.query.get("face", "0")
        if not re.fullmatch("[0-9]{1,2}", face) or int(face) > MAX_FACES:
            raise web.HTTPBadRequest(text=f"got face={face[:20]}, expected 1 to {MAX_FACES}, counted from the left")
        data = await read_body(request, tuple(MEDIA_TYPES), MAX_PORTRAIT_BYTES)
        try:
            digest = await self.session.identify(Portrait(data, int(face)))
        except PortraitError as error:
            raise web.HTTPUnprocessableEntity(text=str(error)) from error
        except WorkerError as error:
            raise web.HTTPServiceUnavailable(text=str(error), headers={hdrs.RETRY_AFTER: "5"}) from error
        return web.json_response({"identity": digest})

    async def _portrait(self, request: web.Request) -> web.Response:
        picture = self.session.generation.at_rest
        if picture is None:
            raise web.HTTPServiceUnavailable(text="the avatar is starting", headers={hdrs.RETRY_AFTER: "2"})
        data = await asyncio.to_thread(encode_image, picture.rgb, ImageFormat("jpeg", 90))
        return web.Response(body=data, content_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def _status(self, request: web.Request) -> web.Response:
        session = self.session
        body: dict[str, object] = {
            "ready": session.ready,
            "identity": session.generation.digest,
            "speaking": session.speaking,
        }
        body |= {"figures": session.figures(), "clients": len(self._peers), "livekit": self._livekit.room}
        body["say"] = self._say.status
        return web.json_response(body)

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        return await serve_agent(request, self.session, self._sockets)

    async def _agent(self, request: web.Request) -> web.StreamResponse:
        return await serve_liveavatar(request, self.session, self._sockets)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        server = self._config.server
        return page(request, TOKEN_COOKIE, server.token, tls=server.tls_certificate_file != "")

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if self._peers.closing or not self.session.ready:
            return web.Response(status=503, text="not ready\n", headers={hdrs.RETRY_AFTER: "2"})
        return web.Response(text="ready\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.session.metrics.text(), headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4"})


def _cannot_listen(server: ServerConfig, error: OSError | UnicodeError) -> ServerError:
    # Python's IDNA codec says of a bad host name only that a label is empty or too long.
    reason = error.strerror or error if isinstance(error, OSError) else "not a valid host name"
    return ServerError(f"cannot listen on {server.host}:{server.port}: {reason}")


def _tls(certificate: str, key: str) -> ssl.SSLContext | None:
    if not certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ServerError(f"cannot use the TLS files {certificate} and {key}: {error}") from None
    return context
