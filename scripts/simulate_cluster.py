"""A day of a cluster in events: rooms come and end, machines start, drain and fail, and the autoscaler decides.

    python scripts/simulate_cluster.py --rooms 10000

Sizes come from measured figures (`--core-ms`, `--gpu-ms`), prices are assumptions: give your own. Placement, admission
and autoscaling are those of `avatard/cluster`. The same seed gives the same day. SCALING.md explains the figures.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avatard.cluster.autoscaling import replicas_wanted

FPS = 25
DAY = 86_400.0
#: Of a machine, which admission leaves to everything else.
ADMISSION_SPARE = 0.2
TICK_SECONDS = 5.0
RETRY_SECONDS, TRIES = 10.0, 4
REPLICAS_TRIED = 8  # of the ingress, the emptiest first; it would try all
RETURN_SECONDS = 5.0  # until the clients of a lost room have made a new one
#: Lengths of rooms: lognormal, many short ones and a few of hours.
LENGTH_SIGMA = 1.0


@dataclass(frozen=True)
class Machine:
    """A kind of machine.

    Attributes:
        name: of the kind.
        capacity: milliseconds a second of its scarcest processor.
        speaking: what a room takes of them while it speaks.
        quiet_share: what a quiet room takes, as a part of that.
        price: of an hour.
    """

    name: str
    capacity: float
    speaking: float
    quiet_share: float
    price: float

    def loads(self, rooms: int) -> NDArray[np.float64]:
        """What `rooms` rooms take, by how many of them speak."""
        speaking = np.arange(rooms + 1)
        return self.speaking * (speaking + self.quiet_share * (rooms - speaking))

    def mean(self, share: float) -> float:
        """What a room takes on average that speaks for this share of the time."""
        return self.speaking * (share + self.quiet_share * (1 - share))


def cpu_machine(cores: int, core_ms: float, quiet_share: float, price: float) -> Machine:
    """Networks and compositor on cores."""
    return Machine(f"cpu, {cores} cores", 1000.0 * cores, core_ms * FPS, quiet_share, price)


def gpu_machine(hop_ms: float, batch: int, hop_frames: int, quiet_share: float, price: float) -> Machine:
    """Networks on one GPU, in batches; nothing else is counted."""
    return Machine("gpu, networks only", 1000.0, hop_ms / batch * FPS / hop_frames, quiet_share, price)


def gpu_machine_with_cores(gpu: Machine, cores: int, core_ms: float) -> Machine:
    """The same, with the rest of a frame on the machine's own cores: whichever is full first counts."""
    cpu = cpu_machine(cores, core_ms, gpu.quiet_share, gpu.price)
    scarce = min(gpu, cpu, key=lambda machine: machine.capacity / machine.speaking)
    return Machine(f"gpu, {cores} cores", scarce.capacity, scarce.speaking, scarce.quiet_share, scarce.price)


@dataclass(frozen=True)
class Scenario:
    """What comes, and how the cluster answers.

    Attributes:
        rooms: at once, at the busiest hour.
        hours: length of the simulation; it begins at night.
        night: arrivals at the quietest hour, as a part of those at the busiest.
        minutes: mean length of a room.
        speaking: part of the time in which a room speaks.
        burst: factor of the arrivals for ten minutes at the busiest hour.
        start_seconds: from the wish for a machine to its first room.
        downscale_seconds: how long fewer machines must have been enough.
        drain_seconds: how long a machine waits for its rooms to end.
        failure_days: mean time between failures of one machine.
        spare: capacity that the autoscaler keeps free.
        seed: of all chance.
    """

    rooms: int = 10_000
    hours: float = 24.0
    night: float = 0.15
    minutes: float = 10.0
    speaking: float = 0.4
    burst: float = 1.0
    start_seconds: float = 120.0
    downscale_seconds: float = 600.0
    drain_seconds: float = 3600.0
    failure_days: float = 30.0
    spare: float = 0.25
    seed: int = 0

    def rate(self, at: float) -> float:
        """Rooms a second that are wanted; Little's law gives the number at once."""
        day = 0.5 - 0.5 * math.cos(2 * math.pi * at / DAY)
        busy = self.burst if abs(at - DAY / 2) < 300 else 1.0
        return busy * (self.night + (1 - self.night) * day) * self.rooms / (60 * self.minutes)


