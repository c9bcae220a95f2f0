"""The scheduler against a model of the engine, in simulated time."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avatard.frame import Frame, HeadPose, Sound
from avatard.playout.audio_timeline import Timing
from avatard.playout.scheduler import AudioChunk, PlayoutFrame, Scheduler, StartEpoch
from avatard.playout.utterance import Utterance
from avatard.timebase import SAMPLES_PER_FRAME

TICK = 0.25
TIMING = Timing(hop_frames=6, fade_frames=2, lookahead_samples=1280, compute_frames=3)


def picture(value: float) -> Frame:
    return Frame(
        np.full((2, 2, 3), value, np.uint8),
        np.full((68, 3), value, np.float32),
        np.zeros(52, np.float32),
        HeadPose((0, 0, 0, 1), (0, 0, 0), 64),
    )


class Engine:
    """Emits pictures by the latency contract of the real streams; a picture's landmarks are the sum of its sound."""

    def __init__(self, timing: Timing, compute_frames: float) -> None:
        self.timing, self.compute = timing, compute_frames
        self.epoch, self.first, self.emitted = -1, 0, 0
        self.sound = np.zeros(0, np.float32)
        self.due: list[tuple[float, int, int, list[Frame]]] = []

    def start(self, start: StartEpoch) -> None:
        self.epoch, self.first, self.emitted = start.epoch, start.first_frame, 0
        self.sound = np.zeros(0, np.float32)

    def feed(self, chunk: AudioChunk, now: float) -> None:
        assert chunk.epoch == self.epoch
        assert chunk.first == self.first * SAMPLES_PER_FRAME + len(self.sound), "chunks follow one another"
        self.sound = np.concatenate([self.sound, chunk.samples])
        heard = (len(self.sound) - self.timing.lookahead_samples) // SAMPLES_PER_FRAME
        ready = heard // self.timing.hop_frames * self.timing.hop_frames - self.timing.fade_frames
        if ready > self.emitted:
            frames = self.sound[self.emitted * SAMPLES_PER_FRAME : ready * SAMPLES_PER_FRAME].reshape(
                -1, SAMPLES_PER_FRAME
            )
            made = [picture(float(frame.sum())) for frame in frames]
            self.due.append((now + self.compute, self.epoch, self.first + self.emitted, made))
            self.emitted = ready

    def deliver(self, scheduler: Scheduler, now: float) -> None:
        while self.due and self.due[0][0] <= now + 1e-9:
            _, epoch, first, made = self.due.pop(0)
            scheduler.add(epoch, first, made)


class Run:
    """A session in simulated time: `push(at, samples)` events, a tick each frame."""

    def __init__(self, timing: Timing = TIMING, compute: float | None = None) -> None:
        self.scheduler = Scheduler(timing)
        self.engine = Engine(timing, timing.compute_frames if compute is None else compute)
        self.played: list[PlayoutFrame] = []
        self.utterance = Utterance("1")
        self.chunks: list[AudioChunk] = []
        self.now = -timing.delay_frames - TICK  # the clock starts when the first pictures can be there
        self.advance()

    def advance(self) -> None:
        for command in self.scheduler.poll(self.now):
            if isinstance(command, StartEpoch):
                self.engine.start(command)
            else:
                self.chunks.append(command)
                self.engine.feed(command, self.now)
        self.engine.deliver(self.scheduler, self.now)

    def to(self, when: float) -> None:
        """Play every frame due up to `when`."""
        while self.now < when:
            self.now = min(when, (math.floor(self.now / TICK) + 1) * TICK)
            self.advance()
            while len(self.played) <= self.now:
                self.played.append(self.scheduler.play(self.now))

    def push(self, samples: np.ndarray) -> int:
        """Speech of the current utterance."""
        accepted = self.scheduler.push(Sound.of_speech(samples), self.now, self.utterance)
        self.utterance.pushed += accepted
        self.advance()
        return accepted

    def end_of_utterance(self) -> None:
        self.scheduler.end_of_utterance(self.now, self.utterance)
        self.utterance = Utterance(f"{int(self.utterance.id) + 1}")

    @property
    def sound(self) -> np.ndarray:
        return np.concatenate([entry.samples for entry in self.played])


