import numpy as np

from avatard.models.evaluation.motion_baselines import Linear, loudness
from avatard.timebase import SAMPLES_PER_FRAME


def test_loudness_is_that_of_each_frame():
    samples = np.repeat([0.1, 0.5], SAMPLES_PER_FRAME)
    np.testing.assert_allclose(loudness(samples)[:, 0], np.log10([0.01, 0.25]), atol=1e-4)


def test_a_linear_map_is_found():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3))
    moved = (np.roll(features, -2, axis=0) @ rng.normal(size=(3, 204))).reshape(-1, 68, 3)  # two frames later
    model = Linear.fit([features], [moved], penalty=1e-6)
    np.testing.assert_allclose(model(features)[:-2], moved[:-2], atol=0.3)
