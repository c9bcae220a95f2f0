"""While nobody speaks every second picture is left out, where that is wanted; speech has all of them from its start."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from avatard.config import Idle
from avatard.inference.ipc import FramesReady
from avatard.protocols import events
from avatard.session.session import Session
from tests.support.serving import Screen, beeps, config, portrait
from tests.support.virtual import InlineSupervisor, run_virtually


class Watched:
    """A session with a viewer."""

    def __init__(self, **idle: Any) -> None:
        self.session = Session(config(idle=Idle(**idle)), portrait(), make_supervisor=InlineSupervisor)
        self.supervisor: InlineSupervisor = self.session.generation.supervisor  # type: ignore[assignment]
        self.screen, self.told = Screen(), list[events.Event]()
        self.session.listen(self.told.append)

    @property
    def stride(self) -> int:
        return self.supervisor.level.frame_stride if self.supervisor.level is not None else 1

    def load(self, seconds_per_second: float) -> None:
        """Frames that took so long."""
        for _ in range(40):
            took = seconds_per_second / 25
            self.session.generation._load.frames_ready(FramesReady(0, 0, 1, 2, 2, took, took, took))


@pytest.fixture
def watch(monkeypatch):
    """Run a test's coroutine function with a started session in virtual time, after it was watched for a while."""

    def run(scene: Callable[[Watched], Awaitable[None]], **idle: Any) -> None:
        async def main() -> None:
            watched = Watched(**idle)
            await watched.session.start()
            watched.session.attach(watched.screen)
            await asyncio.sleep(20)
            await scene(watched)
            await watched.session.stop()

        run_virtually(monkeypatch, main)

    return run


@pytest.mark.parametrize("half_rate", ["rooms", "never"])
def test_the_default_room_has_all_pictures(watch, half_rate):
    async def scene(watched):
        assert watched.stride == 1

    watch(scene, half_rate=half_rate)


def test_a_head_that_a_video_drives_has_all_pictures(watch):
    async def scene(watched):
        assert watched.stride == 1

    watch(scene, half_rate="always", pose_video="head.mp4")


def test_speech_has_all_pictures_from_its_first_frame_on(watch):
    async def scene(watched):
        session, screen = watched.session, watched.screen
        assert watched.stride == 2 and session.figures()["pictures_per_second"] == 12.5
        assert not session.generation.whole
        before, delay = len(screen.entries), session.scheduler.timing.delay_frames
        speaker = session.open_speaker()
        speaker.push_audio(beeps(3), 16_000)
        speaker.flush()
        await asyncio.sleep(0.05)
        assert watched.stride == 1, "at once"
        await asyncio.sleep(4)
        heard = [k for k in range(before, len(screen.entries)) if np.abs(screen.entries[k].samples).max() > 0.1]
        assert heard[0] - before <= delay + 2, "no later than without idling"
        spoken = screen.entries[heard[0] : heard[-1]]
        assert not any(entry.repeated for entry in spoken), "each has its own picture"
        assert [entry.index for entry in screen.entries] == list(range(len(screen.entries)))
        assert watched.stride == 1, "a pause is no silence"
        await asyncio.sleep(3)
        assert watched.stride == 2
        assert not any(isinstance(event, events.Quality) for event in watched.told), "the load asked for nothing"

    watch(scene, half_rate="always")


def test_a_microphone_that_hears_nothing_is_nobody_who_speaks(watch):
    async def scene(watched):
        microphone = watched.session.open_microphone()
        for _ in range(200):
            microphone.push_audio(np.zeros(320, np.float32), 16_000)
            await asyncio.sleep(0.02)
        assert watched.stride == 2
        for _ in range(5):
            microphone.push_audio(np.full(320, 0.2, np.float32), 16_000)
            await asyncio.sleep(0.02)
        assert watched.stride == 1
        microphone.close()

    watch(scene, half_rate="always")


def test_who_is_pressed_shows_as_few_pictures_as_possible(watch):
    async def scene(watched):
        generation = watched.session.generation
        generation.pressed = True
        await asyncio.sleep(0.1)
        assert watched.stride == 4
        generation.pressed = False
        await asyncio.sleep(0.1)
        assert watched.stride == 2
        watched.load(2.0)
        await asyncio.sleep(0.1)
        assert watched.stride == 4, "not even half of them were there in time"
        assert generation._load.level == generation._load.wanted, "speech is not to suffer from it"

    watch(scene, half_rate="always")


def test_a_new_process_begins_with_all_pictures(watch):
    async def scene(watched):
        assert watched.stride == 2
        watched.supervisor.die()
        await asyncio.sleep(0.5)
        watched.supervisor.level = None
        watched.supervisor.come_back()
        await asyncio.sleep(1)
        assert watched.stride == 1, "it is measured first"
        await asyncio.sleep(20)
        assert watched.stride == 2

    watch(scene, half_rate="always")
