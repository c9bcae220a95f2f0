import numpy as np
import torch

from avatard.models.face.device_raster import raster_tensor
from avatard.models.face.raster import raster
from avatard.timebase import CROP_SIDE
from tests.models.face.test_raster import face, opened


def faces() -> np.ndarray:
    """`[2, 10, 68, 2]`, of which some are at the border of the picture."""
    rng = np.random.default_rng(0)
    shaken = [opened(opening) + rng.normal(0, 1, (68, 2)) for opening in rng.uniform(0, 14, 20)]
    return (np.stack(shaken) + rng.normal(0, 25, (20, 1, 2))).reshape(2, 10, 68, 2)


def drawn(points: np.ndarray) -> np.ndarray:
    """Levels of 255, `[..., 64, 64, 3]`."""
    return 255 * raster_tensor(torch.from_numpy(points), side=CROP_SIDE).movedim(-3, -1).numpy()


def test_it_is_what_opencv_draws():
    points = faces()
    made, expected = drawn(points), raster(points, side=CROP_SIDE).astype(float)
    assert made.shape == expected.shape == (2, 10, 64, 64, 3)
    difference, where = np.abs(made - expected), expected.max(-1) > 0
    assert difference.mean() < 0.3
    assert difference[where].mean() < 3
    assert abs((made - expected)[where].mean()) < 0.5, "neither bolder nor finer"
    assert (difference > 40).mean() < 1e-3


def test_a_quarter_of_a_pixel_shows_as_it_does_there():
    points = np.stack([opened(by) for by in np.arange(0.0, 8.0)])
    steps, expected = (
        np.abs(np.diff(pictures, axis=0)).sum((1, 2, 3))
        for pictures in (drawn(points), raster(points, side=CROP_SIDE).astype(float))
    )
    np.testing.assert_allclose(steps, expected, rtol=0.15)


def test_faces_are_drawn_each_for_itself():
    points = faces()
    np.testing.assert_allclose(drawn(points)[1, 3], drawn(points[1, 3]), atol=1e-3)


def test_what_is_far_outside_is_cut_off():
    assert drawn(face() + 1e9).max() == drawn(face() - 1e9).max() == 0
