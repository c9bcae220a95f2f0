import cv2
import numpy as np
import pytest

from avatard.models.face.crop import CROP_ORIGIN, CROP_SCALE, FACE_HEIGHT, Crop
from avatard.models.face.pose import Pose, rotation_matrix
from avatard.timebase import CROP_SIDE
from tests.support.faces import morphable, portrait, portrait_mesh


def pose_of(roll: float, scale: float, at: tuple[float, float]) -> Pose:
    return Pose(rotation_matrix(10, 5, roll), np.array(scale), np.array(at))


def test_the_crop_removes_roll_and_fixes_scale_and_place():
    pose = pose_of(25, 90, (700, 300))
    crop = Crop.of(pose)
    points = crop.points(pose.project(morphable().mean))
    again = morphable().pose(points)
    assert again.yaw_pitch_roll == pytest.approx([10, 5, 0], abs=0.01)
    assert again.scale == pytest.approx(CROP_SCALE)
    np.testing.assert_allclose(again.translation, CROP_ORIGIN, atol=1e-6)
    assert crop.factor == pytest.approx(CROP_SCALE / 90)


def test_forehead_to_chin_takes_60_percent_of_the_side():
    mean = morphable().mean
    assert mean[152, 1] - mean[10, 1] == pytest.approx(FACE_HEIGHT, abs=0.02)
    assert FACE_HEIGHT * CROP_SCALE == pytest.approx(0.6 * CROP_SIDE)


@pytest.mark.parametrize("scale", [25.0, 58.0, 200.0])
def test_pixels_and_points_move_alike(scale):
    image = np.zeros((900, 1200, 3), np.uint8)
    at = np.array([640.0, 410.0])
    cv2.circle(image, (640, 410), max(3, round(scale / 8)), (255, 255, 255), -1)
    crop = Crop.of(pose_of(-12, scale, (600, 400)))
    square = crop.image(image)
    assert square.shape == (CROP_SIDE, CROP_SIDE, 3)
    weight = square[..., 0].astype(float)
    y, x = np.mgrid[:CROP_SIDE, :CROP_SIDE]
    centre = [(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()]
    np.testing.assert_allclose(centre, crop.points(np.array([[*at, 0.0]]))[0, :2], atol=0.3)


def test_a_clip_has_one_crop_the_median_of_its_poses():
    poses = [pose_of(roll, 60 + roll, (100 + roll, 100)) for roll in (-5.0, 0.0, 1.0, 2.0, 40.0)]
    batch = Pose(*(np.stack([getattr(p, name) for p in poses]) for name in ("rotation", "scale", "translation")))
    np.testing.assert_allclose(Crop.of(batch).matrix, Crop.of(pose_of(1.0, 61, (101, 100))).matrix, atol=1e-9)


def test_outside_of_the_picture_is_its_blurred_reflection():
    image = np.full((50, 60, 3), 200, np.uint8)
    assert (Crop.of(pose_of(0, 58, (0, 0))).image(image) == 200).all()
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    square = Crop.of(pose_of(0, 58, (60, 200))).image(noise).astype(float)
    # The picture begins at column 68; stripes of its edge would not vary from column to column.
    assert square[:, 80:].std() > 50
    assert 2 < square[:, :40].std() < 20
    assert np.abs(np.diff(square[:, :40], axis=1)).mean() > 0.1


def test_the_portrait_is_centred_on_its_eyes():
    pose = morphable().pose(portrait_mesh())
    crop = Crop.of(pose)
    eyes = crop.points(portrait_mesh())[[33, 133, 362, 263], :2].mean(axis=0)
    np.testing.assert_allclose(eyes, CROP_ORIGIN, atol=8)
    assert crop.image(portrait()).std() > 20
