import cv2
import numpy as np
import pytest

from avatard.engine.eye_motion import EyeMotion, look
from avatard.engine.eyes import EyePainter, Eyes
from avatard.engine.idle_motion import Idle
from avatard.models.face.arkit import ARKIT_NAMES
from avatard.models.face.pose import Pose, rotation_matrix
from avatard.models.face.topology import EYE_CORNERS, LOWER_LIDS, UPPER_LIDS
from tests.support.faces import morphable, portrait, portrait_mesh

SKIN, IRIS = (200, 160, 140), (40, 30, 20)
SCALE = 120.0


def drawn_face(turn: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """A mean face of plain skin with white eyes and dark irises, `[500, 500, 4]`, and its mesh `[468, 2]`."""
    pose = Pose(rotation_matrix(0, 0, turn), np.array(SCALE), np.array([250.0, 200.0]))
    points = pose.project(morphable().mean)[:, :2]
    picture = np.full((500, 500, 3), SKIN, np.uint8)
    for side in range(2):
        outline = np.concatenate([points[UPPER_LIDS[side]], points[LOWER_LIDS[side]][::-1], points[EYE_CORNERS[side]]])
        lids = np.zeros(picture.shape[:2], np.uint8)
        cv2.fillConvexPoly(lids, cv2.convexHull(outline.astype(np.float32)).round().astype(int), 1)
        eye = np.full_like(picture, 235)
        cv2.circle(eye, tuple(outline.mean(0).round().astype(int).tolist()), round(0.093 * SCALE), IRIS, -1)
        picture[lids > 0] = eye[lids > 0]
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA), np.uint8), points


def opened(picture: np.ndarray) -> int:
    """Pixels of white and iris."""
    luma = picture[..., :3].astype(int).mean(axis=2)
    return int(((luma > 215) | (luma < 60)).sum())


def iris(picture: np.ndarray, half: slice) -> float:
    """Mean column of the dark pixels in one half of a picture, halfway between the lids."""
    rows = np.nonzero(picture[:, half, 0] < 60)[0]
    middle = round((rows.min() + rows.max()) / 2)
    return float(np.nonzero(picture[middle - 1 : middle + 2, half, 0] < 60)[1].mean())


@pytest.mark.parametrize("turn", [0.0, 15.0])
def test_shut_lids_cover_the_whole_eye(turn):
    picture, points = drawn_face(turn)
    before = opened(picture)
    painter = EyePainter(picture, points, SCALE)
    left = [opened(picture)]
    for closure in (0.25, 0.5, 0.75, 1.0):
        painter(Eyes((closure, closure)))
        left.append(opened(picture))
    assert left[0] == before
    assert all(later < earlier for earlier, later in zip(left, left[1:], strict=False))
    # Lashes are as dark as the iris: a thin line of them stays.
    assert left[-1] < 0.25 * before


def test_lids_come_down_over_the_iris_and_do_not_squash_it():
    picture, points = drawn_face()
    low = points[LOWER_LIDS[0], 1].max()
    middle = round(points[EYE_CORNERS[0], 0].mean())
    iris_below = slice(int(low) - 6, int(low) - 2), slice(middle - 8, middle + 9)
    before = picture[iris_below].copy()
    EyePainter(picture, points, SCALE)(Eyes((0.4, 0.4)))
    np.testing.assert_allclose(picture[iris_below].astype(int), before.astype(int), atol=6)


def test_a_lid_comes_out_of_the_shadow_of_the_brow():
    """Eyes lie deep: the skin above them is dark and reddish, a shut lid is nearly as bright as the skin below it."""
    picture, points = drawn_face()
    lids = [points[UPPER_LIDS[side]] for side in range(2)]
    for lid in lids:
        low = lid[:, 1].min()
        left, right = round(lid[:, 0].min()) - 8, round(lid[:, 0].max()) + 8
        picture[round(low - 22) : round(low), left:right, :3] = (110, 60, 45)
    EyePainter(picture, points, SCALE)(Eyes((1.0, 1.0)))
    for side, lid in enumerate(lids):
        x = round(lid[:, 0].mean())
        between = round((lid[:, 1].min() + points[LOWER_LIDS[side]][:, 1].max()) / 2)
        shut = picture[between - 2 : between + 3, x - 8 : x + 9, :3].mean((0, 1))
        assert (shut > 0.65 * np.array(SKIN)).all() and (shut < 1.05 * np.array(SKIN)).all()


