from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avatard.engine.video_stream import PreparedPortrait, VideoStream
from avatard.inference.engine_api import EngineError
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from tests.support.tiny_mcvdm import frontal, someone, tiny

MODEL = tiny()
FACE = PreparedPortrait.of(MODEL, someone(), MorphableModel.load().mean_68)
SIZES: dict[str, Any] = {"clip": 8, "hop": 3, "fade": 2, "steps": 1}


def motion(count: int):
    rng = np.random.default_rng(3)
    landmarks = (0.05 * rng.standard_normal((count, 68, 3))).astype(np.float32)
    rest = frontal()
    return landmarks, [Pose(rest.rotation, rest.scale, rest.translation + rng.normal(0, 2, 2)) for _ in range(count)]


def run(cuts, count=10, first_frame=0, **changes):
    stream = VideoStream(MODEL, FACE, seed=5, first_frame=first_frame, **(SIZES | changes))
    landmarks, poses = motion(count)
    made, at = [], 0
    for cut in [*cuts, count]:
        end = min(max(cut, at), count)
        made += stream.push(landmarks[at:end], poses[at:end])
        at = end
    made += stream.finish()
    return made


WHOLE = run([])


def joined(made):
    return np.concatenate([frames for _, frames in made])


def test_every_pushed_frame_comes_out_once_and_in_order():
    expected = 0
    for first, frames in WHOLE:
        assert first == expected
        assert frames.dtype == np.uint8
        assert frames.shape[1:] == (256, 256, 3)
        expected += len(frames)
    assert expected == 10


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 10), max_size=5).map(sorted))
def test_cuts_between_pushes_change_nothing(cuts):
    made = run(cuts)
    assert [first for first, _ in made] == [first for first, _ in WHOLE]
    assert np.array_equal(joined(made), joined(WHOLE))


def test_frames_wait_for_the_fade_and_no_longer():
    stream = VideoStream(MODEL, FACE, **SIZES)
    landmarks, poses = motion(6)
    assert stream.push(landmarks[:2], poses[:2]) == []
    assert [(first, len(frames)) for first, frames in stream.push(landmarks[2:3], poses[2:3])] == [(0, 1)]
    assert [(first, len(frames)) for first, frames in stream.push(landmarks[3:], poses[3:])] == [(1, 3)]


def test_frames_are_numbered_from_the_first():
    made = run([], count=4, first_frame=1000)
    assert made[0][0] == 1000


@pytest.mark.parametrize("steps", [1, 2])
def test_landmarks_that_cannot_be_a_face_hold_the_frame_before(steps):
    landmarks, poses = motion(6)
    held = landmarks.copy()
    held[3], held[4] = held[2], held[2]
    same = [*poses[:3], poses[2], poses[2], poses[5]]
    broken = landmarks.copy()
    broken[3] = np.nan
    far = Pose(poses[4].rotation, poses[4].scale, np.array([1e9, -1e9]))
    streams = [VideoStream(MODEL, FACE, **(SIZES | {"steps": steps})) for _ in range(2)]
    bad = streams[0].push(broken, [*poses[:4], far, poses[5]]) + streams[0].finish()
    good = streams[1].push(held, same) + streams[1].finish()
    assert np.array_equal(joined(bad), joined(good))


def test_nothing_but_rubbish_shows_the_portraits_own_place():
    stream = VideoStream(MODEL, FACE, **SIZES)
    made = stream.push(np.full((4, 68, 3), np.inf), [frontal()] * 4) + stream.finish()
    assert len(joined(made)) == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"clip": 6}, "a multiple of 4"),
        ({"hop": 0}, "at most 8 together"),
        ({"hop": 7, "fade": 2}, "at most 8 together"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(EngineError, match=message):
        VideoStream(MODEL, FACE, **(SIZES | sizes))


def test_wrong_shapes_and_pushes_after_the_end_are_refused():
    stream = VideoStream(MODEL, FACE, **SIZES)
    with pytest.raises(ValueError, match=r"expected \[k, 68, 3\]"):
        stream.push(np.zeros((2, 68, 2)), [frontal()] * 2)
    with pytest.raises(ValueError, match="3 poses"):
        stream.push(np.zeros((2, 68, 3)), [frontal()] * 3)
    assert stream.finish() == []
    with pytest.raises(RuntimeError, match="after finish"):
        stream.push(np.zeros((1, 68, 3)), [frontal()])