def speech(frames: float, seed: int = 1) -> np.ndarray:
    values = np.random.default_rng(seed).integers(1, 5, round(frames * SAMPLES_PER_FRAME))
    return values.astype(np.float32) / 64  # sums of these are exact in float32


def heard(run: Run, said: np.ndarray) -> int:
    """Where `said` starts in the sound that was played; it must be there once, whole and without a gap."""
    nonzero = np.flatnonzero(run.sound)
    assert len(nonzero)
    start = int(nonzero[0])
    np.testing.assert_array_equal(run.sound[start : start + len(said)], said)
    assert not run.sound[start + len(said) :].any()
    return start


def check_pairing(run: Run) -> None:
    for entry in run.played:
        assert entry.picture is not None and not entry.repeated
        assert entry.picture.landmarks[0, 0] == pytest.approx(entry.samples.sum(), rel=1e-5)


def test_silence_needs_no_speech():
    run = Run()
    run.to(100)
    assert not run.sound.any()
    assert run.scheduler.counters.repeated == run.scheduler.underruns == 0
    assert [entry.index for entry in run.played] == list(range(101))
    assert not any(entry.speech for entry in run.played)


def changed(run: Run, state: str) -> list[Utterance]:
    return [change.utterance for entry in run.played for change in entry.changes if change.state == state]


timings = st.builds(
    Timing,
    hop_frames=st.integers(1, 12),
    fade_frames=st.integers(0, 4),
    lookahead_samples=st.integers(0, 4000),
    compute_frames=st.floats(0, 6),
    margin_samples=st.just(1600),
    ahead_frames=st.integers(5, 50),
)


@given(timings, st.floats(0, 40), st.lists(st.integers(0, 8000), min_size=1, max_size=12))
@settings(deadline=None, max_examples=25)
def test_any_chunking_of_early_speech_is_played_whole(timing, start, cuts):
    said = speech(30)
    run = Run(timing)
    run.to(start)
    begin = run.now
    edges = sorted({0, len(said), *(min(cut, len(said)) for cut in np.cumsum(cuts))})
    for first, end in zip(edges, edges[1:], strict=False):
        assert run.push(said[first:end]) == end - first
    run.to(begin + 30 + timing.delay_frames + 12)
    at = heard(run, said) / SAMPLES_PER_FRAME
    check_pairing(run)
    assert at - begin <= timing.delay_frames + 2.5 + 1e-6, (
        "speech waits no longer than the stated latency and the margin"
    )


