import pytest
import torch

from avatard.models.training.perceptual import l1, local_contrast
from tests.support.perceptual import tiny_trunk


def test_l1_weighs_regions_and_not_the_scale_of_the_weight():
    picture, target = torch.zeros(1, 3, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(1, 3, 2, 2)
    weight = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).expand(1, 1, 2, 2)
    assert l1(picture, target) == pytest.approx(0.25)
    assert l1(picture, target, weight) == pytest.approx(0.5)
    assert l1(picture, target, 10 * weight) == pytest.approx(0.5)


def test_the_perceptual_loss_is_zero_for_the_same_picture_and_trains_the_first_one(tmp_path):
    perceptual = tiny_trunk(tmp_path)
    picture, target = torch.rand(2, 3, 16, 16, requires_grad=True), torch.rand(2, 3, 16, 16)
    assert perceptual(target, target) == 0
    perceptual(picture, target).backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0


def test_local_contrast_is_the_standard_deviation_about_each_pixel():
    picture = torch.rand(2, 3, 20, 24)
    found = local_contrast(picture, 5)
    assert found.shape == picture.shape
    assert torch.allclose(found[1, 2, 10, 7], picture[1, 2, 8:13, 5:10].std(correction=0), atol=1e-5)
    assert torch.allclose(found[0, 0, 0, 0], picture[0, 0, :3, :3].std(correction=0), atol=1e-5)  # what lies inside


def test_local_contrast_does_not_ask_where_an_edge_is():
    stripes = (torch.arange(40) % 8 < 4).float().expand(1, 1, 40, 40)
    moved = stripes.roll(2, -1)
    inside = (..., slice(8, -8), slice(8, -8))
    difference = (local_contrast(stripes, 9) - local_contrast(moved, 9))[inside].abs().max()
    assert difference < 0.02 < (stripes - moved)[inside].abs().max()
