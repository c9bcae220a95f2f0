import numpy as np

from avatard.models.pixels import to_bytes, to_tensor


def test_pixels_survive_the_way_into_tensors_and_back():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert (to_bytes(to_tensor(pixels)) == pixels).all()
    assert to_tensor(pixels).min() == -1 and to_tensor(pixels).max() == 1