class Event(NamedTuple):
    """Something that will happen; equal times keep their order."""

    at: float
    number: int
    kind: str
    subject: int = 0
    tries: int = 0


@dataclass
class Node:
    """A machine."""

    state: str = "starting"  # ready, draining
    rooms: set[int] = field(default_factory=set)


@dataclass
class Hour:
    """What an hour was like."""

    hour: int
    rooms: float = 0.0  # mean, as the following
    nodes: float = 0.0
    starting: float = 0.0
    draining: float = 0.0
    overloaded: float = 0.0  # part of the room-seconds on machines that were asked for more than they have
    wanted: int = 0
    refused: int = 0
    given_up: int = 0
    lost: int = 0  # rooms, by failures
    cut: int = 0  # rooms, by the end of a drain
    failures: int = 0
    cost: float = 0.0


class Cluster:
    """One kind of machine through one scenario.

    Args:
        machine: the kind.
        scenario: what comes.
    """

    def __init__(self, machine: Machine, scenario: Scenario) -> None:
        self.machine, self.scenario = machine, scenario
        self.hours = [Hour(n) for n in range(math.ceil(scenario.hours))]
        self._random = random.Random(scenario.seed)
        self._events: list[Event] = []
        self._numbers = iter(range(sys.maxsize))
        self._nodes: dict[int, Node] = {}
        self._homes: dict[int, int] = {}
        self._ready: dict[int, dict[int, None]] = {}  # nodes that take rooms, by how many they have
        self._counts: Counter[str] = Counter()  # of nodes, by state
        self._few_since: float | None = None
        most = int(machine.capacity / (machine.speaking * machine.quiet_share)) + 2
        chances = list(_binomials(most, scenario.speaking))
        limit = (1 - ADMISSION_SPARE) * machine.capacity - machine.speaking  # a new room is counted as one that speaks
        self._admits = [float(p[machine.loads(n) <= limit].sum()) for n, p in enumerate(chances)]
        self._overloads = [float(p[machine.loads(n) > machine.capacity].sum()) for n, p in enumerate(chances)]

    def run(self) -> list[Hour]:
        """Simulate all of it."""
        load = self.scenario.rate(0.0) * 60 * self.scenario.minutes * self.machine.mean(self.scenario.speaking)
        for _ in range(max(1, math.ceil(load / self._usable / (1 - self.scenario.spare)))):
            self._open(self._add_node())
        self._plan(0.0, "tick")
        self._plan_arrival(0.0)
        end = 3600 * self.scenario.hours
        while self._events and self._events[0].at < end:
            event = heapq.heappop(self._events)
            getattr(self, f"_on_{event.kind}")(event)
        return self.hours

    @property
    def _usable(self) -> float:
        """Of a machine, for rooms."""
        return (1 - ADMISSION_SPARE) * self.machine.capacity

    def _plan(self, at: float, kind: str, subject: int = 0, tries: int = 0) -> None:
        heapq.heappush(self._events, Event(at, next(self._numbers), kind, subject, tries))

    def _hour(self, at: float) -> Hour:
        return self.hours[min(int(at / 3600), len(self.hours) - 1)]

    def _plan_arrival(self, now: float) -> None:
        """By thinning (Lewis and Shedler 1979)."""
        most = self.scenario.rooms / (60 * self.scenario.minutes) * max(1.0, self.scenario.burst)
        at = now
        while True:
            at += self._random.expovariate(most)
            if self._random.random() * most < self.scenario.rate(at):
                self._plan(at, "arrival")
                return

    def _on_arrival(self, event: Event) -> None:
        self._plan_arrival(event.at)
        self._want(event.at, 0)

    def _on_again(self, event: Event) -> None:
        self._want(event.at, event.tries)

    def _want(self, at: float, tries: int) -> None:
        hour = self._hour(at)
        hour.wanted += tries == 0
        node = self._choose()
        if node is not None:
            room = next(self._numbers)
            self._homes[room] = node
            self._move(node, lambda rooms: rooms.add(room))
            mean = 60 * self.scenario.minutes
            length = self._random.lognormvariate(math.log(mean) - LENGTH_SIGMA**2 / 2, LENGTH_SIGMA)
            self._plan(at + length, "end", room)
            return
        hour.refused += tries == 0
        if tries + 1 < TRIES:
            self._plan(at + RETRY_SECONDS, "again", tries=tries + 1)
        else:
            hour.given_up += 1

    def _choose(self) -> int | None:
        """The emptiest machine that admits one more room."""
        tried = 0
        for rooms in sorted(self._ready):
            for node in self._ready[rooms]:
                if self._random.random() < self._admits[min(rooms, len(self._admits) - 1)]:
                    return node
                tried += 1
                if tried == REPLICAS_TRIED:
                    return None
        return None

    def _on_end(self, event: Event) -> None:
        node = self._homes.pop(event.subject, None)
        if node is not None:
            self._move(node, lambda rooms: rooms.discard(event.subject))

    def _move(self, number: int, change: Callable[[set[int]], None]) -> None:
        """Change a machine's rooms, and keep the order by their number."""
        node = self._nodes[number]
        if node.state == "ready":
            self._leave(number)
            change(node.rooms)
            self._ready.setdefault(len(node.rooms), {})[number] = None
        else:
            change(node.rooms)
            if not node.rooms:
                self._remove(number)

    def _leave(self, number: int) -> None:
        count = len(self._nodes[number].rooms)
        del self._ready[count][number]
        if not self._ready[count]:
            del self._ready[count]

    def _add_node(self) -> int:
        number = next(self._numbers)
        self._nodes[number] = Node()
        self._counts["starting"] += 1
        return number

    def _set_state(self, number: int, state: str) -> None:
        node = self._nodes[number]
        self._counts[node.state] -= 1
        self._counts[state] += 1
        node.state = state

    def _open(self, number: int, at: float = 0.0) -> None:
        self._set_state(number, "ready")
        self._ready.setdefault(0, {})[number] = None
        self._plan(at + self._random.expovariate(1 / (DAY * self.scenario.failure_days)), "failure", number)

    def _on_started(self, event: Event) -> None:
        self._open(event.subject, event.at)

    def _remove(self, number: int) -> None:
        node = self._nodes.pop(number)
        self._counts[node.state] -= 1

    def _on_failure(self, event: Event) -> None:
        if event.subject in self._nodes:
            hour = self._hour(event.at)
            hour.failures += 1
            hour.lost += self._drop(event)

    def _on_drained(self, event: Event) -> None:
        if event.subject in self._nodes:
            self._hour(event.at).cut += self._drop(event)

    def _drop(self, event: Event) -> int:
        """Remove a machine with its rooms, whose clients come back; gives how many."""
        node = self._nodes[event.subject]
        if node.state == "ready":
            self._leave(event.subject)
        for room in sorted(node.rooms):
            del self._homes[room]
            self._plan(event.at + RETURN_SECONDS, "again", tries=1)
        self._remove(event.subject)
        return len(node.rooms)

    def _on_tick(self, event: Event) -> None:
        self._plan(event.at + TICK_SECONDS, "tick")
        self._account(event.at)
        ready, starting = self._counts["ready"], self._counts["starting"]
        rooms = sum(count * len(nodes) for count, nodes in self._ready.items())
        capacity = ready * self._usable
        demand = rooms * self.machine.mean(self.scenario.speaking)
        wanted = replicas_wanted(ready, capacity, capacity - demand, self.scenario.spare) if ready else 1
        for _ in range(wanted - ready - starting):
            self._plan(event.at + self.scenario.start_seconds, "started", self._add_node())
        if wanted >= ready + starting:
            self._few_since = None
        elif self._few_since is None:
            self._few_since = event.at
        elif event.at - self._few_since >= self.scenario.downscale_seconds and ready > wanted:
            self._few_since = None
            self._drain(ready - wanted, event.at)

    def _drain(self, number: int, at: float) -> None:
        """Serve does not choose the emptiest."""
        ready = sorted(node for nodes in self._ready.values() for node in nodes)
        for node in self._random.sample(ready, min(number, len(ready) - 1)):
            self._leave(node)
            self._set_state(node, "draining")
            if self._nodes[node].rooms:
                self._plan(at + self.scenario.drain_seconds, "drained", node)
            else:
                self._remove(node)

    def _account(self, at: float) -> None:
        hour, share = self._hour(at), TICK_SECONDS / 3600
        hour.rooms += share * len(self._homes)
        hour.nodes += share * len(self._nodes)
        hour.starting += share * self._counts["starting"]
        hour.draining += share * self._counts["draining"]
        hour.cost += share * len(self._nodes) * self.machine.price
        most = len(self._overloads) - 1
        busy = sum(self._overloads[min(n, most)] * n * len(nodes) for n, nodes in self._ready.items())
        hour.overloaded += share * busy / max(1, len(self._homes))


