"""A room: one avatar over HTTP, with everything that is connected to it.

The default room is the avatar of the command line, and its routes are at the root. Every other room has the same routes
below `/rooms/ID`.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from aiohttp import WSCloseCode, hdrs, web

from avatard.config import Config
from avatard.errors import UserError
from avatard.gateways.agent import serve_liveavatar
from avatard.gateways.first_portrait import add_first_portrait
from avatard.gateways.livekit import LiveKitRoute
from avatard.gateways.middleware import ROOM_COOKIE, TOKEN_COOKIE
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
from avatard.session.session import Session

MAX_PORTRAIT_BYTES = 8 * 1024 * 1024
MAX_FACES = 64


class Room:
    """One avatar and its clients.

    Args:
        config: the configuration of this avatar.
        session: the avatar.
        outputs: what `/api/outputs` controls; by default those of the configuration.
        name: the id of the room; empty for the default one.
        token: what its clients must send; empty: nothing.

    Raises:
        TtsUnavailableError: text to speech is configured, and cannot be had.
    """

    def __init__(
        self, config: Config, session: Session, outputs: Outputs | None = None, name: str = "", token: str = ""
    ) -> None:
        self.config, self.session, self.name, self.token = config, session, name, token
        self.outputs = outputs or Outputs(config.output, session)
        self._mjpeg = Mjpeg(session, config.output)
        self._peers = PeerRegistry(session, config.webrtc, config.server.max_sessions)
        self._livekit = LiveKitRoute(session)
        self._say = SayGateway(config.tts, session)
        self._sockets: set[web.WebSocketResponse] = set()
        self._closing = False

    @property
    def path(self) -> str:
        """What its routes begin with."""
        return f"/rooms/{self.name}" if self.name else ""

    @property
    def clients(self) -> int:
        """WebRTC clients, WebSockets and viewers of `/mjpeg`."""
        return len(self._peers) + len(self._sockets) + self._mjpeg.viewers

    @property
    def occupied(self) -> bool:
        """Whether anybody watches, is connected, or anything is left to say."""
        return bool(self.clients or self._livekit.room or self.session.wants_frames())

    @property
    def ready(self) -> bool:
        """Whether clients can be served."""
        return self.session.ready and not self._closing

    def add_routes(self, app: web.Application) -> None:
        """Add the routes of an avatar."""
        router = app.router
        router.add_get("/", self._page)
        router.add_static("/web", web_folder(), append_version=False)
        router.add_post("/api/interrupt", self._interrupt)
        router.add_post("/api/identity", self._identity)
        add_first_portrait(app, self.session)
        add_outputs(app, self.outputs)
        router.add_get("/mjpeg", self._mjpeg.serve)
        router.add_get("/api/portrait", self._portrait)
        router.add_get("/ws/audio", self._audio)
        router.add_get("/ws/agent", self._agent)
        self._say.add_routes(app)
        router.add_get("/healthz", self._healthz)
        Signalling(self._peers).add_routes(app)
        self._livekit.add_routes(app)

    def add_probes(self, app: web.Application) -> None:
        """Add what tells of one avatar, where the server has nothing else to tell."""
        app.router.add_get("/api/status", self._status)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)

    def status(self) -> dict[str, Any]:
        """What `/api/status` tells."""
        session = self.session
        return {
            "room": self.name,
            "ready": session.ready,
            "identity": session.generation.digest,
            "speaking": session.speaking,
            "figures": session.figures(),
            "clients": len(self._peers),
            "livekit": self._livekit.room,
            "say": self._say.status,
        }

    async def close(self, reason: str) -> None:
        """Close every connection; the session goes on."""
        self._closing = True
        await self._peers.close()
        await self._mjpeg.close()
        await self._livekit.close()
        await self._say.close()
        await asyncio.gather(
            *(socket.close(code=WSCloseCode.GOING_AWAY, message=reason.encode()) for socket in list(self._sockets))
        )

    async def _interrupt(self, request: web.Request) -> web.Response:
        cut = self.session.interrupt()
        return web.json_response(msgspec.to_builtins(cut))

    async def _identity(self, request: web.Request) -> web.Response:
        portrait = await read_portrait(request)
        try:
            digest = await self.session.identify(portrait)
        except PortraitError as error:
            raise unusable(error) from error
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
        return web.json_response(self.status())

    async def _audio(self, request: web.Request) -> web.StreamResponse:
        return await serve_agent(request, self.session, self._sockets)

    async def _agent(self, request: web.Request) -> web.StreamResponse:
        return await serve_liveavatar(request, self.session, self._sockets)

    async def _page(self, request: web.Request) -> web.StreamResponse:
        cookie = ROOM_COOKIE if self.name else TOKEN_COOKIE
        tls = self.config.server.tls_certificate_file != ""
        return page(request, cookie, self.token, tls=tls, path=f"{self.path}/")

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        if not self.ready:
            return web.Response(status=503, text="not ready\n", headers={hdrs.RETRY_AFTER: "2"})
        return web.Response(text="ready\n")

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.session.metrics.text(), headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4"})


def unusable(error: UserError) -> web.HTTPException:
    """The answer where a portrait cannot be used; raise it from the error."""
    # The command line's way to choose a face, and the routes'.
    return web.HTTPUnprocessableEntity(text=str(error).replace("--face ", "face="))


async def read_portrait(request: web.Request) -> Portrait:
    """The picture that a request uploads, and which of its faces is meant (`?face=N`).

    Raises:
        web.HTTPException: as of `read_body`, and 400 for a number that is none.
    """
    face = request.query.get("face", "0")
    if not re.fullmatch("[0-9]{1,2}", face) or int(face) > MAX_FACES:
        raise web.HTTPBadRequest(text=f"got face={face[:20]}, expected 1 to {MAX_FACES}, counted from the left")
    return Portrait(await read_body(request, tuple(MEDIA_TYPES), MAX_PORTRAIT_BYTES), int(face))
