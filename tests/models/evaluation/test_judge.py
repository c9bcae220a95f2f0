from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from avatard.models.evaluation.faceres import FaceRes
from avatard.models.evaluation.judge import Judge, Real, sheet, side_by_side, unseen
from avatard.models.face.topology import MESH_TO_68
from avatard.models.training.clips import Clip, Entry, read_index
from tests.support.unseen_folder import FRAMES, REFERENCE, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def real(folder):
    return Real.read(folder, read_index(folder)[0])


@pytest.fixture(scope="module")
def judge(real):
    torch.manual_seed(0)
    judge = Judge(FaceRes().eval().requires_grad_(False), hop=6)
    judge.judge("real", real.frames, real)
    judge.judge("still", np.repeat(real.portrait[None], FRAMES, axis=0), real, core_ms_per_frame=2.5)
    noisy = real.frames.astype(int) + np.random.default_rng(0).normal(0, 12, real.frames.shape)
    judge.judge("noisy", noisy.clip(0, 255).astype(np.uint8), real)
    return judge


def test_everyone_unseen_is_there_before_anyone_is_there_twice(folder):
    path = read_index(folder)[0].path
    speakers = ["a04", "a04", "a04", "b08", "b11"]
    entries = [Entry("lrw_ar", f"{n}", speaker, 30, path) for n, speaker in enumerate(speakers)]
    entries.append(Entry("lrw_ar", "short", "b09", 8, path))
    entries.append(Entry("factory_validation", "made", "k", 30, path))
    assert [entry.speaker for entry in unseen(folder, entries, 4)] == ["a04", "b08", "b11", "a04"]
    assert len(unseen(folder, entries, 100)) == 5
    assert unseen(folder, [], 3) == []


def test_a_face_that_leaves_the_picture_is_not_measured(folder, tmp_path):
    entry = read_index(folder)[0]
    clip = Clip(folder / entry.path)
    outside = clip.points.copy()
    outside[3] += 200
    Clip.write(tmp_path / entry.path, list(clip.frames()), outside, clip.landmarks, clip.pose, {}, clip.audio)
    assert unseen(folder, [entry], 9) == [entry]
    assert unseen(tmp_path, [entry], 9) == []


def test_the_portrait_is_the_most_closed_mouth(real):
    assert real.reference == REFERENCE
    assert (real.portrait == real.frames[REFERENCE]).all()


def test_who_blinks_at_the_start_is_portrayed_a_little_later(folder, tmp_path):
    entry = read_index(folder)[0]
    clip = Clip(folder / entry.path)
    blinking = clip.points.copy()
    lower, upper = MESH_TO_68[[40, 41, 46, 47]], MESH_TO_68[[38, 37, 44, 43]]
    blinking[:2, lower] = blinking[:2, upper]
    Clip.write(tmp_path / entry.path, list(clip.frames()), blinking, clip.landmarks, clip.pose, {}, clip.audio)
    assert Real.read(folder, entry).from_the_start().reference == 0
    assert Real.read(tmp_path, entry).from_the_start().reference == 2


class Means:
    """Stands for a network of other people: the mean colour, and how many frames and samples there are."""

    def features(self, pictures):
        return pictures.reshape(len(pictures), -1, 3).mean(axis=1)

    def texture(self, pictures):
        return self.features(pictures)

    def errors(self, crops, samples):
        return float(len(crops)), float(len(samples))


def test_fid_and_lip_errors_come_from_the_networks_that_are_given(real):
    judge = Judge(None, hop=6, inception=Means(), syncnet=Means())  # type: ignore[arg-type]
    for name, frames in (("real", real.frames), ("dark", real.frames // 2)):
        judge.judge_alone(name, frames, real.portrait)
        judge.judge_voice(name, frames, real.clip.audio)
    assert judge.figures("real")["fid"] == pytest.approx(0, abs=1e-6)
    dark = judge.figures("dark")
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
    judge = Judge(None, hop=6, perceptual=Means())  # type: ignore[arg-type]
    judge.judge("real", real.frames, parted)
    judge.judge("pattern", (real.frames.astype(int) + pattern).clip(0, 255).astype(np.uint8), parted)
    judge.judge("dark", real.frames // 2, parted)
    plain, pattern_figures = judge.figures("real"), judge.figures("pattern")
    assert (pattern_figures["checkerboard"] or 0) > 3 * (plain["checkerboard"] or 1)
    assert pattern_figures["horizontal_detail"] == pytest.approx(plain["horizontal_detail"], rel=0.2)
    assert plain["mouth_frechet"] == pytest.approx(0, abs=1e-6)
    assert (judge.figures("dark")["mouth_frechet"] or 0) > 100


def test_real_video_is_its_own_bound(judge):
    figures = judge.figures("real")
    assert figures["psnr"] is None and figures["mouth_psnr"] is None
    assert figures["ssim"] == pytest.approx(1)
    assert figures["flicker_ratio"] == 1
    assert figures["frechet"] == pytest.approx(0, abs=1e-6)
    assert figures["mouth_opening_error_px"] < 1


def test_a_still_portrait_has_errors_and_no_flicker(judge):
    figures = judge.figures("still")
    assert figures["flicker_ratio"] < 0.05
    assert figures["csim"] == pytest.approx(1)
    assert 10 < figures["psnr"] < 40
    assert figures["lmd_percent_iod"] > 2
    assert figures["core_ms_per_frame"] == 2.5


def test_noise_flickers_and_costs_what_it_should(judge):
    figures = judge.figures("noisy")
    assert figures["psnr"] == pytest.approx(20 * np.log10(255 / 12), abs=0.7)
    assert figures["flicker_ratio"] > 3
    assert figures["seam_ratio"] == pytest.approx(1, abs=0.1)


def test_a_jump_at_each_hop_is_a_seam(real):
    judge = Judge(None, hop=6)
    jumping = np.stack([np.roll(real.frames[n], 40 * (n // 6 % 2), axis=0) for n in range(FRAMES)])
    judge.judge("jumping", jumping, real)
    figures = judge.figures("jumping")
    assert (figures["seam_ratio"] or 0) > 2
    assert "csim" not in figures and "flicker_ratio" not in figures


def test_frames_without_a_face_do_not_count(real):
    judge = Judge(None, hop=6)
    frames = real.frames.copy()
    frames[10:] = 0
    judge.judge("cut", frames, real)
    error = judge.figures("cut")["mouth_opening_error_px"]
    assert error is not None and error < 1
    empty = Judge(None, hop=6)
    empty.judge("empty", np.zeros_like(frames), real)
    assert "mouth_opening_error_px" not in empty.figures("empty")


def test_sheets_and_side_by_side(real, tmp_path):
    sheet(tmp_path / "sheet.png", {"a": list(real.frames[:3]), "b": list(real.frames[3:6])}, side=32)
    picture = cv2.imread(str(tmp_path / "sheet.png"))
    assert picture is not None and picture.shape == (64, 96, 3)
    assert side_by_side({"a": real.frames, "b": real.frames}).shape == (FRAMES, 256, 512, 3)
