from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.engine import affine
from avatard.engine.compositor import Compositor
from avatard.engine.framing import frame_photograph
from avatard.models.face.crop import CROP_ORIGIN, CROP_SCALE, Crop
from avatard.models.face.pose import Pose, rotation_matrix
from avatard.models.face.topology import MESH_TO_68, OUTER_LIP
from avatard.models.mcvdm.decoder import Layers
from avatard.timebase import CROP_SIDE
from tests.support.faces import morphable

#: A mean face in the crop, and its lips.
MESH = (morphable().mean * CROP_SCALE)[:, :2] + CROP_ORIGIN
LIPS = MESH[MESH_TO_68[OUTER_LIP]]
WINDOW = (slice(56, 232), slice(40, 216))


def stripes(height: int, width: int) -> np.ndarray:
    x = np.arange(width)
    return np.broadcast_to(np.where(x // 6 % 2, 230, 30).astype(np.uint8)[None, :, None], (height, width, 3)).copy()


def chequers(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.repeat(np.where((x // 12 + y // 12) % 2, 220, 40).astype(np.uint8)[..., None], 3, axis=2)


def compositor(photograph, eyes=(300.0, 240.0), face=200.0, roll=0.0, mode="head", size=512) -> Compositor:
    pose = Pose(rotation_matrix(0, 0, roll), np.array(face / 2.64), np.array(eyes))
    middle = affine.apply(np.eye(2, 3), pose.project(np.array([[0, 0.47, 0]]))[0, :2])
    framing = frame_photograph(photograph.shape, (middle[0], middle[1]), face, mode, size)
    face = SimpleNamespace(photograph=photograph, alpha=None, crop=Crop.of(pose), points=MESH)
    return Compositor(face, framing)


def layers(flow=(0.0, 0.0), paint=(0, 0, 0), share=0) -> Layers:
    """A flow that is the same everywhere, in pixels of the crop, and paint of one colour."""
    whole = np.ones((2, 64, 64), np.float32) * np.array(flow, np.float32)[:, None, None] * (2 / CROP_SIDE)
    painted = np.broadcast_to(np.array(paint, np.uint8), (176, 176, 3)).copy()
    return Layers(whole, painted, np.full((176, 176), 255 - share, np.uint8), WINDOW)


PHOTOGRAPHS = {"stripes": stripes(700, 620), "chequers": chequers(700, 620)}


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("roll", [0.0, 12.0])
def test_there_is_no_seam_around_what_moves(name, roll):
    """The motion ends before the rectangle does: its outermost pixels are those of the photograph."""
    still = compositor(PHOTOGRAPHS[name], roll=roll, face=170.0, mode="photo")
    rectangle = still.rectangle
    assert rectangle.left > 0 and rectangle.left + rectangle.width < still.still.shape[1]
    moved = still.frame(layers(flow=(9.0, -7.0)))
    rest = still.frame(layers())
    inside = np.zeros(moved.shape[:2], bool)
    inside[rectangle.slices] = True
    np.testing.assert_array_equal(moved[~inside], still.still[~inside])
    left, right = rectangle.left, rectangle.left + rectangle.width - 1
    for column in (left, left + 1, right - 1, right):
        np.testing.assert_array_equal(moved[rectangle.slices[0], column], rest[rectangle.slices[0], column])
    # At rest the warp changes nothing that could be seen at the rectangle's border.
    assert np.abs(rest[inside].astype(int) - still.still[inside]).mean() < 10
    # And what moves does move.
    assert np.abs(moved[inside].astype(int) - rest[inside]).mean() > 20


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_motion_sets_in_smoothly(name):
    still = compositor(PHOTOGRAPHS[name])
    positions = still.positions(layers(flow=(9.0, -7.0)).flow)
    across = np.diff(positions[..., 0], axis=1)
    down = np.diff(positions[..., 1], axis=0)
    # Neither folds nor jumps: nothing is enlarged or reduced by more than two.
    assert across.min() > 0.45 and across.max() < 2
    assert down.min() > 0.45 and down.max() < 2


photographs = st.sampled_from([(300, 240), (700, 620), (260, 900), (640, 480)])


@given(
    photographs,
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(96, 240),
    st.floats(-30, 30),
    st.sampled_from(["head", "face", "photo"]),
    st.tuples(st.floats(-60, 60), st.floats(-60, 60)),
)
def test_no_pixel_comes_from_outside_the_photograph(shape, x, y, face, roll, mode, flow):
    photograph = np.zeros((*shape, 3), np.uint8)
    eyes = (x * shape[1], y * shape[0])
    one = compositor(photograph, eyes, face, roll, mode)
    height, width, _ = one.still.shape
    rectangle = one.rectangle
    assert rectangle.left >= 0 and rectangle.left + rectangle.width <= width
    assert rectangle.top >= 0 and rectangle.top + rectangle.height <= height
    assert all(value % 2 == 0 for value in rectangle)
    back = affine.inverse(one.framing.matrix)
    there = affine.apply(back, one.positions(layers(flow=flow).flow))
    # Centres of the photograph's outermost pixels; interpolation looks a little further than it draws.
    assert there.min() > -0.6
    assert there[..., 0].max() < shape[1] - 0.4
    assert there[..., 1].max() < shape[0] - 0.4


def test_paint_is_used_at_the_mouth_only_and_keeps_its_colour():
    one = compositor(np.full((700, 620, 3), 100, np.uint8))
    painted = one.frame(layers(paint=(180, 60, 50), share=255))
    changed = np.abs(painted.astype(int) - 100).max(axis=2) > 0
    mouth = affine.apply(one.to_frame, LIPS)
    x, y = mouth.mean(0).astype(int)
    assert tuple(painted[y, x]) == (180, 60, 50), "no grain in this photograph, so none in its paint"
    ys, xs = np.nonzero(changed)
    width = np.ptp(mouth[:, 0])
    assert mouth[:, 0].min() - 0.4 * width < xs.min() and xs.max() < mouth[:, 0].max() + 0.4 * width
    # Nothing rings: every colour lies between the paint's and the skin's.
    assert painted[..., 0].min() >= 100 and painted[..., 0].max() <= 180
    assert painted[..., 1].min() >= 60 and painted[..., 1].max() <= 100


def test_an_edge_in_the_paint_does_not_ring():
    one = compositor(np.full((700, 620, 3), 100, np.uint8))
    drawn = layers(share=255)
    drawn.painted[:, :88], drawn.painted[:, 88:] = 40, 200
    frame = one.frame(drawn)
    assert frame.min() >= 38 and frame.max() <= 202


def test_a_pattern_that_alternates_from_pixel_to_pixel_is_not_painted():
    one = compositor(np.full((700, 620, 3), 100, np.uint8))
    drawn = layers(share=255)
    y, x = np.mgrid[:176, :176]
    drawn.painted[...] = np.where((x + y) % 2, 130, 70)[..., None]
    assert np.abs(one.frame(drawn).astype(int) - 100).max() <= 2


def test_paint_is_as_grainy_as_the_photograph():
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 4, (700, 620, 1))
    one = compositor(np.clip(140 + noise, 0, 255).repeat(3, axis=2).round().astype(np.uint8))
    smooth = layers(paint=(140, 140, 140), share=255)
    x, y = affine.apply(one.to_frame, LIPS).mean(0).astype(int)

    def grain(frame):
        patch = frame[y - 12 : y + 12, x - 12 : x + 12, 0].astype(np.float32)
        return float((patch - cv2.GaussianBlur(patch, (0, 0), 1)).std())

    assert grain(one.frame(smooth)) == pytest.approx(grain(one.still), rel=0.5)


def test_frames_are_as_sharp_as_the_photograph():
    rng = np.random.default_rng(2)
    texture = cv2.GaussianBlur(rng.normal(128, 300, (700, 620)).astype(np.float32), (0, 0), 1.2)
    one = compositor(np.repeat(texture.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2))

    def sharpness(frame):
        return np.abs(np.diff(frame[..., 0].astype(float), axis=1))[150:300, 150:300].mean()

    for shift in (0.0, 0.13, 0.25, 1.4):
        moved = one.frame(layers(flow=(shift, shift)))
        assert sharpness(moved) == pytest.approx(sharpness(one.still), rel=0.08)
