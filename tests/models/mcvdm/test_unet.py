from dataclasses import replace
from typing import Any

import pytest
import torch

from avatard.models import checkpoint
from avatard.models.mcvdm.landmark_encoder import CHANNELS, Geometry, condition_maps
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.model import Mcvdm, McvdmConfig, pack, unpack
from avatard.models.mcvdm.unet import UNet, identity_planes
from tests.support.tiny_mcvdm import TINY, tiny


def planes(channels: int, frames: int, batch: int = 2) -> Planes:
    shapes = [(batch, channels, 32, 32), *2 * [(batch, channels, frames, 32)]]
    return Planes(*(torch.randn(shape) for shape in shapes))


@pytest.mark.parametrize("frames", [4, 8, 16])
@torch.inference_mode()
def test_every_plane_keeps_its_shape(frames):
    x = planes(4, frames)
    out = tiny().unet(x, torch.tensor([0, 999]), planes(4, frames), torch.randn(2, 4, 32, 32), planes(4, frames))
    assert [p.shape for p in out] == [p.shape for p in x]


@torch.inference_mode()
def test_a_fresh_network_predicts_the_portrait_itself():
    latent = torch.randn(2, 4, 32, 32)
    out = UNet(TINY.unet)(planes(4, 8), torch.tensor([5, 5]), planes(4, 8), latent, planes(4, 8))
    for got, expected in zip(out, identity_planes(latent, 8), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("part", ["noisy", "landmarks", "identity", "previous"])
@torch.inference_mode()
def test_every_condition_reaches_every_plane(part):
    torch.manual_seed(0)
    model = tiny()
    given: dict[str, Any] = {"noisy": planes(4, 8), "landmarks": planes(4, 8), "identity": torch.randn(2, 4, 32, 32)}
    given["previous"] = planes(4, 8)
    t = torch.tensor([500, 500])

    def run(values):
        return model.unet(values["noisy"], t, values["landmarks"], values["identity"], values["previous"])

    changed = given[part] + 1 if part == "identity" else Planes(*(p + 1 for p in given[part]))
    for before, after in zip(run(given), run(given | {part: changed}), strict=True):
        assert (before - after).abs().max() > 1e-4


@pytest.mark.parametrize("objective", ["x0", "epsilon"])
@pytest.mark.parametrize("steps", [1, 2, 4])
@torch.inference_mode()
def test_samples_are_finite_and_depend_on_noise_alone(objective, steps):
    model = tiny(replace(TINY, objective=objective))
    noise, zl, latent = planes(4, 8), planes(4, 8), torch.randn(2, 4, 32, 32)
    first, again = (model.generate(zl, latent, None, noise, steps) for _ in range(2))
    assert torch.equal(pack(first), pack(again))
    assert torch.isfinite(pack(first)).all()
    assert all(p.abs().max() <= 1 for p in model.denormalise(first))


def test_statistics_are_undone():
    model = tiny()
    model.mean.normal_()
    model.std.uniform_(0.5, 2)
    x = Planes(*(p.tanh() for p in planes(4, 8)))
    for got, expected in zip(model.denormalise(model.standardise(x)), x, strict=True):
        torch.testing.assert_close(got, expected)


def test_packing_is_undone():
    x = planes(4, 8)
    assert all(map(torch.equal, unpack(pack(x), [p.shape for p in x]), x))


def test_weights_describe_themselves(tmp_path):
    model = tiny()
    model.save(tmp_path / "m.safetensors", {"data": "none"})
    again = Mcvdm.load(tmp_path / "m.safetensors")
    assert again.config == model.config
    torch.testing.assert_close(again.unet.plane, model.unet.plane, atol=1e-3, rtol=1e-2)
    assert checkpoint.load(tmp_path / "m.safetensors")[1]["data"] == "none"


@pytest.mark.parametrize("config", ["", "[]", '{"unet": 3}', '{"autoencoder": {}, "unet": {"width": 8}, "more": 1}'])
def test_other_weights_are_refused_in_one_line(tmp_path, config):
    checkpoint.save(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, {"config": config})
    with pytest.raises(checkpoint.CheckpointError, match="not weights of MC-VDM") as error:
        Mcvdm.load(tmp_path / "m.safetensors")
    assert "\n" not in str(error.value)


def test_the_configuration_survives_json():
    config = replace(TINY, objective="epsilon")
    assert McvdmConfig.from_json(config.to_json()) == config


@torch.inference_mode()
def test_the_landmark_encoder_sees_a_mouth_that_opens():
    rest = 128 + 40 * torch.randn(1, 68, 2)
    rigid = rest[:, None].expand(1, 8, 68, 2)
    target = rigid.clone()
    target[:, 4:, 57:, 1] += 10
    geometry, small = Geometry(rest, rigid, target), torch.rand(1, 3, 64, 64)
    seen = condition_maps(geometry, small, geometry.rigid_flow())
    assert seen.shape == (1, 8, CHANNELS, 32, 32)
    zl = tiny().landmarks(seen)
    assert (zl.yt[:, :, 0] - zl.yt[:, :, 5]).abs().max() > 1e-3
    assert geometry.motion()[:, :4].abs().max() < 1e-6
