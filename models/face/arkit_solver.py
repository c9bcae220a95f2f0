"""ARKit's 52 blend shape coefficients from the 68 landmarks: non-negative least squares on an expression basis."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import nnls

from avatard.models.face.arkit import ARKIT_NAMES
from avatard.models.face.blendshapes import expression_basis
from avatard.models.face.topology import JAW, LEFT_EYE, RIGHT_EYE

Array = NDArray[np.floating]

#: What a point is off by when the basis is right, in interocular distances, over the strength that a shape usually has:
#: the square of it keeps shapes that look alike from taking huge opposite shares.
RIDGE: Final = (0.015 / 0.4) ** 2
#: How the ridge follows the size of a shape: at 0 small shapes, such as pressed lips, lose against large ones; at 1
#: large ones are taken apart into small ones.
RIDGE_EXPONENT: Final = 0.35
#: Depth is the mesh network's guess and the jaw line wanders along the cheek: they count for less. Lids move by little
#: and are seen well.
DEPTH_WEIGHT, JAW_WEIGHT, LID_WEIGHT = 0.7, 0.5, 2.0


class ArkitSolver:
    """Coefficients of one person's expressions.

    Gaze (`eyeLook…`), `cheekPuff`, `cheekSquint…` and `tongueOut` do not move any of the 68 points and stay 0.

    Args:
        mean: the mean face `[68, 3]` of the morphable model.
        neutral: the person's face at rest `[68, 3]`, offsets from the mean, which has coefficients 0.
        gain: scale of the coefficients, which stay within 0 to 1. A lid that is shut is 1 already: blinks have none.
    """

    def __init__(self, mean: Array, neutral: Array, gain: float = 1.0):
        basis = expression_basis(mean + neutral)
        self._neutral = neutral.astype(np.float64)
        self._columns = np.array([ARKIT_NAMES.index(name) for name in basis])
        self._gain = np.array([1.0 if name.startswith("eyeBlink") else gain for name in basis])
        weight = np.ones((68, 3))
        weight[:, 2] = DEPTH_WEIGHT
        weight[JAW] *= JAW_WEIGHT
        weight[RIGHT_EYE.start : LEFT_EYE.stop] *= LID_WEIGHT
        shapes = np.stack(list(basis.values())).reshape(len(basis), -1)
        towards = (shapes * weight.ravel() ** 2).T  # [204, K]
        # The least squares of 204 coordinates and K ridges, as a triangular system of K rows.
        gram = shapes @ towards
        size = np.diag(gram)
        lower = cholesky(gram + np.diag(RIDGE * (size / np.median(size)) ** RIDGE_EXPONENT), lower=True)
        self._system = lower.T
        self._project = solve_triangular(lower, towards.T, lower=True).T  # [204, K]

    def __call__(self, landmarks: Array) -> NDArray[np.float32]:
        """Offsets from the mean face `[..., 68, 3]` → coefficients `[..., 52]`, 0 to 1, in `ARKIT_NAMES`' order."""
        moved = (landmarks - self._neutral).reshape(-1, 68 * 3)
        weights = np.zeros((len(moved), len(ARKIT_NAMES)), np.float32)
        for row, target in zip(weights, moved @ self._project, strict=True):
            row[self._columns] = (self._gain * nnls(self._system, target)[0]).clip(0, 1)
        return weights.reshape(*landmarks.shape[:-2], len(ARKIT_NAMES))


def smoothed(weights: NDArray[np.float32], before: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Coefficients `[k, 52]` of consecutive frames, with less quiver and no lag.

    A frame becomes 1/4, 1/2, 1/4 of its neighbours and itself: a filter that looks as far ahead as back delays nothing.
    The last frame has no neighbour yet and stays; so does the first without one `before` it, `[52]`.
    """
    if before is not None:
        weights = np.concatenate([before[None], weights])
    smooth = weights.copy()
    smooth[1:-1] = weights[1:-1] / 2 + (weights[:-2] + weights[2:]) / 4
    return smooth if before is None else smooth[1:]
