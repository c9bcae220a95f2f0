import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from avatard.models import checkpoint
from avatard.models.atom.model import Atom, AtomConfig, reference_of
from avatard.models.face.topology import mouth_opening
from avatard.models.training.atom.dataset import (
    MotionClip,
    MotionData,
    at_audio,
    clips_with_sound,
    closed_face,
    draw_by_size,
    mirrored,
    rest_regression,
)
from avatard.models.training.clips import Clip, DataError, Entry
from avatard.timebase import SAMPLES_PER_FRAME
from tests.support.motion_folder import write_folder

WINDOW = 12


def write_prepared(data, out, dim=6):
    """What scripts/prepare_motion.py writes, with features that are their own audio frame number."""
    offsets, tensors = {}, {"identity": np.zeros((2, 68, 3), np.float32)}
    for entry in clips_with_sound(data):
        landmarks = Clip(data / entry.path).landmarks
        ends = torch.arange(2, entry.frames + 1, 2, dtype=torch.int16)
        frames = ends[:, None] - WINDOW + torch.arange(WINDOW)
        features = frames[..., None].expand(-1, -1, dim).half()
        part = {"speech": features, "speech_ends": ends}
        if entry.split == "train":
            part |= {"silence": features, "silence_ends": ends}
        path = out / "features" / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, part, {})
        tensors[f"neutrals/{entry.source}/{entry.clip}"] = landmarks
        tensors[f"closed/{entry.source}/{entry.speaker}"] = landmarks.mean(axis=0)
        offsets[f"{entry.source}/{entry.clip}"] = {"frames": 0, "kept": entry.clip != "a05_1"}
    checkpoint.save(out / "features" / "no_speech.safetensors", {"silence": torch.zeros(3, WINDOW, dim).half()}, {})
    checkpoint.save(out / "motion.safetensors", tensors, {})
    (out / "offsets.json").write_text(json.dumps({"clips": offsets}))


@pytest.fixture
def folders(tmp_path):
    write_folder(tmp_path / "data")
    write_prepared(tmp_path / "data", tmp_path / "prepared")
    return tmp_path / "data", tmp_path / "prepared"


def test_people_and_clips_that_may_be_trained_on(folders):
    data, prepared = folders
    training, validation = MotionData(data, prepared), MotionData(data, prepared, split="validation")
    assert {clip.entry.clip for clip in training.clips} == {"grid_s1_0", "grid_s1_1", "grid_s1_2", "a05_0"}
    assert {clip.entry.speaker for clip in validation.clips} == {"a04"}
    assert MotionData(data, prepared, exclude="grid_s1").sources == {"lrw_ar": [0]}


def test_a_second_voice_is_a_second_clip(folders):
    data, prepared = folders
    path = prepared / "features/grid_s1/grid_s1_1.safetensors"
    tensors, _ = checkpoint.load(path)
    voice = {"voice": tensors["speech"], "voice_ends": tensors["speech_ends"]}
    checkpoint.save(path, tensors | voice, {"tempo": "1.25"})
    found = [clip for clip in MotionData(data, prepared).clips if clip.entry.clip == "grid_s1_1"]
    assert [len(clip.landmarks) for clip in found] == [30, 24]
    assert len(found[0].silence) and not len(found[1].silence)


def test_no_clips_is_an_error(folders):
    (folders[1] / "offsets.json").write_text(json.dumps({"clips": {}}))
    with pytest.raises(DataError, match="no clips of the split 'train' in step"):
        MotionData(*folders)


def test_a_batch_depends_on_its_generator_alone(folders):
    data = MotionData(*folders)
    first, second = (data.batch(6, 8, 2, np.random.default_rng(4)) for _ in range(2))
    assert first.audio.shape == (6, WINDOW, 6) and first.target.shape == (6, 8, 68, 3)
    assert first.weight.shape == (6, 8) and first.reference.shape == (6, 2, 68, 3)
    for one, other in zip(vars(first).values(), vars(second).values(), strict=True):
        assert torch.equal(one, other)


def test_strangers_and_other_voices_are_of_the_same_source(folders, monkeypatch):
    for share in ("STRANGER_SHARE", "VOICE_SHARE", "CLOSED_SHARE"):
        monkeypatch.setattr(f"avatard.models.training.atom.dataset.{share}", 1.0)
    data = MotionData(*folders)
    marks = {clip.entry.clip: float(n) for n, clip in enumerate(data.clips, start=1)}
    data.clips = [replace(c, closed=np.full_like(c.closed, marks[c.entry.clip])) for c in data.clips]
    data.voices = 1000.0 * torch.arange(1, len(data.clips) + 1)[:, None].expand(-1, 6)
    sources = {marks[clip.entry.clip]: clip.entry.source for clip in data.clips}
    pairs = set()
    for seed in range(60):
        window = data.draw_window(8, 2, np.random.default_rng(seed))
        own, shown = (float(face[0][0, 0]) for face in (window.portrait, window.shown))
        assert sources[own] == sources[shown]
        pairs.add((own, shown))
        if sources[own] == "lrw_ar":  # one clip: its own voice
            assert window.audio.abs().max() < 900
    assert any(own != shown for own, shown in pairs)


