"""The session with the test engine in a real inference process, in real time."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import pytest

from avatard.inference.ipc import FramesReady
from avatard.playout.scheduler import PlayoutFrame
from avatard.portrait import Portrait, PortraitError
from avatard.session.floor_control import FloorError
from avatard.session.session import Session
from tests.support.paths import ROOT
from tests.support.serving import Screen, beeps, config, portrait, running_session, said, until


@pytest.fixture(autouse=True)
def engine(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


async def test_speech_comes_out_whole_with_its_pictures():
    async with running_session() as session:
        screen = Screen()
        events = []
        session.listen(lambda kind, data: events.append(kind))
        session.attach(screen)
        await until(lambda: len(screen.entries) > 20)
        said = beeps(3)
        await session.speak(said, "test")
        session.end_of_utterance("test")
        await until(lambda: "bot-stopped-speaking" in events)
        start = int(np.flatnonzero(screen.sound)[0]) - int(np.flatnonzero(said)[0])
        np.testing.assert_array_equal(screen.sound[start : start + len(said)], said)
        loud = np.sqrt((screen.sound.reshape(-1, 640) ** 2).mean(axis=1))
        shown = [k for k, entry in enumerate(screen.entries) if not entry.repeated]
        assert np.corrcoef(loud[shown], screen.mouth[shown])[0, 1] > 0.95
        assert [entry.index for entry in screen.entries] == list(range(len(screen.entries)))
        assert events.count("bot-started-speaking") == 1
        text = session.collect().decode()
        assert "avatard_audio_to_photon_seconds_count" in text and "avatard_rtf" in text
        assert session.figures()["frames_played"] == len(screen.entries)


async def test_nothing_is_generated_for_nobody():
    async with running_session() as session:
        await asyncio.sleep(0.3)
        assert session.scheduler.counters.played == 0
        screen = Screen()
        session.attach(screen)
        await until(lambda: len(screen.entries) > 5)
        session.detach(screen)
        await asyncio.sleep(0.2)
        count = session.scheduler.counters.played
        await asyncio.sleep(0.3)
        assert session.scheduler.counters.played == count
        session.attach(screen)
        await until(lambda: len(screen.entries) > 40)
        assert [entry.index for entry in screen.entries[-5:]] == list(
            range(len(screen.entries) - 5, len(screen.entries))
        )


async def test_an_interrupt_is_silent_at_once_and_says_what_was_heard():
    async with running_session() as session:
        screen = Screen()
        events: dict[str, Any] = {}
        session.listen(events.__setitem__)
        session.attach(screen)
        await session.speak(np.full(16000 * 4, 0.25, np.float32), "test")
        await until(lambda: session.speaking)
        await asyncio.sleep(0.5)
        cut = session.interrupt()
        assert cut.played_samples > 4000 and cut.played_samples + cut.dropped_samples == 64000
        assert events["bot-interrupted"]["played_ms"] == cut.played_samples // 16
        await until(lambda: len(screen.entries) > cut.frame + 25)
        assert not screen.sound[cut.frame * 640 + 160 :].any()
        assert not screen.mouth[cut.frame + 20 :].any()
        await until(lambda: not session.speaking)
        # The rest of the utterance that is still on its way is dropped, the next utterance is heard.
        await session.speak(np.full(1600, 0.25, np.float32), "test")
        assert session.scheduler.buffered_samples == 0
        session.end_of_utterance("test")
        await session.speak(beeps(0.4), "test")
        await until(lambda: session.speaking)


async def test_speech_is_said_to_its_end_also_when_nobody_watches(monkeypatch):
    monkeypatch.setattr("avatard.session.session.LINGER_SECONDS", 0.5)
    async with running_session() as session:
        events = []
        session.listen(lambda kind, data: events.append(kind))
        await session.speak(beeps(3), "test")
        session.end_of_utterance("test")
        await until(lambda: "bot-stopped-speaking" in events)
        assert session.scheduler.counters.played * 640 >= 3 * 16000
        await until(lambda: not session.clock.running)
        assert "bot-interrupted" not in events


async def test_a_pause_within_pushed_speech_is_not_its_end():
    async with running_session() as session:
        screen, events = Screen(), []
        session.listen(lambda kind, data: events.append((kind, data)))
        session.attach(screen)
        await session.speak(np.concatenate([beeps(0.4), np.zeros(24_000, np.float32), beeps(0.4)]), "test")
        session.end_of_utterance("test")
        await until(lambda: any(kind == "bot-stopped-speaking" for kind, _ in events))
        (_, started), (_, stopped) = [event for event in events if event[0].endswith("-speaking")]
        assert stopped["frame"] - started["frame"] >= 50


async def test_a_full_buffer_makes_the_speaker_wait():
    async with running_session() as session:
        screen = Screen()
        session.attach(screen)
        long = asyncio.create_task(session.speak(np.full(16000 * 60, 0.1, np.float32), "test"))
        await asyncio.sleep(0.5)
        assert not long.done()
        assert session.scheduler.buffered_samples <= 30 * 16000
        session.interrupt()
        await asyncio.wait_for(long, 2)


async def test_one_speaker_at_a_time():
    async with running_session() as session:
        session.attach(Screen())
        assert session.speak_live(beeps(0.1), "microphone")
        await session.speak(beeps(1), "agent")
        with pytest.raises(FloorError):
            await session.speak(beeps(0.1), "other")
        assert not session.speak_live(beeps(0.1), "microphone")
        session.end_of_utterance("agent")
        await session.speak(beeps(0.1), "other")


async def test_an_open_microphone_is_no_reason_to_work(monkeypatch):
    monkeypatch.setattr("avatard.session.session.LINGER_SECONDS", 0.3)
    quiet, loud = np.full(320, 0.001, np.float32), np.full(320, 0.1, np.float32)
    async with running_session() as session:
        assert not session.speak_live(quiet, "microphone") and not session.clock.running
        assert session.speak_live(loud, "microphone")
        await until(lambda: session.clock.running)
        async with asyncio.timeout(10):
            while session.clock.running:
                session.speak_live(quiet, "microphone")
                await asyncio.sleep(0.02)
        session.attach(Screen())
        assert session.speak_live(quiet, "microphone"), "somebody listens"


async def test_a_frame_that_takes_longer_than_it_lasts_stops_nothing_else():
    class Slow(Screen):
        def play(self, entry: PlayoutFrame) -> None:
            super().play(entry)
            time.sleep(0.06)

    async with running_session() as session:
        slow = Slow()
        session.attach(slow)
        for _ in range(20):
            await asyncio.sleep(0.05)
        assert len(slow.entries) >= 10
        session.detach(slow)


async def test_a_listener_that_fails_keeps_nothing_from_the_others(caplog):
    def broken(kind: str, data: Mapping[str, Any]) -> None:
        raise RuntimeError("a closed door")

    async with running_session() as session:
        told = []
        session.listen(broken)
        session.listen(lambda kind, data: told.append((kind, data)))
        session.emit("test", answer=42)
    assert told[0] == ("test", {"answer": 42})
    assert "an event was not told" in said(caplog)


async def test_a_killed_worker_does_not_stop_the_sound():
    async with running_session() as session:
        screen = Screen()
        events = []
        session.listen(lambda kind, data: events.append((kind, data)))
        session.attach(screen)
        await until(lambda: len(screen.entries) > 20)
        said = beeps(6)
        await session.speak(said, "test")
        await until(lambda: session.speaking)
        assert session.worker_pid is not None
        os.kill(session.worker_pid, signal.SIGKILL)
        await until(lambda: any(kind == "error" for kind, _ in events))
        assert not session.ready
        await until(lambda: session.ready)
        await until(lambda: not session.speaking, 30)
        start = int(np.flatnonzero(screen.sound)[0]) - int(np.flatnonzero(said)[0])
        np.testing.assert_array_equal(screen.sound[start : start + len(said)], said)
        assert all(entry.picture is not None for entry in screen.entries)
        # The last second was spoken with a moving mouth again.
        last = (start + len(said)) // 640
        assert screen.mouth[last - 25 : last].max() > 0.2
        assert (np.diff([entry.index for entry in screen.entries]) == 1).all(), "no frame was left out"


async def test_the_portrait_is_swapped_while_it_speaks():
    async with running_session() as session:
        screen = Screen()
        session.attach(screen)
        await until(lambda: len(screen.entries) > 20)
        await session.speak(beeps(4), "test")
        await until(lambda: session.speaking)
        before = session.digest
        with pytest.raises(PortraitError, match="^the portrait is not a picture"):
            await session.identify(Portrait(b"nothing"))
        assert session.digest == before
        data = cv2.imencode(".png", np.full((64, 64, 3), 250, np.uint8))[1].tobytes()
        await session.identify(Portrait(data))
        assert session.digest != before
        await until(lambda: screen.pixels[-1, 0, 0] == 250)


def test_an_overload_is_answered_by_a_decision_that_is_told(monkeypatch):
    monkeypatch.setattr("avatard.session.adaptation.EFFORT_SECONDS", 0)
    session = Session(config(), portrait())
    events: list[Mapping[str, Any]] = []
    session.listen(lambda kind, data: events.append(data) if kind == "effort" else None)
    epoch = session.scheduler.epoch
    while not events:
        session.frames_ready(FramesReady(0, 0, 4, 2, 2, motion_seconds=0.01, video_seconds=0.5), [])
    assert events == [{"motion_steps": 4, "video_steps": 1, "pictures_per_second": 12.5}]
    assert session.scheduler.epoch == epoch + 1, "another frame rate begins with an epoch"
    assert session.figures()["pictures_per_second"] == 12.5
    assert b"avatard_picture_rate 12.5" in session.collect()
