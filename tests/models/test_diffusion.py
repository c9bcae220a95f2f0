import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avatard.models.diffusion import (
    add_noise,
    cosine_alpha_bar,
    ddim,
    few_timesteps,
    sqrt_linear_alpha_bar,
    timestep_embedding,
)


def test_cosine_schedule_falls_from_signal_to_noise():
    alpha_bar = cosine_alpha_bar(1000)
    assert alpha_bar[0] > 0.999 and alpha_bar[-1] < 1e-3
    assert (alpha_bar.diff() <= 0).all() and alpha_bar[500].item() == pytest.approx(0.49, abs=0.02)


@given(st.integers(1, 50))
def test_few_timesteps_start_at_the_top(steps):
    path = few_timesteps(1000, steps)
    assert len(path) == steps and path[0] == 999 and path == sorted(set(path), reverse=True)


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="got 0 sampling steps, expected 1 to 1000"):
        few_timesteps(1000, 0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**31))
def test_ddim_finds_what_a_perfect_network_knows(steps, seed):
    draw = torch.Generator().manual_seed(seed)
    truth, noise = torch.randn(2, 5, generator=draw), torch.randn(2, 5, generator=draw)
    assert torch.equal(ddim(lambda x, t: truth, noise, cosine_alpha_bar(), steps), truth)


def test_ddim_follows_the_forward_process():
    """With a perfect network, each intermediate state is the clean sample with the same noise, only less of it."""
    truth, noise, alpha_bar = torch.ones(1, 4), torch.randn(1, 4), cosine_alpha_bar()
    seen = []

    def network(x, t):
        seen.append((x, t))
        return truth

    ddim(network, add_noise(truth, noise, alpha_bar[-1:]), alpha_bar, 4)
    for x, t in seen:
        torch.testing.assert_close(x, add_noise(truth, noise, alpha_bar[t : t + 1]), atol=1e-4, rtol=1e-4)


def test_the_papers_schedule_starts_and_ends_at_its_betas():
    alpha_bar = sqrt_linear_alpha_bar()
    assert 1 - alpha_bar[0] == pytest.approx(0.0015, rel=1e-3)
    assert 1 - alpha_bar[-1] / alpha_bar[-2] == pytest.approx(0.0195, rel=1e-3)


def test_embeddings_turn_slower_from_column_to_column():
    embedding = timestep_embedding(torch.tensor([0, 1, 500]), 8)
    assert embedding.shape == (3, 8) and embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert embedding[1, 0] == pytest.approx(torch.tensor(1.0).cos().item())
    assert embedding[1, 7] == pytest.approx(0.001, rel=1e-3)
