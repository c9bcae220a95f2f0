"""The session with the test engine, in virtual time; a real inference process is in `test_real_process.py`."""

import asyncio
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from avatard.portrait import Portrait, PortraitError
from avatard.protocols import events
from avatard.session.session import Session
from tests.support.serving import Screen, beeps, config, portrait, said
from tests.support.virtual import InlineSupervisor, VirtualLoop, loudness, run_virtually


class Studio:
    """A session with a screen, and all that was told."""

    def __init__(self, make_supervisor=InlineSupervisor) -> None:
        self.session = Session(config(), portrait(), make_supervisor=make_supervisor)
        self.supervisor: InlineSupervisor = self.session.generation.supervisor  # type: ignore[assignment]
        self.screen, self.told = Screen(), list[events.Event]()
        self.session.listen(self.told.append)

    async def __aenter__(self) -> "Studio":
        await self.session.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.stop()

    def of(self, kind):
        return [event for event in self.told if isinstance(event, kind)]

    def utterances(self):
        return [(event.id, event.state) for event in self.of(events.Utterance)]

    async def until(self, condition, seconds=120.0):
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - in virtual time
                await asyncio.sleep(0.01)

    async def silent(self):
        """Every utterance has ended."""

        def over():
            states = Counter(state for _, state in self.utterances())
            return states["queued"] == states["ended"] and not self.session.speaking

        await self.until(over)


@pytest.fixture
def play(monkeypatch):
    """Run a test's coroutine function with a started `Studio` in virtual time."""

    def run(scene, **options):
        async def main():
            async with Studio(**options) as studio:
                await scene(studio)

        run_virtually(monkeypatch, main)

    return run


def test_speech_comes_out_whole_with_its_pictures(play):
    async def scene(studio):
        session, screen = studio.session, studio.screen
        session.attach(screen)
        await studio.until(lambda: len(screen.entries) > 20)
        spoken, speaker = beeps(3), session.open_speaker()
        speaker.push_audio(spoken, 16_000)
        speaker.flush()
        await studio.silent()
        start = int(np.flatnonzero(screen.sound)[0]) - int(np.flatnonzero(spoken)[0])
        np.testing.assert_array_equal(screen.sound[start : start + len(spoken)], spoken)
        shown = [k for k, entry in enumerate(screen.entries) if not entry.repeated]
        assert np.corrcoef(loudness(screen.sound)[shown], screen.mouth[shown])[0, 1] > 0.95
        assert [entry.index for entry in screen.entries] == list(range(len(screen.entries)))
        assert len(studio.of(events.StartedSpeaking)) == len(studio.of(events.StoppedSpeaking)) == 1
        text = session.metrics.text().decode()
        assert "avatard_audio_to_photon_seconds_count" in text and "avatard_rtf" in text
        assert f'avatard_frames_total{{fate="played"}} {len(screen.entries)}.0' in text
        assert session.figures()["frames_played"] == len(screen.entries)

    play(scene)


def test_viewers_hear_the_senders_own_samples(play):
    async def scene(studio):
        session, screen = studio.session, studio.screen
        session.attach(screen)
        noise = np.random.default_rng(0).normal(0, 0.1, 48_000 * 2).astype(np.float32)
        speaker = session.open_speaker()
        speaker.push_audio(noise, 48_000)
        speaker.flush()
        await studio.silent()
        heard = np.concatenate([entry.sound.playback for entry in screen.entries])
        start = int(np.flatnonzero(heard)[0])
        np.testing.assert_array_equal(heard[start : start + len(noise)], noise)
        assert start % 3 == 0, "in step with what the networks hear"

    play(scene)


@pytest.mark.parametrize("seconds", [0.5, 5, 600])
def test_a_machine_that_stood_still_goes_on_where_the_speech_was(play, seconds):
    async def scene(studio):
        session, screen = studio.session, studio.screen
        session.attach(screen)
        spoken = (0.25 + np.arange(16_000 * 12) * 2.0**-25).astype(np.float32)  # each sample is another
        speaker = session.open_speaker()
        speaker.push_audio(spoken, 16_000)
        speaker.flush()
        await studio.until(lambda: len(screen.entries) > 60)
        for _ in range(2):
            await asyncio.sleep(0.5)
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            loop.jump(seconds)
            await session.identify(portrait(99))  # what asks for the position before the play-out has woken up
        await studio.silent()
        heard = screen.sound[screen.sound >= 0.25]
        np.testing.assert_array_equal(heard, spoken)

    play(scene)