@given(timings, st.floats(0, 40), st.integers(160, 1440), st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_live_speech_is_played_without_a_gap_at_the_stated_latency(timing, start, packet, jitter):
    said = speech(20)
    run = Run(timing)
    run.to(start)
    begin = run.now
    noise = np.random.default_rng(packet)
    arrived = begin
    for first in range(0, len(said), packet):
        chunk = said[first : first + packet]
        # A packet exists when its last sample was captured, and is late by up to the margin.
        captured = begin + (first + len(chunk)) / SAMPLES_PER_FRAME
        run.to(max(run.now, captured + jitter * noise.uniform(0, 1440 - packet) / SAMPLES_PER_FRAME))
        arrived = run.now if first == 0 else arrived
        assert run.push(chunk) == len(chunk)
    run.to(begin + 40 + timing.delay_frames)
    at = heard(run, said) / SAMPLES_PER_FRAME
    check_pairing(run)
    assert at - arrived <= timing.delay_frames + 2.5 + 1e-6
    assert run.scheduler.underruns <= 1  # the end of the speech


def test_a_sender_of_long_packets_is_given_a_larger_margin():
    run = Run()
    run.to(10)
    for _ in range(20):
        run.to(run.now + 5)
        run.push(np.full(3200, 0.25, np.float32))
    run.to(200)
    gaps = np.diff(np.flatnonzero(run.sound))
    assert np.count_nonzero(gaps > 1) <= 1
    assert np.count_nonzero(run.sound) == 64_000


@given(st.lists(st.integers(1, 5000), min_size=2, max_size=8), st.lists(st.integers(1, 5000), min_size=2, max_size=8))
@settings(deadline=None, max_examples=15)
def test_two_chunkings_give_the_same_work(one, other):
    results = []
    for cuts in (one, other):
        run = Run()
        run.to(10)
        said = speech(40)
        edges = sorted({0, len(said), *(min(cut, len(said)) for cut in np.cumsum(cuts))})
        # The first chunk decides the run-up: speech that is already there waits less.
        edges = [edge for edge in edges if edge == 0 or edge >= 4000]
        for first, end in zip(edges, edges[1:], strict=False):
            run.push(said[first:end])
        run.to(90)
        sound = np.concatenate([chunk.samples for chunk in run.chunks])
        start = int(np.flatnonzero(sound)[0])
        results.append(sound[start : start + len(said)])
    np.testing.assert_array_equal(results[0], results[1])


def test_more_speech_than_the_buffer_is_refused_and_counted():
    timing = Timing(6, 2, 1280, 3, buffer_samples=10_000)
    run = Run(timing)
    accepted = run.scheduler.push(Sound.of_speech(speech(100)), run.now, run.utterance)
    assert accepted == 10_000
    assert run.scheduler.counters.refused_samples == 54_000
    assert run.scheduler.buffered_samples == 10_000
    run.to(20)
    assert run.scheduler.buffered_samples == 0
    assert run.push(speech(1)) == 640


def test_utterances_in_a_row_are_played_without_a_pause():
    run = Run()
    run.to(5)
    run.push(speech(20, 1))
    run.end_of_utterance()
    run.push(speech(20, 2))
    run.to(80)
    heard(run, np.concatenate([speech(20, 1), speech(20, 2)]))
    check_pairing(run)


@given(st.floats(0, 60), st.integers(1, 60))
@settings(deadline=None, max_examples=20)
def test_interrupt_silences_at_the_next_frame_and_closes_the_mouth_soon(when, frames):
    run = Run(compute=2)
    run.to(15)
    said = speech(frames)
    run.push(said)
    run.to(15 + when)
    audible = int(np.count_nonzero(run.sound))
    cut = run.scheduler.interrupt(run.now)
    run.to(run.now + 40)
    assert cut.frame == math.floor(15 + when) + 1
    assert cut.ended == ((run.utterance,) if audible < len(said) else ())
    assert not run.sound[cut.frame * SAMPLES_PER_FRAME + 160 :].any(), "only the ramp of 10 ms is left"
    for utterance in cut.ended:
        assert utterance.interrupted and (utterance.played, utterance.dropped) == (audible, len(said) - audible)
    # A picture with a closed mouth bridges the time that generation takes.
    closed = cut.frame + TIMING.fade_frames
    values = [entry.picture.landmarks[0, 0] for entry in run.played[closed:] if entry.picture is not None]
    assert values and not any(values)
    assert not any(entry.repeated for entry in run.played)
    run.push(speech(10))
    before = len(run.played)
    run.to(run.now + 50)
    later = np.concatenate([entry.samples for entry in run.played[before:]])
    assert np.count_nonzero(later) == 6400, "speech after an interrupt is heard whole"


def test_without_a_picture_at_rest_the_mouth_closes_when_the_first_clip_is_there():
    run = Run(compute=2)
    run.scheduler.forget_face()
    run.to(2)
    run.push(speech(60))
    run.to(25)
    run.scheduler.forget_face()
    cut = run.scheduler.interrupt(run.now)
    run.to(run.now + 40)
    values = [entry.picture.landmarks[0, 0] for entry in run.played if entry.picture is not None]
    assert any(values[cut.frame : cut.frame + 3])
    assert not any(values[cut.frame + 4 + TIMING.fade_frames :])


def test_a_restart_keeps_the_sound_and_shows_what_is_there():
    run = Run()
    run.to(5)
    said = speech(60)
    run.push(said)
    run.to(30)
    first = run.scheduler.restart(run.now)
    assert first == 34, "the time that generation is given"
    run.to(100)
    heard(run, said)
    assert run.scheduler.counters.repeated == 0, "the old epoch's pictures bridge the start of the new one"
    assert run.scheduler.epoch == 1


def test_without_an_engine_the_last_picture_stays_and_the_sound_goes_on():
    run = Run()
    run.to(20)
    run.push(speech(60))
    run.to(30)
    chunks = len(run.chunks)
    run.engine.deliver = lambda *_: None  # type: ignore[method-assign]
    run.to(110)
    assert len(run.chunks) > chunks
    heard(run, speech(60))
    assert all(entry.picture is not None for entry in run.played)
    assert run.played[-1].repeated
    assert run.scheduler.catch_up(run.now)
    assert run.scheduler.counters.skipped > 0
    assert not run.scheduler.catch_up(run.now), "the new epoch gets the time it needs"


def test_pictures_that_stay_late_are_a_reason_to_catch_up():
    run = Run()
    run.to(40)
    run.engine.compute += 8  # for a moment it is slower; then as fast as before, but late
    caught_up = False
    for _ in range(200):
        run.to(run.now + 1)
        caught_up = caught_up or run.scheduler.catch_up(run.now)
    assert caught_up and run.scheduler.counters.late > 0
    run.engine.compute -= 8
    run.to(run.now + 60)
    before = run.scheduler.counters.repeated
    run.to(run.now + 60)
    assert run.scheduler.counters.repeated == before


def test_pictures_that_come_just_in_time_are_no_reason_to_catch_up():
    run = Run()
    run.to(100)
    run.engine.deliver = lambda *_: None  # type: ignore[method-assign]
    run.to(run.now + run.scheduler.ahead_frames + 1)  # the next clip is due right now
    assert run.played[-1].repeated and not run.scheduler.catch_up(run.now)


def test_pictures_of_another_epoch_and_late_ones_are_dropped():
    run = Run()
    run.to(20)
    generated = run.scheduler.counters.generated
    run.scheduler.add(7, 25, [picture(9)])
    assert run.scheduler.counters.generated == generated
    run.scheduler.add(0, 3, [picture(9)])
    assert run.scheduler.counters.late == 1


def test_a_portrait_is_shown_until_the_first_picture():
    scheduler = Scheduler(TIMING)
    assert scheduler.play(0).picture is None
    scheduler.show(picture(3))
    entry = scheduler.play(1)
    assert not entry.repeated and entry.picture is not None and entry.picture.landmarks[0, 0] == 3


def test_speech_tells_how_long_it_waited():
    run = Run()
    run.to(10)
    run.push(speech(20))
    run.to(60)
    waits = [entry.waited_frames for entry in run.played if entry.waited_frames is not None]
    assert waits[0] == pytest.approx(waits[1] - 1)
    assert 0 < waits[0] <= TIMING.delay_frames + 2


@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 20)), min_size=1, max_size=8))
@settings(deadline=None, max_examples=25)
def test_every_utterance_starts_and_ends_once_and_in_order(utterances):
    run = Run()
    run.to(5)
    said = []
    for samples, pause in utterances:
        run.push(speech(1).repeat(15)[:samples])
        said.append(run.utterance)
        run.end_of_utterance()
        run.to(run.now + pause)
    run.to(run.now + 250)
    assert changed(run, "started") == said
    assert changed(run, "ended") == said
    assert [u.played for u in said] == [samples for samples, _ in utterances]
    assert not any(u.dropped or u.interrupted for u in said)
    assert not run.scheduler.has_speech


@given(st.lists(st.integers(0, 9000), min_size=1, max_size=5), st.floats(0, 80))
@settings(deadline=None, max_examples=25)
def test_an_interrupt_ends_every_utterance_that_has_not_ended(lengths, when):
    run = Run()
    run.to(5)
    said = []
    for samples in lengths:
        run.push(speech(1).repeat(15)[:samples])
        said.append(run.utterance)
        run.end_of_utterance()
    run.to(5 + when)
    cut = run.scheduler.interrupt(run.now)
    run.to(run.now + 60)
    ended = changed(run, "ended")
    assert sorted([*ended, *cut.ended], key=lambda u: int(u.id)) == said
    assert all(u.ended for u in said)
    assert sum(u.played + u.dropped for u in said) == sum(lengths)
    assert not any(u.interrupted for u in ended) and all(u.interrupted for u in cut.ended)
    assert not run.scheduler.has_speech
