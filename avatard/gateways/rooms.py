"""All rooms of the daemon: makes them where the machine has room for them, finds them, and ends them."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Protocol

import msgspec
from aiohttp import web
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from avatard.clock import monotonic
from avatard.config import PICTURE_SIZES, PROFILES, VOICE, Config, FramingMode, Profile
from avatard.errors import UserError
from avatard.gateways.dispatch import Door
from avatard.gateways.room import Room
from avatard.inference.supervisor import Supervisor
from avatard.media.identities import Identities
from avatard.portrait import Portrait
from avatard.protocols import events
from avatard.protocols.tasks import cancel_and_wait
from avatard.session.capacity import Capacity, Kind
from avatard.session.load import cores
from avatard.session.session import ENGINE, Session

logger = logging.getLogger(__name__)

WATCH_SECONDS = 0.5
LAST_CLIENT_SECONDS = 5.0  # after the last client, which may only reload its page
ACTIVE_SECONDS = 30.0  # a room that spoke so lately is in a conversation
PRESSED_SECONDS = 20.0  # after an overload quiet rooms give way for so long
PATIENCE_SECONDS = 5.0  # until it is seen whether that helps
RETRY_SECONDS = 10
LEARNING_PARTS = 12  # parts of clips, from which on the load of a room is known
ID_BYTES, TOKEN_BYTES = 16, 24
#: Gauges of the daemon, by the figure that they show.
FAMILIES = {
    "avatard_rooms": ("count", "Rooms beside the default one"),
    "avatard_capacity_core_ms": ("capacity_core_ms", "What rooms may take of the machine, in core-ms a second"),
    "avatard_headroom_core_ms": ("headroom_core_ms", "What is left of it; below 0 the machine is overloaded"),
}


class RoomError(UserError):
    """A room that is not made now."""

    CODE = "no-room"


class ManyRoomsError(RoomError):
    """As many rooms as there may be."""

    CODE = "full"


class CapacityError(RoomError):
    """The machine has no room for one more."""

    CODE = "no-capacity"


class Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a room is to be; what is left out is as in the daemon's configuration."""

    identity: Annotated[str, msgspec.Meta(max_length=64)] = ""  # a name of `/api/identities`
    profile: Profile | None = None
    framing: FramingMode | None = None
    size: Annotated[int, msgspec.Meta(ge=PICTURE_SIZES[0], le=PICTURE_SIZES[1], multiple_of=2)] | None = None
    #: No file of this machine, which only its operator may name.
    background: Annotated[str, msgspec.Meta(pattern="^(keep|transparent|#[0-9A-Fa-f]{6})$")] | None = None
    voice: Annotated[str, msgspec.Meta(pattern=VOICE)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    zmq: bool = False  # whether the daemon's ZeroMQ sockets have it, too
    idle_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] | None = None
    end_with_last_client: bool = False


class Guest(Protocol):
    """A gateway with sockets of its own, which is told of the rooms that ask for it (`Wanted.zmq`)."""

    def room_opened(self, room: Room) -> None:
        """The room has started."""

    async def room_closed(self, room: Room) -> None:
        """The room ends; its session is still there."""


