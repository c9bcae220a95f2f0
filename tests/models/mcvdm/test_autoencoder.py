from dataclasses import replace

import numpy as np
import pytest
import torch

from avatard.models.face import warp
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.decoder import FACE, Window, without_nyquist
from avatard.models.mcvdm.latent import AutoencoderConfig, Planes
from tests.support.tiny_mcvdm import TINY_AUTOENCODER, someone, tiny

S = 4


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(1)
    return torch.rand(2, S, 3, 256, 256) * 2 - 1


@pytest.fixture(scope="module")
def rigid():
    torch.manual_seed(2)
    return 0.02 * torch.randn(2, S, 2, 32, 32)


@pytest.mark.parametrize("encoder", ["conv", "timesformer"])
@pytest.mark.parametrize("decoder", ["reference", "plain"])
@torch.inference_mode()
def test_encoders_and_decoders_share_one_interface(clip, rigid, encoder, decoder):
    network = Autoencoder(replace(TINY_AUTOENCODER, encoder=encoder, decoder=decoder))
    planes = network.encode(clip, rigid)
    assert [tuple(p.shape) for p in planes] == [(2, 4, 32, 32), (2, 4, S, 32), (2, 4, S, 32)]
    assert all(p.abs().max() <= 1 for p in planes)
    frames = network.decode(planes, network.portrait(clip[:, 0]), rigid)
    assert frames.shape == clip.shape
    assert frames.abs().max() <= 1


