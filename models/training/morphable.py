"""The 3DMM, learned from meshes of portraits and talking faces: mean face, identity basis, expression basis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import align, rotation_matrix
from avatard.models.face.topology import MESH_TO_68, RIGID_MESH, interocular, mouth_opening

Array = NDArray[np.floating]
#: Mesh vertices that face each other across the midline, and its ends.
RIGHT_HALF, LEFT_HALF = [33, 133, 127, 234, 162, 21, 54, 61], [263, 362, 356, 454, 389, 251, 284, 291]
FOREHEAD, CHIN = 10, 152


def upright(face: Array) -> Array:
    """The face turned so that x runs from its right to its left half and y down its midline, eyes at the origin."""
    x = (face[LEFT_HALF] - face[RIGHT_HALF]).mean(axis=0)
    x /= np.linalg.norm(x)
    y = face[CHIN] - face[FOREHEAD]
    y -= x * (x @ y)
    y /= np.linalg.norm(y)
    return to_unit(face @ np.stack([x, y, np.cross(x, y)]).T)


def mean_face(faces: Array, rounds: int = 8) -> tuple[Array, NDArray[np.intp]]:
    """Symmetric Procrustes mean `[468, 3]` of portraits' meshes, in canonical units, and each vertex's mirror vertex.

    Frontal is how the average portrait looks at the camera: halves alike, and no pitch left between it and the mean.
    """
    mean = upright(faces[0])
    for _ in range(rounds):
        mean = upright(align(mean[RIGID_MESH], faces[:, RIGID_MESH]).unproject(faces).mean(axis=0))
        flipped = mean * [-1, 1, 1]
        mirror = linear_sum_assignment(((mean[:, None] - flipped[None]) ** 2).sum(axis=-1))[1]
        mean = (mean + flipped[mirror]) / 2
        pitch = float(np.mean(align(mean[RIGID_MESH], faces[:, RIGID_MESH]).yaw_pitch_roll[:, 1]))
        mean = to_unit(mean @ rotation_matrix(0, pitch, 0).T)
    return mean, mirror


def to_unit(mean: Array) -> Array:
    """The face moved and scaled to the canonical origin and unit."""
    eyes = mean[MESH_TO_68][36:48].reshape(2, 6, 3).mean(axis=1)
    unit: Array = (mean - eyes.mean(axis=0)) / interocular(mean[MESH_TO_68])
    return unit


def principal(samples: Array, components: int) -> tuple[Array, Array]:
    """PCA about zero of `[N, 468, 3]`: basis `[K, 468, 3]` in standard deviations, and each one's share of variance."""
    flat = samples.reshape(len(samples), -1)
    _, singular, vt = np.linalg.svd(flat, full_matrices=False)
    deviation = singular[:components] / np.sqrt(len(flat))
    share = singular**2 / (singular**2).sum()
    return (vt[:components] * deviation[:, None]).reshape(-1, *samples.shape[1:]), share[:components]


def learn(
    portraits: Sequence[Array],
    clips: Mapping[str, Sequence[Array]],
    identity_components: int,
    expression_components: int,
    rounds: int,
) -> tuple[MorphableModel, dict[str, str]]:
    """Alternate between expression and identity until they are apart.

    Args:
        portraits: meshes `[1, 468, 3]` of many people.
        clips: meshes `[N, 468, 3]` of each clip, by person.
        identity_components: of the basis.
        expression_components: likewise.
        rounds: of the alternation.

    Returns:
        The model, and figures about it.
    """
    still = np.concatenate(portraits)
    mean, mirror = mean_face(still)

    def mirrored(samples: Array) -> Array:
        return (samples * [-1, 1, 1])[:, mirror]

    def both(samples: Array) -> Array:
        return np.concatenate([samples, mirrored(samples)])

    basis = MorphableModel(mean, np.zeros((0, 468, 3)), np.zeros((0, 468, 3)))
    moving, rest = [], []
    for files in clips.values():
        neutral = []
        for meshes in files:
            canonical, _ = basis.frontal(meshes)
            opening = mouth_opening(canonical[:, MESH_TO_68])
            closed = canonical[opening <= np.quantile(opening, 0.2)].mean(axis=0)
            neutral.append(closed)
            moving.append(canonical - closed)
        rest.append(np.median(neutral, axis=0))
    motion = np.concatenate(moving)
    expression, share_expression = principal(both(motion), expression_components)
    faces = basis.pose(still).unproject(still)
    identity: Array = np.zeros((0, 468, 3))
    # Portraits smile. The speakers' closed mouths come first, so that a smile is expression, not identity.
    neutral_faces: Array = np.stack(rest)
    for _ in range(rounds):
        mean = to_unit(both(neutral_faces).mean(axis=0))
        identity, share_identity = principal(both(neutral_faces - mean), identity_components)
        model = MorphableModel(mean, identity, expression)
        neutral_faces = np.concatenate([mean + model.neutral(faces - mean), np.stack(rest)])

    def residual(samples: Array) -> float:
        alpha_id, alpha_exp = model.fit(samples)
        fitted = np.tensordot(alpha_id, model.identity, 1) + np.tensordot(alpha_exp, model.expression, 1)
        return float(np.sqrt(((samples - fitted) ** 2).sum(-1).mean()) * 100)

    return model, {
        "people": f"{len(portraits)} portraits, {len(clips)} speakers",
        "frames": str(len(motion)),
        "identity_variance_explained": f"{share_identity.sum():.4f}",
        "expression_variance_explained": f"{share_expression.sum():.4f}",
        "portrait_fit_rms_percent_iod": f"{residual(faces - mean):.2f}",
        "speaker_neutral_fit_rms_percent_iod": f"{residual(np.stack(rest) - mean):.2f}",
        "closed_mouth_opening_percent_iod": f"{100 * float(mouth_opening(mean[MESH_TO_68])):.2f}",
    }
