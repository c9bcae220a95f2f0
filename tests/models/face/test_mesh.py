import os

import cv2
import numpy as np
import pytest

from avatard.models.face.mesh import Detection, FaceTracker, Region, region_of
from avatard.models.face.topology import MESH_TO_68, interocular
from tests.support.faces import networks, on_canvas, portrait, portrait_mesh


def test_the_portrait_has_one_face_with_eyes_inside_its_box():
    found = networks().detect(portrait())
    assert len(found) == 1
    left, top, right, bottom = found[0].box
    assert found[0].score > 0.8
    (rx, ry), (lx, ly) = found[0].eyes
    assert left < rx < lx < right
    assert top < ry < bottom and abs(ry - ly) < 5


def test_a_picture_without_a_face_has_none():
    assert networks().detect(np.full((240, 320, 3), 90, np.uint8)) == []
    noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3), dtype=np.uint8)
    assert networks().detect(noise) == []


@pytest.mark.parametrize("shape", [(300, 700), (700, 300)])
def test_boxes_are_in_pixels_of_pictures_of_any_shape(shape):
    left, top = shape[1] - 300, shape[0] - 300
    found = networks().detect(on_canvas(*shape, (left, top, 1.0)))[0]
    alone = networks().detect(portrait())[0]
    box, expected = np.array(found.box), np.array(alone.box) + [left, top, left, top]
    np.testing.assert_allclose((box[:2] + box[2:]) / 2, (expected[:2] + expected[2:]) / 2, atol=15)
    assert box[2] - box[0] == pytest.approx(expected[2] - expected[0], rel=0.25)


def test_the_mesh_follows_the_face_through_shift_scale_and_turn():
    reference = portrait_mesh()[:, :2]
    image = on_canvas(900, 900, (250, 310, 1.5))
    points, presence = networks().refine(image, networks().detect(image)[0])
    assert presence > 0.99
    unit = interocular(reference[MESH_TO_68])
    moved = (points[:, :2] - [250, 310]) / 1.5
    assert np.linalg.norm(moved - reference, axis=-1).mean() / unit < 0.03
    upside = np.ascontiguousarray(np.rot90(portrait(), 2))
    turned, presence = networks().mesh(
        upside, region_of((portrait_mesh() * [-1, -1, 1] + [299, 299, 0]).astype(np.float32))
    )
    assert presence > 0.99
    assert np.linalg.norm(299 - turned[:, :2] - reference, axis=-1).mean() / unit < 0.03


def test_a_large_face_gives_the_same_mesh():
    factor = 5
    image = cv2.resize(portrait(), None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC).astype(np.uint8)
    points, _ = networks().refine(image, networks().detect(image)[0])
    unit = interocular(portrait_mesh()[MESH_TO_68, :2])
    shift = (points[:, :2] + 0.5) / factor - 0.5 - portrait_mesh()[:, :2]
    assert np.linalg.norm(shift.mean(axis=0)) / unit < 0.01
    assert np.linalg.norm(shift, axis=-1).mean() / unit < 0.02


def test_depth_points_away_from_the_viewer():
    nose, ears = portrait_mesh()[4, 2], portrait_mesh()[[127, 356], 2]
    assert nose < ears.min()


def test_a_region_maps_its_centre_and_side():
    region = Region((50.0, 40.0), 20.0, 0.3)
    to_image = region.to_image(192)
    np.testing.assert_allclose(to_image @ [96, 96, 1], [50, 40])
    edge = to_image @ [192, 96, 1] - to_image @ [0, 96, 1]
    np.testing.assert_allclose(edge, [20 * np.cos(0.3), 20 * np.sin(0.3)])


def test_a_detection_maps_into_a_larger_picture():
    small = Detection(0.9, (1.0, 2.0, 3.0, 4.0), ((1.5, 2.5), (2.5, 2.5)))
    assert small.mapped(2, 10, 20) == Detection(0.9, (12.0, 24.0, 16.0, 28.0), ((13.0, 25.0), (15.0, 25.0)))


def test_the_tracker_follows_loses_and_finds_again():
    tracker = FaceTracker(networks())
    assert tracker(np.zeros((300, 300, 3), np.uint8)) is None
    tracks = [tracker(on_canvas(400, 500, (40 + 4 * n, 50, 1.0))) for n in range(5)]
    centres = np.array([track[:, 0].mean() for track in tracks if track is not None])
    np.testing.assert_allclose(np.diff(centres), 4, atol=0.6)
    assert tracker(np.zeros((400, 500, 3), np.uint8)) is None
    assert tracker(on_canvas(400, 500, (40, 50, 1.0))) is not None


def test_loading_says_nothing_on_standard_error_and_leaves_it_open(capfd):
    from avatard.models.face.mesh import FaceMesh

    FaceMesh()
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"
