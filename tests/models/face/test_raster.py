import numpy as np
import pytest

from avatard.models.face.crop import CROP_ORIGIN, CROP_SCALE
from avatard.models.face.raster import raster
from avatard.models.face.topology import INNER_LIP, OUTER_LIP
from avatard.timebase import CROP_SIDE
from tests.support.faces import morphable


def face() -> np.ndarray:
    """The mean face [68, 2] in crop pixels."""
    return morphable().mean_68[:, :2] * CROP_SCALE + CROP_ORIGIN


def opened(by: float) -> np.ndarray:
    points = face()
    points[[55, 56, 57, 58, 59, 65, 66, 67], 1] += by
    return points


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [32, 64, 100, 256, 512])
def test_any_resolution_and_one_to_three_channels(size, channels):
    picture = raster(face(), size, side=CROP_SIDE, channels=channels)
    assert picture.shape == (size, size, channels)
    drawn = (picture[..., 0] > 60).mean()
    assert 0.02 < drawn < 0.15
    np.testing.assert_array_equal(picture, raster(face(), size, side=CROP_SIDE)[..., :channels])


def test_every_part_is_drawn_where_its_points_are():
    picture = raster(face(), CROP_SIDE)
    for point in face()[[0, 8, 16, 19, 24, 29, 33]]:
        x, y = np.rint(point).astype(int)
        assert picture[y, x].max() > 200
    jaw, brow, lip = (picture[tuple(np.rint(face()[n]).astype(int)[::-1])] for n in (8, 19, 51))
    assert (jaw[1], jaw[2], brow[2]) == (0, 0, 0)
    assert brow[1] > 200 and lip[2] > 100


def test_batches_are_drawn_frame_by_frame():
    batch = np.stack([opened(by) for by in (0, 3, 6, 9)]).reshape(2, 2, 68, 2)
    pictures = raster(batch, side=CROP_SIDE)
    assert pictures.shape == (2, 2, 64, 64, 3)
    np.testing.assert_array_equal(pictures[1, 0], raster(opened(6), side=CROP_SIDE))


def test_an_open_mouth_and_an_open_eye_differ_from_closed_ones_at_64():
    closed, open_ = (raster(opened(by), side=CROP_SIDE).astype(int) for by in (0, 12))
    mouth = np.s_[38:52, 22:42]
    # the inner mouth is blue on magenta lips: channel 2 rises, channel 0 falls
    blue = (open_[mouth][..., 2] > 200) & (open_[mouth][..., 0] < 160)
    assert blue.sum() - ((closed[mouth][..., 2] > 200) & (closed[mouth][..., 0] < 160)).sum() > 10
    shut = face()
    shut[[37, 38, 43, 44], 1] = shut[[41, 40, 47, 46], 1] - 1
    eyes = np.s_[20:34, :]
    assert open_[eyes][..., 1].sum() - raster(shut, side=CROP_SIDE).astype(int)[eyes][..., 1].sum() > 1500


def test_a_quarter_of_a_pixel_shows():
    pictures = [
        raster(opened(by), side=CROP_SIDE).astype(int) for by in np.arange(0, 8, 1.0)
    ]  # 1 px of 256 = 0.25 of 64
    steps = [np.abs(b - a).sum() for a, b in zip(pictures, pictures[1:], strict=False)]
    assert min(steps) > 300
    assert max(steps) < 5 * min(steps)


def test_lips_lie_around_the_inner_mouth():
    only = np.full((68, 2), -1000.0)
    for part in (OUTER_LIP, INNER_LIP):
        only[part] = opened(14)[part]
    picture = raster(only, CROP_SIDE)
    ys, xs = np.nonzero(picture[..., 2])
    np.testing.assert_allclose([xs.min(), xs.max()], only[[48, 54], 0], atol=3)
    np.testing.assert_allclose([ys.min(), ys.max()], [only[50, 1], only[57, 1]], atol=3)


def test_points_far_outside_are_cut_off():
    assert raster(face() + 1e12, side=CROP_SIDE).sum() == 0
    assert raster(face() - 1e12, side=CROP_SIDE).sum() == 0


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"shape \(67, 2\), expected"):
        raster(np.zeros((67, 2)))
    with pytest.raises(ValueError, match="got 4 channels"):
        raster(face(), channels=4)
