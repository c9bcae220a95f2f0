import numpy as np
import pytest

from avatard.models.face.topology import (
    LIP_68,
    MESH_TO_68,
    MESH_VERTICES,
    MIRROR_68,
    REST_68,
    RIGID_MESH,
    eye_opening,
    interocular,
    mouth_opening,
)
from tests.support.faces import morphable


def test_the_tables_name_vertices_once():
    assert len(MESH_TO_68) == 68
    assert len(set(MESH_TO_68)) == 68
    assert max(*MESH_TO_68, *RIGID_MESH) < MESH_VERTICES
    assert sorted([*LIP_68, *REST_68]) == list(range(68))


def test_the_mirror_table_mirrors_the_mean_face():
    face = morphable().mean_68
    np.testing.assert_allclose(face[MIRROR_68] * [-1, 1, 1], face, atol=0.01)
    np.testing.assert_array_equal(MIRROR_68[MIRROR_68], np.arange(68))


def test_parts_lie_where_a_face_has_them():
    face = morphable().mean_68
    brows, eyes, nose, mouth, chin = (
        face[part, 1].mean() for part in (range(17, 27), range(36, 48), [30], range(48, 68), [8])
    )
    assert brows < eyes < nose < mouth < chin
    assert face[36, 0] < face[39, 0] < 0 < face[42, 0] < face[45, 0]  # outer, inner, inner, outer corner
    assert face[8, 1] == face[:, 1].max()
    assert (face[30, 2], face[[0, 16], 2].min()) == (face[:, 2].min(), pytest.approx(face[16, 2], abs=0.01))


def test_openings_measure_gaps():
    face = morphable().mean_68.copy()
    closed = mouth_opening(face)
    face[[65, 66, 67], 1] += 0.2
    assert mouth_opening(face) == pytest.approx(closed + 0.2)
    right, left = eye_opening(face)
    face[[46, 47], 1] -= 0.05
    np.testing.assert_allclose(eye_opening(face), [right, left - 0.05])
    assert interocular(face * 3) == pytest.approx(3, abs=0.2)