def test_nothing_is_generated_for_nobody(play):
    async def scene(studio):
        session, screen = studio.session, studio.screen
        await asyncio.sleep(30)
        assert session.scheduler.counters.played == 0
        session.attach(screen)
        await asyncio.sleep(1)
        session.detach(screen)
        count = session.scheduler.counters.played
        await asyncio.sleep(30)
        assert 20 < count == session.scheduler.counters.played
        session.attach(screen)
        await asyncio.sleep(2)
        assert [entry.index for entry in screen.entries] == list(range(len(screen.entries)))

    play(scene)


def test_an_interrupt_is_silent_at_once_and_says_what_was_heard(play):
    async def scene(studio):
        session, screen = studio.session, studio.screen
        session.attach(screen)
        speaker = session.open_speaker()
        speaker.push_audio(np.full(16000 * 4, 0.25, np.float32), 16_000)
        await studio.until(lambda: session.speaking)
        await asyncio.sleep(0.5)
        cut = session.interrupt()
        # The rest of the utterance that is still on its way is dropped, the next utterance is heard.
        speaker.push_audio(np.full(1600, 0.25, np.float32), 16_000)
        await asyncio.sleep(0.2)
        assert not session.scheduler.has_speech and not speaker.waiting_seconds
        assert cut.played_ms > 250 and cut.played_ms + cut.dropped_ms == pytest.approx(4000, abs=1)
        assert studio.of(events.Interrupted) == [cut]
        assert studio.of(events.StoppedSpeaking) == [events.StoppedSpeaking(frame=cut.frame)]
        await studio.until(lambda: len(screen.entries) > cut.frame + 25)
        assert not screen.sound[cut.frame * 640 + 160 :].any()
        assert not screen.mouth[cut.frame + 20 :].any()
        speaker.flush()
        speaker.push_audio(beeps(0.4), 16_000)
        speaker.flush()
        await studio.silent()
        assert len(studio.of(events.StartedSpeaking)) == 2, "new speech after an interrupt is told"
        (first, second) = {event.id: None for event in studio.of(events.Utterance)}
        assert studio.utterances() == [(u, s) for u in (first, second) for s in ("queued", "started", "ended")]

    play(scene)


def test_an_interrupt_counts_all_that_it_drops_and_an_idle_one_nothing(play):
    async def scene(studio):
        session = studio.session
        session.attach(studio.screen)
        assert session.interrupt().dropped_ms == 0
        speaker = session.open_speaker()
        for _ in range(36):  # six minutes: more than the scheduler and the handle take
            speaker.push_audio(np.full(160_000, 0.1, np.float32), 16_000)
        speaker.flush()
        await studio.until(lambda: session.speaking)
        cut = session.interrupt()
        assert cut.played_ms + cut.dropped_ms == pytest.approx(360_000, abs=1) and cut.dropped_ms > 350_000
        assert session.interrupt().dropped_ms == 0

    play(scene)


def test_speech_is_said_to_its_end_also_when_nobody_watches(play):
    async def scene(studio):
        speaker = studio.session.open_speaker()
        speaker.push_audio(beeps(3), 16_000)
        name = speaker.flush()
        await studio.until(lambda: (name, "ended") in studio.utterances())
        assert studio.session.scheduler.counters.played * 640 >= 3 * 16000
        await studio.until(lambda: not studio.session.clock.running)
        assert not studio.of(events.Interrupted)

    play(scene)


def test_a_pause_within_pushed_speech_is_not_its_end(play):
    async def scene(studio):
        session = studio.session
        session.attach(studio.screen)
        speaker = session.open_speaker()
        speaker.push_audio(np.concatenate([beeps(0.4), np.zeros(24_000, np.float32), beeps(0.4)]), 16_000)
        speaker.flush()
        await studio.silent()
        (started,), (stopped,) = studio.of(events.StartedSpeaking), studio.of(events.StoppedSpeaking)
        assert stopped.frame - started.frame >= 50

    play(scene)


def test_what_fills_the_queues_makes_its_sender_wait(play):
    async def scene(studio):
        session = studio.session
        session.attach(studio.screen)
        speaker = session.open_speaker()

        async def push():
            for _ in range(100):
                speaker.push_audio(np.full(80_000, 0.1, np.float32), 16_000)
                await speaker.room()

        pushing = asyncio.create_task(push())
        await asyncio.sleep(20)
        assert not pushing.done()
        assert session.scheduler.buffered_samples <= 30 * 16000 and speaker.waiting_seconds <= 306
        session.interrupt()
        assert session.scheduler.buffered_samples == speaker.waiting_seconds == 0
        await asyncio.wait_for(pushing, 2)

    play(scene)


