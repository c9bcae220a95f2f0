from dataclasses import replace
from typing import Any

import pytest
import torch

from avatard.models import checkpoint
from avatard.models.atom.model import Atom, AtomConfig, Variant, rotary
from avatard.models.face.topology import LIP_68, REST_68
from tests.support.tiny_atom import awake

TINY = AtomConfig(speech_dim=24, audio_frames=12, frames=8, width=24, depth=2, rest_depth=1, heads=2, dropout=0.0)


def inputs(config: AtomConfig, batch: int = 2):
    draw = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(batch, config.frames, 68, 3, generator=draw),
        "clean": torch.zeros(batch, config.frames),
        "t": torch.full((batch,), 500),
        "audio": torch.randn(batch, config.audio_frames, config.speech_dim, generator=draw),
        "reference": 0.1 * torch.randn(batch, 2, 68, 3, generator=draw),
        "lookahead": 2,
    }


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_every_variant_predicts_landmarks(variant: Variant):
    config = replace(TINY, variant=variant)
    out = awake(config)(**inputs(config))
    assert out.shape == (2, 8, 68, 3) and torch.isfinite(out).all()


def test_an_untrained_network_predicts_the_neutral_face():
    assert not Atom(TINY)(**inputs(TINY)).any()


def test_only_b_and_c_see_the_reference():
    cases: list[tuple[Variant, bool]] = [("A", False), ("B", True), ("C", True)]
    for variant, sees in cases:
        config = replace(TINY, variant=variant)
        atom, given_inputs = awake(config), inputs(config)
        before = atom(**given_inputs)
        after = atom(**given_inputs | {"reference": given_inputs["reference"] + 0.1})
        assert (not torch.equal(before, after)) == sees


def test_local_attention_does_not_reach_beyond():
    config = replace(TINY, reach=1, depth=1)
    atom, some = awake(config), inputs(config)
    atom.audio_pool.weight.zero_()
    heard = some["audio"].clone()
    heard[:, 0] += 5  # frame -6 of the landmarks' count: ahead of everything within reach
    torch.testing.assert_close(atom(**some | {"audio": heard}), atom(**some))
    heard = some["audio"].clone()
    heard[:, -1] += 5  # one beyond reach of the last frame, with a look-ahead of two
    torch.testing.assert_close(atom(**some | {"audio": heard}), atom(**some))


def test_other_points_do_not_hear_but_follow_the_lips():
    atom: Any = awake(TINY)
    some = inputs(TINY)
    heard = some | {"audio": some["audio"] + torch.randn(some["audio"].shape)}
    moved = (atom(**heard) - atom(**some)).abs().amax(dim=(0, 1, 3))
    assert (moved[LIP_68] > 0).all() and (moved[REST_68] > 0).all()
    for block in atom.rest_blocks:
        block.cross_attention.out.weight.zero_()
    atom.audio_pool.weight.zero_()
    moved = (atom(**heard) - atom(**some)).abs().amax(dim=(0, 1, 3))
    assert (moved[LIP_68] > 0).all() and not moved[REST_68].any()


def test_sampling_clamps_the_prefix_and_bounds_the_rest():
    atom = awake(TINY)
    atom.bound.fill_(0.01)
    some = inputs(TINY)
    noise = 100 * torch.randn(2, 3, 68, 3)
    new = atom.sample(some["audio"], some["reference"], some["x"][:, :5], noise, steps=3, lookahead=1)
    assert new.shape == (2, 3, 68, 3) and new.abs().max() <= 0.01
    other = atom.sample(some["audio"], some["reference"], some["x"][:, :5] + 1, 0 * noise, steps=3, lookahead=1)
    assert not torch.equal(new, other)


def test_a_checkpoint_describes_itself(tmp_path):
    atom = awake(TINY)
    atom.scale.fill_(0.03)
    checkpoint.save(tmp_path / "a.safetensors", atom.state_dict(), {"config": TINY.to_json()})
    loaded = Atom.load(tmp_path / "a.safetensors")
    assert loaded.config == TINY
    assert torch.equal(loaded(**inputs(TINY)), atom(**inputs(TINY)))


def test_rotary_depends_on_distance_only():
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(a, b):
        return (rotary(q, torch.tensor([a])) * rotary(k, torch.tensor([b]))).sum()

    torch.testing.assert_close(score(3.0, 5.0), score(13.0, 15.0), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("metadata", [{}, {"config": "{}"}, {"config": '{"width": "wide"}'}])
def test_other_weights_are_refused_in_one_line(metadata, tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", {"weight": torch.zeros(2)}, metadata)
    with pytest.raises(checkpoint.CheckpointError, match=r"not weights of AToM-Net") as error:
        Atom.load(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)
