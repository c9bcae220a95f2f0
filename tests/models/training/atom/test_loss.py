import numpy as np
import pytest
import torch

from avatard.models.atom.model import Atom, AtomConfig
from avatard.models.face.topology import MOUTH, inner_lip_heights
from avatard.models.training.atom.dataset import Batch
from avatard.models.training.atom.loss import (
    AtomObjective,
    Corruption,
    corrupt,
    liveliness_loss,
    motion_loss,
    prefix_lengths,
)

NEVER = torch.tensor(False)


def test_loss_ignores_given_and_unknown_frames():
    target = torch.randn(1, 6, 68, 3)
    predicted = torch.tensor([[0.0, 0, 1, 1, 1, 1]])
    known = torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    made = target.clone()
    made[:, :2] += 5
    made[:, 5] += 5
    assert motion_loss(made, target, predicted, known, NEVER) == 0
    made[:, 3] += 0.1
    assert motion_loss(made, target, predicted, known, NEVER) > 0


def test_a_jump_at_the_end_of_the_prefix_costs():
    """The velocity term also looks from the last given to the first predicted frame."""
    target, known = torch.zeros(1, 6, 68, 3), torch.ones(1, 6)
    moved = torch.full_like(target, 0.1)
    whole = motion_loss(moved, target, torch.ones(1, 6), known, NEVER)
    after_prefix = motion_loss(moved, target, torch.tensor([[0.0, 0, 0, 1, 1, 1]]), known, NEVER)
    assert after_prefix > whole * 1.2


def test_still_lips_cost_more_than_lips_that_move_the_other_way():
    frames, here = torch.arange(12) % 2 * 0.2, torch.ones(1, 12)
    target = torch.zeros(1, 12, 68, 3)
    target[..., MOUTH, 1] = frames[None, :, None]
    assert liveliness_loss(0.2 - target, target, here) == pytest.approx(0, abs=1e-6)
    assert liveliness_loss(torch.full_like(target, 0.1), target, here) > 0.01
    here[:, 1::3] = 0  # no window is known as a whole
    assert liveliness_loss(torch.full_like(target, 0.1), target, here) == 0


def test_openings_are_the_lips_distances():
    face = torch.zeros(1, 1, 68, 3)
    face[..., 65:68, 1] = 0.2
    assert inner_lip_heights(face).flatten().tolist() == pytest.approx([0.2] * 3)


def test_an_open_mouth_that_should_be_shut_costs_more():
    target, ones = torch.zeros(1, 6, 68, 3), torch.ones(1, 6)
    made = target.clone()
    made[..., 65:68, 1] += 0.1
    assert motion_loss(made, target, ones, ones, ones) > 1.2 * motion_loss(made, target, ones, ones, NEVER)


def test_the_prefix_is_the_networks_own_motion():
    """An untrained network keeps the face at rest, so the prefix rests however far the real mouth is."""
    atom = Atom(AtomConfig(6, audio_frames=12, frames=8, width=24, depth=1, rest_depth=1, heads=2))
    face = torch.zeros(16, 2, 68, 3)
    batch = Batch(torch.randn(16, 12, 6), torch.full((16, 8, 68, 3), 9.0), torch.ones(16, 8), face, face)
    calm = Corruption(jitter=0, drift=0, serving_share=1)
    windows = corrupt(atom, batch, 2, calm, torch.Generator().manual_seed(0))
    assert windows.clean[:, :4].all() and not windows.clean[:, 4:].any()
    assert not windows.x[:, :4].any() and windows.x[:, 4:].any()
    losses = AtomObjective(atom, calm)(batch, 2, torch.Generator().manual_seed(0))
    losses["total"].backward()
    assert torch.isfinite(losses["total"])


def test_prefix_lengths_follow_the_shares():
    lengths = prefix_lengths(4000, 20, Corruption(), torch.Generator().manual_seed(0)).numpy()
    assert np.mean(lengths == 16) == pytest.approx(0.6 + 0.25 / 17, abs=0.03)
    assert np.mean(lengths == 0) == pytest.approx(0.15 + 0.25 / 17, abs=0.03)
    assert lengths.min() == 0 and lengths.max() == 16
