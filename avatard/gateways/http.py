"""The HTTP server of the daemon: it listens, and has the routes of the default room and of all others."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import hdrs, web
from prometheus_client import generate_latest

from avatard.config import Config
from avatard.config import Server as ServerConfig
from avatard.errors import UserError
from avatard.gateways.connections import HEAD_SECONDS, IDLE_SECONDS, ConnectionLimiter
from avatard.gateways.middleware import authentication, cors_headers, json_errors, same_origin, trusted_host
from avatard.gateways.outputs import Outputs
from avatard.gateways.room import Room
from avatard.gateways.room_routes import add_identities, add_rooms
from avatard.gateways.rooms import Rooms
from avatard.media.identities import Identities
from avatard.protocols.network import is_loopback
from avatard.session.session import ENGINE, Session

logger = logging.getLogger(__name__)


class ServerError(UserError):
    """The server cannot listen."""

    CODE = "listen"


def make_rooms(config: Config, room: Room, engine: str = ENGINE) -> Rooms:
    """A registry of rooms whose networks each run in a process of their own; see `Rooms`."""
    folder = Path(config.server.data_dir) if config.server.data_dir else None
    return Rooms(config, room, Identities(folder), engine)


class Server:
    """The avatars of the daemon over HTTP.

    Args:
        config: the effective configuration.
        session: the avatar of the default room, started.
        outputs: what `/api/outputs` controls; by default those of the configuration.
        make_rooms: makes the registry of the other rooms from the default one.

    Raises:
        TtsUnavailableError: text to speech is configured, and cannot be had.
        IdentityError: the folder of the identities cannot be used.
    """

    def __init__(
        self,
        config: Config,
        session: Session,
        outputs: Outputs | None = None,
        make_rooms: Callable[[Config, Room], Rooms] = make_rooms,
    ) -> None:
        self._config = config
        self.room = Room(config, session, outputs, token=config.server.token)
        self.rooms = make_rooms(config, self.room)
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
        self.rooms.start()
        if not is_loopback(server.host) and not server.token:
            logger.warning("reachable from other machines without a token", extra={"host": server.host})
        host = socket.gethostname() if server.host in ("0.0.0.0", "::") else server.host
        host = f"[{host}]" if ":" in host else host
        return f"{'https' if tls else 'http'}://{host}:{self._listener.sockets[0].getsockname()[1]}/"

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        await self.room.close("shutting down")
        await self.rooms.close()
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
        self.room.add_routes(app)
        add_rooms(app, self.rooms)
        add_identities(app, self.rooms)
        app.router.add_get("/api/status", self._status)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._metrics)
        return app

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response({**self.room.status(), "rooms": self.rooms.figures()})

    async def _readyz(self, request: web.Request) -> web.Response:
        figures = "".join(f"{name} {value}\n" for name, value in self.rooms.figures().items())
        if not self.room.ready:
            return web.Response(status=503, text=f"not ready\n{figures}", headers={hdrs.RETRY_AFTER: "2"})
        return web.Response(text=f"ready\n{figures}")

    async def _metrics(self, request: web.Request) -> web.Response:
        text = generate_latest(self.rooms)
        return web.Response(body=text, headers={hdrs.CONTENT_TYPE: "text/plain; version=0.0.4"})


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
