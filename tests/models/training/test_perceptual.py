import numpy as np
import pytest
import torch

from avatard.models import checkpoint
from avatard.models.mcvdm.decoder import WHOLE, Rendering
from avatard.models.training.mcvdm.loss import WINDOW, choose_window, patches, picture_losses, psnr, to_pictures
from avatard.models.training.perceptual import Perceptual, l1


@pytest.fixture
def perceptual(tmp_path):
    torch.manual_seed(0)
    tensors = {"shift": torch.zeros(1, 3, 1, 1), "scale": torch.ones(1, 3, 1, 1)}
    for level, (inputs, outputs) in enumerate([(3, 4), (4, 4), (4, 4)]):
        tensors[f"level{level}.00.weight"] = torch.randn(outputs, inputs, 3, 3)
        tensors[f"level{level}.00.bias"] = torch.zeros(outputs)
    checkpoint.save(tmp_path / "vgg.safetensors", tensors, {})
    return Perceptual(tmp_path / "vgg.safetensors")


def test_l1_weighs_regions_and_not_the_scale_of_the_weight():
    picture, target = torch.zeros(1, 3, 2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]).expand(1, 3, 2, 2)
    weight = torch.tensor([[3.0, 1.0], [1.0, 1.0]]).expand(1, 1, 2, 2)
    assert l1(picture, target) == pytest.approx(0.25)
    assert l1(picture, target, weight) == pytest.approx(0.5)
    assert l1(picture, target, 10 * weight) == pytest.approx(0.5)


def test_the_perceptual_loss_is_zero_for_the_same_picture_and_trains_the_first_one(perceptual):
    picture, target = torch.rand(2, 3, 16, 16, requires_grad=True), torch.rand(2, 3, 16, 16)
    assert perceptual(target, target) == 0
    perceptual(picture, target).backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0


def test_textures_are_of_the_pictures_and_not_of_their_batch(perceptual):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype=np.uint8)
    textures = perceptual.texture(pictures)
    assert textures.shape == (3, 2 * (4 + 4 + 4))
    assert np.allclose(textures[1], perceptual.texture(pictures[1:2])[0])
    assert np.abs(textures[0] - perceptual.texture(np.full_like(pictures[:1], 128))[0]).max() > 0.01


def test_psnr_of_a_known_error_inside_a_mask():
    target, picture = torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)
    picture[..., 0] = 0.2  # a tenth of the range
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 0] = 1
    assert psnr(picture, target, mask).item() == pytest.approx(20, abs=1e-3)
    assert psnr(picture, target).item() == pytest.approx(20 + 6.02, abs=1e-2)


def test_windows_stay_in_the_frame():
    target = torch.rand(64, 4, 68, 2) * 300 - 20
    corners = choose_window(target, torch.Generator().manual_seed(0)).corners
    assert np.min(corners) >= 0
    assert np.max(corners) <= 32 - WINDOW


@pytest.mark.parametrize("whole", [True, False])
def test_a_perfect_picture_costs_nothing_but_its_mask(whole, perceptual):
    frames = to_pictures(torch.randint(0, 256, (2, 3, 3, 256, 256), dtype=torch.uint8))
    window = WHOLE if whole else choose_window(torch.rand(2, 3, 68, 2) * 256, None)
    cut = window.crop(frames)
    keep = torch.full_like(cut[:, :, :1], 0.999)
    rendering = Rendering(cut, cut, cut, keep, torch.zeros(2, 3, 2, 32, 32))
    losses = picture_losses(rendering, frames, torch.ones(2, 3, 1, 256, 256), window, perceptual)
    assert losses["pictures"] == pytest.approx(0, abs=1e-3)


def test_patches_show_the_same_place_of_both():
    picture = torch.rand(3, 2, 3, 96, 96)
    first, second = patches(picture, picture)
    assert first.shape == (3, 3, 64, 64)
    assert torch.equal(first, second)
