import cv2
import numpy as np

from avatard.models.evaluation.motion_plot import draw
from tests.support.faces import morphable


def test_a_row_of_curves_and_two_of_faces_for_each_clip(tmp_path):
    real = np.zeros((30, 68, 3))
    real[:, 65:68, 1] = np.abs(np.sin(np.arange(30) / 4))[:, None] * 0.2
    draw(tmp_path / "plot.png", [("one", real, 0.5 * real), ("two", real, real)], morphable().mean_68, columns=4)
    picture = cv2.imread(str(tmp_path / "plot.png"))
    assert picture is not None and picture.shape == (2 * (120 + 2 * 150), 4 * 150, 3)
    assert (picture == (40, 40, 220)).all(axis=-1).any()
