"""The UDP ports of WebRTC media: from a range that a firewall or a container opens, and under announced addresses.

A connection has one port, the same on every address of this machine, so that a range of 100 ports is enough for 100
clients, and a NAT that forwards the range may forward it to any of these addresses.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Iterable, Sequence

from avatard.protocols.offer import OfferError

RETRY_SECONDS = 10
ANY_PORT_TRIES = 16  # a port that is free on one address may be taken on another
RECEIVE_BUFFER_BYTES = 256 * 1024  # as aioice sets it


class NoPortError(OfferError):
    """All ports of the range are taken."""

    CODE = "no-port"

    def __init__(self, ports: range) -> None:
        which = f"UDP port {ports[0]} is" if len(ports) == 1 else f"all {len(ports)} UDP ports from {ports[0]} on are"
        super().__init__(f"{which} taken; try again in {RETRY_SECONDS} s", retry_after_s=RETRY_SECONDS)
        self.retry_after_s = RETRY_SECONDS


class MediaPorts:
    """Binds the ports of connections.

    Args:
        ports: from which one is taken for each connection; empty: any that the system gives.
        announced: IP addresses that clients are told instead of this machine's own, the preferred one first.
    """

    def __init__(self, ports: range = range(0), announced: Sequence[str] = ()) -> None:
        self.announced = tuple(announced)
        self._ports = ports
        # In turn: a late packet of the client before does not reach the next one.
        self._next = random.randrange(len(ports)) if ports else 0

    def bind(self, addresses: Iterable[str]) -> list[socket.socket]:
        """UDP sockets on a port that is free on all these addresses; without those that cannot be bound at all.

        Raises:
            NoPortError: every port of the range is taken.
        """
        addresses = list(addresses)
        for number in range(len(self._ports) or ANY_PORT_TRIES):
            place = (self._next + number) % len(self._ports) if self._ports else 0
            bound = _bind(addresses, self._ports[place] if self._ports else 0)
            if bound is not None:
                self._next = place + 1
                return bound
        raise NoPortError(self._ports or range(1024, 65536))


def _bind(addresses: Iterable[str], port: int) -> list[socket.socket] | None:
    """Sockets on this port, 0 for any; None where it is taken on one of the addresses."""
    with contextlib.ExitStack() as unused:
        bound = []
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            candidate = unused.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            try:
                candidate.bind((address, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return None
                candidate.close()  # an address that has just left this machine, or is not yet usable
                continue
            port = candidate.getsockname()[1]
            bound.append(candidate)
        unused.pop_all()
    return bound
