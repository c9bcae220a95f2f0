import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avatard.engine.idle_motion import Idle, IdleStatistics, wander
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import LIP_68, eye_opening
from avatard.timebase import FPS

STATISTICS = IdleStatistics()
MINUTES = 10
FRAMES = MINUTES * 60 * FPS


@pytest.fixture(scope="module")
def points():
    return MorphableModel.load().mean_68


@pytest.fixture(scope="module")
def idle(points):
    return Idle(points, seed=5)


@settings(max_examples=25, deadline=None)
@given(first=st.integers(0, 100_000), count=st.integers(2, 60), cut=st.integers(1, 59))
def test_any_stretch_is_the_same_stretch(idle, first, count, cut):
    cut = min(cut, count - 1)
    whole = idle.face(first, count)
    parts = [idle.face(first, cut), idle.face(first + cut, count - cut)]
    assert np.array_equal(whole, np.concatenate(parts))
    rotation, shift = idle.head(first, count)
    assert np.array_equal(rotation[cut:], idle.head(first + cut, count - cut)[0])
    assert rotation.shape == (count, 3, 3) and shift.shape == (count, 2)


def test_blinks_come_at_the_measured_rate_and_never_regularly(idle):
    shut = idle.closure(0, FRAMES).mean(axis=1) > 0.15
    starts = np.flatnonzero(shut[1:] & ~shut[:-1])
    expected = MINUTES * 60 / STATISTICS.blink_interval_s
    assert len(starts) == pytest.approx(expected, rel=0.1)
    gaps = np.diff(starts) / FPS
    assert gaps.std() > 0.3 * gaps.mean()


def test_a_blink_closes_faster_than_it_opens_and_is_smooth(idle):
    closure = idle.closure(0, 2000)[:, 0]
    peak = int(closure[:200].argmax())
    rise, fall = closure[peak - 2], closure[peak + 2]
    assert fall > rise
    assert np.abs(np.diff(closure)).max() < 0.7


def test_eyes_close_but_never_cross(idle, points):
    opening = eye_opening(points + idle.face(0, FRAMES))
    rest = eye_opening(points)
    assert (opening >= 0).all()
    assert (opening.min(axis=0) < 0.65 * rest).all()
    assert np.median(opening, axis=0) == pytest.approx(rest, rel=0.05)


def test_idle_leaves_the_mouth_alone(idle):
    assert not idle.face(0, 500)[:, LIP_68].any()


def test_brows_and_head_move_slowly_and_little(idle):
    brows = idle.face(0, FRAMES)[:, 17:27, 1].mean(axis=1)
    assert brows.std() == pytest.approx(STATISTICS.brow_iod, rel=0.3)
    rotation, shift = idle.head(0, FRAMES)
    np.testing.assert_allclose(rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (FRAMES, 1, 1)), atol=1e-5)
    turned = np.degrees(np.arccos(np.clip((np.trace(rotation, axis1=1, axis2=2) - 1) / 2, -1, 1)))
    assert turned.max() < 9 and np.abs(shift).max() < 0.25
    step = np.abs(np.diff(shift, axis=0)).max()
    assert step < 0.02


def test_a_band_limited_signal_has_nothing_outside_its_band():
    signal = wander((1, 2), np.arange(FRAMES), (0.1, 0.8))
    power = np.abs(np.fft.rfft(signal * np.hanning(FRAMES))) ** 2
    hz = np.fft.rfftfreq(FRAMES, 1 / FPS)
    assert power[(hz < 0.08) | (hz > 0.85)].sum() < 1e-4 * power.sum()
    assert signal.std() == pytest.approx(1, rel=0.1)


def test_two_sessions_blink_at_other_times(points):
    assert not np.array_equal(Idle(points, 1).closure(0, 500), Idle(points, 2).closure(0, 500))
