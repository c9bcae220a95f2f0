import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from avatard.models.face.crop import CROP_ORIGIN, CROP_SCALE
from avatard.models.face.topology import MESH_TO_68
from avatard.models.training.atom.dataset import clips_with_sound
from avatard.models.training.clips import Clip, DataError, read_index
from tests.support.faces import on_canvas, portrait, write_video
from tests.support.paths import SCRIPTS
from tests.support.scripts import run_script

SCRIPT = SCRIPTS / "prepare_data.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments), "--processes", "1"]
    return subprocess.run(command, capture_output=True, text=True)


def head_at(*lefts: int) -> list[np.ndarray]:
    return [on_canvas(320, 400, (left, 10, 1.0)) for left in lefts]


def test_videos_and_portraits_become_clips_and_bad_ones_are_reported(tmp_path):
    news, people, out = tmp_path / "news", tmp_path / "people", tmp_path / "out"
    news.mkdir()
    people.mkdir()
    tone = np.random.default_rng(0).integers(-999, 999, 5 * 640 - 300).astype(np.int16)
    write_video(news / "good.mkv", head_at(20, 22, 24, 26, 28), audio=tone)
    write_video(news / "jump.mkv", head_at(20, 20, 90, 90))
    write_video(news / "lost.mkv", [*head_at(20, 20), np.full((320, 400, 3), 128, np.uint8)])
    write_video(news / "small.mkv", [on_canvas(200, 200, (40, 40, 0.3))] * 2)
    (news / "damaged.mp4").write_bytes(b"no video")
    (news / "notes.txt").write_text("ignored")
    (news / "speakers.csv").write_text("clip,speaker\ngood.mkv,a04\n")
    Image.fromarray(portrait()).save(people / "ada.png")
    Image.fromarray(portrait()).save(people / "bo.webp", lossless=True)
    Image.fromarray(on_canvas(320, 620, (0, 0, 1.0), (310, 0, 1.0))).save(people / "two.png")

    ran = run(news, people, "--out", out)
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    skipped = dict(line.split(": ", 1) for line in ran.stdout.splitlines() if line.startswith("skipped "))
    assert skipped.pop("skipped news/damaged.mp4").endswith(
        "cannot be read as a video: Invalid data found when processing input"
    )
    assert skipped == {
        "skipped news/jump.mkv": "face jumps",
        "skipped news/lost.mkv": "face lost",
        "skipped news/small.mkv": "face too small",
        "skipped people/two.png": "2 faces",
    }
    assert "news: 1 × face jumps" in ran.stdout
    assert f"3 clips, 7 frames in {out}" in ran.stdout

    entries = {entry.clip: entry for entry in read_index(out)}
    assert {name: (entry.source, entry.speaker, entry.frames, entry.split) for name, entry in entries.items()} == {
        "good": ("news", "a04", 5, "train"),
        "ada": ("people", "ada", 1, "train"),
        "bo": ("people", "bo", 1, "train"),
    }
    clip = Clip(out / entries["good"].path)
    assert clip.frames().shape == (5, 256, 256, 3)
    assert clip.points.shape == (5, 468, 3) and clip.landmarks.shape == (5, 68, 3)
    np.testing.assert_allclose(clip.pose.scale, CROP_SCALE, rtol=0.03)
    # one crop a clip: the head moves inside it, by 2 px of the video a frame
    steps = np.diff(clip.points[:, :, 0].mean(axis=1))
    assert np.abs(steps / (clip.pose.scale[0] / 42.2) - 2).max() < 0.7
    np.testing.assert_allclose(np.median(clip.pose.translation, axis=0), CROP_ORIGIN, atol=1)
    np.testing.assert_array_equal(clip.audio, np.pad(tone, (0, 300)))
    wandered = np.linalg.norm(clip.registered - clip.points[:, MESH_TO_68, :2], axis=-1)
    assert 0 < wandered.mean() < 1.5
    with safe_open(clip.path, framework="numpy") as file:
        assert file.metadata() == {"source": "news", "clip": "good", "speaker": "a04", "fps": "25"}

    before = (out / entries["good"].path).stat().st_mtime_ns
    again = run(news, "--out", out)
    assert again.returncode == 0
    assert (out / entries["good"].path).stat().st_mtime_ns == before
    assert {entry.clip for entry in read_index(out)} == {"good", "ada", "bo"}


def test_silent_videos_of_any_frame_rate_give_pictures_and_large_crops(tmp_path, capsys):
    news, out = tmp_path / "news", tmp_path / "out"
    news.mkdir()
    tone = np.random.default_rng(0).integers(-999, 999, 8 * 640).astype(np.int16)
    large = [on_canvas(620, 640, (left, 10, 2.0)) for left in (0, 4, 8, 12, 16)]
    for name, fps in (("slow", 24), ("fast", 60)):
        write_video(news / f"{name}.mkv", large, fps=fps)
    write_video(news / "dubbed.mkv", large[:2], audio=tone)
    (news / "speakers.csv").write_text("clip,speaker,sound\ndubbed.mkv,a04,no\nslow.mkv,a05,yes\n")
    assert run(news, "--out", out, "--crop", 512).returncode == 0
    clips = {entry.clip: Clip(out / entry.path) for entry in read_index(out)}
    assert {name: len(clip) for name, clip in clips.items()} == {"slow": 5, "fast": 2, "dubbed": 2}
    assert clips_with_sound(out) == []
    clip = clips["slow"]
    small, sharp = clip.frames(), clip.frames(side=512)
    assert sharp.shape == (5, 512, 512, 3)
    shrunk = np.stack([cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA) for picture in sharp])
    assert np.abs(shrunk.astype(int) - small).mean() < 3  # the same part of the picture
    with pytest.raises(DataError, match="has no crops of 1024"):
        clip.frame(0, side=1024)

    ran = run(news, "--out", tmp_path / "motion", "--motion-only")
    assert ran.returncode == 0 and "news: 3 × silent" in ran.stdout
    assert run_script("prepare_data", news, "--out", out, "--crop", 300) == 2
    assert capsys.readouterr().err == "error: got --crop 300, expected 256 or 512\n"


def test_a_folder_without_clips_is_one_line(tmp_path):
    ran = run(tmp_path, "--out", tmp_path / "out")
    assert ran.returncode == 2
    assert ran.stderr == f"error: no videos or portraits in {tmp_path}\n"
