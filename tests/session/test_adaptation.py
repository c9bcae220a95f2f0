from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from avatard.config import Stream
from avatard.inference.ipc import FramesReady, QualityLevel
from avatard.playout.audio_timeline import Timing
from avatard.playout.scheduler import AudioChunk, Scheduler
from avatard.session.adaptation import MEASURED_CLIPS, LatencyEstimator, LoadController, first_estimate

TIMING = Timing(hop_frames=4, fade_frames=1, lookahead_samples=1280, compute_frames=12)


def run(latency: LatencyEstimator, scheduler: Scheduler, took: float, hops: int = MEASURED_CLIPS) -> None:
    """Hops of 160 ms whose first frames come `took` frames after their last sample was handed out."""
    for n in range(hops):
        first = n * 4 * 640
        at = float(n * 4)
        latency.audio_sent(AudioChunk(0, first + 1280, np.zeros(4 * 640, np.float32)), at)
        latency.frames_ready(FramesReady(0, max(0, n * 4 - 1), 2, 2, 2, 0.02, 0.01, 0.02), scheduler, at + took)


@pytest.mark.parametrize(("took", "given"), [(3.0, 3.5), (20.0, 20.5), (80.0, 25.0), (0.1, 1.0)])
def test_the_latency_follows_what_clips_take(took, given):
    latency, scheduler = LatencyEstimator(), Scheduler(TIMING)
    latency.audio_sent(AudioChunk(0, 0, np.zeros(1280, np.float32)), 0)
    run(latency, scheduler, took, MEASURED_CLIPS + 1)
    latency.retime(scheduler)
    assert scheduler.timing.compute_frames == pytest.approx(given)


