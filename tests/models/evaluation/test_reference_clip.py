import pytest

from avatard.models.evaluation.reference_clip import ReferenceClip, choose_clips
from avatard.models.face.topology import MESH_TO_68
from avatard.models.training.clips import Clip, Entry, read_index
from tests.support.unseen_folder import REFERENCE, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_folder(folder)
    return folder


@pytest.fixture(scope="module")
def real(folder):
    return ReferenceClip.read(folder, read_index(folder)[0])


def test_everyone_unseen_is_there_before_anyone_is_there_twice(folder):
    path = read_index(folder)[0].path
    speakers = ["a04", "a04", "a04", "b08", "b11"]
    entries = [Entry("lrw_ar", f"{n}", speaker, 30, path) for n, speaker in enumerate(speakers)]
    entries.append(Entry("lrw_ar", "short", "b09", 8, path))
    entries.append(Entry("factory_validation", "made", "k", 30, path, animated=True))
    assert [entry.speaker for entry in choose_clips(folder, entries, 4)] == ["a04", "b08", "b11", "a04"]
    assert len(choose_clips(folder, entries, 100)) == 5
    assert choose_clips(folder, [], 3) == []


def test_a_face_that_leaves_the_picture_is_not_measured(folder, tmp_path):
    entry = read_index(folder)[0]
    clip = Clip(folder / entry.path)
    outside = clip.points.copy()
    outside[3] += 200
    Clip.write(tmp_path / entry.path, list(clip.frames()), outside, clip.landmarks, clip.pose, {}, clip.audio)
    assert choose_clips(folder, [entry], 9) == [entry]
    assert choose_clips(tmp_path, [entry], 9) == []


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
    assert ReferenceClip.read(folder, entry).from_first_open_eyes().reference == 0
    assert ReferenceClip.read(tmp_path, entry).from_first_open_eyes().reference == 2
