"""Segments in and frames out, in virtual time and without any framework."""

import asyncio
import random

import numpy as np
import pytest

from avatard.errors import UserError
from avatard.integrations import stream as module
from avatard.integrations.stream import AvatarFrame, SegmentEnd, SessionStream
from avatard.media.pcm import to_pcm16
from avatard.session.session import Session
from tests.support.paths import ROOT
from tests.support.serving import beeps, config, portrait
from tests.support.virtual import InlineSupervisor, run_virtually


class Watched(SessionStream):
    """A stream whose frames are kept."""

    def __init__(self, session: Session) -> None:
        super().__init__(session, owned=True)
        self.frames: list[AvatarFrame] = []

    async def watch(self) -> None:
        async for frame in self:
            self.frames.append(frame)

    @property
    def ends(self) -> list[SegmentEnd]:
        return [end for frame in self.frames for end in frame.ended]

    @property
    def speech(self) -> np.ndarray:
        return np.concatenate([frame.speech for frame in self.frames])

    async def until(self, condition, seconds=120.0):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - in virtual time
                await asyncio.sleep(0.01)


@pytest.fixture
def play(monkeypatch):
    """Run a test's coroutine function with a stream that is watched, in virtual time."""

    def run(scene):
        async def main():
            session = Session(config(), portrait(), make_supervisor=InlineSupervisor)
            stream = Watched(session)
            await stream.start()
            watching = asyncio.create_task(stream.watch())
            await stream.until(lambda: len(stream.frames) > 20)
            await scene(stream, session)
            await stream.stop()
            await asyncio.wait_for(watching, 1)

        run_virtually(monkeypatch, main)

    return run


def test_a_segment_comes_out_to_the_sample_and_ends_once(play):
    async def scene(stream, session):
        spoken = beeps(1.0125, 48_000)
        for first in range(0, len(spoken), 480):
            name = stream.push(spoken[first : first + 480], 48_000)
        assert stream.end() == name and stream.end() == ""
        await stream.until(lambda: stream.ends)
        np.testing.assert_array_equal(stream.speech, to_pcm16(spoken))
        assert stream.ends == [SegmentEnd(name, 1012, 0, False)]
        last = next(frame for frame in stream.frames if frame.ended)
        assert len(last.speech), "the end comes with the last samples"
        assert stream.size == (256, 256)
        assert all(len(frame.sound) == 1920 and frame.picture.shape == (256, 256, 3) for frame in stream.frames)

    play(scene)


def test_silence_between_late_messages_is_not_counted(play):
    async def scene(stream, session):
        for _ in range(4):
            stream.push(beeps(0.1), 16_000)
            await asyncio.sleep(0.4)
        stream.end()
        await stream.until(lambda: stream.ends)
        assert len(stream.speech) == 48_000 * 0.4
        assert stream.ends[0].played_ms == 400

    play(scene)


def test_nothing_old_is_given_after_an_interrupt(play):
    async def scene(stream, session):
        stream.push(beeps(20), 16_000)
        await stream.until(lambda: len(stream.speech) > 10_000)
        heard, frames = len(stream.speech), len(stream.frames)
        stream.interrupt()
        assert stream.end() == "", "nothing is open"
        await stream.until(lambda: len(stream.frames) > frames + 50)
        assert len(stream.speech) == heard
        assert not any(frame.sound.any() or frame.speaking for frame in stream.frames[frames:])
        [end] = stream.ends
        assert end.interrupted and abs(end.played_ms - heard / 48) <= 40
        assert abs(end.played_ms + end.dropped_ms - 20_000) <= 1
        stream.push(beeps(0.2), 16_000)
        stream.end()
        await stream.until(lambda: len(stream.ends) == 2)
        assert len(stream.speech) == heard + 9600
        assert not stream.ends[1].interrupted

    play(scene)


def test_frames_that_wait_lose_their_sound_in_an_interrupt(play):
    async def scene(stream, session):
        idle = SessionStream(session)  # nobody takes its frames
        await idle.start()
        idle.push(beeps(1), 16_000)
        idle.end()
        await stream.until(lambda: any(frame.speaking for frame in stream.frames))
        idle.interrupt()
        assert not any(frame.sound.any() or len(frame.speech) for frame in idle._waiting)
        assert len(stream.speech) == 0, "another's speech is not this stream's"
        await idle.stop()

    play(scene)


