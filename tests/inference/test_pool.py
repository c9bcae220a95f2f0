"""Several rooms and several inference processes, with the test engine: who sees what, and what a death touches."""

import asyncio
import os
import signal
import tempfile
from pathlib import Path

import cv2
import msgspec
import numpy as np
import psutil
import pytest

from avatard.clock import monotonic
from avatard.config import Inference, Picture, Stream
from avatard.inference.pool import InferencePool
from avatard.inference.supervisor import Supervisor, WorkerError
from avatard.portrait import Portrait
from avatard.timebase import FPS
from tests.support.paths import ROOT
from tests.support.serving import config, until

ENGINE = "tests.support.warp_engine:make"
HOP = 4


def face(value: int) -> Portrait:
    """A portrait that is one grey all over."""
    return Portrait(cv2.imencode(".png", np.full((64, 64, 3), value, np.uint8))[1].tobytes())


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


class Viewer:
    """A room, and what came of it."""

    def __init__(self, room: Supervisor) -> None:
        self.room = room
        self.greys: set[int] = set()
        self.frames: dict[int, list[int]] = {}  # numbers by epoch
        self.lost: list[str] = []
        self.ready = 0
        self.epoch = 0
        self.sent = 0

    def worker_ready(self, ready, portrait):
        self.ready += 1
        self.greys.add(int(portrait.pixels[0, 0, 0]))

    def frames_ready(self, made, pictures):
        self.frames.setdefault(made.epoch, []).extend(made.first + k for k in range(made.count))
        self.greys.update(int(picture.pixels[0, 0, 0]) for picture in pictures)
        self.core_seconds = made.core_seconds
        self.channels = pictures[0].pixels.shape[2]

    def worker_lost(self, reason):
        self.lost.append(reason)

    def begin(self) -> None:
        self.epoch += 1
        self.sent = 0
        self.room.start_epoch(self.epoch, 100)

    def speak(self, hops: int = 1) -> None:
        zero = monotonic() - (100 + self.sent) / FPS
        self.room.push_audio(self.epoch, np.full(hops * HOP * 640, 0.2, np.float32), zero)
        self.sent += hops * HOP

    @property
    def shown(self) -> list[int]:
        return self.frames.get(self.epoch, [])