class Resident:
    """A room, and what the registry knows of it.

    Args:
        room: the avatar and its clients.
        wanted: what it is to be.
        now: seconds.
    """

    def __init__(self, room: Room, wanted: Wanted, now: float) -> None:
        self.room, self.wanted = room, wanted
        self.kind = Kind.of(room.config)
        self.starting: asyncio.Future[None] | None = None
        self._since = self._seen_at = now
        self._spoke_at = -math.inf
        self._visited = False  # whether there was a client

    @property
    def started(self) -> bool:
        """Whether its avatar has been there."""
        return self.starting is None or self.starting.done()

    def look(self, now: float) -> None:
        """Note who is there."""
        if self.room.session.speaking:
            self._spoke_at = now
        if self.room.occupied or not self.started:
            self._seen_at = now
            self._visited = self._visited or self.room.clients > 0

    def speaks(self, now: float) -> bool:
        """Whether it speaks, is in a conversation, or is just being made and will speak."""
        return not self.started or now - self._spoke_at < ACTIVE_SECONDS

    def end_reason(self, now: float) -> str:
        """Why it is to end now; empty where it is not."""
        alone, longest = now - self._seen_at, self.room.config.server.room_idle_seconds
        if self.wanted.end_with_last_client and self._visited and alone >= LAST_CLIENT_SECONDS:
            return "its last client has left"
        return f"nobody was there for {longest:g} s" if longest and alone >= longest else ""

    def describe(self, now: float) -> dict[str, Any]:
        """What `/api/rooms` tells; nothing secret."""
        room, config = self.room, self.room.config
        return {
            "id": room.name,
            "identity": self.wanted.identity,
            "profile": config.stream.profile,
            "framing": config.picture.framing,
            "size": config.picture.size,
            "ready": room.ready,
            "speaking": room.session.speaking,
            "clients": room.clients,
            "seconds": round(now - self._since, 1),
        }


