import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.models.face.pose import Pose, align, pos, rotation_matrix, smooth
from avatard.models.face.topology import RIGID_68
from tests.support.faces import morphable, networks, portrait

ANGLE = st.floats(-40, 40)


def pose_of(yaw: float, pitch: float, roll: float, scale: float = 60.0) -> Pose:
    return Pose(rotation_matrix(yaw, pitch, roll), np.array(scale), np.array([128.0, 108.0]))


@given(st.floats(-89, 89), st.floats(-179, 179), st.floats(-179, 179))
def test_angles_and_rotation_are_exact_inverses(yaw, pitch, roll):
    rotation = rotation_matrix(yaw, pitch, roll)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    np.testing.assert_allclose(pose_of(yaw, pitch, roll).yaw_pitch_roll, [yaw, pitch, roll], atol=1e-6)


def test_positive_angles_turn_the_nose_right_and_up_and_the_picture_clockwise():
    nose, right_ear_to_left_ear = np.array([[0.0, 0, -1]]), np.array([[1.0, 0, 0]])
    assert (pose_of(30, 0, 0).project(nose)[0, :2] - [128, 108])[0] > 20
    assert (pose_of(0, 30, 0).project(nose)[0, :2] - [128, 108])[1] < -20  # y is down
    assert (pose_of(0, 0, 30).project(right_ear_to_left_ear)[0, :2] - [128, 108])[1] > 20


def test_a_mirrored_face_has_the_opposite_yaw():
    image = portrait()
    turned = []
    for picture in (image, np.ascontiguousarray(image[:, ::-1])):
        points, _ = networks().refine(picture, networks().detect(picture)[0])
        turned.append(morphable().pose(points.astype(float)).yaw_pitch_roll)
    assert turned[0][0] == pytest.approx(-turned[1][0], abs=1.5)
    assert turned[0][1] == pytest.approx(turned[1][1], abs=1.5)


@given(ANGLE, ANGLE, ANGLE, st.floats(5, 500), st.tuples(st.floats(-100, 900), st.floats(-100, 900)))
def test_pos_finds_a_synthetic_pose_again(yaw, pitch, roll, scale, at):
    face = morphable().mean_68
    truth = Pose(rotation_matrix(yaw, pitch, roll), np.array(scale), np.array(at))
    image = truth.project(face)
    found = pos(face[RIGID_68], image[RIGID_68, :2])
    error = np.linalg.norm(found.project(face)[:, :2] - image[:, :2], axis=-1).max() / scale
    assert error < 0.005
    np.testing.assert_allclose(found.yaw_pitch_roll, [yaw, pitch, roll], atol=0.1)


def test_pos_stays_near_under_noise():
    rng = np.random.default_rng(0)
    face, truth = morphable().mean_68, pose_of(35, -10, 5)
    image = truth.project(face)[:, :2] + rng.normal(0, 0.3, (200, 68, 2))
    found = pos(np.broadcast_to(face[RIGID_68], (200, len(RIGID_68), 3)), image[:, RIGID_68])
    assert np.abs(found.yaw_pitch_roll - [35, -10, 5]).mean(axis=0).max() < 1.0
    assert found.scale.mean() == pytest.approx(60, rel=0.01)


@given(ANGLE, ANGLE, ANGLE)
def test_align_uses_depth_and_is_exact(yaw, pitch, roll):
    face, truth = morphable().mean_68, pose_of(yaw, pitch, roll)
    image = truth.project(face)
    found = align(face, image)
    np.testing.assert_allclose(found.rotation, truth.rotation, atol=1e-9)
    np.testing.assert_allclose(found.project(face)[:, :2], image[:, :2], atol=1e-6)


def test_unproject_undoes_project_for_batches():
    poses = [pose_of(yaw, 5, -3, 50 + yaw) for yaw in (-30.0, 0.0, 30.0)]
    batch = Pose(*(np.stack([getattr(p, name) for p in poses]) for name in ("rotation", "scale", "translation")))
    points = np.random.default_rng(1).normal(size=(3, 68, 3))
    image = batch.project(points)
    np.testing.assert_allclose(batch.unproject(image), points, atol=1e-12)
    np.testing.assert_allclose(image[1], batch[1].project(points[1]), atol=1e-12)


def test_smoothing_adds_no_lag():
    path = 10 * np.sin(np.arange(100) / 8)
    moving = [Pose(np.eye(3), np.array(60.0), np.array([x, 0.0])) for x in path]
    batch = Pose(*(np.stack([getattr(p, name) for p in moving]) for name in ("rotation", "scale", "translation")))
    calm = smooth(batch).translation[10:-10, 0]
    assert np.corrcoef(calm, path[10:-10])[0, 1] > 0.9999


def test_smoothing_keeps_rotations_and_a_still_head():
    rng = np.random.default_rng(3)
    truth = [pose_of(10 + rng.normal(0, 0.5), rng.normal(0, 0.5), 0, 60 + rng.normal(0, 0.2)) for _ in range(100)]
    batch = Pose(*(np.stack([getattr(p, name) for p in truth]) for name in ("rotation", "scale", "translation")))
    calm = smooth(batch)
    np.testing.assert_allclose(
        calm.rotation @ np.swapaxes(calm.rotation, -1, -2), np.eye(3)[None].repeat(100, 0), atol=1e-9
    )
    assert calm.yaw_pitch_roll[20:, 0].std() < 0.7 * batch.yaw_pitch_roll[20:, 0].std()
    assert calm.yaw_pitch_roll[20:, 0].mean() == pytest.approx(10, abs=0.5)
