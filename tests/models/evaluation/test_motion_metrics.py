import numpy as np
import pytest

from avatard.models.evaluation.motion_metrics import best_lag, closures, drift, jerk, lip_error
from avatard.timebase import FPS


def test_a_face_that_slides_drifts():
    minutes = np.arange(3 * 60 * FPS) / (60 * FPS)
    face = np.zeros((len(minutes), 68, 3))
    face[:, :, 0] = 0.01 * minutes[:, None]
    face[:, 65:68, 1] = 0.02 * minutes[:, None]  # the mouth opens
    found = drift(face)
    assert found["drift_percent_iod_per_min"] == pytest.approx((65 * 1 + 3 * 5**0.5) / 68, rel=1e-3)
    assert found["drift_face_percent_iod"] == pytest.approx(2 * found["drift_percent_iod_per_min"], rel=1e-3)
    assert found["drift_rest_percent_iod"] == pytest.approx(4, rel=1e-3)


def test_a_face_that_only_speaks_does_not_drift():
    face = np.zeros((4 * 60 * FPS, 68, 3))
    face[:, 65:68, 1] = np.tile([0.0, 0.05], 2 * 60 * FPS)[:, None]
    assert max(map(abs, drift(face).values())) < 0.01


def test_lip_error_with_and_without_its_mean():
    real, made = np.zeros((10, 68, 3)), np.zeros((10, 68, 3))
    made[:, :, 1] += 0.02
    made[:, :, 2] += 1  # depth is not looked at
    assert lip_error(real, made) == pytest.approx(2) and lip_error(real, made, centred=True) == pytest.approx(0)


def test_late_motion_has_a_positive_lag():
    signal = np.random.default_rng(0).normal(size=60)
    r, lag = best_lag([signal[2:]], [signal[:-2]])
    assert r == pytest.approx(1) and lag == 2


def test_still_faces_have_no_jerk():
    steady = np.arange(9.0)[:, None, None] * np.ones((9, 68, 3))
    assert jerk(steady).shape == (6, 20, 2) and not jerk(steady).any()


def test_closures_at_words_with_lips_that_meet():
    opening = np.tile([0.1] * 8 + [0.0] * 2, 6)
    words = [[("bin", 8 / FPS, 0.5), ("now", 0.6, 0.7), ("please", 28 / FPS, 1.3)]]
    assert closures([opening], [opening], words, [0])["bilabial_closure"] == 1
    assert closures([opening], [np.linspace(0, 1, 60)], words, [0])["bilabial_closure"] < 1