def test_another_interrupt_ends_a_segment_when_its_sender_has(play):
    async def scene(stream, session):
        stream.push(beeps(5), 16_000)
        await stream.until(lambda: len(stream.speech) > 10_000)
        session.interrupt()
        await asyncio.sleep(0.3)
        stream.push(beeps(0.1), 16_000)  # the rest of what was interrupted
        assert not stream.ends
        stream.end()
        await stream.until(lambda: stream.ends)
        assert [end.interrupted for end in stream.ends] == [True]

    play(scene)


def test_a_segment_that_loses_the_floor_goes_on_as_one(play):
    async def scene(stream, session):
        stream.push(beeps(0.3), 16_000)
        other = session.open_speaker()
        other.push_audio(beeps(0.3), 16_000)
        other.flush()
        await asyncio.sleep(3)
        stream.push(beeps(0.2), 16_000)
        assert not stream.ends
        stream.end()
        await stream.until(lambda: stream.ends)
        await asyncio.sleep(1)
        assert [(end.played_ms, end.interrupted) for end in stream.ends] == [(500, False)]
        assert len(stream.speech) == 24_000
        await other.close()

    play(scene)


def test_an_empty_segment_ends_too(play):
    async def scene(stream, session):
        name = stream.push(np.zeros(0, np.float32), 16_000)
        stream.end()
        await stream.until(lambda: stream.ends)
        assert stream.ends == [SegmentEnd(name, 0, 0, False)]

    play(scene)


@pytest.mark.parametrize("message_ms", [10, 20, 40, 100])
def test_twenty_segments_and_five_interrupts(play, message_ms):
    """In bursts, as a TTS sends them, and some of them while the one before is being said."""

    async def scene(stream, session):
        random.seed(message_ms)
        pushed, cut = {}, set()
        interrupted = set(random.sample(range(20), 5))
        for number in range(20):
            before = len(stream.ends)
            spoken = beeps(random.uniform(0.15, 0.8))
            size = 16 * message_ms
            for first in range(0, len(spoken), size):
                name = stream.push(spoken[first : first + size], 16_000)
                if first // size % 8 == 7:
                    await asyncio.sleep(random.choice([0, 0.02, 0.1]))
            pushed[name] = 1000 * len(spoken) / 16_000
            if number in interrupted:
                await asyncio.sleep(random.uniform(0, 0.9))
                cut |= {segment.id for segment in stream._segments}
                stream.interrupt()
            else:
                stream.end()
            if random.random() < 0.5:
                await stream.until(lambda before=before: len(stream.ends) > before)
        await stream.until(lambda: len(stream.ends) >= 20)
        await asyncio.sleep(2)
        assert [end.id for end in stream.ends] == list(pushed)
        for end in stream.ends:
            assert end.interrupted == (end.id in cut)
            assert end.interrupted or abs(end.played_ms - pushed[end.id]) <= 1
        played = sum(end.played_ms for end in stream.ends)
        # What the frame that was due at an interrupt still had is counted as played, and silenced.
        assert abs(played - len(stream.speech) / 48) <= 20 + 5 * 40

    play(scene)


def test_frames_that_nobody_takes_are_bounded(play, monkeypatch):
    monkeypatch.setattr(module, "MAX_FRAMES", 100)

    async def scene(stream, session):
        idle = SessionStream(session)
        await idle.start()
        await stream.until(lambda: len(stream.frames) > 100)
        assert len(idle._waiting) == module.MAX_PICTURES
        idle.push(beeps(6), 16_000)
        idle.end()
        await asyncio.sleep(8)
        assert len(idle._waiting) == 100
        assert sum(frame.picture is not None for frame in idle._waiting) <= module.MAX_PICTURES + 1
        assert any(frame.ended for frame in idle._waiting)
        await idle.stop()

    play(scene)


async def test_a_session_that_does_not_start_ends_the_stream(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    session = Session(config(), portrait(), "tests.support.warp_engine:make_broken")
    stream = SessionStream(session, owned=True)
    with pytest.raises(UserError, match="weights are missing"):
        await stream.start()
    assert [frame async for frame in stream] == []
    assert stream.push(beeps(1), 16_000) == stream.end() == ""
    await stream.stop()


def test_a_missing_portrait_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        SessionStream.of_portrait(tmp_path / "nobody.png")
    with pytest.raises(UserError, match="stream.profile"):
        SessionStream.of_portrait("tests/fixtures/page.jpg", ["stream.profile=fast"])