@pytest.fixture
async def pools(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("avatard.inference.pool.cores", lambda: 4)  # two processes, where none are asked for
    made: list[InferencePool] = []

    def make(workers: int = 1, engine: str = ENGINE, keep: bool = True) -> InferencePool:
        made.append(InferencePool(config(inference=Inference(workers=workers)), engine, keep))
        return made[-1]

    yield make
    for pool in made:
        await pool.stop()


async def open_room(pool: InferencePool, value: int, settings=None) -> Viewer:
    viewer = Viewer(pool.open(settings or config(), face(value), pool.engine))
    await viewer.room.start(viewer)
    return viewer


@pytest.mark.parametrize("engine", [ENGINE, "tests.support.warp_engine:make_parallel"])
async def test_rooms_of_one_process_never_exchange_frames(pools, engine):
    pool = pools(engine=engine)
    rooms = [await open_room(pool, value) for value in (40, 120, 200)]
    assert len(pool.processes) == 1 and len({viewer.room.pid for viewer in rooms}) == 1
    for viewer in rooms:
        viewer.begin()
    for _ in range(8):
        for viewer in rooms:
            viewer.speak()
        await asyncio.sleep(0)
    await until(lambda: all(len(viewer.shown) >= 27 for viewer in rooms))
    assert [viewer.greys for viewer in rooms] == [{40}, {120}, {200}]
    assert all(viewer.shown == list(range(100, 100 + len(viewer.shown))) for viewer in rooms)
    assert all(sum(viewer.core_seconds) > 0 and viewer.room.load > 0 for viewer in rooms)
    # Another face in one room is nobody else's business, nor is another epoch, nor its end.
    await rooms[1].room.identify(face(250))
    await rooms[0].room.stop()
    for viewer in rooms[1:]:
        viewer.greys.clear()
        viewer.begin()
        viewer.speak(4)
    await until(lambda: all(len(viewer.shown) >= 11 for viewer in rooms[1:]))
    assert [viewer.greys for viewer in rooms[1:]] == [{250}, {200}] and not rooms[0].shown[28:]


async def test_rooms_of_one_process_have_configurations_of_their_own(pools):
    pool = pools()
    opaque = await open_room(pool, 90)
    settings = config(picture=Picture(background="transparent"), stream=Stream(hop_frames=8))
    clear = await open_room(pool, 90, settings)
    for viewer in (opaque, clear):
        viewer.begin()
        viewer.speak(8)
    await until(lambda: opaque.shown and clear.shown)
    assert (opaque.channels, clear.channels) == (3, 4)


async def test_rooms_are_spread_over_processes_and_a_dead_one_touches_only_its_own(pools):
    pool = pools(workers=2)
    first = await open_room(pool, 10)
    await until(lambda: sum(process.ready for process in pool.processes) == 2)
    rooms = [first, *[await open_room(pool, value) for value in (60, 110, 160)]]
    by_process = {process.pid: [v for v in rooms if v.room.pid == process.pid] for process in pool.processes}
    assert sorted(map(len, by_process.values())) == [2, 2]
    hurt = by_process[first.room.pid]
    untouched = [viewer for viewer in rooms if viewer not in hurt]
    killed = first.room.pid
    for viewer in rooms:
        viewer.begin()
        viewer.speak(2)
    await until(lambda: all(viewer.shown for viewer in rooms))
    kill(killed)
    for _ in range(20):
        for viewer in untouched:
            viewer.speak()
        await asyncio.sleep(0)
    await until(lambda: all(viewer.ready == 2 for viewer in hurt))
    assert {viewer.room.pid for viewer in hurt} == {untouched[0].room.pid}, "at once, where a warm process is"
    assert all(viewer.lost == ["it was killed by signal 9"] and viewer.room.restarts == 1 for viewer in hurt)
    for viewer in hurt:
        viewer.begin()
        viewer.speak(4)
    await until(lambda: all(len(viewer.shown) >= 11 for viewer in hurt))
    await until(lambda: all(len(viewer.shown) >= 80 for viewer in untouched))
    for viewer in untouched:
        assert not viewer.lost and viewer.ready == 1 and viewer.room.restarts == 0
        assert viewer.shown == list(range(100, 100 + len(viewer.shown))), "without a gap"
    assert [viewer.greys for viewer in rooms] == [{10}, {60}, {110}, {160}]
    await until(lambda: sum(process.ready for process in pool.processes) == 2)
    newcomer = await open_room(pool, 210)
    assert newcomer.room.pid not in (killed, untouched[0].room.pid), "the successor has no room yet"


async def test_rooms_wait_for_the_successor_where_there_is_no_other_process(pools):
    pool = pools()
    rooms = [await open_room(pool, value) for value in (30, 130)]
    killed = rooms[0].room.pid
    kill(killed)
    await until(lambda: all(viewer.lost for viewer in rooms))
    with pytest.raises(WorkerError, match="restarting"):
        await rooms[0].room.identify(face(1))
    await until(lambda: all(viewer.ready == 2 for viewer in rooms))
    assert len({viewer.room.pid for viewer in rooms}) == 1 and rooms[0].room.pid != killed and pool.restarts == 1


async def test_a_second_process_is_started_with_the_second_room(pools):
    pool = pools(workers=0)
    await open_room(pool, 30)
    assert len(pool.processes) == 1
    second = await open_room(pool, 60)
    assert len(pool.processes) == 2 and second.room.ready, "it need not wait for the process"


async def test_a_quiet_room_moves_to_the_process_that_has_none(pools, monkeypatch):
    monkeypatch.setattr("avatard.inference.pool.BALANCE_SECONDS", 0.05)
    pool = pools(workers=0)
    speaking, quiet = [await open_room(pool, value) for value in (30, 60)]
    speaking.begin()
    speaking.speak(2)
    await until(lambda: sum(process.ready for process in pool.processes) == 2)
    while quiet.room.pid == speaking.room.pid:
        assert quiet.room.ready, "it is served all the time"
        speaking.speak()
        await asyncio.sleep(0.01)
    assert quiet.ready == 2 and speaking.ready == 1 and not quiet.lost and not speaking.lost
    for viewer in (speaking, quiet):
        viewer.begin()
        viewer.speak(4)
    await until(lambda: all(len(viewer.shown) >= 11 for viewer in (speaking, quiet)))
    assert [viewer.greys for viewer in (speaking, quiet)] == [{30}, {60}]
    assert [len(process.rooms) for process in pool.processes] == [1, 1]


async def test_a_portrait_that_is_checked_while_its_room_moves_is_kept(pools):
    pool = pools(workers=2)
    viewer = await open_room(pool, 30)
    await until(lambda: sum(process.ready for process in pool.processes) == 2)
    home, other = sorted(pool.processes, key=lambda process: process.pid != viewer.room.pid)
    viewer.room.enter(other)
    await viewer.room.identify(face(90))
    assert viewer.room.pid == home.pid and not other.rooms
    viewer.room.enter(other)
    await until(lambda: viewer.room.pid == other.pid)
    viewer.greys.clear()
    viewer.begin()
    viewer.speak(4)
    await until(lambda: viewer.shown)
    assert viewer.greys == {90} and not home.rooms and not viewer.lost


async def test_a_room_that_cannot_be_opened_hurts_no_other(pools):
    pool = pools()
    good = await open_room(pool, 30)
    for _ in range(2):
        bad = pool.open(config(), Portrait(b"garbage"), ENGINE)
        with pytest.raises(WorkerError, match="^the portrait is not a picture") as refused:
            await bad.start(Viewer(bad))
        assert refused.value.code == "engine"
        await bad.stop()
    crowd = pool.open(config(), Portrait(cv2.imencode(".png", np.zeros((64, 200, 3), np.uint8))[1].tobytes()), ENGINE)
    with pytest.raises(WorkerError) as refused:
        await crowd.start(Viewer(crowd))
    assert refused.value.code == "several-faces" and refused.value.fields["faces"] == 3
    assert good.room.ready and not good.lost and pool.restarts == 0
    with pytest.raises(ValueError, match="expected tests"):
        pool.open(config(), face(1), "another:engine")


async def test_one_room_with_a_bad_portrait_does_not_keep_others_from_starting(pools):
    pool = pools()
    bad, good = (pool.open(config(), portrait, ENGINE) for portrait in (Portrait(b"garbage"), face(70)))
    viewers = [Viewer(bad), Viewer(good)]
    results = await asyncio.gather(bad.start(viewers[0]), good.start(viewers[1]), return_exceptions=True)
    assert isinstance(results[0], WorkerError) and results[1] is None
    assert good.ready and viewers[1].greys == {70}


async def test_rooms_that_come_and_go_leave_nothing(pools, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pool = pools()
    lasting = await open_room(pool, 30)
    worker, daemon = psutil.Process(lasting.room.pid), psutil.Process()

    async def once(number: int) -> None:
        viewer = await open_room(pool, number)
        viewer.begin()
        viewer.speak(2)
        await until(lambda: viewer.shown)
        await viewer.room.stop()
        assert viewer.greys == {number}

    def held() -> tuple[int, int, int, int, int]:
        files = len(list(Path(tmp_path).rglob("*")))
        return daemon.num_fds(), worker.num_fds(), daemon.num_threads(), worker.num_threads(), files

    for number in range(5):
        await once(number)
    before, tasks = held(), len(asyncio.all_tasks())
    for number in range(195):
        await once(number)
    # Less is no fault: threads of others may end meanwhile.
    await until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))
    assert len(asyncio.all_tasks()) <= tasks
    assert lasting.room.ready and not lasting.lost
    await pool.stop()
    assert not list(tmp_path.iterdir()) and not worker.is_running()


