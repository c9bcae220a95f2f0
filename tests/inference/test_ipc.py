import numpy as np
import pytest

from avatard.frame import Backdrop, Frame, HeadPose, Rectangle
from avatard.inference import ipc

RNG = np.random.default_rng(0)
HEAD = HeadPose((0.0, 0.0, 0.0, 1.0), (0.5, 0.25, 0.0), 64.0)


def frames(count: int, backdrop: Backdrop | None = None) -> list[Frame]:
    """Frames of 20x30 pixels; with a backdrop they differ from it inside its rectangle only."""
    made = []
    for _ in range(count):
        pixels = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        if backdrop is not None:
            pixels = backdrop.with_moved(pixels[backdrop.moving.slices])
        landmarks, blendshapes = (RNG.normal(size=shape).astype(np.float32) for shape in ((68, 3), (52,)))
        made.append(Frame(pixels, landmarks, blendshapes, HEAD, backdrop))
    return made


def same(one: list[Frame], other: list[Frame]) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        np.testing.assert_array_equal(a.landmarks, b.landmarks)
        np.testing.assert_array_equal(a.blendshapes, b.blendshapes)
        assert a.head == b.head


def test_frames_come_out_as_they_went_in():
    sent = frames(3)
    faces, pixels = ipc.pack_faces(sent), ipc.pack_pixels(sent)
    same(sent, ipc.unpack_frames(3, 20, 30, memoryview(faces), memoryview(pixels.tobytes())))


def test_only_what_moves_is_sent():
    backdrop = Backdrop(RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8), Rectangle(4, 6, 10, 8))
    sent = frames(2, backdrop)
    faces, pixels = ipc.pack_faces(sent), ipc.pack_pixels(sent)
    assert pixels.nbytes == 2 * 10 * 8 * 3
    before = backdrop.pixels.copy()
    there = Backdrop(before.copy(), backdrop.moving)
    received = ipc.unpack_frames(2, 20, 30, memoryview(faces), memoryview(pixels.tobytes()), there)
    same(sent, received)
    np.testing.assert_array_equal(there.pixels, before)
    assert received[0].pixels.base is None and received[0].pixels is not received[1].pixels


def test_parts_of_another_size_are_refused():
    sent = frames(2)
    faces, pixels = ipc.pack_faces(sent), ipc.pack_pixels(sent)
    with pytest.raises(ValueError):
        ipc.unpack_frames(3, 20, 30, memoryview(faces), memoryview(pixels.tobytes()))
    with pytest.raises(ValueError):
        ipc.unpack_frames(2, 20, 32, memoryview(faces), memoryview(pixels.tobytes()))