def test_one_speaker_at_a_time_and_the_others_wait(play):
    async def scene(studio):
        session = studio.session
        session.attach(studio.screen)
        microphone, agent, other = session.open_microphone(), session.open_speaker(), session.open_speaker()
        assert microphone.push_audio(beeps(0.1), 16_000)
        agent.begin("agent")
        agent.push_audio(beeps(1), 16_000)
        await asyncio.sleep(0.1)
        other.begin("other")
        other.push_audio(beeps(1), 16_000)
        await asyncio.sleep(0.1)
        assert other.waiting_seconds == 1, "it waits until the agent has said all"
        assert not microphone.push_audio(beeps(0.1), 16_000)
        agent.flush()
        other.flush()
        await studio.silent()
        assert studio.utterances() == [
            ("agent", "queued"), ("other", "queued"),
            ("agent", "started"), ("agent", "ended"), ("other", "started"), ("other", "ended"),
        ]  # fmt: skip
        assert [e.played_ms for e in studio.of(events.Utterance) if e.state == "ended"] == [1000, 1000]

    play(scene)


def test_a_speaker_that_stops_in_the_middle_gives_the_floor_away(play):
    async def scene(studio):
        session = studio.session
        session.attach(studio.screen)
        one, other = session.open_speaker(), session.open_speaker()
        one.begin("one")
        one.push_audio(beeps(0.4), 16_000)
        other.begin("other")
        other.push_audio(beeps(0.4), 16_000)
        other.flush()
        await studio.silent()
        assert one.flush() == "one", "its end was told already"
        await asyncio.sleep(3)
        assert Counter(studio.utterances()) == Counter(
            [(name, state) for name in ("one", "other") for state in ("queued", "started", "ended")]
        )

    play(scene)


def test_an_open_microphone_is_no_reason_to_work(play):
    async def scene(studio):
        session = studio.session
        quiet, loud = np.full(320, 0.001, np.float32), np.full(320, 0.1, np.float32)
        microphone = session.open_microphone()
        assert not microphone.push_audio(quiet, 16_000) and not session.clock.running
        assert microphone.push_audio(loud, 16_000)
        await studio.until(lambda: session.clock.running)
        async with asyncio.timeout(20):
            while session.clock.running:
                microphone.push_audio(quiet, 16_000)
                await asyncio.sleep(0.02)
        session.attach(studio.screen)
        assert microphone.push_audio(quiet, 16_000), "somebody listens"
        assert not studio.of(events.Utterance), "a microphone has no utterances"

    play(scene)


@pytest.mark.parametrize("empty", [np.zeros(0, np.float32), np.zeros(8000, np.float32)], ids=["empty", "silent"])
def test_empty_and_silent_utterances_end_too(play, empty):
    async def scene(studio):
        session = studio.session
        session.attach(studio.screen)
        speaker = session.open_speaker()
        for name in "abc":
            speaker.begin(name)
            speaker.push_audio(empty, 16_000)
            speaker.flush()
        await studio.until(lambda: ("c", "ended") in studio.utterances())
        await asyncio.sleep(5)
        queued = [(name, "queued") for name in "abc"]
        assert studio.utterances()[:3] == queued
        assert studio.utterances()[3:] == [(name, state) for name in "abc" for state in ("started", "ended")]

    play(scene)


STREAMS = st.lists(
    st.tuples(st.integers(1, 20_000), st.sampled_from([0.0, 0.0, 0.01, 0.04, 0.7])), min_size=1, max_size=20
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STREAMS, min_size=1, max_size=3))
def test_any_cut_at_any_pace_by_any_number_of_senders_is_the_same_speech(play, senders):
    async def scene(studio):
        session, screen = studio.session, studio.screen
        session.attach(screen)

        async def send(name, pieces):
            speaker = session.open_speaker()
            speaker.begin(name)
            voice = np.resize(beeps(4) + np.float32(0.001), sum(size for size, _ in pieces))
            at = 0
            for size, pause in pieces:
                speaker.push_audio(voice[at : at + size], 16_000)
                at += size
                await speaker.room()
                if pause:
                    await asyncio.sleep(pause)
            speaker.flush()
            return len(voice)

        lengths = await asyncio.gather(*(send(f"{n}", pieces) for n, pieces in enumerate(senders)))
        await studio.silent()
        assert studio.supervisor.restarts == 0
        assert np.count_nonzero(screen.sound) == sum(lengths), "all of it was heard, once"
        assert len(studio.supervisor.chunks) <= 110 * session.playout.position / 25, "as many messages as ticks"
        shown = [k for k, entry in enumerate(screen.entries) if not entry.repeated and k > 25]
        np.testing.assert_allclose(screen.mouth[shown], np.minimum(1, 4 * loudness(screen.sound))[shown], atol=0.35)

    play(scene)


