import json

import numpy as np
import pytest

from avatard.models.face.pose import Pose
from avatard.models.face.topology import MESH_TO_68
from avatard.models.training.clips import Clip, DataError, Entry, in_turns, read_index, unseen_people, write_index


def write(path, frames: int = 3, audio: bool = True) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ramp = np.linspace(0, 255, 256).astype(np.uint8)
    pictures = [
        np.stack([np.tile(ramp, (256, 1)), np.full((256, 256), 40 * n, np.uint8), np.tile(ramp[:, None], 256)], -1)
        for n in range(frames)
    ]
    content = {
        "points": rng.normal(size=(frames, 468, 3)),
        "landmarks": rng.normal(size=(frames, 68, 3)),
        "rotation": np.tile(np.eye(3), (frames, 1, 1)),
        "scale": np.full(frames, 58.0),
        "translation": np.full((frames, 2), 128.0),
        "audio": rng.integers(-99, 99, frames * 640).astype(np.int16),
        "pictures": np.stack(pictures),
    }
    pose = Pose(content["rotation"], content["scale"], content["translation"])
    metadata = {"source": "s", "clip": "c"}
    sound = content["audio"] if audio else None
    Clip.write(path, pictures, content["points"], content["landmarks"], pose, metadata, sound)
    return content


def test_a_clip_comes_back(tmp_path):
    path = tmp_path / "source" / "clip.safetensors"
    content = write(path)
    clip = Clip(path)
    assert len(clip) == 3
    np.testing.assert_allclose(clip.points, content["points"], atol=1e-6)
    np.testing.assert_allclose(clip.landmarks, content["landmarks"], atol=1e-6)
    np.testing.assert_array_equal(clip.audio, content["audio"])
    np.testing.assert_allclose(clip.pose[1].translation, [128, 128])
    assert {clip.points.dtype, clip.landmarks.dtype, clip.pose.scale.dtype} == {np.dtype(np.float32)}
    frames = clip.frames()
    assert frames.shape == (3, 256, 256, 3) and frames.dtype == np.uint8
    assert np.abs(frames.astype(int) - content["pictures"]).mean() < 2  # JPEG, channels in RGB order
    np.testing.assert_array_equal(clip.frames([2]), frames[2:])
    assert [p.name for p in path.parent.iterdir()] == ["clip.safetensors"]


def test_where_the_pictures_have_the_landmarks_is_told_or_as_tracked(tmp_path):
    content = write(tmp_path / "made.safetensors")
    made = Clip(tmp_path / "made.safetensors")
    np.testing.assert_array_equal(made.registered, made.points[:, MESH_TO_68, :2])
    found, real = made.registered + 1, tmp_path / "real.safetensors"
    Clip.write(real, list(content["pictures"]), made.points, made.landmarks, made.pose, {}, registered=found)
    np.testing.assert_array_equal(Clip(real).registered, found)


def test_portraits_have_no_sound(tmp_path):
    write(tmp_path / "me.safetensors", frames=1, audio=False)
    with pytest.raises(Exception, match="audio"):
        _ = Clip(tmp_path / "me.safetensors").audio


def test_a_damaged_frame_is_named(tmp_path):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "clip.safetensors"
    write(path)
    tensors = load_file(path)
    tensors["frames"][: tensors["frame_offsets"][1]] = 0
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"clip\.safetensors: frame 0 is damaged"):
        Clip(path).frame(0)


def test_the_index_comes_back_one_clip_a_line(tmp_path):
    entries = [
        Entry("lrw_ar", "1", "a01", 30, "lrw_ar/1.safetensors"),
        Entry("lrw_ar", "2", "a14", 30, "lrw_ar/2.safetensors", "validation"),
    ]
    write_index(tmp_path, entries)
    assert read_index(tmp_path) == entries
    assert (tmp_path / "index.json").read_text().count("\n") == 4
    with pytest.raises(DataError, match=r"run scripts/prepare_data\.py first"):
        read_index(tmp_path / "elsewhere")


def test_an_index_without_splits_is_completed_by_the_table(tmp_path):
    row = {"clip": "1", "frames": 30, "path": "x"}
    people = [("lrw_ar", "a04"), ("lrw_ar", "a01"), ("factory", "b"), ("factory_validation", "b"), ("mine", "k")]
    rows = [row | {"source": source, "speaker": speaker} for source, speaker in people]
    (tmp_path / "index.json").write_text(json.dumps([*rows, rows[0] | {"split": "test"}]))
    entries = read_index(tmp_path)
    assert [e.split for e in entries] == ["test", "train", "train", "validation", "validation", "test"]
    assert [e.animated for e in entries] == [False, False, True, True, False, False]


def test_to_shipped_weights_other_sources_are_new_and_to_ones_own_the_people_kept_out():
    own = Entry("elsewhere", "1", "a", 30, "")
    seen, kept = Entry("lrw_ar", "1", "a05", 30, ""), Entry("lrw_ar", "2", "a04", 30, "", "validation")
    tested = Entry("lrw_ar", "3", "a06", 30, "", "test")
    assert unseen_people([seen, kept, tested, own], shipped=True) == [kept, tested, own]
    assert unseen_people([seen, kept, tested, own], shipped=False) == [kept, tested]


def test_everyone_comes_once_before_anyone_comes_twice():
    entries = [Entry("s", f"{n}", speaker, 1, "") for n, speaker in enumerate(["b", "a", "a", "a", "b"])]
    assert [(entry.speaker, entry.clip) for entry in in_turns(entries)] == [
        *(("a", "1"), ("b", "0")),
        *(("a", "2"), ("b", "4")),
        ("a", "3"),
    ]
