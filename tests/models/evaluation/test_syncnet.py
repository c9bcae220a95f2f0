import numpy as np
import pytest
import torch

from avatard.models import checkpoint
from avatard.models.checkpoint import CheckpointError
from avatard.models.evaluation.syncnet import MFCC_COUNT, SyncNet, mfcc


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SyncNet().eval().requires_grad_(False)


def test_coefficients_are_those_of_python_speech_features():
    samples = (8000 * np.sin(np.arange(4000) * 0.2)).astype(np.int16)
    found = mfcc(samples)
    assert found.shape == (MFCC_COUNT, 24)
    # python_speech_features 0.6: mfcc(samples, 16000)[5]
    expected = [19.36156848, 21.93888819, 2.59479978, -15.3997626, -26.79048397, -26.8945899, -14.83845239]
    expected += [1.86778148, 16.03160253, 20.93096907, 16.35779978, 4.67144844, -6.96204625]
    np.testing.assert_allclose(found[:, 5], expected, rtol=1e-6)
    assert mfcc(samples[:5]).shape == (MFCC_COUNT, 1)


def test_weights_have_the_names_and_shapes_of_syncnet_v2(network, tmp_path):
    state = network.state_dict()
    assert state["netcnnaud.18.weight"].shape == (512, 256, 5, 4)
    assert state["netcnnlip.18.weight"].shape == (512, 256, 1, 6, 6)
    assert state["netfcaud.3.weight"].shape == state["netfclip.3.weight"].shape == (1024, 512)
    path = tmp_path / "syncnet.safetensors"
    checkpoint.save(path, state, {})
    loaded = SyncNet.load(path)
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 256, (9, 256, 256, 3), np.uint8)
    samples = rng.integers(-3000, 3000, 9 * 640).astype(np.int16)
    errors = loaded.errors(crops, samples)
    assert errors == network.errors(crops, samples)
    assert errors[0] > 0 and errors[1] >= 0
    assert all(np.isnan(loaded.errors(crops[:5], samples)))
    checkpoint.save(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(CheckpointError, match="is not SyncNet"):
        SyncNet.load(path)


class Loudness(SyncNet):
    """Lips are as bright as the voice is loud."""

    def lips(self, x):
        return x.mean((1, 2, 3, 4))[:, None]

    def voice(self, x):
        return x[:, 0, 0].mean(1, keepdim=True).exp() / 1e8


@pytest.mark.parametrize("late", [0, 3])
def test_a_voice_that_fits_is_found_at_any_shift(late):
    loud = np.random.default_rng(3).uniform(500, 8000, 40)
    samples = np.repeat(loud, 640) * np.sin(np.arange(40 * 640) * 0.5)
    energy = Loudness().voice(
        torch.stack([torch.from_numpy(mfcc(samples.astype(np.int16)))[None, :, n * 4 : n * 4 + 20] for n in range(35)])
    )
    black = np.zeros((40, 256, 256, 3), np.uint8)
    network = Loudness()
    seen = iter(torch.roll(energy, late, 0).split(1))
    network.lips = lambda x: torch.cat([next(seen) for _ in range(len(x))])  # type: ignore[method-assign]
    distance, confidence = network.errors(black, samples.astype(np.int16))
    other = iter(torch.rand(35, 1, generator=torch.Generator().manual_seed(1)).split(1))
    network.lips = lambda x: torch.cat([next(other) for _ in range(len(x))]) * energy.max()  # type: ignore[method-assign]
    wrong, unsure = network.errors(black, samples.astype(np.int16))
    assert distance < wrong / 3 and confidence > 2 * unsure
