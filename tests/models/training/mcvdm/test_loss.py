import numpy as np
import pytest
import torch

from avatard.models.mcvdm.decoder import FACE, WHOLE, Rendering
from avatard.models.pixels import normalise
from avatard.models.training.mcvdm.loss import WINDOW, choose_window, patches, picture_losses
from tests.support.perceptual import tiny_trunk


def test_windows_stay_in_the_frame():
    target = torch.rand(64, 4, 68, 2) * 300 - 20
    corners = choose_window("parts", target).corners
    assert np.min(corners) >= 0
    assert np.max(corners) <= 32 - WINDOW
    assert choose_window("face", target) is FACE


@pytest.mark.parametrize("whole", [True, False])
def test_a_perfect_picture_costs_nothing_but_its_mask(whole, tmp_path):
    perceptual = tiny_trunk(tmp_path)
    frames = normalise(torch.randint(0, 256, (2, 3, 3, 256, 256), dtype=torch.uint8))
    window = WHOLE if whole else choose_window("parts", torch.rand(2, 3, 68, 2) * 256)
    cut = window.crop(frames)
    keep = torch.full_like(cut[:, :, :1], 0.999)
    rendering = Rendering(cut, cut, cut, keep, torch.zeros(2, 3, 2, 32, 32))
    losses = picture_losses(rendering, frames, torch.zeros(2, 3, 1, 256, 256, dtype=torch.uint8), window, perceptual)
    assert losses["pictures"] == pytest.approx(0, abs=1e-3)


def test_patches_show_the_same_place_of_both():
    picture = torch.rand(3, 2, 3, 96, 96)
    first, second = patches(picture, picture)
    assert first.shape == (3, 3, 64, 64)
    assert torch.equal(first, second)