def test_a_small_difference_changes_nothing_and_neither_does_a_short_time():
    latency, scheduler = LatencyEstimator(), Scheduler(TIMING)
    run(latency, scheduler, 3.0, MEASURED_CLIPS // 2)
    latency.retime(scheduler)
    assert scheduler.timing.compute_frames == 12
    run(latency, scheduler, 11.0, 2 * MEASURED_CLIPS)
    latency.retime(scheduler)
    assert scheduler.timing.compute_frames == 12


def test_who_falls_behind_gets_more_time_at_once_and_loses_it_when_it_is_not_needed():
    latency, scheduler = LatencyEstimator(), Scheduler(TIMING)
    latency.fell_behind()
    latency.retime(scheduler)
    assert scheduler.timing.compute_frames == 18
    latency.retime(scheduler)
    assert scheduler.timing.compute_frames == 18
    latency.audio_sent(AudioChunk(0, 0, np.zeros(1280, np.float32)), 0)
    run(latency, scheduler, 3.0, MEASURED_CLIPS + 1)
    latency.retime(scheduler)
    assert scheduler.timing.compute_frames == pytest.approx(3.5)


@pytest.mark.parametrize(
    ("core_ms", "side", "video_steps", "expected"),
    [
        (0, 512, 2, (2, 1, 1)),
        (40, 512, 1, (1, 1, 1)),
        (48, 512, 2, (1, 1, 1)),
        (48, 512, 1, (1, 2, 1)),
        (48, 256, 1, (1, 1, 1)),
        (58, 512, 1, (1, 2, 2)),
        (58, 256, 1, (1, 1, 2)),
    ],
)
def test_it_begins_lower_where_the_warm_up_says_that_the_cores_will_not_do(
    monkeypatch, core_ms, side, video_steps, expected
):
    monkeypatch.setattr("avatard.session.adaptation.cores", lambda: 2)
    level = LoadController(Stream(video_steps=video_steps), core_ms / 1000, side).level
    assert (level.video_steps, level.size_divisor, level.frame_stride) == expected


@pytest.fixture
def controlled(monkeypatch):
    """A function that works for a while, three stages at given loads, and tells what a controller decides."""
    now = 0.0
    monkeypatch.setattr("avatard.session.adaptation.monotonic", lambda: now)

    def start(cores: int, side: int = 2, **stream: Any) -> Callable[[float, float, float], QualityLevel | None]:
        monkeypatch.setattr("avatard.session.load.cores", lambda: cores)
        load = LoadController(Stream(**stream))

        def work(motion: float, generate: float, render: float) -> QualityLevel | None:
            nonlocal now
            for n in range(150):
                seconds = motion * 2 / 25, generate * 2 / 25, render * 2 / 25
                load.frames_ready(FramesReady(0, 4 * n, 2, side, side, *seconds))
            now += 6
            level = load.decide()
            assert level is None or load.decide() is None, "not twice at once"
            return level

        return work

    return start


def test_overload_takes_work_away_and_calm_brings_it_back(controlled):
    work = controlled(2, motion_steps=4, video_steps=2)
    assert work(0.6, 0.8, 0.6) is None
    assert work(0.6, 1.5, 0.6) == QualityLevel(4, 1), "what cannot keep up does less"
    assert work(1.5, 0.6, 0.6) == QualityLevel(2, 1)
    assert work(0.6, 1.5, 0.6) == QualityLevel(2, 1, frame_stride=2), "then every second picture is left out"
    assert work(0.6, 0.6, 1.5) == QualityLevel(2, 1, frame_stride=4)
    assert work(0.6, 0.6, 1.5) is None, "nothing is left to be saved"
    assert work(0.6, 0.3, 0.5) is None
    assert work(0.5, 0.3, 0.3) is None, "twice the pictures would leave no core to spare"
    assert work(0.3, 0.2, 0.3) == QualityLevel(2, 1, frame_stride=2)
    assert work(0.3, 0.2, 0.3) == QualityLevel(2, 1)
    assert work(0.3, 0.2, 0.3) == QualityLevel(4, 2)
    assert work(0.3, 0.2, 0.3) is None


def test_three_busy_stages_keep_their_level_as_long_as_each_keeps_up(controlled):
    work = controlled(2, video_steps=2)
    assert work(0.6, 0.6, 0.9) is None


def test_slow_rendering_asks_for_fewer_steps_only_where_they_leave_it_a_core(controlled):
    assert controlled(2, motion_steps=4, video_steps=2)(0.7, 0.7, 1.2) == QualityLevel(4, 1)
    assert controlled(8, motion_steps=4, video_steps=2)(0.7, 0.7, 1.2) == QualityLevel(4, 2, frame_stride=2)


def test_steps_come_back_beside_busy_rendering(controlled):
    work = controlled(2, motion_steps=4, video_steps=2)
    assert work(0.3, 1.2, 0.7) == QualityLevel(4, 1)
    assert work(0.3, 0.25, 0.7) == QualityLevel(4, 2), "more steps are no work for it"


def test_overload_lowers_the_size_of_large_pictures_before_the_frame_rate(controlled):
    work = controlled(2, side=512, motion_steps=4, video_steps=1)
    assert work(0.3, 0.3, 1.2) == QualityLevel(4, 1, frame_stride=1, size_divisor=2)
    assert work(0.3, 0.3, 0.9) is None
    assert work(0.3, 0.3, 1.2) == QualityLevel(4, 1, frame_stride=2, size_divisor=2)
    assert work(0.2, 0.2, 0.3) == QualityLevel(4, 1, frame_stride=1, size_divisor=2)
    assert work(0.2, 0.2, 0.5) is None, "the whole size would not be calm"
    assert work(0.2, 0.2, 0.35) == QualityLevel(4, 1)
    assert work(0.3, 0.3, 2.2) == QualityLevel(4, 1, frame_stride=2, size_divisor=2), "the size alone would not do"


def test_an_odd_hop_keeps_its_frame_rate(controlled):
    assert controlled(2, hop_frames=5, video_steps=1)(0, 1, 6) is None


def test_the_first_estimate_is_bounded():
    assert first_estimate(0.1) == pytest.approx(4.0)
    assert first_estimate(100) == 25