def _binomials(most: int, chance: float) -> Iterator[NDArray[np.float64]]:
    """For 0, 1 … `most` - 1 rooms: how likely it is that 0, 1 … all of them speak."""
    chance = min(max(chance, 1e-12), 1 - 1e-12)
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, most + 1)))])
    for rooms in range(most):
        speaking = np.arange(rooms + 1)
        ways = log_factorials[rooms] - log_factorials[: rooms + 1] - log_factorials[rooms::-1]
        yield np.exp(ways + speaking * math.log(chance) + (rooms - speaking) * math.log1p(-chance))


def summary(machine: Machine, scenario: Scenario, hours: Sequence[Hour]) -> dict[str, float]:
    """The whole of it in one line."""
    wanted, spent = sum(hour.wanted for hour in hours), sum(hour.cost for hour in hours)
    room_hours = sum(hour.rooms for hour in hours)
    fit = (1 - ADMISSION_SPARE) * machine.capacity / machine.mean(scenario.speaking)
    return {
        "rooms_per_node": round(fit, 1),
        "rooms_wanted": wanted,
        "most_rooms": round(max(hour.rooms for hour in hours)),
        "most_nodes": math.ceil(max(hour.nodes for hour in hours)),
        "mean_nodes": round(sum(hour.nodes for hour in hours) / len(hours), 1),
        "refused": sum(hour.refused for hour in hours),
        "given_up": sum(hour.given_up for hour in hours),
        "failures": sum(hour.failures for hour in hours),
        "lost": sum(hour.lost for hour in hours),
        "cut": sum(hour.cut for hour in hours),
        "overloaded_percent": round(100 * sum(h.overloaded * h.rooms for h in hours) / max(room_hours, 1e-9), 3),
        "cost_per_hour": round(spent / len(hours), 2),
        "cost_per_busiest_hour": round(max(hour.cost for hour in hours), 2),
        "cost_per_room_hour": round(spent / max(room_hours, 1e-9), 4),
    }


