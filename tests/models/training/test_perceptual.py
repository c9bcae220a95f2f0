import numpy as np
import pytest
import torch

from avatard.models.training.perceptual import l1
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


def test_textures_are_of_the_pictures_and_not_of_their_batch(tmp_path):
    perceptual = tiny_trunk(tmp_path)
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    textures = perceptual.texture(pictures)
    assert textures.shape == (3, 2 * (4 + 4 + 4))
    assert np.allclose(textures[1], perceptual.texture(pictures[1:2])[0])
    assert np.abs(textures[0] - perceptual.texture(np.full_like(pictures[:1], 128))[0]).max() > 0.01
