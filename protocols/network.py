"""Addresses."""

from __future__ import annotations

import ipaddress
import re

from avatard.errors import UserError


class TargetError(UserError):
    """An address to send to that cannot be used."""


#: A name, an IPv4 address, or an IPv6 address in brackets; and a port.
_TARGET = re.compile(
    r"(?:\[(?P<v6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[A-Za-z0-9_.-]{1,253}))(?::(?P<port>[0-9]{1,5}))?"
)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on this host name or address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name or an interface: what it resolves to is not known


def udp_target(text: str, default_port: int) -> tuple[str, int]:
    """Host and port of `HOST[:PORT]`.

    Raises:
        TargetError: it is not of that form.
    """
    found = _TARGET.fullmatch(text)
    port = int(found["port"] or default_port) if found else 0
    # Labels that name resolution would refuse with an exception of its own.
    labels = (found["host"] or "a").removesuffix(".").split(".") if found else [""]
    if found is None or not 1 <= port <= 65535 or not all(0 < len(label) < 64 for label in labels):
        raise TargetError(f"{text!r} is no receiver: expected HOST or HOST:PORT, such as 127.0.0.1:{default_port}")
    return found["v6"] or found["host"], port