@torch.inference_mode()
def test_only_the_frames_asked_for_are_decoded(clip, rigid):
    network = tiny().autoencoder
    planes, portrait = network.encode(clip, rigid), network.portrait(clip[:, 0])
    whole = network.decode(planes, portrait, rigid)
    part = network.decode(planes, portrait, rigid[:, 1:3], slice(1, 3))
    torch.testing.assert_close(part, whole[:, 1:3], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_a_fresh_decoder_shows_the_portrait_under_the_heads_motion(clip):
    network = Autoencoder(TINY_AUTOENCODER)
    still = torch.zeros(2, S, 2, 32, 32)
    rendering = network.render(network.volume(network.encode(clip)), network.portrait(clip[:, 0]), still)
    torch.testing.assert_close(rendering.warped, clip[:, :1].expand_as(clip), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_the_decoder_reads_the_latent(clip, rigid):
    network = tiny().autoencoder
    planes, portrait = network.encode(clip, rigid), network.portrait(clip[:, 0])
    zeroed = Planes(*(torch.zeros_like(p) for p in planes))
    assert (network.decode(planes, portrait, rigid) - network.decode(zeroed, portrait, rigid)).abs().max() > 1e-3


@torch.inference_mode()
def test_a_window_is_rendered_as_in_the_whole_frame(clip, rigid):
    network = tiny().autoencoder
    volume, portrait = network.volume(network.encode(clip, rigid)), network.portrait(clip[:, 0])
    window = Window([(4, 10), (16, 0)], 16)
    part = network.render(volume, portrait, rigid, window)
    whole = window.crop(network.render(volume, portrait, rigid).frames)
    assert part.frames.shape == (2, S, 3, 128, 128)
    inner = (..., slice(48, 80), slice(48, 80))  # zero padding reaches in from the window's border
    torch.testing.assert_close(part.frames[inner], whole[inner], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_outside_the_face_a_frame_is_the_warped_portrait(clip, rigid):
    network = tiny().autoencoder
    rendering = network.render(network.volume(network.encode(clip, rigid)), network.portrait(clip[:, 0]), rigid)
    outside = torch.ones(1, 1, 1, 256, 256, dtype=torch.bool)
    FACE.crop(outside).fill_(False)
    difference = (rendering.frames - rendering.warped).abs()
    assert (difference * outside).max() == 0
    assert FACE.crop(difference).max() > 0.01


@torch.inference_mode()
def test_what_is_shown_is_what_is_rendered(rigid):
    network = tiny().autoencoder
    photograph = someone().portrait
    picture = torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 127.5 - 1
    portrait, smooth = network.portrait(picture), rigid[:1, :, :, 15:17, 15:17].repeat_interleave(16, 3)
    smooth = smooth.repeat_interleave(16, 4)
    volume = network.volume(network.encode(picture[:, None].expand(1, S, -1, -1, -1), smooth))
    shown = network.render_uint8(volume, portrait, smooth, warp.enlarge(photograph))
    rendered = (network.render(volume, portrait, smooth).frames[0].clamp(-1, 1).permute(0, 2, 3, 1) + 1) * 127.5
    difference = np.abs(shown.astype(np.float32) - rendered.numpy())
    assert shown.shape == (S, 256, 256, 3)
    assert difference.mean() < 1.5  # the blocks of the photograph have sharper edges than any face


@torch.inference_mode()
def test_what_is_painted_in_a_part_is_what_is_painted_in_all_of_the_face(rigid):
    network = tiny().autoencoder
    photograph = someone().portrait
    portrait = network.portrait(torch.from_numpy(photograph).permute(2, 0, 1)[None].float() / 127.5 - 1)
    volume = torch.randn(1, S, *network.volume(network.encode(torch.zeros(1, S, 3, 256, 256), rigid[:1])).shape[2:])
    low, high = np.array([101.0, 150.0]), np.array([180.0, 190.0])
    everything = network.layers(volume, portrait, rigid[:1], warp.enlarge(photograph))
    part = network.layers(volume, portrait, rigid[:1], warp.enlarge(photograph), Window.around(low, high))
    for whole, some in zip(everything, part, strict=True):
        np.testing.assert_array_equal(whole.flow, some.flow)
        assert some.painted.size < whole.painted.size / 2
        for a, b in ((whole.painted, some.painted), (whole.keep, some.keep)):
            shown = [np.array([rows.start, columns.start]) for rows, columns in (whole.window, some.window)]
            (top, left), (y, x) = np.array([150, 101]) - shown[0], np.array([150, 101]) - shown[1]
            difference = a[top : top + 40, left : left + 79].astype(int) - b[y : y + 40, x : x + 79]
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("low", "high"), [((20, 30), (60, 80)), ((120, 150), (160, 180)), ((0, 0), (255, 255)), ((215, 250), (230, 255))]
)
def test_a_window_around_something_lies_in_the_face_and_holds_it(low, high):
    rows, columns = Window.around(np.array(low, float), np.array(high, float)).pixels
    face_rows, face_columns = FACE.pixels
    for window, face, first, last in ((rows, face_rows, low[1], high[1]), (columns, face_columns, low[0], high[0])):
        assert face.start <= window.start < window.stop <= face.stop
        assert window.start <= np.clip(first, face.start, face.stop) and window.stop >= np.clip(
            last, face.start, face.stop
        )


def test_the_default_sizes_stay_small():
    count = sum(p.numel() for p in Autoencoder(AutoencoderConfig()).parameters())
    assert count < 2_000_000


def test_gradients_reach_every_part(clip, rigid):
    network = tiny().autoencoder.requires_grad_(True)
    planes = network.encode(clip, rigid)
    rendering = network.render(network.volume(planes), network.portrait(clip[:, 0]), rigid)
    (rendering.frames.mean() + rendering.painted.mean()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_positions_are_absolute():
    flow = torch.zeros(1, 1, 2, 8, 8)
    assert torch.equal(warp.absolute(flow)[0, 0], warp.grid(8, 8))


def test_paint_has_no_pattern_of_period_two():
    y, x = torch.meshgrid(torch.arange(12), torch.arange(10), indexing="ij")
    for pattern in ((x + y) % 2, x % 2, y % 2):
        assert (without_nyquist(pattern[None, None].float())[..., 1:-1, 1:-1] - 0.5).abs().max() < 1e-6
    slope = (0.1 * x + 0.2 * y)[None, None]
    assert torch.allclose(without_nyquist(slope)[..., 1:-1, 1:-1], slope[..., 1:-1, 1:-1])