class Rooms(Collector):
    """The registry; also collects the metrics of all rooms, each with the label `room`.

    Args:
        config: the daemon's configuration, which rooms share as far as they want nothing else.
        default: the avatar of the command line, which is there as long as the daemon.
        identities: portraits by name.
        engine: `module:function` that makes the engine in an inference process.
        make_supervisor: makes what runs the networks of a room, as of `Session`.
        now: a clock, in seconds.
    """

    def __init__(
        self,
        config: Config,
        default: Room,
        identities: Identities,
        engine: str = ENGINE,
        make_supervisor: Callable[[Config, Portrait, str], Supervisor] = Supervisor,
        now: Callable[[], float] = monotonic,
    ) -> None:
        self.identities = identities
        self.capacity = Capacity(cores(), config.server.room_quiet_share)
        self.guests: list[Guest] = []
        self._config, self._engine, self._make_supervisor, self._now = config, engine, make_supervisor, now
        self._default = Resident(default, Wanted(), now())
        self._residents: dict[str, Resident] = {}
        self._doors: dict[str, Door] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._closing = False
        self._busy_at = self._pressed_at = -math.inf

    def __len__(self) -> int:
        return len(self._residents)

    def __iter__(self) -> Iterator[Room]:
        return (resident.room for resident in self._residents.values())

    def find(self, name: str) -> Room | None:
        """The room of this id."""
        resident = self._residents.get(name)
        return resident.room if resident is not None else None

    def door(self, name: str) -> Door | None:
        """What leads into the room of this id."""
        return self._doors.get(name)

    def start(self) -> None:
        """Look after the rooms from now on."""
        self._watching = asyncio.create_task(self._watch(), name="rooms")

    async def close(self) -> None:
        """End all rooms."""
        self._closing = True
        await cancel_and_wait(self._watching)
        for name in list(self._residents):
            self._begin_end(name, "shutting down")
        await asyncio.gather(*self._endings)
        await asyncio.to_thread(self.identities.close)

    async def create(self, wanted: Wanted) -> Room:
        """Make a room, and wait until its avatar is there.

        Raises:
            UnknownIdentityError: there is no such identity.
            ManyRoomsError: there are as many rooms as there may be.
            CapacityError: the machine has no room for it; `fits` says what would fit.
            PortraitError: the picture cannot be used.
            WorkerError: the networks could not be started.
            RoomError: the daemon is shutting down.
        """
        config = room_config(self._config, wanted)
        portrait = self._default.room.session.first_portrait
        if wanted.identity:
            portrait = await asyncio.to_thread(self.identities.portrait, wanted.identity)
        # No await from here on: what is free now must not be given to two.
        self._admit(Kind.of(config))
        session = Session(config, portrait, self._engine, self._make_supervisor)
        room = Room(config, session, name=secrets.token_hex(ID_BYTES), token=secrets.token_urlsafe(TOKEN_BYTES))
        resident = self._residents[room.name] = Resident(room, wanted, self._now())
        self._doors[room.name] = self._make_door(room)
        resident.starting = asyncio.ensure_future(session.start())
        try:
            await resident.starting
        except asyncio.CancelledError:
            if room.name in self._residents:
                self._begin_end(room.name, "its client has left")
                raise
            raise RoomError("the room was ended before it had begun") from None
        except Exception:
            self._begin_end(room.name, "it could not be made")
            raise
        logger.info("room opened", extra={"room": room.name, "rooms": len(self)})
        for guest in self.guests if wanted.zmq else ():
            guest.room_opened(room)
        return room

    async def end(self, name: str, reason: str) -> None:
        """End a room and wait until nothing of it is left. Raises `KeyError`: there is none of this id."""
        await self._begin_end(name, reason)

    def look(self) -> None:
        """End the rooms in which nobody is, and learn what rooms cost."""
        now = self._now()
        for resident in (self._default, *list(self._residents.values())):
            resident.look(now)
            self._learn(resident)
        self._arbitrate(now)
        for name, resident in list(self._residents.items()):
            if resident.started and (reason := resident.end_reason(now)):
                self._begin_end(name, reason)

    def kind(self, wanted: Wanted | None = None) -> Kind:
        """What the cost of such a room depends on; by default of one that wants nothing."""
        return Kind.of(room_config(self._config, wanted or Wanted()))

    @property
    def demand(self) -> float:
        """What all rooms take, in core-ms a second. The default one counts while anybody is there."""
        now, residents = self._now(), list(self._residents.values())
        if self._default.room.occupied:
            residents.append(self._default)
        return self.capacity.demand((resident.kind, resident.speaks(now)) for resident in residents)

    def figures(self) -> dict[str, float]:
        """How many rooms there are, and what the machine has for them."""
        demand, total = self.demand, self.capacity.total
        return {
            "count": len(self),
            "most": self._config.server.max_rooms,
            "capacity_core_ms": round(total),
            "demand_core_ms": round(demand),
            "headroom_core_ms": round(total - demand),
        }

    def describe(self) -> list[dict[str, Any]]:
        """All rooms but the default one."""
        return [resident.describe(self._now()) for resident in self._residents.values()]

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        for name, (key, description) in FAMILIES.items():
            yield GaugeMetricFamily(name, description, value=self.figures()[key])
        families: dict[str, Metric] = {}
        for room in (self._default.room, *self):
            for family in room.session.metrics.registry.collect():
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                label = {"room": room.name} if room.name else {}
                merged.samples += [sample._replace(labels={**sample.labels, **label}) for sample in family.samples]
        yield from families.values()

    def _admit(self, kind: Kind) -> None:
        """Raises what `create` raises where there is no room for this one."""
        most = self._config.server.max_rooms
        if self._closing:
            raise RoomError("the server is shutting down", code="shutting-down")
        if len(self) >= most:
            raise ManyRoomsError(f"all {most} rooms are taken; try again in {RETRY_SECONDS} s", rooms=most)
        headroom, cost = self.capacity.total - self.demand, self.capacity.cost(kind)
        if cost > headroom:
            fits = self.capacity.alternative(kind, headroom)
            hint = f"; {fits.profile} at {fits.size} pixels would fit" if fits else ""
            raise CapacityError(
                f"the room would take {cost:,.0f} core-ms a second, and {max(0.0, headroom):,.0f} are left{hint}",
                needed_core_ms=round(cost),
                headroom_core_ms=round(headroom),
                fits=fits._asdict() if fits else None,
                retry_after_s=RETRY_SECONDS,
            )

    def _make_door(self, room: Room) -> Door:
        app = web.Application()
        room.add_routes(app)
        room.add_probes(app)

        async def with_slash(request: web.Request) -> web.Response:
            query = f"?{request.rel_url.raw_query_string}" if request.rel_url.raw_query_string else ""
            # Relative: a proxy may have removed a part of the path.
            raise web.HTTPPermanentRedirect(f"{room.name}/{query}")

        async def end(request: web.Request) -> web.Response:
            if room.name in self._residents:
                await self.end(room.name, "its client ended it")
            return web.Response(status=204)

        app.router.add_get("", with_slash)
        app.router.add_delete("", end)
        return Door(room.path, room.token, app)

    def _learn(self, resident: Resident) -> None:
        """Read what the frames of a room cost; at full quality, or there would always be room for more."""
        session = resident.room.session
        if session.generation.hop_seconds:
            self.capacity.warmed_up(resident.kind, session.generation.hop_seconds)
        if session.playout.playing and session.generation.whole and len(session.metrics.load) >= LEARNING_PARTS:
            self.capacity.measured(resident.kind, session.metrics.load.stages)

    def _arbitrate(self, now: float) -> None:
        """Under overload rooms in which nobody speaks give way first, and the others wait whether that helps."""
        sessions = [resident.room.session for resident in (self._default, *self._residents.values())]
        watched = [session for session in sessions if session.playout.playing]
        quiet = [session.generation for session in watched if session.turns.quiet] if len(self) else []
        if any(session.generation.busy for session in watched):
            self._busy_at = now
        pressed = now - self._busy_at < PRESSED_SECONDS
        if pressed and not all(generation.pressed for generation in quiet):
            self._pressed_at = now
        patient = bool(quiet) and (not pressed or now - self._pressed_at < PATIENCE_SECONDS)
        for session in sessions:
            generation = session.generation
            generation.pressed = pressed and generation in quiet
            generation.patient = patient and generation not in quiet

    def _begin_end(self, name: str, reason: str) -> asyncio.Task[None]:
        resident = self._residents.pop(name)
        del self._doors[name]
        task = asyncio.create_task(self._end(resident, reason), name="room-end")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return task

    async def _end(self, resident: Resident, reason: str) -> None:
        room = resident.room
        logger.info("room ended", extra={"room": room.name, "reason": reason, "rooms": len(self)})
        await cancel_and_wait(*([resident.starting] if isinstance(resident.starting, asyncio.Task) else []))
        room.session.events.emit(events.Error(message=f"the room has ended: {reason}", code="room-ended", fatal=True))
        for step in (
            *(guest.room_closed(room) for guest in self.guests),
            room.close(reason),
            room.outputs.stop(),
            room.session.stop(),
        ):
            try:
                await step
            except Exception:
                logger.exception("a room did not end in good order", extra={"room": room.name})

    async def _watch(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                logger.exception("rooms were not looked after")
            await asyncio.sleep(WATCH_SECONDS)


def room_config(config: Config, wanted: Wanted) -> Config:
    """The configuration of a room; what only one avatar of the daemon can have, it has not."""
    replace = msgspec.structs.replace
    stream, picture, server, tts = config.stream, config.picture, config.server, config.tts
    if wanted.profile is not None:
        stream = replace(stream, profile=wanted.profile, **PROFILES[wanted.profile])
    if wanted.seed is not None:
        stream = replace(stream, seed=wanted.seed)
    asked = {key: getattr(wanted, key) for key in ("framing", "size", "background")}
    picture = replace(picture, **{key: value for key, value in asked.items() if value is not None})
    if wanted.idle_seconds is not None:
        server = replace(server, room_idle_seconds=wanted.idle_seconds)
    if wanted.voice is not None:
        tts = replace(tts, voice=wanted.voice)
    portrait = config.portrait if not wanted.identity else type(config.portrait)()
    idle = replace(config.idle, half_rate="always") if config.idle.half_rate == "rooms" else config.idle
    output = replace(config.output, push=(), record="", camera="", sound="")
    sections = {"picture": picture, "server": server, "tts": tts, "portrait": portrait, "output": output, "idle": idle}
    return replace(config, stream=stream, **sections)
