from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from avatard.engine.framing import FramingError, frame_identity, frame_photograph, resample
from avatard.models.face.crop import CROP_ORIGIN, CROP_SCALE, Crop
from avatard.models.face.pose import Pose

rooms = st.tuples(st.integers(100, 12_000), st.integers(100, 12_000))


def inside(framing, shape) -> bool:
    left, top, right, bottom = framing.box
    return bool(left >= -1e-6 and top >= -1e-6 and right <= shape[1] + 1e-6 and bottom <= shape[0] + 1e-6)


@given(rooms, st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 1), st.sampled_from(["head", "face", "photo"]))
def test_a_frame_lies_inside_the_photograph(shape, x, y, share, mode):
    face = max(96.0, share * min(shape))
    assume(mode != "photo" or 512 / max(shape) * face > 60)
    framing = frame_photograph(shape, (x * shape[1], y * shape[0]), face, mode, 512)
    assert inside(framing, shape)
    assert framing.width % 2 == framing.height % 2 == 0
    assert max(framing.width, framing.height) <= 512
    assert framing.scale <= 2


@given(st.tuples(st.floats(5, 20), st.floats(5, 20)), st.floats(0.3, 0.7), st.floats(0.3, 0.7), st.floats(96, 500))
def test_a_head_with_room_around_it_takes_its_share_of_the_height(faces, x, y, face):
    shape = (round(faces[0] * face), round(faces[1] * face))
    framing = frame_photograph(shape, (x * shape[1], y * shape[0]), face, "head", 512)
    assert 0.39 <= face * framing.scale / framing.height <= 0.56
    assert 0.74 <= framing.width / framing.height <= 1.01
    left, top, right, bottom = framing.box
    assert (left + right) / 2 == pytest.approx(x * shape[1], abs=0.1 * (right - left) + 2)
    assert top + 0.48 * (bottom - top) == pytest.approx(y * shape[0], abs=0.06 * (bottom - top) + 2)


def test_a_tight_shot_gives_a_frame_as_tight():
    framing = frame_photograph((640, 640), (320, 330), 450, "head", 512)
    assert framing.box == pytest.approx((0, 0, 640, 640))
    assert (framing.width, framing.height) == (512, 512)


def test_a_narrow_photograph_gives_an_upright_frame_and_no_narrower_than_3_to_4():
    assert frame_photograph((600, 480), (240, 280), 240, "head", 512).width < 512
    framing = frame_photograph((2000, 300), (150, 900), 200, "head", 512)
    assert framing.width / framing.height == pytest.approx(0.75, abs=0.01)


def test_a_face_at_the_side_is_kept_in_the_frame_which_gets_narrower():
    framing = frame_photograph((1000, 1600), (150, 500), 200, "head", 512)
    left, _, right, _ = framing.box
    assert left == pytest.approx(0, abs=0.5) and framing.width / framing.height < 0.8
    assert right > 150 + 100


def test_a_small_photograph_is_at_most_doubled():
    framing = frame_photograph((200, 160), (80, 90), 100, "head", 1080)
    assert framing.scale == 2
    assert framing.height <= 400


def test_the_whole_photograph_keeps_its_shape():
    framing = frame_photograph((900, 1600), (800, 400), 300, "photo", 1080)
    assert (framing.width, framing.height) == (1080, 606)
    assert framing.box == pytest.approx((0, 0, 1600, 900), abs=3)


def test_a_face_that_would_be_tiny_in_the_whole_photograph_is_refused_in_one_line():
    with pytest.raises(FramingError, match='the face would be 10 pixels high in a frame of 512x64, .* "head"$'):
        frame_photograph((1500, 12_000), (2000, 700), 240, "photo", 512)
    assert inside(frame_photograph((1500, 12_000), (2000, 700), 240, "head", 512), (1500, 12_000))


def test_a_frame_of_about_the_photographs_size_shows_its_own_pixels():
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (700, 900, 3), dtype=np.uint8)
    framing = frame_photograph(photograph.shape, (450, 330), 230, "head", 512)
    assert framing.scale == 1
    left, top, right, bottom = (int(edge) for edge in framing.box)
    shown = resample(photograph, framing.matrix, (framing.width, framing.height))
    np.testing.assert_array_equal(shown, photograph[top:bottom, left:right])


@pytest.mark.parametrize("scale", [0.31, 0.8, 1.7])
def test_resampling_keeps_things_in_their_places(scale):
    y, x = np.mgrid[:300, :400].astype(np.float32)
    photograph = np.dstack([x / 2, y / 2, x * 0]).round().astype(np.uint8)
    matrix = np.array([[scale, 0, -20.0], [0, scale, -15.0]])
    shown = resample(photograph, matrix, (60, 50)).astype(float)
    rows, columns = np.mgrid[:50, :60]
    np.testing.assert_allclose(shown[..., 0], (columns + 20) / scale / 2, atol=1.1)
    np.testing.assert_allclose(shown[..., 1], (rows + 15) / scale / 2, atol=1.1)


@pytest.mark.parametrize("shape", [(600, 480), (300, 900), (2000, 1200), (420, 400)])
@pytest.mark.parametrize("size", [(512, 512), (384, 512), (512, 288)])
def test_another_person_is_shown_in_the_frame_that_viewers_have(shape, size):
    photograph = np.zeros((*shape, 3), np.uint8)
    pose = Pose(np.eye(3), np.array(CROP_SCALE), np.array(CROP_ORIGIN))
    there = Pose(np.eye(3), np.array(60.0), np.array([shape[1] / 2, shape[0] / 2]))
    identity = SimpleNamespace(photograph=photograph, crop=Crop.of(there), pose=pose, face_px=158.0)
    framing = frame_identity(identity, "head", 512, size)  # type: ignore[arg-type]
    assert (framing.width, framing.height) == size
    assert inside(framing, shape)
    left, top, right, bottom = framing.box
    assert left < shape[1] / 2 < right and top < shape[0] / 2 < bottom
