"""The inference process with the test engine: started, killed, hung, and asked for the impossible."""

import asyncio
import os
import signal
import tempfile

import cv2
import numpy as np
import pytest

from avatard.config import Config, Stream
from avatard.frame import Frame
from avatard.inference import ipc
from avatard.inference import process as process_module
from avatard.inference.pool import open_alone
from avatard.inference.supervisor import WorkerError
from avatard.portrait import Portrait, PortraitError
from tests.support.paths import ROOT

CONFIG = Config(stream=Stream(hop_frames=4, fade_frames=1, clip_frames=8))


class Log:
    def __init__(self) -> None:
        self.ready: list[tuple[ipc.Ready, Frame]] = []
        self.lost: list[str] = []
        self.frames: list[tuple[int, int, float]] = []
        self.changed = asyncio.Event()

    def worker_ready(self, ready, portrait):
        self.ready.append((ready, portrait))
        self.changed.set()

    def frames_ready(self, made, pictures):
        self.frames += [(made.epoch, made.first + i, float(p.landmarks[57, 1])) for i, p in enumerate(pictures)]
        self.changed.set()

    def worker_lost(self, reason):
        self.lost.append(reason)
        self.changed.set()

    async def until(self, condition, seconds=20):
        async with asyncio.timeout(seconds):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def portrait(tmp_path) -> Portrait:
    path = tmp_path / "face.png"
    cv2.imwrite(str(path), np.full((300, 200, 3), (10, 120, 230), np.uint8))
    return Portrait.read(path)


