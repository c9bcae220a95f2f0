"""The Ray Serve application: `serve run avatard.cluster.app:build portrait=/data/me.png`.

    Ingress   ASGI behind Serve's proxy; one or several
    Avatar    a replica: one actor, one daemon, its machine's UDP ports
    Register  a named actor in which the replicas announce themselves

Serve starts and ends replicas as `avatard.cluster.autoscaling` says, and replaces dead ones. One that it ends for a
smaller number, or for an upgrade, drains first: it takes no more rooms and waits for those it has.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import aiohttp
import msgspec

from avatard.clock import monotonic
from avatard.cluster.daemon import Daemon
from avatard.cluster.directory import Member
from avatard.cluster.ingress import Ingress
from avatard.cluster.options import Options, OptionsError, parse
from avatard.cluster.register import BEAT_SECONDS, Register
from avatard.cluster.watch import ask
from avatard.integrations.extras import needs
from avatard.protocols.tasks import cancel_and_wait

with needs("cluster", "ray"):
    import ray
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "AVATARD_SERVER__TOKEN"
#: With a number, which changes with what is kept there: the actor outlives an upgrade.
REGISTER_NAME, NAMESPACE = "avatard-register-1", "avatard"
INGRESS_REQUESTS = 10_000  # at once, WebSockets among them
ANSWER_SECONDS = 2.0


def build(arguments: dict[str, Any]) -> Any:
    """The application, for `serve run` and a Serve configuration's `import_path`.

    Args:
        arguments: see `avatard.cluster.options.Options`.

    Raises:
        OptionsError: one of them cannot be used, or the token is not set.
    """
    options = parse(arguments)
    token = os.environ.get(TOKEN_VARIABLE, "")
    if not token:
        raise OptionsError(f"the daemons of a cluster listen beyond their machines: set {TOKEN_VARIABLE}")

    def ingress() -> Ingress:
        return Ingress(registered, token)

    avatars = serve.deployment(
        Avatar,
        name="Avatar",
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.min_replicas,
            max_replicas=options.max_replicas,
            upscale_delay_s=0,
            downscale_delay_s=options.downscale_seconds,
            metrics_interval_s=2,
            look_back_period_s=4,
            policy=AutoscalingPolicy(policy_function="avatard.cluster.autoscaling:policy"),
        ),
        health_check_period_s=1,
        health_check_timeout_s=5,
        graceful_shutdown_wait_loop_s=1,
        graceful_shutdown_timeout_s=options.drain_seconds + 60,
    ).bind(options, token)
    return (
        serve.deployment(
            serve.ingress(ingress)(),
            name="Ingress",
            num_replicas=options.ingresses,
            max_ongoing_requests=INGRESS_REQUESTS,
            ray_actor_options={"num_cpus": 0.1},
        )
        .options(graceful_shutdown_timeout_s=10)
        .bind(avatars)
    )


class Avatar:
    """A replica.

    Args:
        options: of the cluster.
        token: of the daemon.
    """

    async def __init__(self, options: Options, token: str) -> None:  # type: ignore[misc] # Serve awaits it
        self._options = options
        self._token = token
        self._name = serve.get_replica_context().replica_id.unique_id
        self._daemon = Daemon(options.command(ray.util.get_node_ip_address()), {TOKEN_VARIABLE: token})
        self._draining = False
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS))
        await self._daemon.start()
        self._beating = asyncio.create_task(self._beat(), name="beat")

    def check_health(self) -> None:
        """Raise where the daemon has ended, so that Serve replaces the replica."""
        if not self._daemon.running:
            raise RuntimeError("the daemon has ended")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What the autoscaling policy decides by."""
        report = await ask(self._http, self._daemon.url, self._token)
        return {"capacity": report.capacity, "headroom": report.headroom}

    async def __del__(self) -> None:
        """Serve ends the replica: drain, and end the daemon."""
        self._draining = True
        await self._drain()
        await cancel_and_wait(self._beating)
        await _register().leave.remote(self._name)
        await self._daemon.stop()
        await self._http.close()

    async def _beat(self) -> None:
        while self._daemon.running:
            try:
                member = Member(self._daemon.url, self._draining)
                await _register().beat.remote(self._name, member)
            except ray.exceptions.RayError as error:
                logger.warning("the register does not answer: %s", error)
            await asyncio.sleep(BEAT_SECONDS)
        await _register().leave.remote(self._name)

    async def _drain(self) -> None:
        """Wait until no rooms are left, at most `drain_seconds`."""
        deadline = monotonic() + self._options.drain_seconds
        while self._daemon.running and monotonic() < deadline:
            try:
                if not (await ask(self._http, self._daemon.url, self._token)).rooms:
                    return
            except (TimeoutError, aiohttp.ClientError, msgspec.DecodeError) as error:
                logger.warning("the daemon does not answer: %s", error)
            await asyncio.sleep(BEAT_SECONDS)


async def registered() -> Mapping[str, Member]:
    """The replicas that there are."""
    found: Mapping[str, Member] = await _register().members.remote()
    return found


def _register() -> Any:
    """The register; its actor is made by who comes first, and again where its machine was lost."""
    return _register_class().remote()


@cache
def _register_class() -> Any:
    """One for each process: Ray keeps every class that it is given."""
    options = {"name": REGISTER_NAME, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    return ray.remote(Register).options(num_cpus=0, max_restarts=-1, **options)
