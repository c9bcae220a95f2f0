import cv2
import numpy as np

from avatard.models.evaluation.contact_sheet import contact_sheet, side_by_side


def test_sheets_and_side_by_side(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (6, 256, 256, 3), np.uint8)
    contact_sheet(tmp_path / "sheet.png", {"a": list(frames[:3]), "b": list(frames[3:])}, side=32)
    picture = cv2.imread(str(tmp_path / "sheet.png"))
    assert picture is not None and picture.shape == (64, 96, 3)
    assert side_by_side({"a": frames, "b": frames}).shape == (6, 256, 512, 3)
