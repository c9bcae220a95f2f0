import cv2
import numpy as np
import pytest
import torch

from avatard.models.face import warp
from avatard.models.face.morphable import MorphableModel
from tests.support.tiny_mcvdm import frontal


@pytest.fixture(scope="module")
def face():
    points = frontal().project(MorphableModel.load().mean_68)
    return warp.normalise(torch.from_numpy(points)).float()


def test_a_face_that_does_not_move_gives_no_flow(face):
    assert warp.landmark_flow(face, face, face, 32).abs().max() < 1e-5


def test_the_flow_points_back_to_where_the_portrait_has_a_landmark(face):
    moved = face.clone()
    moved[57] += torch.tensor([0.0, 0.1])  # the lower lip goes down
    flow = warp.landmark_flow(face, face, moved, 64)
    x, y = ((moved[57] + 1) * 32).long().tolist()
    assert flow[1, y, x] == pytest.approx(-0.1, abs=0.04)
    assert flow[:, 2, 2].abs().max() < 2e-3  # the corner stays


def test_the_head_moves_as_a_whole_and_the_border_stays(face):
    turned = face + torch.tensor([0.05, 0.0])
    flow = warp.landmark_flow(face, turned, turned, 32)
    x, y = ((turned[30] + 1) * 16).long().tolist()
    assert flow[0, y, x] == pytest.approx(-0.05, abs=0.01)
    assert flow[0, :, 0].abs().max() < 0.02


def test_sampling_where_the_pixels_are_gives_the_picture_of_each_clip():
    pictures = torch.rand(2, 3, 16, 16)
    positions = warp.absolute(torch.zeros(2, 5, 2, 16, 16))
    out = warp.sample(pictures, positions)
    assert out.shape == (2, 5, 3, 16, 16)
    torch.testing.assert_close(out, pictures[:, None].expand_as(out), atol=1e-5, rtol=0)


def test_pixel_centres_are_normalised_like_the_grid():
    grid = warp.grid(256, 256)
    assert torch.allclose(warp.normalise(torch.tensor([[3.0, 200.0]]))[0], grid[:, 200, 3])


def test_autocast_does_not_blur_the_flow(face):
    moved = face + 0.01
    exact = warp.landmark_flow(face, face, moved, 16)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(warp.landmark_flow(face, face, moved, 16), exact)


def test_flows_of_many_clips_are_those_of_each(face):
    rng = torch.Generator().manual_seed(0)
    target = face + 0.02 * torch.randn(2, 3, 68, 2, generator=rng)
    together = warp.landmark_flow(face.expand(2, 1, 68, 2), face.expand(2, 3, 68, 2), target, 16)
    alone = warp.landmark_flow(face, face, target[1, 2], 16)
    np.testing.assert_allclose(together[1, 2].numpy(), alone.numpy(), atol=1e-5)


def test_remapping_an_enlarged_photograph_is_bicubic_sampling_within_rounding():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), np.uint8)
    photograph = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5), np.uint8)
    flow = (0.03 * rng.standard_normal((2, 2, 2))).astype(np.float32).repeat(8, 1).repeat(8, 2)
    made = warp.remap(warp.enlarge(photograph), flow)
    picture = torch.from_numpy(photograph).permute(2, 0, 1)[None].float()
    lifted = torch.nn.functional.interpolate(torch.from_numpy(flow)[None], 64, mode="bilinear")[None]
    expected = warp.sample(picture, warp.absolute(lifted), "bicubic")[0, 0].permute(1, 2, 0).numpy()
    inner = slice(4, -4)
    assert np.abs(made[inner, inner] - expected[inner, inner]).max() < 3


def test_photographs_are_remapped_by_tensors_as_by_opencv():
    rng = np.random.default_rng(0)
    photographs = [
        np.asarray(cv2.GaussianBlur(rng.integers(0, 256, (64, 64, 3), np.uint8), (0, 0), 1.5), np.uint8)
        for _ in range(2)
    ]
    cpu, window = torch.device("cpu"), (slice(8, 40), slice(16, 56))
    enlarged = torch.cat([warp.enlarged_tensor(photograph, cpu) for photograph in photographs])
    flow = torch.from_numpy((0.05 * rng.standard_normal((2, 3, 2, 4, 4))).astype(np.float32))
    flow = flow.repeat_interleave(4, 3).repeat_interleave(4, 4)
    by_opencv, by_tensors = warp.remapped(enlarged, flow, window), warp.remap_tensor(enlarged, flow, window)
    assert by_opencv.shape == by_tensors.shape == (2, 3, 3, 32, 40) and by_tensors.dtype == torch.uint8
    expected = warp.remap(warp.enlarge(photographs[1]), flow[1, 2].numpy(), window)
    np.testing.assert_array_equal(by_opencv[1, 2].permute(1, 2, 0).numpy(), expected)
    assert (by_opencv.int() - by_tensors.int()).abs().max() <= 4
    assert (by_opencv.float() - by_tensors.float()).abs().mean() < 0.5