def table(hours: Sequence[Hour]) -> Iterator[str]:
    """The hours, one a line."""
    yield "hour   rooms   nodes  starting  draining  overload  refused  given up  lost   cost"
    for h in hours:
        yield (
            f"{h.hour:4} {h.rooms:7.0f} {h.nodes:7.1f} {h.starting:9.1f} {h.draining:9.1f} {h.overloaded:9.2%}"
            f" {h.refused:8} {h.given_up:9} {h.lost:5} {h.cost:6.0f}"
        )


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Scenario()
    for name, kind, text in (
        ("rooms", int, "at once, at the busiest hour"),
        ("hours", float, "simulated, from the quietest hour on"),
        ("night", float, "arrivals at the quietest hour, as a part of the busiest"),
        ("minutes", float, "mean length of a room"),
        ("speaking", float, "part of the time in which a room speaks"),
        ("burst", float, "factor of the arrivals in the ten minutes at noon"),
        ("start_seconds", float, "from the wish for a machine to its first room"),
        ("downscale_seconds", float, "before a machine that is not needed drains"),
        ("drain_seconds", float, "until a draining machine ends with its rooms"),
        ("failure_days", float, "mean time between failures of a machine"),
        ("spare", float, "part of the capacity that the autoscaler keeps free"),
        ("seed", int, "of all chance"),
    ):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=getattr(default, name), help=f"{text} (%(default)s)")
    parser.add_argument("--cores", type=int, default=16, help="of a machine, physical ones (%(default)s)")
    parser.add_argument("--core-ms", type=float, default=48.0, help="of a frame, as `avatard bench` says (%(default)s)")
    parser.add_argument("--quiet-share", type=float, default=0.25, help="load of a quiet room (%(default)s)")
    parser.add_argument("--gpu-ms", type=float, default=49.0, help="of a hop of a whole batch (%(default)s)")
    parser.add_argument("--gpu-batch", type=int, default=128, help="rooms in it (%(default)s)")
    parser.add_argument("--gpu-hop", type=int, default=8, help="frames in it (%(default)s)")
    parser.add_argument("--gpu-core-ms", type=float, default=14.6, help="of a frame, beside the GPU (%(default)s)")
    parser.add_argument("--cpu-price", type=float, default=1.28, help="of a CPU machine's hour (%(default)s)")
    parser.add_argument("--gpu-price", type=float, default=4.0, help="of a GPU machine's hour (%(default)s)")
    parser.add_argument("--table", action="store_true", help="also hour by hour")
    parser.add_argument("--json", type=Path, help="write scenario, hours and summaries to this file")
    return parser


