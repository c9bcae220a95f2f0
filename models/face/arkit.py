"""ARKit's 52 blend shape coefficients from the 68 landmarks: non-negative least squares on an expression basis."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from avatard.models.face.blendshapes import expression_basis
from avatard.models.face.topology import JAW, LEFT_EYE, RIGHT_EYE

Array = NDArray[np.floating]

#: Apple's blend shape locations in the order of its documentation and of Live Link Face. Left and right are the face's.
ARKIT_NAMES: Final = (
    *("eyeBlinkLeft", "eyeLookDownLeft", "eyeLookInLeft", "eyeLookOutLeft", "eyeLookUpLeft", "eyeSquintLeft"),
    *("eyeWideLeft", "eyeBlinkRight", "eyeLookDownRight", "eyeLookInRight", "eyeLookOutRight", "eyeLookUpRight"),
    *("eyeSquintRight", "eyeWideRight", "jawForward", "jawLeft", "jawRight", "jawOpen", "mouthClose", "mouthFunnel"),
    *("mouthPucker", "mouthLeft", "mouthRight", "mouthSmileLeft", "mouthSmileRight", "mouthFrownLeft"),
    *("mouthFrownRight", "mouthDimpleLeft", "mouthDimpleRight", "mouthStretchLeft", "mouthStretchRight"),
    *("mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthPressLeft", "mouthPressRight"),
    *("mouthLowerDownLeft", "mouthLowerDownRight", "mouthUpperUpLeft", "mouthUpperUpRight", "browDownLeft"),
    *("browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff", "cheekSquintLeft"),
    *("cheekSquintRight", "noseSneerLeft", "noseSneerRight", "tongueOut"),
)

#: What a point is off by when the basis is right, in interocular distances, over the strength that a shape usually has:
#: the square of it keeps shapes that look alike from taking huge opposite shares.
RIDGE: Final = (0.015 / 0.4) ** 2
#: Depth is the mesh network's guess and the jaw line wanders along the cheek: they count for less. Lids move by little
#: and are seen well.
DEPTH_WEIGHT, JAW_WEIGHT, LID_WEIGHT = 0.7, 0.5, 2.0


class ArkitSolver:
    """Coefficients of one person's expressions.

    Gaze (`eyeLook…`), `cheekPuff`, `cheekSquint…` and `tongueOut` do not move any of the 68 points and stay 0.

    Args:
        mean: the mean face `[68, 3]` of the morphable model.
        neutral: the person's face at rest `[68, 3]`, offsets from the mean, which has coefficients 0.
    """

    def __init__(self, mean: Array, neutral: Array):
        basis = expression_basis(mean + neutral)
        self._neutral = neutral.astype(np.float64)
        self._columns = np.array([ARKIT_NAMES.index(name) for name in basis])
        weight = np.ones((68, 3))
        weight[:, 2] = DEPTH_WEIGHT
        weight[JAW] *= JAW_WEIGHT
        weight[RIGHT_EYE.start : LEFT_EYE.stop] *= LID_WEIGHT
        shapes = np.stack(list(basis.values())).reshape(len(basis), -1)
        self._towards = (shapes * weight.ravel() ** 2).T
        self._gram = shapes @ self._towards + RIDGE * np.eye(len(basis))

    def __call__(self, landmarks: Array) -> NDArray[np.float32]:
        """Offsets from the mean face `[..., 68, 3]` → coefficients `[..., 52]`, 0 to 1, in `ARKIT_NAMES`' order."""
        moved = (landmarks - self._neutral).reshape(-1, 68 * 3)
        weights = np.zeros((len(moved), len(ARKIT_NAMES)), np.float32)
        for row, target in zip(weights, moved @ self._towards, strict=True):
            row[self._columns] = nonnegative(self._gram, target).clip(0, 1)
        return weights.reshape(*landmarks.shape[:-2], len(ARKIT_NAMES))


def nonnegative(gram: Array, target: Array) -> Array:
    """The x ≥ 0 `[K]` that minimises ½ xᵀ gram x - targetᵀ x, for a positive definite `gram` `[K, K]`.

    Source: block principal pivoting, Portugal, Júdice and Vicente, "A comparison of block pivoting and interior-point
    algorithms for linear least squares problems with nonnegative variables" (1994).
    """
    count = len(target)
    free = target > 0
    fewest, patience = count + 1, 3
    x = np.zeros(count)
    for _ in range(5 * count):
        chosen = np.flatnonzero(free)
        x[:] = 0
        x[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)], target[chosen])
        wrong = np.where(free, x < 0, gram @ x - target < -1e-9)
        bad = np.flatnonzero(wrong)
        if not len(bad):
            break
        if len(bad) < fewest:
            fewest, patience = len(bad), 3
        elif patience:
            patience -= 1
        else:  # exchanging all of them circles: one at a time, the last one, always ends
            wrong = np.arange(count) == bad[-1]
        free = free ^ wrong
    return x
