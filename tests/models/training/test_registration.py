import numpy as np
import pytest
import torch

from avatard.models.face import warp
from avatard.models.face.crop import Crop
from avatard.models.face.topology import JAW, MESH_TO_68, mouth_opening
from avatard.models.training.registration import register
from tests.support.faces import morphable, portrait, portrait_mesh

#: How far the chin hangs in each frame, pixels; the middle one is what the others are registered to.
CHIN = (0.0, 2.0, 4.0, 6.0, 8.0)


@pytest.fixture(scope="module")
def clip():
    """The portrait's crop opening its mouth: frames [N, 256, 256, 3] and their true meshes [N, 468, 3]."""
    mesh = portrait_mesh()
    crop = Crop.of(morphable().pose(mesh[None]))
    picture, rest = crop.image(portrait()), crop.points(mesh)
    line = rest[MESH_TO_68[60:68], 1].mean()
    share = ((rest[:, 1] - line) / 10).clip(0, 1)  # of the chin's motion
    meshes = np.stack([rest + [0, down, 0] * share[:, None] for down in CHIN])
    points = [warp.normalise(torch.from_numpy(mesh[MESH_TO_68].astype(np.float32))) for mesh in meshes]
    enlarged = warp.enlarge(picture)
    frames = [warp.remap(enlarged, warp.landmark_flow(points[0], points[0], p, 64).numpy()) for p in points]
    return frames, meshes


def off(meshes, truth):
    """Mean distance of the 68 points without the jaw, whose skin moves less than the line itself."""
    inner = np.delete(MESH_TO_68, JAW)
    return np.linalg.norm((meshes - truth)[:, inner, :2], axis=-1).mean(axis=1)


def test_points_that_wander_are_brought_back(clip):
    frames, truth = clip
    wander = np.random.default_rng(0).normal(0, 1.2, (len(CHIN), 1, 2))
    wander[2] = 0
    tracked = truth.copy()
    tracked[..., :2] += wander
    registered = register(frames, tracked)
    assert np.delete(off(tracked, truth), 2).mean() > 1.0
    assert off(registered, truth).max() < 0.4
    np.testing.assert_array_equal(registered[2], tracked[2])
    np.testing.assert_array_equal(registered[..., 2], tracked[..., 2])


def test_a_mouth_that_was_seen_half_as_far_opens_further(clip):
    frames, truth = clip
    tracked = truth[2] + (truth - truth[2]) / 2
    registered = register(frames, tracked)
    opened = [np.ptp(mouth_opening(meshes[:, MESH_TO_68])) for meshes in (tracked, registered, truth)]
    assert opened[0] == pytest.approx(opened[2] / 2, rel=0.01)
    assert opened[1] > 0.7 * opened[2]


def test_a_portrait_and_a_frame_without_texture_stay_as_they_are(clip):
    frames, truth = clip
    np.testing.assert_array_equal(register(frames[:1], truth[:1]), truth[:1])
    grey = [np.full((256, 256, 3), 128, np.uint8)] * 3
    assert np.isfinite(register(grey, truth[:3])).all()
