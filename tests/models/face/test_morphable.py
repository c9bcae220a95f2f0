import numpy as np
import pytest

from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose, rotation_matrix
from avatard.models.face.topology import MESH_TO_68, interocular, mouth_opening
from tests.support.faces import morphable, portrait_mesh


def talking(frames: int = 40) -> tuple[np.ndarray, np.ndarray, Pose]:
    """A synthetic person: canonical meshes [N, 468, 3], neutral mesh, and moving poses."""
    model, rng = morphable(), np.random.default_rng(5)
    neutral = model.mean + np.tensordot(rng.normal(0, 1, len(model.identity)), model.identity, 1)
    alpha = np.sin(np.arange(frames)[:, None] * 0.4 + rng.uniform(0, 6, len(model.expression))) * 0.8
    canonical = neutral + np.tensordot(alpha, model.expression, 1)
    rotation = np.stack(
        [rotation_matrix(25 * np.sin(n / 7), 12 * np.cos(n / 5), 8 * np.sin(n / 9)) for n in range(frames)]
    )
    scale, shift = (
        58 + 5 * np.sin(np.arange(frames) / 6),
        np.stack([np.full(frames, 128.0), np.full(frames, 108.0)], -1),
    )
    return canonical, neutral, Pose(rotation, scale, shift)


def test_the_mean_face_defines_origin_unit_and_frontal():
    face = morphable().mean_68
    assert interocular(face) == pytest.approx(1, abs=1e-4)
    np.testing.assert_allclose(face[36:48].reshape(2, 6, 3).mean(axis=(0, 1)), 0, atol=1e-4)
    mirrored = morphable().mean * [-1, 1, 1]
    nearest = np.linalg.norm(mirrored[:, None] - morphable().mean[None], axis=-1).min(axis=1)
    assert nearest.max() < 0.02


def test_bases_are_scaled_to_one_deviation_and_do_not_mix():
    model = morphable()
    assert len(model.identity) >= 20 and len(model.expression) >= 20
    for basis in (model.identity, model.expression):
        strength = np.linalg.norm(basis.reshape(len(basis), -1), axis=1)
        assert (np.diff(strength) <= 1e-6).all()
    mouth_moves = np.abs(model.expression[0][MESH_TO_68][48:68]).mean()
    assert mouth_moves > 3 * np.abs(model.expression[0][MESH_TO_68][27:31]).mean()


@pytest.mark.parametrize("points", [slice(None), MESH_TO_68])
def test_fit_explains_synthetic_faces(points):
    model, rng = morphable(), np.random.default_rng(6)
    alpha_id, alpha_exp = rng.normal(0, 1, (5, len(model.identity))), rng.normal(0, 1, (5, len(model.expression)))
    faces = np.tensordot(alpha_id, model.identity, 1) + np.tensordot(alpha_exp, model.expression, 1)
    found_id, found_exp = model.fit(faces[:, points])
    again = np.tensordot(found_id, model.identity, 1) + np.tensordot(found_exp, model.expression, 1)
    assert np.sqrt(((again - faces)[:, points] ** 2).sum(-1).mean()) < 0.015
    assert found_exp.shape == alpha_exp.shape


def test_neutral_closes_an_open_mouth_and_keeps_the_person():
    model = morphable()
    direction = model.expression[0] * np.sign(mouth_opening(model.expression[0][MESH_TO_68]))
    person = 1.5 * model.identity[1]
    rest, talks = (model.neutral((person + k * direction)[MESH_TO_68]) for k in (0.0, 2.0))
    opened = mouth_opening((person + 2 * direction)[MESH_TO_68]) - mouth_opening(person[MESH_TO_68])
    assert abs(mouth_opening(talks) - mouth_opening(rest)) < 0.15 * opened
    assert np.linalg.norm(rest - person[MESH_TO_68]) < 0.4 * np.linalg.norm(person[MESH_TO_68])


def test_the_pose_does_not_leak_into_the_mouth():
    canonical, _, truth = talking()
    found, pose = morphable().frontal(truth.project(canonical))
    moves = mouth_opening(canonical[:, MESH_TO_68])
    seen = mouth_opening(found[:, MESH_TO_68])
    assert np.corrcoef(moves, seen)[0, 1] > 0.99
    wrong = seen - moves
    assert wrong.std() < 0.1 * moves.std()
    # one constant turn and scale of the whole face remains: identity and pose share it
    assert (pose.yaw_pitch_roll - truth.yaw_pitch_roll).std(axis=0).max() < 0.5


def test_landmarks_are_offsets_from_the_mean_face():
    model = morphable()
    np.testing.assert_array_equal(model.landmarks(model.mean[None]), np.zeros((1, 68, 3)))
    canonical, _ = model.frontal(portrait_mesh()[None])
    assert np.abs(model.landmarks(canonical)).max() < 0.5


def test_loads_without_torch():
    import subprocess
    import sys

    code = "import sys, avatard.models.face.morphable as m; m.MorphableModel.load(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_model_is_one_clear_error(tmp_path):
    from avatard.models.checkpoint import CheckpointError

    with pytest.raises(CheckpointError, match="no weights at"):
        MorphableModel.load(tmp_path / "other.safetensors")