def test_large_groups_are_drawn_by_the_root_of_their_size():
    rng = np.random.default_rng(0)
    drawn = [draw_by_size({"many": range(81), "few": range(9)}, rng) for _ in range(2000)]
    assert drawn.count("many") / len(drawn) == pytest.approx(0.75, abs=0.03)


def ramp(offset=0, frames=30):
    """A clip whose landmarks are the frame number."""
    landmarks = np.broadcast_to(np.arange(frames, dtype=np.float32)[:, None, None], (frames, 68, 3))
    closed, none = np.full((68, 3), -50, np.float32), torch.zeros(0)
    return MotionClip(
        Entry("lrw_ar", "x", "a05", frames, "x"), landmarks, landmarks, closed, landmarks[0], offset,
        none, np.zeros(0, np.int16), none, np.zeros(0, np.int16),
    )  # fmt: skip


def test_landmarks_of_a_window_among_speech():
    landmarks, known = at_audio(ramp(), 6, 8, among_silence=False)
    assert known.tolist() == [0, 0, 1, 1, 1, 1, 1, 1]
    assert landmarks[2:, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_the_offset_shifts_the_picture():
    """Landmark n belongs to audio frame n + 2."""
    landmarks, known = at_audio(ramp(offset=2), 6, 8, among_silence=False)
    assert known.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert landmarks[4:, 0, 0].tolist() == [0, 1, 2, 3]


def test_the_mouth_is_closed_around_a_clip_among_silence():
    before, known = at_audio(ramp(), 4, 12, among_silence=True)
    assert known.all() and (before[:5] == -50).all() and before[8:, 0, 0].tolist() == [0, 1, 2, 3]
    assert -50 < before[6, 0, 0] < before[7, 0, 0] < 0
    after, known = at_audio(ramp(), 40, 12, among_silence=True)
    assert known.all() and after[0, 0, 0] == 28 and after[1, 0, 0] == 29 and (after[5:] == -50).all()


def test_picture_beyond_the_sound_is_not_learned_from():
    late, known = at_audio(ramp(offset=-2), 33, 8, among_silence=True)  # audio frames 25..32
    assert known.tolist() == [1, 1, 1, 0, 0, 1, 1, 1]  # the last two frames of sound have no picture
    assert late[0, 0, 0] == 27 and (late[5:, 0, 0] < 29).all()
    early, known = at_audio(ramp(offset=3), 6, 9, among_silence=True)  # audio frames -3..5
    assert known.tolist() == [1, 1, 1, 0, 0, 0, 1, 1, 1] and early[6, 0, 0] == 0


def test_a_closed_mouth_on_this_clips_face():
    person = np.zeros((68, 3), np.float32)
    person[65:68, 1] = -0.1
    clip = np.full((5, 68, 3), 0.02, np.float32)
    clip[:, 65:68] = 0.3  # open
    closed = closed_face(clip, person)
    assert closed[66, 1] == pytest.approx(-0.08) and closed[[20, 62], 1] == pytest.approx(0.02)


def test_the_resting_face_of_a_portrait_with_an_open_mouth():
    """People who open their mouths, each with an upper lip of their own that the neutral face has lost."""
    rng = np.random.default_rng(0)
    opening, lip = np.zeros((2, 68, 3), np.float32)
    opening[65:68, 1], lip[49:54, 1] = 1, 1
    clips = []
    for _ in range(60):
        own = 0.1 * rng.normal() * lip
        face = rng.random((9, 1, 1)) * opening + own + 0.01 * rng.standard_normal((9, 68, 3))
        clips.append(
            replace(ramp(frames=9), landmarks=face.astype(np.float32), neutrals=np.zeros_like(face), closed=own)
        )
    atom = Atom(AtomConfig(speech_dim=6, width=24, depth=1, rest_depth=1, heads=2))
    for buffer, value in zip((atom.modes, atom.to_rest), rest_regression(clips), strict=True):
        buffer.copy_(torch.from_numpy(value))
    portrait = torch.from_numpy(0.9 * opening + 0.1 * lip)
    resting = atom.resting(reference_of(portrait, torch.zeros(68, 3)))
    assert resting[66, 1] == pytest.approx(0, abs=0.05) and resting[51, 1] == pytest.approx(0.1, abs=0.03)


def test_statistics_reach_the_network(folders):
    atom = Atom(AtomConfig(speech_dim=6, audio_frames=12, frames=8, width=24, depth=1, rest_depth=1, heads=2))
    MotionData(*folders).set_statistics(atom)
    assert atom.scale[62] > atom.scale[0] > 0 and atom.bound[66, 1] > 0.1


def test_a_face_in_a_mirror():
    face = np.random.default_rng(1).normal(size=(2, 68, 3)).astype(np.float32)
    assert np.array_equal(mirrored(mirrored(face)), face)
    corners = mirrored(face)[:, [48, 54]]
    assert np.array_equal(corners, face[:, [54, 48]] * [-1, 1, 1])


def test_the_fixture_speaks(tmp_path):
    entries = write_folder(tmp_path, lag=0)
    clip = Clip(tmp_path / entries[0].path)
    loud = np.square(clip.audio.reshape(-1, SAMPLES_PER_FRAME).astype(float)).mean(axis=1) ** 0.5
    assert np.corrcoef(loud, mouth_opening(clip.landmarks))[0, 1] > 0.9
