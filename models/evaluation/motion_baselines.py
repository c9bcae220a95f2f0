"""What AToM-Net must beat: loudness and a ridge regression from speech features to the mouth's displacement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avatard.models.training.av_sync import with_neighbours
from avatard.timebase import SAMPLES_PER_FRAME

Array = NDArray[np.floating]

#: Neighbouring frames that the linear predictors use, on each side.
CONTEXT = 2


def loudness(samples: Array) -> Array:
    """Log energy of each frame `[N, 1]`."""
    frames = samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
    energy: Array = np.log10(np.square(frames).mean(axis=1, keepdims=True) + 1e-7)
    return energy


@dataclass(frozen=True)
class Linear:
    """A linear map from features with neighbours to displacements `[N, 68, 3]`."""

    weights: Array  # [(2 CONTEXT + 1) D + 1, 204]

    @classmethod
    def fit(cls, features: list[Array], moved: list[Array], penalty: float) -> Linear:
        """Ridge regression on clips of features `[N, D]` and displacements `[N, 68, 3]`."""
        x = np.concatenate([with_neighbours(part, CONTEXT) for part in features])
        y = np.concatenate([part.reshape(len(part), -1) for part in moved])
        return cls(np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ y))

    def __call__(self, features: Array) -> Array:
        """Displacements `[N, 68, 3]`."""
        made: Array = (with_neighbours(features, CONTEXT) @ self.weights).reshape(-1, 68, 3)
        return made
