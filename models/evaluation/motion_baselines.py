"""What AToM-Net must beat: loudness and a ridge regression from speech features to the mouth's displacement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from avatard.models.speech import SpeechEncoder
from avatard.models.training.av_sync import with_neighbours
from avatard.timebase import SAMPLES_PER_FRAME

Array = NDArray[np.floating]

#: Neighbouring frames that the linear predictors hear, on each side.
CONTEXT = 2


def loudness(samples: Array) -> Array:
    """Log energy of each frame `[N, 1]`."""
    frames = samples[: len(samples) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].reshape(-1, SAMPLES_PER_FRAME)
    energy: Array = np.log10(np.square(frames).mean(axis=1, keepdims=True) + 1e-7)
    return energy


@torch.inference_mode()
def streamed_features(
    speech: SpeechEncoder, samples: Array, window_frames: int, hop: int, lookahead: int
) -> NDArray[np.float32]:
    """Features `[N, dim]` of each frame as a stream hears it: from the window in which the frame is new."""
    count = len(samples) // SAMPLES_PER_FRAME
    before = np.zeros((window_frames - hop - lookahead) * SAMPLES_PER_FRAME, np.float32)
    padded = np.concatenate(
        [before, samples.astype(np.float32), np.zeros((hop + lookahead) * SAMPLES_PER_FRAME, np.float32)]
    )
    size = window_frames * SAMPLES_PER_FRAME
    windows = np.stack([padded[n * SAMPLES_PER_FRAME : n * SAMPLES_PER_FRAME + size] for n in range(0, count, hop)])
    found = torch.cat([speech(part) for part in torch.split(torch.from_numpy(windows), 16)])
    new = found[:, window_frames - lookahead - hop : window_frames - lookahead]
    features: NDArray[np.float32] = new.reshape(-1, found.shape[-1])[:count].numpy()
    return features


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