def test_nothing_but_the_surroundings_of_the_eyes_is_touched_and_it_comes_back():
    picture, points = drawn_face()
    before = picture.copy()
    painter = EyePainter(picture, points, SCALE)
    painter(Eyes((1.0, 0.5), (10.0, -5.0)))
    rows, columns, _ = np.nonzero(picture != before)
    eyes = points[[*UPPER_LIDS.flat, *LOWER_LIDS.flat, *EYE_CORNERS.flat]]
    assert eyes[:, 1].min() - 0.3 * SCALE < rows.min() and rows.max() < eyes[:, 1].max() + 0.2 * SCALE
    assert eyes[:, 0].min() - 0.1 * SCALE < columns.min() and columns.max() < eyes[:, 0].max() + 0.1 * SCALE
    painter(Eyes())
    np.testing.assert_array_equal(picture, before)


def test_irises_turn_to_where_the_eyes_look_and_lids_stay():
    picture, points = drawn_face()
    before = picture.copy()
    painter = EyePainter(picture, points, SCALE)
    for half in (slice(0, 250), slice(250, 500)):
        middle = iris(before, half)
        painter(Eyes(gaze=(15.0, 0.0)))
        right = iris(picture, half)
        painter(Eyes(gaze=(-15.0, 0.0)))
        left = iris(picture, half)
        # 15 degrees of an eyeball of 0.19 interocular distances; a pixel less, for the drawing has steps.
        assert right - middle == pytest.approx(0.049 * SCALE, abs=1.7)
        assert left - middle == pytest.approx(-0.049 * SCALE, abs=1.7)
    painter(Eyes(gaze=(90.0, 0.0)))
    assert iris(picture, slice(0, 250)) - iris(before, slice(0, 250)) < 0.06 * SCALE, "no more than 15 degrees"


def test_eyes_outside_the_picture_do_no_harm():
    photograph = np.asarray(cv2.cvtColor(portrait(), cv2.COLOR_RGB2RGBA), np.uint8)
    mesh = portrait_mesh()[:, :2]
    for shift in ((-200, 0), (400, 0), (0, -200), (0, 300), (-110, 0)):
        EyePainter(photograph.copy(), mesh + shift, 45.0)(Eyes((0.7, 1.0), (5.0, 5.0)))


def eye_motion(liveliness: float = 1.0) -> EyeMotion:
    pose = Pose(np.eye(3), np.array(58.0), np.array([128.0, 108.0]))
    return EyeMotion(pose, Idle(morphable().mean_68, seed=3), liveliness)


def test_every_blink_of_the_landmarks_shuts_the_eyes_in_two_or_three_frames():
    idle = Idle(morphable().mean_68, seed=3)
    frames = 25 * 60
    opened_face, closure = eye_motion().open_lids(0, idle.face(0, frames))
    assert np.abs(opened_face[:, 36:48]).max() < 1e-6, "the video network sees open eyes"
    shut = closure.mean(axis=1)
    blinks = np.flatnonzero((shut[1:-1] > 0.9) & (shut[1:-1] >= shut[:-2]) & (shut[1:-1] > shut[2:]))
    assert len(blinks) >= 15
    moving = np.flatnonzero(shut > 0.02)
    runs = np.split(moving, np.flatnonzero(np.diff(moving) > 1) + 1)
    for run in runs:
        peak = int(np.argmax(shut[run]))
        assert shut[run].max() > 0.95
        assert peak <= 4 and len(run) - peak <= 8
    assert (shut == 0).mean() > 0.8


def test_eyes_stay_with_the_camera_when_the_head_turns():
    pose = Pose(rotation_matrix(8, 4, 0), np.array(58.0), np.array([128.0, 108.0]))
    still = eye_motion(liveliness=0).eyes(100, pose, np.zeros(2))
    assert still.gaze == pytest.approx((-8, 4), abs=0.3)
    rest = Pose(np.eye(3), np.array(58.0), np.array([128.0, 108.0]))
    assert eye_motion(liveliness=0).eyes(100, rest, np.array([1.0, 0.5])) == Eyes((1.0, 0.5), (0.0, 0.0))


def test_gaze_rests_on_the_camera_and_jumps():
    idle = Idle(morphable().mean_68, seed=5)
    gaze = np.array([idle.gaze(frame) for frame in range(25 * 120)])
    np.testing.assert_array_equal(gaze[1000:1100], [idle.gaze(frame) for frame in range(1000, 1100)])
    still = np.abs(np.diff(gaze, axis=0)).max(axis=1) == 0
    assert still.mean() > 0.85
    away = np.hypot(*gaze.T) > 4
    assert 0.02 < away.mean() < 0.2
    assert np.abs(gaze).max() < 15


def test_the_gaze_is_in_the_blend_shapes():
    shapes = look(np.zeros(52, np.float32), Eyes(gaze=(15.0, -6.0)))
    by_name = dict(zip(ARKIT_NAMES, shapes.tolist(), strict=True))
    assert by_name["eyeLookOutLeft"] == by_name["eyeLookInRight"] == 0.5
    assert by_name["eyeLookUpLeft"] == by_name["eyeLookUpRight"] == pytest.approx(0.2)
    assert by_name["eyeLookInLeft"] == by_name["eyeLookDownRight"] == 0
