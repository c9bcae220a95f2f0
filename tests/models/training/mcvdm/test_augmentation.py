from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from avatard.models.training.draws import Draws
from avatard.models.training.mcvdm.augmentation import Changes


@pytest.fixture
def photograph():
    """A smooth coloured picture, bytes `[1, 1, 3, 256, 256]`."""
    coarse = np.random.default_rng(0).integers(40, 216, (16, 16, 3), np.uint8)
    picture = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None, None]


def as_image(pictures):
    return np.ascontiguousarray(pictures[0, 0].permute(1, 2, 0).numpy())


def changed(**how):
    return replace(Changes.none(1), **{name: np.array(value)[None] for name, value in how.items()})


def test_nothing_changes_without_changes(photograph):
    assert torch.equal(Changes.none(1).pictures(photograph), photograph)


def test_points_follow_their_picture():
    rng, changes = np.random.default_rng(0), Changes.random(Draws(0, np.arange(20)))
    points = rng.uniform(90, 166, (20, 2)).round()
    pictures = torch.zeros(20, 1, 3, 256, 256, dtype=torch.uint8)
    for picture, (x, y) in zip(pictures, points.astype(int), strict=True):
        picture[..., y - 3 : y + 4, x - 3 : x + 4] = 255
    moved = changes.points(torch.from_numpy(points[:, None]).float())[:, 0]
    for seen, point in zip(changes.pictures(pictures), moved, strict=True):
        bright = seen.float().sum((0, 1)).numpy()
        bright = np.where(bright > (bright.max() + bright.min()) / 2, 1.0, 0.0)
        y, x = (np.average(axis, weights=bright) for axis in np.mgrid[:256, :256])
        np.testing.assert_allclose(point, [x, y], atol=1.5)


def test_half_are_mirrored_and_few_are_grey():
    changes = Changes.random(Draws(0, np.arange(4000)))
    assert (np.linalg.det(changes.place[:, :, :2]) < 0).mean() == pytest.approx(0.5, abs=0.03)
    assert changes.grey.mean() == pytest.approx(0.03, abs=0.01)
    assert (changes.blur > 0).mean() == pytest.approx(0.1, abs=0.02)


def test_a_blur_is_opencvs(photograph):
    ours = as_image(changed(blur=1.0).pictures(photograph))
    theirs = cv2.GaussianBlur(as_image(photograph), (9, 9), 1.0)
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_a_jpeg_is_opencvs_within_its_rounding(photograph):
    noisy = photograph.float().add(12 * torch.randn(photograph.shape, generator=torch.Generator().manual_seed(0)))
    noisy = noisy.clamp(0, 255).byte()
    ours = as_image(changed(quality=50.0).pictures(noisy)).astype(float)
    picture = cv2.cvtColor(as_image(noisy), cv2.COLOR_RGB2BGR)
    theirs = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 50])[1], cv2.IMREAD_COLOR)
    assert theirs is not None
    error = np.abs(ours - cv2.cvtColor(theirs, cv2.COLOR_BGR2RGB)).mean()
    assert error < 0.25 * np.abs(ours - as_image(noisy)).mean()


def test_grey_pictures_have_opencvs_luma(photograph):
    ours = as_image(changed(grey=True).pictures(photograph))
    luma = cv2.cvtColor(as_image(photograph), cv2.COLOR_RGB2GRAY)
    assert np.abs(ours.astype(int) - luma[..., None]).max() <= 1
