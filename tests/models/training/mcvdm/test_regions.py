import torch

from avatard.models.face.morphable import MorphableModel
from avatard.models.training.mcvdm.regions import WEIGHTS, Region, region_map, weight_of
from tests.support.tiny_mcvdm import frontal


def test_the_open_mouth_is_inside_the_lips_and_weighs_most():
    points = frontal().project(MorphableModel.load().mean_68)[:, :2]
    points[65:68, 1] += 12
    regions = region_map(points)
    x, y = points[[62, 66]].mean(0).round().astype(int)
    assert regions[y, x] == Region.INSIDE and regions[0, 0] == Region.ELSEWHERE
    x, y = points[51].round().astype(int)
    assert regions[y, x] == Region.LIPS
    x, y = points[36:42].mean(0).round().astype(int)
    assert regions[y, x] == Region.EYES
    assert weight_of(torch.tensor([[3, 0]], dtype=torch.uint8)).tolist() == [[max(WEIGHTS), 1.0]]
