import cv2
import numpy as np
import pytest

from avatard.models.mcvdm.mouth_window import (
    WINDOW_HEIGHT,
    WINDOW_SCALE,
    WINDOW_WIDTH,
    MouthWindow,
    lip_mask,
)

MIDDLE = ((WINDOW_WIDTH - 1) / 2, (WINDOW_HEIGHT - 1) / 2)
SQUARE = np.array([[-10.0, -5.0], [10.0, -5.0], [10.0, 5.0], [-10.0, 5.0]])


@pytest.mark.parametrize("degrees", [-30.0, 0.0, 12.0])
def test_lips_are_in_the_middle_upright_and_at_one_scale(degrees):
    angle = np.radians(degrees)
    across = np.array([np.cos(angle), np.sin(angle)])
    lips = np.array([300.0, 200.0]) + np.stack([-40 * across, 40 * across])
    window = MouthWindow.around(lips, interocular_px=80.0, roll=angle)
    right, left = window.points(lips)
    assert (right + left) / 2 == pytest.approx(MIDDLE)
    assert left - right == pytest.approx((WINDOW_SCALE, 0), abs=1e-9)


@pytest.mark.parametrize("interocular", [60.0, 116.0, 400.0])
def test_what_is_cut_out_is_where_the_points_say(interocular):
    picture = np.zeros((900, 900, 3), np.uint8)
    dot = np.array([500.0, 430.0])
    cv2.circle(picture, (500, 430), max(2, round(interocular / 30)), (255, 255, 255), -1)
    window = MouthWindow.around(np.array([[480.0, 440.0]]), interocular, roll=0.2)
    cut = window.cut(picture)
    assert cut.shape == (WINDOW_HEIGHT, WINDOW_WIDTH, 3)
    light = cut[..., 0].astype(float)
    y, x = np.indices(light.shape)
    centre = np.array([(x * light).sum(), (y * light).sum()]) / light.sum()
    assert centre == pytest.approx(window.points(dot), abs=0.5)


def test_a_window_beside_the_picture_repeats_its_edge():
    window = MouthWindow.around(np.array([[0.0, 0.0]]), 100.0, roll=0.0)
    assert (window.cut(np.full((20, 20, 3), 77, np.uint8)) == 77).all()


@pytest.mark.parametrize("shift", [0.0, 0.25, 0.5])
def test_a_mask_covers_the_polygon_and_what_it_grows_by(shift):
    polygon = SQUARE + MIDDLE + shift
    assert lip_mask(polygon, grow=0.0).sum() == pytest.approx(20 * 10, rel=0.12)
    grown = lip_mask(polygon, grow=2.0).sum()
    assert 24 * 14 - 20 <= grown <= 24 * 14 + 20
    assert lip_mask(polygon, grow=-2.0).sum() == pytest.approx(16 * 6, rel=0.25)


def test_masks_are_soft_and_of_the_size_asked_for():
    mask = lip_mask(SQUARE + 20, height=48, width=64, grow=1.3)
    assert mask.shape == (48, 64) and mask.dtype == np.float32
    assert mask.min() == 0 and mask.max() == 1
    assert ((mask > 0) & (mask < 1)).any()


def test_the_window_of_a_crop_is_the_window_of_its_picture():
    lips, crop = np.array([[300.0, 200.0], [340.0, 210.0]]), np.array([[0.4, 0.1, 5.0], [-0.1, 0.4, -20.0]])
    window = MouthWindow.around(lips, 70.0, roll=0.1)
    in_crop = lips @ crop[:, :2].T + crop[:, 2]
    assert window.after(crop).points(in_crop) == pytest.approx(window.points(lips))