def test_a_flood_of_small_messages_is_handed_on_a_tick_at_a_time(play):
    async def scene(studio):
        session = studio.session
        session.attach(studio.screen)
        speaker = session.open_speaker()
        for _ in range(2400):  # 24 s in messages of 10 ms, at once
            speaker.push_audio(np.full(160, 0.1, np.float32), 16_000)
        speaker.flush()
        await asyncio.sleep(30)
        assert len(studio.supervisor.chunks) < 3200 and studio.supervisor.restarts == 0
        assert np.count_nonzero(studio.screen.sound) == 24 * 16_000

    play(scene)


def test_a_slow_sink_stops_nothing_else(play):
    class Broken(Screen):
        def play(self, entry):
            super().play(entry)
            raise RuntimeError("a closed door")

    async def scene(studio):
        broken = Broken()
        studio.session.attach(broken)
        await asyncio.sleep(5)
        assert 2 < len(broken.entries) < 10, "it is tried again, a second later"
        studio.session.detach(broken)
        studio.session.attach(studio.screen)
        await asyncio.sleep(3)
        assert len(studio.screen.entries) > 40

    play(scene)


def test_a_listener_that_fails_keeps_nothing_from_the_others(play, caplog):
    def broken(event):
        raise RuntimeError("a closed door")

    async def scene(studio):
        told = list[events.Event]()
        studio.session.listen(broken)
        studio.session.listen(told.append)
        studio.session.interrupt()
        assert [event.TYPE for event in told] == ["bot-interrupted"]
        assert "event listener failed" in said(caplog)

    play(scene)


def test_a_lost_worker_does_not_stop_the_sound(play):
    async def scene(studio):
        session, screen = studio.session, studio.screen
        session.attach(screen)
        await studio.until(lambda: len(screen.entries) > 20)
        spoken, speaker = beeps(6), session.open_speaker()
        speaker.push_audio(spoken, 16_000)
        speaker.flush()
        await studio.until(lambda: session.speaking)
        studio.supervisor.die()
        (error,) = studio.of(events.Error)
        assert not session.ready and error.code == "worker-restart" and not error.fatal
        await asyncio.sleep(2)
        studio.supervisor.come_back()
        await studio.silent()
        start = int(np.flatnonzero(screen.sound)[0]) - int(np.flatnonzero(spoken)[0])
        np.testing.assert_array_equal(screen.sound[start : start + len(spoken)], spoken)
        assert all(entry.picture is not None for entry in screen.entries)
        last = (start + len(spoken)) // 640
        assert screen.mouth[last - 25 : last].max() > 0.2, "the last second was spoken with a moving mouth again"
        assert (np.diff([entry.index for entry in screen.entries]) == 1).all(), "no frame was left out"

    play(scene)


def test_the_portrait_is_swapped_while_it_speaks(play):
    async def scene(studio):
        session, screen = studio.session, studio.screen
        session.attach(screen)
        speaker = session.open_speaker()
        speaker.push_audio(beeps(4), 16_000)
        await studio.until(lambda: session.speaking)
        before = session.generation.digest
        with pytest.raises(PortraitError, match="^the portrait is not a picture"):
            await session.identify(Portrait(b"nothing"))
        crowd = cv2.imencode(".png", np.full((64, 128, 3), 9, np.uint8))[1].tobytes()
        with pytest.raises(PortraitError) as several:
            await session.identify(Portrait(crowd))
        assert several.value.code == "several-faces" and several.value.fields["faces"] == 2
        assert session.generation.digest == before
        data = cv2.imencode(".png", np.full((64, 64, 3), 250, np.uint8))[1].tobytes()
        await session.identify(Portrait(data))
        assert session.generation.digest != before
        await studio.until(lambda: screen.pixels[-1, 0, 0] == 250)

    play(scene)


def test_an_overload_is_answered_by_a_decision_that_is_told(play):
    class Slow(InlineSupervisor):
        compute_seconds = 0.7  # for a hop of 0.16 s: 0.35 s on each thread

    async def scene(studio):
        studio.session.attach(studio.screen)
        await studio.until(lambda: len(studio.of(events.Quality)) >= 2)
        first, second = studio.of(events.Quality)[:2]
        assert first == events.Quality(motion_steps=1, video_steps=1, pictures_per_second=12.5)
        assert second == events.Quality(motion_steps=1, video_steps=1, pictures_per_second=6.25)
        assert studio.session.figures()["pictures_per_second"] == 6.25
        assert b"avatard_picture_rate 6.25" in studio.session.metrics.text()
        assert studio.supervisor.level is not None and studio.supervisor.level.frame_stride == 4

    play(scene, make_supervisor=Slow)
