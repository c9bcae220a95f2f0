"""A bound ZeroMQ socket: its address, its keys, its life."""

import asyncio
import contextlib
import os
from typing import Any, Final, Self
from urllib.parse import urlsplit

import zmq
import zmq.asyncio

from avatard.errors import UserError
from avatard.protocols.curve import Gatekeeper, ServerKeys
from avatard.protocols.network import is_loopback
from avatard.protocols.tasks import cancel_and_wait

HEARTBEAT_MS: Final = 2_000
HEARTBEAT_TIMEOUT_MS: Final = 6_000


class EndpointError(UserError):
    """An endpoint that cannot be used; the text says why and what would do."""


class Endpoint:
    """What publisher and receiver share. `endpoint` names the port that was bound, also when `*` was asked for.

    Raises:
        EndpointError: the endpoint is malformed, or reachable from elsewhere without keys.
    """

    def __init__(self, endpoint: str, socket_type: int, keys: ServerKeys | None) -> None:
        check_endpoint(endpoint, keys)
        self.endpoint = endpoint
        self._type = socket_type
        self._keys = keys
        self._tasks: list[asyncio.Task[None]] = []
        self._resources = contextlib.ExitStack()

    async def start(self) -> None:
        """Bind and serve."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End the tasks and close the socket; what is queued for slow peers is dropped."""
        ends = await cancel_and_wait(self._tasks)
        self._tasks.clear()
        self._resources.close()
        for end in ends:
            if isinstance(end, Exception):  # not CancelledError: a task broke before it was told to end
                raise end

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _configure(self, socket: zmq.asyncio.Socket) -> None:
        """Set the options that must be set before `bind`."""
        raise NotImplementedError

    def _bind(self) -> zmq.asyncio.Socket:
        """Bind a socket that `stop` closes.

        Raises:
            EndpointError: the address is taken, or is not this machine's.
        """
        with contextlib.ExitStack() as resources:
            # Its own context: ZAP decides for a whole context, and ends with it.
            context = zmq.asyncio.Context()
            resources.callback(context.term)
            gatekeeper = Gatekeeper(context, self._keys)
            gatekeeper.start()
            resources.callback(gatekeeper.stop)
            socket = context.socket(self._type)
            resources.callback(socket.close)
            socket.linger = 0
            socket.heartbeat_ivl = HEARTBEAT_MS
            socket.heartbeat_timeout = HEARTBEAT_TIMEOUT_MS
            gatekeeper.guard(socket)
            self._configure(socket)
            _bind(socket, self.endpoint)
            self.endpoint = socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
            self._resources = resources.pop_all()
        return socket


def _bind(socket: zmq.Socket[Any], endpoint: str) -> None:
    socket.ipv6 = "[" in endpoint
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        raise EndpointError(f"cannot bind {endpoint}: {os.strerror(error.errno or 0)}") from None


def check_address(endpoint: str) -> None:
    """Refuse an address that cannot be bound, before anything slow is done.

    Raises:
        EndpointError: it is taken, or is not this machine's.
    """
    with zmq.Context() as context, context.socket(zmq.PULL) as socket:
        _bind(socket, endpoint)


def check_endpoint(endpoint: str, keys: ServerKeys | None) -> None:
    """Refuse what is no endpoint, and without keys what other machines could reach.

    Raises:
        EndpointError: says what is wrong and what would do.
    """
    if endpoint.startswith(("ipc://", "inproc://")):
        return
    try:
        url = urlsplit(endpoint)
        valid = url.scheme == "tcp" and url.hostname and (url.netloc.endswith(":*") or url.port)
    except ValueError:
        valid = False
    if not valid:
        raise EndpointError(f"{endpoint!r} is no ZeroMQ endpoint: expected tcp://ADDRESS:PORT or ipc://PATH")
    if keys is None and not is_loopback(str(url.hostname)):
        raise EndpointError(
            f"{endpoint} is reachable from other machines: bind to 127.0.0.1, or make keys with `avatard keys`"
            " and set zmq.secret_key_file"
        )
