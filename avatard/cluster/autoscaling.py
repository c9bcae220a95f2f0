"""How many replicas there should be: enough for the rooms that there are, and some to spare for those that come.

Ray pickles this module and calls `policy` in its controller, so it imports nothing.
"""

from __future__ import annotations

import math
from typing import Any, Final

#: Part of all capacity that is kept free, so that rooms can be made while a machine starts.
SPARE: Final = 0.25
#: Fewer replicas are wanted only where so much more would be free even then: they are not stopped and started in turns.
MARGIN: Final = 0.15


def replicas_wanted(
    running: int, capacity: float, headroom: float, spare: float = SPARE, margin: float = MARGIN
) -> int:
    """How many replicas there should be.

    Args:
        running: how many there are.
        capacity: of all of them together.
        headroom: what is left of it; below zero where they are overloaded.
        spare: part of the capacity that should be left.
        margin: how much more must be left before there are fewer replicas.
    """
    if running == 0 or capacity <= 0:
        return running
    load = (capacity - headroom) / (capacity / running)  # in replicas
    enough = math.ceil(round(load / (1 - spare), 6))
    few = math.ceil(round(load / (1 - spare - margin), 6))
    return max(enough, min(running, few), 1)


def policy(context: Any) -> tuple[int, dict[str, Any]]:
    """The autoscaling policy of the replicas, of an `AutoscalingContext` with their `capacity` and `headroom`."""
    metrics = context.aggregated_metrics or {}
    capacity, headroom = metrics.get("capacity", {}), metrics.get("headroom", {})
    known = [replica for replica in context.running_replicas if replica in capacity and replica in headroom]
    if not known:
        return context.target_num_replicas, {}
    wanted = replicas_wanted(
        len(known), sum(capacity[replica] for replica in known), sum(headroom[replica] for replica in known)
    )
    # Those that start now do not tell yet, and take their part of the load later.
    return wanted, {}