@pytest.fixture
async def start(portrait, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    started = []

    async def go(engine="make"):
        log = Log()
        supervisor = open_alone(CONFIG, portrait, f"tests.support.warp_engine:{engine}")
        started.append(supervisor)
        await supervisor.start(log)
        return supervisor, log

    yield go
    for supervisor in started:
        await supervisor.stop()
        assert supervisor.pid is None


async def test_sound_becomes_frames_by_absolute_number(start):
    supervisor, log = await start()
    ready, picture = log.ready[0]
    assert supervisor.ready and 0 < ready.hop_seconds < 1 and picture.pixels.shape == (256, 256, 3)
    assert tuple(picture.pixels[0, 0]) == (230, 120, 10)
    supervisor.start_epoch(3, 100)
    supervisor.push_audio(2, np.zeros(6400, np.float32))  # of an epoch that is over
    sound = np.zeros(16 * 640, np.float32)
    sound[5 * 640 : 6 * 640] = 0.25
    for first in range(0, len(sound), 777):
        supervisor.push_audio(3, sound[first : first + 777])
    await log.until(lambda: len(log.frames) >= 11)
    assert log.frames == [(3, 100 + n, 1.0 if n == 5 else 0.0) for n in range(11)]


async def test_a_flood_of_small_messages_hurts_nobody(start):
    supervisor, log = await start("make_slow")
    supervisor.start_epoch(1, 0)
    for _ in range(3000):  # half a minute in messages of 10 ms, at once
        supervisor.push_audio(1, np.zeros(160, np.float32))
        await asyncio.sleep(0)
    await log.until(lambda: len(log.frames) >= 25, 30)
    supervisor.start_epoch(2, 5000)
    supervisor.push_audio(2, np.zeros(12 * 640, np.float32))
    await log.until(lambda: log.frames[-1][0] == 2)
    assert not log.lost and supervisor.restarts == 0
    assert [frame[1] for frame in log.frames if frame[0] == 1] == list(range(sum(f[0] == 1 for f in log.frames)))


async def test_a_killed_process_is_replaced(start):
    supervisor, log = await start()
    pid = supervisor.pid
    os.kill(pid, signal.SIGKILL)
    await log.until(lambda: len(log.ready) == 2)
    assert log.lost == ["it was killed by signal 9"]
    assert supervisor.ready and supervisor.pid != pid and supervisor.restarts == 1
    supervisor.start_epoch(1, 0)
    supervisor.push_audio(1, np.zeros(12 * 640, np.float32))
    await log.until(lambda: log.frames)


async def test_a_stopped_process_is_replaced(start, monkeypatch):
    monkeypatch.setattr(process_module, "SILENT_SECONDS", 0.8)
    supervisor, log = await start()
    os.kill(supervisor.pid, signal.SIGSTOP)
    await log.until(lambda: len(log.ready) == 2)
    assert log.lost[0].startswith("it was silent")


async def test_a_hanging_network_is_replaced(start, monkeypatch):
    monkeypatch.setattr(process_module, "BUSY_SECONDS", 0.8)
    supervisor, log = await start("make_hanging")
    supervisor.start_epoch(1, 0)
    supervisor.push_audio(1, np.zeros(12 * 640, np.float32))
    await log.until(lambda: log.lost)
    assert log.lost[0].startswith("it was busy with one job")
    await log.until(lambda: len(log.ready) == 2)


async def test_a_long_warm_up_is_no_hang(start, monkeypatch):
    monkeypatch.setattr(process_module, "BUSY_SECONDS", 0.8)
    supervisor, log = await start("make_lingering")
    supervisor.start_epoch(1, 0)
    supervisor.push_audio(1, np.zeros(12 * 640, np.float32))
    await log.until(lambda: log.frames or log.lost)
    assert log.lost == []


async def test_what_cannot_start_says_why(start):
    with pytest.raises(WorkerError, match=r"^weights are missing: run the trainer$"):
        await start("make_broken")
    with pytest.raises(WorkerError, match="^AttributeError: .*does_not_exist"):
        await start("does_not_exist")


async def test_without_a_place_for_its_sockets_it_says_so(start, monkeypatch, tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    for folder in (tmp_path / "none", long):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with pytest.raises(WorkerError, match="^the inference process did not start: it cannot be run: "):
            await asyncio.wait_for(start(), 10)


async def test_a_process_that_cannot_be_replaced_at_once_is_replaced_later(start, monkeypatch):
    supervisor, log = await start()
    create = asyncio.create_subprocess_exec
    refused: list[object] = []

    async def out_of_memory(*arguments, **options):
        if not refused:
            refused.append(arguments)
            raise OSError(12, "Cannot allocate memory")
        return await create(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", out_of_memory)
    os.kill(supervisor.pid, signal.SIGKILL)
    await log.until(lambda: len(log.ready) == 2)
    assert log.lost[1:] == ["it cannot be run: [Errno 12] Cannot allocate memory"]


async def test_pictures_go_on_while_a_portrait_is_looked_at(start, portrait, monkeypatch, tmp_path):
    held = tmp_path / "held"
    monkeypatch.setenv("LOOK_WHILE", str(held))
    supervisor, log = await start("make_slow_eyed")
    monkeypatch.setattr(process_module, "SILENT_SECONDS", 2.0)
    held.touch()
    checks = [asyncio.create_task(supervisor.identify(portrait)) for _ in range(7)]
    for refused in checks[5:]:  # at most one is looked at while four wait
        with pytest.raises(PortraitError, match="other portraits are being checked"):
            await refused
    supervisor.start_epoch(1, 0)
    supervisor.push_audio(1, np.zeros(12 * 640, np.float32))
    await log.until(lambda: log.frames)
    await asyncio.sleep(2.5)  # longer than the process may be silent
    assert not log.lost and not any(check.done() for check in checks[:4])
    held.unlink()
    assert all(digest for digest, _ in await asyncio.gather(*checks[:4]))
    await asyncio.wait(checks)


async def test_a_portrait_is_checked_before_it_is_used(start, portrait, tmp_path):
    supervisor, _ = await start()
    with pytest.raises(PortraitError, match="^the portrait is not a picture"):
        await supervisor.identify(Portrait(b"garbage"))
    path = tmp_path / "other.png"
    cv2.imwrite(str(path), np.zeros((50, 50, 3), np.uint8))
    digest, picture = await supervisor.identify(Portrait.read(path))
    assert digest and not picture.pixels.any()
    with pytest.raises(PortraitError, match=r"none\.png cannot be read: No such file"):
        Portrait.read(tmp_path / "none.png")


async def test_a_bug_of_the_engine_is_not_taken_for_a_mistake_of_the_user(start):
    with pytest.raises(WorkerError, match=r"^ValueError: shapes do not match$"):
        await start("make_buggy")
