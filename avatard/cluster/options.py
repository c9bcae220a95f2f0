"""What a cluster is told: the `args` of a Ray Serve application."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from avatard.errors import UserError


class OptionsError(UserError):
    """Arguments of the application that cannot be used."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of the application."""

    #: The portrait of rooms that name none: a file that every machine has.
    portrait: Annotated[str, Meta(min_length=1)]
    #: More arguments of `avatard serve`, such as `["--profile", "low-latency"]`. What differs between machines, such as
    #: webrtc.announce, are AVATARD_… variables of theirs.
    serve: tuple[str, ...] = ()
    #: What is run with these arguments instead of `avatard serve`, such as a wrapper.
    program: tuple[str, ...] = ()
    #: Where the daemons listen; empty: at the address by which Ray knows the machine.
    host: str = ""
    min_replicas: Annotated[int, Meta(ge=1, le=10_000)] = 1
    max_replicas: Annotated[int, Meta(ge=1, le=10_000)] = 8
    ingresses: Annotated[int, Meta(ge=1, le=100)] = 1
    #: Of each replica, as Ray counts them.
    cpus: Annotated[float, Meta(gt=0, le=1024)] = 2.0
    gpus: Annotated[float, Meta(ge=0, le=16)] = 0.0
    #: How long a replica that is to end waits for its rooms to end.
    drain_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 3600.0
    #: How long fewer replicas must have been enough before one drains.
    downscale_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 600.0

    def __post_init__(self) -> None:
        """Refuse bounds that cross."""
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas = {self.min_replicas} is more than max_replicas = {self.max_replicas}")

    def command(self, host: str) -> list[str]:
        """The command line of a daemon on this address."""
        program = self.program or (sys.executable, "-P", "-m", "avatard", "serve")
        address = ["--print-url", "--host", self.host or host, "--port", "0"]
        return [*program, *address, "--identity", self.portrait, *self.serve]


def parse(arguments: Mapping[str, Any]) -> Options:
    """Check the arguments; `key=value` of the command line are texts.

    Raises:
        OptionsError: one is unknown, missing or out of range.
    """
    try:
        return msgspec.convert(dict(arguments), Options, strict=False)
    except ValueError as error:  # msgspec's are, too
        keys = ", ".join(Options.__struct_fields__)
        raise OptionsError(f"arguments of the cluster: {' '.join(str(error).split())}; there are {keys}") from None
