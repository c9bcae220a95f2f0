import numpy as np
import pytest

from avatard.models.face.search import find_faces
from tests.support.faces import networks, on_canvas, portrait, portrait_mesh


def test_one_portrait_is_one_face():
    faces = find_faces(networks(), portrait())
    assert len(faces) == 1
    np.testing.assert_allclose(faces[0], portrait_mesh(), atol=3)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_group_is_counted_from_the_left_however_small_its_faces(scale):
    columns, rows = 4, 3
    step = round(300 * scale)
    places = [(column * step, row * step, scale) for row in range(rows) for column in range(columns)]
    faces = find_faces(networks(), on_canvas(rows * step, columns * step, *places))
    assert len(faces) == 12
    middles = [face[:, 0].mean() for face in faces]
    assert middles == sorted(middles)


def test_a_small_face_in_a_large_picture_is_found():
    faces = find_faces(networks(), on_canvas(1200, 1600, (1200, 700, 0.9)))
    assert len(faces) == 1
    np.testing.assert_allclose((faces[0][:, :2] - [1200, 700]) / 0.9, portrait_mesh()[:, :2], atol=5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 2), (640, 640)])
def test_pictures_without_faces_have_none(shape):
    texture = np.random.default_rng(4).integers(0, 255, (*shape, 3), dtype=np.uint8)
    assert find_faces(networks(), texture) == []
