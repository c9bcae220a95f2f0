"""Affine maps of the plane, `[2, 3]` as OpenCV writes them: `y = m[:, :2] x + m[:, 2]`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def compose(after: NDArray[np.floating], before: NDArray[np.floating]) -> NDArray[np.float64]:
    """The map that applies `before`, then `after`."""
    linear = after[:, :2] @ before[:, :2]
    joined: NDArray[np.float64] = np.column_stack([linear, after[:, :2] @ before[:, 2] + after[:, 2]])
    return joined


def inverse(matrix: NDArray[np.floating]) -> NDArray[np.float64]:
    """The map back."""
    linear = np.linalg.inv(matrix[:, :2])
    inverted: NDArray[np.float64] = np.column_stack([linear, -linear @ matrix[:, 2]])
    return inverted


def apply(matrix: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Points `[..., 2]` under the map."""
    moved: NDArray[np.float64] = points @ matrix[:, :2].T + matrix[:, 2]
    return moved
