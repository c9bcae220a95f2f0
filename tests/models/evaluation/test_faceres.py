import numpy as np
import pytest
import torch

from avatard.models import checkpoint
from avatard.models.evaluation.faceres import BLOCKS, FaceRes
from avatard.models.evaluation.fetch_faceres import arrays_of, convert


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return FaceRes().eval().requires_grad_(False)


def test_features_of_crops(network):
    crops = np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)
    features = network.features(crops)
    assert features.shape == (3, 1024) and np.isfinite(features).all()
    np.testing.assert_allclose(network.features(crops[2:]), features[2:], atol=1e-5)


def test_what_surrounds_the_head_does_not_count(network):
    crops = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), dtype=np.uint8)
    other = crops.copy()
    other[:, 200:], other[:, :20], other[:, :, :38], other[:, :, 218:] = 0, 0, 0, 0
    assert (network.features(other) == network.features(crops)).all()


def test_a_file_of_another_network_is_one_line(tmp_path):
    path = tmp_path / "other.safetensors"
    checkpoint.save(path, {"x": torch.zeros(2)}, {})
    with pytest.raises(checkpoint.CheckpointError, match="is not FaceRes: run scripts/convert_faceres.py"):
        FaceRes.load(path)


def test_weights_of_the_graph_are_read_in_order():
    manifest = b"""{"weightsManifest": [{"weights": [
        {"name": "a", "shape": [2], "dtype": "float32"}, {"name": "n", "shape": [], "dtype": "int32"},
        {"name": "b", "shape": [1, 2], "dtype": "float32"}]}]}"""
    data = np.array([1, 2], "<f2").tobytes() + np.array(7, "<i4").tobytes() + np.array([3, 4], "<f2").tobytes()
    arrays = arrays_of(manifest, data)
    assert arrays["a"].tolist() == [1, 2] and arrays["n"] == 7 and arrays["b"].tolist() == [[3, 4]]
    with pytest.raises(ValueError, match="names 12 bytes"):
        arrays_of(manifest, data + b"\0")


def test_batch_normalisation_is_folded_into_the_depthwise_kernels():
    rng = np.random.default_rng(0)
    widths = [32, *(width for width, _ in BLOCKS)]
    arrays: dict[str, np.ndarray] = {
        "conv1/convolution/merged_input": rng.normal(size=(3, 3, 3, 32)),
        "conv1_bn/batchnorm_1/sub": np.ones(32),
    }
    for n, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True), start=1):
        arrays |= {
            f"conv_dw_{n}/depthwise_kernel": np.ones((3, 3, a, 1)),
            f"conv_dw_{n}_bn/batchnorm_1/mul": np.arange(a),
            f"conv_dw_{n}_bn/batchnorm_1/sub": np.zeros(a),
            f"conv_pw_{n}/convolution/merged_input": np.ones((1, 1, a, b)),
            f"conv_pw_{n}_bn/batchnorm_1/sub": np.zeros(b),
        }
    state = convert({key: np.asarray(value, np.float32) for key, value in arrays.items()})
    FaceRes().load_state_dict(state)
    assert (state["depthwise.0.weight"][5] == 5).all()
