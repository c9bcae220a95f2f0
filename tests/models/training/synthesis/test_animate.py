"""Animated portraits: openings, warps, mouths and animated clips, on made-up faces."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest

from avatard.models.face.crop import CROP_ORIGIN, CROP_SCALE
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose, rotation_matrix
from avatard.models.face.topology import EYE_CORNERS, LOWER_INNER, LOWER_LIDS, MOUTH_CORNERS, UPPER_INNER, UPPER_LIDS
from avatard.models.training.synthesis.animate import OPEN_LIDS, VISIBLE_OPENING, Performance, Variation, animate
from avatard.models.training.synthesis.mesh_warp import (
    MARGIN,
    OVERSAMPLING,
    MeshWarper,
    PortraitMesh,
    in_texture,
    lid_gap,
    lip_gap,
    shrink,
    with_openings,
)
from avatard.models.training.synthesis.mouth_interior import Mouth, Teeth, relight, teethness
from avatard.timebase import CROP_SIDE

SKIN = np.array([200.0, 150.0, 130.0])
FRONTAL = Pose(np.eye(3), np.array(CROP_SCALE), np.array(CROP_ORIGIN))


@cache
def model() -> MorphableModel:
    return MorphableModel.load()


@cache
def warper() -> MeshWarper:
    return MeshWarper(model())


@cache
def portrait(opening: float = 0.0, teeth: bool = False) -> PortraitMesh:
    """Skin with soft spots, its lips so far apart."""
    side = OVERSAMPLING * (CROP_SIDE + 2 * MARGIN)
    noise = np.random.default_rng(0).normal(0, 60, (side, side, 1))
    texture = np.clip(SKIN + cv2.GaussianBlur(noise, (0, 0), 12)[..., None] * 4, 0, 255).astype(np.uint8)
    face = with_openings(model().mean, np.full(9, opening), None)
    if teeth:
        order = [MOUTH_CORNERS[0], *UPPER_INNER, MOUTH_CORNERS[1], *LOWER_INNER[::-1]]
        outline = in_texture(FRONTAL.project(face)[order, :2])
        cv2.fillPoly(texture, [np.round(outline).astype(np.int32)], (235, 230, 220))
    return PortraitMesh("nobody", texture, face, FRONTAL, model().mean)


@cache
def performance(frames: int = 5) -> Performance:
    """A mouth that opens, seen by a still camera; its inside is blue-green."""
    opening = np.linspace(0, 0.3, frames)
    faces = np.stack([with_openings(model().mean, np.full(9, o), None) for o in opening])
    pictures = np.full((frames, CROP_SIDE, CROP_SIDE, 3), SKIN, np.uint8)
    pictures[:, 150:230, 90:166] = (20, 90, 60)
    return Performance.of(pictures, FRONTAL.project(faces), model())


def still(frames: int) -> Variation:
    """A variation that changes nothing."""
    drawn = Variation.draw(np.random.default_rng(0), frames, model())
    return replace(
        drawn,
        shape=np.zeros_like(model().mean),
        own_expression=0.0,
        gain=1.0,
        rotation=np.stack([np.eye(3)] * frames),
        translation=np.zeros((frames, 2)),
        scale=np.ones(frames),
        blink=np.ones(frames),
        colours=np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2),
        closed_first=False,
    )


def test_lips_and_lids_bound_holes():
    edges = {frozenset(map(int, pair)) for t in warper().triangles for pair in (t[:2], t[1:], t[[0, 2]])}
    outlines = [[MOUTH_CORNERS[0], *UPPER_INNER, MOUTH_CORNERS[1], *LOWER_INNER[::-1]]]
    for eye in range(2):
        outlines.append([EYE_CORNERS[eye, 0], *UPPER_LIDS[eye], EYE_CORNERS[eye, 1], *LOWER_LIDS[eye][::-1]])
    for outline in outlines:
        rim = {frozenset((int(a), int(b))) for a, b in zip(outline, [*outline[1:], outline[0]], strict=True)}
        assert rim <= edges
        assert not np.isin(warper().triangles, outline).all(axis=1).any()


def test_openings_are_what_was_asked_for():
    lips, lids = np.linspace(0, 0.2, 9), np.full((2, 7), 0.1)
    moved = with_openings(model().mean, lips, lids)
    np.testing.assert_allclose(lip_gap(moved), lips, atol=1e-9)
    np.testing.assert_allclose(lid_gap(moved), lids, atol=1e-9)
    np.testing.assert_allclose(moved[[10, 234, 454, 4]], model().mean[[10, 234, 454, 4]], atol=1e-3)


@pytest.mark.parametrize("opening", [0.0, 0.15])
def test_a_face_as_photographed_renders_as_its_portrait(opening):
    face = portrait(opening)
    mouth = Mouth.own(face)
    image, hole = warper().render(face, face.canonical, face.pose, np.zeros_like(face.canonical), mouth.points)
    assert hole.inside.any() == (opening > 0)
    mouth.paint(image, hole, face.pose)
    inner = (slice(20, -20), slice(20, -20))
    assert np.abs(shrink(image)[inner].astype(float) - face.crop[inner]).mean() < 1.5


def test_pixels_follow_the_head():
    face = portrait()
    pose = Pose(rotation_matrix(0, 0, 0), FRONTAL.scale, FRONTAL.translation + np.array([6.0, -4.0]))
    image, _ = warper().render(face, face.canonical, pose, np.zeros_like(face.canonical), face.canonical[:, :2])
    there, here = face.crop[90:140, 100:150].astype(float), shrink(image)[86:136, 106:156].astype(float)
    assert np.abs(there - here).mean() < 1.0


def test_the_mouth_shows_the_other_picture():
    face = portrait()
    opened = with_openings(face.canonical, np.full(9, 0.3), None)
    mouth = Mouth.of(np.full((64, 64, 3), (10, 120, 40), np.uint8), np.zeros((468, 2)) + 32, np.ones(3), SKIN)
    image, hole = warper().render(face, opened, face.pose, np.zeros_like(opened), mouth.points)
    mouth.paint(image, hole, face.pose)
    x, y = face.pose.project(opened)[[13, 14], :2].mean(axis=0).round().astype(int)
    np.testing.assert_allclose(shrink(image)[y, x], (10, 120, 40), atol=2)


def test_teeth_are_bright_and_not_red():
    pixels = np.array([[230, 225, 210], [190, 70, 70], [40, 20, 20], SKIN], np.float32)
    np.testing.assert_allclose(teethness(pixels, SKIN), [1, 0, 0, 0.5], atol=0.5)
    assert teethness(pixels, SKIN)[0] > 0.95 and teethness(pixels, SKIN)[1:3].max() < 0.01


def test_only_smiles_give_teeth():
    assert Teeth.of(portrait(0.0)) is None
    found = Teeth.of(portrait(0.15, teeth=True))
    assert found is not None and found.mask.max() > 0.9


def test_light_is_maden_over_within_limits():
    np.testing.assert_allclose(relight(SKIN, SKIN / 2, (0.1, 10), 1.0), 0.5)
    np.testing.assert_allclose(relight(SKIN, SKIN / 10, (0.6, 1.2), 1.0), 0.6)


def test_a_portrait_gives_the_performance():
    driver, face = performance(), portrait()
    made = animate(warper(), model(), face, driver, still(5), None)
    assert len(made.frames) == 6 and made.canonical.shape == (6, 468, 3)
    np.testing.assert_allclose(made.canonical[0], face.canonical)
    assert np.abs(made.frames[0][20:-20, 20:-20].astype(float) - face.crop[20:-20, 20:-20]).mean() < 1.5
    np.testing.assert_allclose(lip_gap(made.canonical[1:]).mean(axis=1), driver.lips.mean(axis=1), rtol=0.1, atol=1e-3)
    lids = lid_gap(made.canonical[1:]).mean(axis=-1) / lid_gap(face.canonical).mean(axis=-1)
    assert (lids > OPEN_LIDS - 0.01).all()
    x, y = made.pose[5].project(made.canonical[5])[[13, 14], :2].mean(axis=0).round().astype(int)
    red, green, _ = made.frames[5][y, x].astype(int)
    assert green > red  # the performer's mouth, not the portrait's skin
    assert 0 < VISIBLE_OPENING <= 1


def test_teeth_hang_in_the_head():
    donor = Teeth.of(portrait(0.15, teeth=True))
    made = animate(warper(), model(), portrait(), performance(), replace(still(5), teeth_light=1.0), donor)
    top, bottom = made.pose[5].project(made.canonical[5])[[13, 14], :2]
    x = int(round(top[0]))
    column = made.frames[5][int(top[1]) : int(bottom[1]) + 1, x].astype(int).sum(axis=1)
    assert column[: len(column) // 2].max() > 450 > column[2 * len(column) // 3]


def test_variations_repeat():
    first, second = (Variation.draw(np.random.default_rng(3), 8, model()) for _ in range(2))
    np.testing.assert_array_equal(first.shape, second.shape)
    np.testing.assert_array_equal(first.rotation, second.rotation)
    assert first.colours.shape == (1, 256, 3) and np.isfinite(first.translation).all()