async def test_a_process_ends_with_its_last_room_unless_it_is_kept(pools):
    pool = pools(keep=False)
    viewer = await open_room(pool, 30)
    worker = psutil.Process(viewer.room.pid)
    await viewer.room.stop()
    assert not pool.processes and not worker.is_running()


async def test_a_process_that_no_room_needs_is_stopped_after_a_while(pools, monkeypatch):
    monkeypatch.setattr("avatard.inference.pool.EMPTY_SECONDS", 0.05)
    pool = pools(workers=0)
    rooms = [await open_room(pool, value) for value in (30, 60)]
    await until(lambda: sum(process.ready for process in pool.processes) == 2)
    await rooms[1].room.stop()
    await until(lambda: len(pool.processes) == 1)
    assert rooms[0].room.ready and not rooms[0].lost and pool.restarts == 0


async def test_a_room_that_is_lost_again_and_again_takes_its_time(pools, monkeypatch):
    """The pause grows: a room that kills processes shall not take those of all others along."""
    pool = pools(workers=2)
    viewer = await open_room(pool, 30)
    await until(lambda: sum(process.ready for process in pool.processes) == 2)
    pauses = []
    for n in range(3):
        kill(viewer.room.pid)
        await until(lambda n=n: viewer.ready == n + 2)
        pauses.append(viewer.room.retry_pause)
    assert pauses == [0.0, 0.2, 0.4] and len(viewer.lost) == 3


def test_a_level_travels_with_its_room():
    from avatard.inference import ipc

    level = ipc.QualityLevel(2, 1, frame_stride=2, size_divisor=2)
    sent = msgspec.msgpack.encode(ipc.SetQuality(3, level))
    assert msgspec.msgpack.Decoder(ipc.AnyCommand).decode(sent) == ipc.SetQuality(3, level)
