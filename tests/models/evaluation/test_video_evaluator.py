from dataclasses import replace

import numpy as np
import pytest
import torch

from avatard.models.evaluation.faceres import FaceRes
from avatard.models.evaluation.reference_clip import ReferenceClip
from avatard.models.evaluation.video_evaluator import VideoEvaluator
from avatard.models.training.clips import read_index
from tests.support.unseen_folder import FRAMES, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def real(folder):
    return ReferenceClip.read(folder, read_index(folder)[0])


@pytest.fixture(scope="module")
def evaluator(real):
    torch.manual_seed(0)
    evaluator = VideoEvaluator(FaceRes().eval().requires_grad_(False), hop=6)
    evaluator.compare("real", real.frames, real)
    evaluator.compare("still", np.repeat(real.portrait[None], FRAMES, axis=0), real, core_ms_per_frame=2.5)
    noisy = real.frames.astype(int) + np.random.default_rng(0).normal(0, 12, real.frames.shape)
    evaluator.compare("noisy", noisy.clip(0, 255).astype(np.uint8), real)
    return evaluator


class Means:
    """Stands for a network of other people: the mean colour, and how many frames and samples there are."""

    def features(self, pictures):
        return pictures.reshape(len(pictures), -1, 3).mean(axis=1)

    def texture(self, pictures):
        return self.features(pictures)

    def errors(self, crops, samples):
        return float(len(crops)), float(len(samples))


def test_fid_and_lip_sync_come_from_the_networks_that_are_given(real):
    evaluator = VideoEvaluator(None, hop=6, inception=Means(), syncnet=Means())  # type: ignore[arg-type]
    for name, frames in (("real", real.frames), ("dark", real.frames // 2)):
        evaluator.measure(name, frames, real.portrait)
        evaluator.measure_lip_sync(name, frames, real.clip.audio)
    assert evaluator.figures("real")["fid"] == pytest.approx(0, abs=1e-6)
    dark = evaluator.figures("dark")
    expected = np.square(real.frames[::3].reshape(-1, 3).mean(axis=0) / 2).sum()
    assert dark["fid"] == pytest.approx(expected, rel=0.05)
    assert (dark["lse_d"], dark["lse_c"]) == (FRAMES, FRAMES * 640)


def test_a_pattern_inside_the_mouth_is_no_teeth(real):
    """Of mouths that are open; the folder's is closed, so its lips are parted here."""
    points = real.points.copy()
    points[:, [65, 66, 67], 1] += 8
    parted = replace(real, points=points)
    y, x = np.indices(real.frames.shape[1:3])
    pattern = np.where((x + y) % 2, 20, -20)[None, ..., None]
    evaluator = VideoEvaluator(None, hop=6, perceptual=Means())  # type: ignore[arg-type]
    evaluator.compare("real", real.frames, parted)
    evaluator.compare("pattern", (real.frames.astype(int) + pattern).clip(0, 255).astype(np.uint8), parted)
    evaluator.compare("dark", real.frames // 2, parted)
    plain, figures = evaluator.figures("real"), evaluator.figures("pattern")
    assert (figures["checkerboard"] or 0) > 3 * (plain["checkerboard"] or 1)
    assert figures["horizontal_detail"] == pytest.approx(plain["horizontal_detail"], rel=0.2)
    assert plain["mouth_frechet"] == pytest.approx(0, abs=1e-6)
    assert (evaluator.figures("dark")["mouth_frechet"] or 0) > 100


def test_real_video_is_its_own_bound(evaluator):
    figures = evaluator.figures("real")
    assert figures["psnr"] is None and figures["mouth_psnr"] is None
    assert figures["ssim"] == pytest.approx(1)
    assert figures["flicker_ratio"] == 1
    assert figures["frechet"] == pytest.approx(0, abs=1e-6)
    assert figures["mouth_opening_error_px"] < 1


def test_a_still_portrait_has_errors_and_no_flicker(evaluator):
    figures = evaluator.figures("still")
    assert figures["flicker_ratio"] < 0.05
    assert figures["csim"] == pytest.approx(1)
    assert 10 < figures["psnr"] < 40
    assert figures["lmd_percent_iod"] > 2
    assert figures["core_ms_per_frame"] == 2.5


def test_noise_flickers_and_costs_what_it_should(evaluator):
    figures = evaluator.figures("noisy")
    assert figures["psnr"] == pytest.approx(20 * np.log10(255 / 12), abs=0.7)
    assert figures["flicker_ratio"] > 3
    assert figures["seam_ratio"] == pytest.approx(1, abs=0.1)


def test_a_jump_at_each_hop_is_a_seam(real):
    evaluator = VideoEvaluator(None, hop=6)
    jumping = np.stack([np.roll(real.frames[n], 40 * (n // 6 % 2), axis=0) for n in range(FRAMES)])
    evaluator.compare("jumping", jumping, real)
    figures = evaluator.figures("jumping")
    assert (figures["seam_ratio"] or 0) > 2
    assert "csim" not in figures and "flicker_ratio" not in figures


def test_frames_without_a_face_do_not_count(real):
    evaluator = VideoEvaluator(None, hop=6)
    frames = real.frames.copy()
    frames[10:] = 0
    evaluator.compare("cut", frames, real)
    error = evaluator.figures("cut")["mouth_opening_error_px"]
    assert error is not None and error < 1
    empty = VideoEvaluator(None, hop=6)
    empty.compare("empty", np.zeros_like(frames), real)
    assert "mouth_opening_error_px" not in empty.figures("empty")
