"""Numbers in little space, for the bundles that carry training data to other machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avatard.errors import UserError

#: Steps of the landmarks in interocular distances: in the picture plane, and in depth, which is measured worse.
LANDMARK_STEPS = np.array([6e-4, 6e-4, 1.5e-3], np.float32)


class BundleError(UserError):
    """A bundle that is cut off, altered or of another kind."""


def differences(values: NDArray[np.floating], steps: NDArray[np.float32] | float) -> NDArray[np.int16]:
    """From each row of `values` in whole `steps` to the next, modulo 2^16; the first row as it is."""
    quantised = np.rint(values / steps).clip(-32768, 32767).astype(np.int16)
    moved: NDArray[np.int16] = np.diff(quantised, axis=0, prepend=np.zeros_like(quantised[:1]))
    return moved


def from_differences(moved: NDArray[np.int16], steps: NDArray[np.float32] | float) -> NDArray[np.float32]:
    """The inverse of `differences`: each value is at most half a step off."""
    values: NDArray[np.float32] = (np.cumsum(moved, axis=0, dtype=np.int16) * steps).astype(np.float32)
    return values


def packed(array: NDArray[np.int8] | NDArray[np.int16]) -> bytes:
    """16-bit numbers as their low bytes, then their high ones."""
    planes = np.ascontiguousarray(array).view(np.uint8).reshape(-1, array.itemsize)
    return np.ascontiguousarray(planes.T).tobytes()


def unpacked(data: bytes, kind: type[np.int8] | type[np.int16], shape: Sequence[int]) -> NDArray[Any]:
    """The inverse of `packed`."""
    planes = np.frombuffer(data, np.uint8).reshape(np.dtype(kind).itemsize, -1)
    return np.ascontiguousarray(planes.T).view(kind).reshape(shape)