def main() -> int:
    """Simulate every kind of machine."""
    parser = arguments()
    given = parser.parse_args()
    scenario = Scenario(**{name: getattr(given, name) for name in Scenario.__dataclass_fields__})
    shares = (scenario.night, scenario.speaking, given.quiet_share)
    sizes = (scenario.rooms, scenario.minutes, scenario.failure_days, given.cores, given.core_ms, given.gpu_ms)
    if not all(0 <= share <= 1 for share in shares) or not given.quiet_share or not 0 <= scenario.spare < 0.8:
        parser.error("night, speaking and quiet-share are parts of 1, spare is below 0.8")
    if min(*sizes, given.gpu_batch, given.gpu_hop, given.gpu_core_ms) <= 0 or scenario.hours < 1:
        parser.error("rooms, minutes, failure-days and the sizes of machines are above 0, hours at least 1")
    gpu = gpu_machine(given.gpu_ms, given.gpu_batch, given.gpu_hop, given.quiet_share, given.gpu_price)
    machines = (
        cpu_machine(given.cores, given.core_ms, given.quiet_share, given.cpu_price),
        gpu,
        gpu_machine_with_cores(gpu, given.cores, given.gpu_core_ms),
    )
    report: dict[str, Any] = {"scenario": asdict(scenario), "machines": []}
    for machine in machines:
        hours = Cluster(machine, scenario).run()
        found = summary(machine, scenario, hours)
        report["machines"].append({**asdict(machine), "summary": found, "hours": [asdict(hour) for hour in hours]})
        print(f"{machine.name}, {machine.price:g} an hour (an assumption)")
        print("\n".join(f"  {name:22} {value:>12,}" for name, value in found.items()))
        if given.table:
            print("\n".join(table(hours)))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
