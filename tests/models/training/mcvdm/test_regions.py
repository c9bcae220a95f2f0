import cv2
import numpy as np
import torch

from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import OUTER_LIP
from avatard.models.training.mcvdm.regions import WEIGHTS, Region, region_map, weight_of
from tests.support.tiny_mcvdm import frontal


def test_the_open_mouth_is_inside_the_lips_and_weighs_most():
    points = frontal().project(MorphableModel.load().mean_68)[:, :2]
    points[65:68, 1] += 12
    regions = region_map(torch.from_numpy(points)[None])[0].numpy()
    x, y = points[[62, 66]].mean(0).round().astype(int)
    assert regions[y, x] == Region.INSIDE and regions[0, 0] == Region.ELSEWHERE
    x, y = points[51].round().astype(int)
    assert regions[y, x] == Region.LIPS
    x, y = points[36:42].mean(0).round().astype(int)
    assert regions[y, x] == Region.EYES
    assert weight_of(torch.tensor([[3, 0]], dtype=torch.uint8)).tolist() == [[max(WEIGHTS), 1.0]]


def test_regions_are_convex_hulls():
    rng = np.random.default_rng(0)
    faces = rng.uniform(-20, 276, (3, 68, 2))
    faces[:, 60:68] = faces[:, :1]  # no inside over the lips
    for regions, face in zip(region_map(torch.from_numpy(faces)).numpy(), faces, strict=True):
        outline = face[OUTER_LIP]
        grown = outline.mean(0) + 1.35 * (outline - outline.mean(0))
        expected = np.zeros((256, 256), np.uint8)
        cv2.fillConvexPoly(expected, cv2.convexHull(grown.round().astype(np.int32)), 1)
        assert ((regions >= Region.LIPS) != (expected > 0)).mean() < 0.005  # but for rounding at the border
