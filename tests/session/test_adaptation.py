import numpy as np
import pytest

from avatard.config import Stream
from avatard.inference.ipc import FramesReady, QualityLevel
from avatard.playout.audio_timeline import Timing
from avatard.playout.scheduler import AudioChunk, Scheduler
from avatard.session.adaptation import MEASURED_CLIPS, Tempo, first_estimate

TIMING = Timing(hop_frames=4, fade_frames=1, lookahead_samples=1280, compute_frames=12)


def run(tempo: Tempo, scheduler: Scheduler, took: float, hops: int = MEASURED_CLIPS) -> None:
    """Hops of 160 ms whose first pictures come `took` frames after their last sample was ordered."""
    for n in range(hops):
        first = n * 4 * 640
        at = float(n * 4)
        tempo.ordered(AudioChunk(0, first + 1280, np.zeros(4 * 640, np.float32)), at)
        tempo.made(FramesReady(0, max(0, n * 4 - 1), 2, 2, 2, 0.02, 0.03), scheduler, at + took)


@pytest.mark.parametrize(("took", "given"), [(3.0, 3.5), (20.0, 20.5), (80.0, 25.0), (0.1, 1.0)])
def test_the_latency_follows_what_clips_take(took, given):
    tempo, scheduler = Tempo(Stream()), Scheduler(TIMING)
    tempo.ordered(AudioChunk(0, 0, np.zeros(1280, np.float32)), 0)
    run(tempo, scheduler, took, MEASURED_CLIPS + 1)
    tempo.retime(scheduler)
    assert scheduler.timing.compute_frames == pytest.approx(given)


def test_a_small_difference_changes_nothing_and_neither_does_a_short_time():
    tempo, scheduler = Tempo(Stream()), Scheduler(TIMING)
    run(tempo, scheduler, 3.0, MEASURED_CLIPS // 2)
    tempo.retime(scheduler)
    assert scheduler.timing.compute_frames == 12
    run(tempo, scheduler, 11.0, 2 * MEASURED_CLIPS)
    tempo.retime(scheduler)
    assert scheduler.timing.compute_frames == 12


def test_who_falls_behind_gets_more_time_at_once_and_loses_it_when_it_is_not_needed():
    tempo, scheduler = Tempo(Stream()), Scheduler(TIMING)
    tempo.fell_behind()
    tempo.retime(scheduler)
    assert scheduler.timing.compute_frames == 18
    tempo.retime(scheduler)
    assert scheduler.timing.compute_frames == 18
    tempo.ordered(AudioChunk(0, 0, np.zeros(1280, np.float32)), 0)
    run(tempo, scheduler, 3.0, MEASURED_CLIPS + 1)
    tempo.retime(scheduler)
    assert scheduler.timing.compute_frames == pytest.approx(3.5)


def test_overload_takes_work_away_and_calm_brings_it_back(monkeypatch):
    now = 0.0
    monkeypatch.setattr("avatard.session.adaptation.monotonic", lambda: now)
    tempo, scheduler = Tempo(Stream(motion_steps=4, video_steps=2)), Scheduler(TIMING)

    def work(motion: float, video: float) -> QualityLevel | None:
        """Both threads at this load for a while."""
        nonlocal now
        for n in range(150):
            tempo.made(FramesReady(0, 4 * n, 2, 2, 2, motion * 2 / 25, video * 2 / 25), scheduler, 0)
        now += 6
        return tempo.effort()

    assert work(0.6, 0.8) is None
    assert work(0.6, 1.5) == QualityLevel(4, 1), "what cannot keep up does less"
    assert tempo.effort() is None, "not twice at once"
    assert work(1.5, 0.6) == QualityLevel(2, 1)
    assert work(0.6, 1.5) == QualityLevel(2, 1, frame_stride=2), "then every second picture is left out"
    assert work(0.6, 1.5) == QualityLevel(2, 1, frame_stride=4)
    assert work(0.6, 1.5) is None, "nothing is left to be saved"
    assert work(0.6, 0.3) is None
    assert work(0.3, 0.3) == QualityLevel(2, 1, frame_stride=2)
    assert work(0.3, 0.3) == QualityLevel(2, 1)
    assert work(0.3, 0.3) == QualityLevel(4, 2)
    assert work(0.3, 0.3) is None


def test_an_odd_hop_keeps_its_frame_rate(monkeypatch):
    monkeypatch.setattr("avatard.session.adaptation.EFFORT_SECONDS", 0)
    tempo = Tempo(Stream(hop_frames=5, video_steps=1))
    for n in range(150):
        tempo.made(FramesReady(0, 4 * n, 2, 2, 2, 0, 0.5), Scheduler(TIMING), 0)
    assert tempo.effort() is None


def test_the_first_estimate_is_bounded():
    assert first_estimate(0.1) == pytest.approx(4.0)
    assert first_estimate(100) == 25
