import numpy as np
import pytest
import torch
from torch import nn

from avatard.models import checkpoint
from avatard.models.checkpoint import CheckpointError
from avatard.models.evaluation.inception import Inception


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Inception().eval().requires_grad_(False)


def test_it_has_the_weights_of_inception_v3(network):
    # 21,768,352 are told of the network without scales of its 17,216 normalised channels.
    assert sum(p.numel() for p in network.parameters()) == 21_768_352 + 17_216
    assert sum(m.num_features for m in network.modules() if isinstance(m, nn.BatchNorm2d)) == 17_216
    names = set(network.state_dict())
    for name in (
        *("Conv2d_4a_3x3.conv.weight", "Mixed_5b.branch_pool.bn.running_mean", "Mixed_6a.branch3x3.conv.weight"),
        *(
            "Mixed_6e.branch7x7dbl_5.conv.weight",
            "Mixed_7a.branch7x7x3_4.bn.bias",
            "Mixed_7c.branch3x3dbl_3b.bn.weight",
        ),
    ):
        assert name in names


def test_features_of_a_file_with_more_in_it(network, tmp_path):
    tensors = network.state_dict() | {"fc.weight": torch.zeros(1008, 2048)}
    checkpoint.save(tmp_path / "inception.safetensors", tensors, {})
    loaded = Inception.load(tmp_path / "inception.safetensors")
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    features = loaded.features(pictures)
    assert features.shape == (2, 2048) and np.isfinite(features).all()
    np.testing.assert_array_equal(features, network.features(pictures))
    np.testing.assert_allclose(loaded.features(pictures[1:])[0], features[1], atol=1e-5)


def test_another_networks_weights_are_one_line(network, tmp_path):
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, {"fc.weight": torch.zeros(2)}, {})
    with pytest.raises(CheckpointError, match="is not Inception: it lacks 470 weights, as Conv2d_1a_3x3.conv.weight"):
        Inception.load(path)
    tensors = network.state_dict() | {"Conv2d_1a_3x3.conv.weight": torch.zeros(2)}
    checkpoint.save(path, tensors, {})
    with pytest.raises(CheckpointError, match="is not Inception: .*size mismatch"):
        Inception.load(path)
