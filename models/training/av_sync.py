"""By how many frames a clip's sound and picture are apart.

A ridge predictor of mouth opening from speech features, fitted on other people, is slid along each clip's real opening:
the lag of the highest correlation is the offset. Footage that was never in doubt anchors the predictor in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

MAX_LAG = 8  # frames
MIN_OVERLAP = 16  # frames
#: Neighbouring feature frames that the predictor uses, on each side.
CONTEXT = 1
#: A clip is in step with its sound if the correlation at its offset is at least this.
KEEP_CORRELATION = 0.3
#: How far a clip's offset may lie from its group's (frames).
GROUP_SPREAD = 3
FOLDS = 4


@dataclass(frozen=True)
class SyncClip:
    """What the estimate needs of a clip."""

    features: Array  # [N, D], frame-aligned
    opening: Array  # [N], mouth opening
    group: str  # clips of one footage share their offset, more or less


@dataclass(frozen=True)
class Offset:
    """Landmark frame n belongs to audio frame n + `frames`."""

    frames: int
    correlation: float

    @property
    def kept(self) -> bool:
        """Whether picture and sound belong together at all."""
        return self.correlation >= KEEP_CORRELATION


def with_neighbours(features: Array, reach: int) -> Array:
    """`[N, D]` → `[N, (2 reach + 1) D + 1]`: the neighbours beside each frame, edges repeated, and a constant."""
    padded = np.pad(features, ((reach, reach), (0, 0)), mode="edge")
    parts = [padded[k : k + len(features)] for k in range(2 * reach + 1)]
    return np.concatenate([*parts, np.ones((len(features), 1))], axis=1)


def standard(signal: Array) -> Array:
    """Zero mean, unit deviation."""
    centred: Array = (signal - signal.mean()) / (signal.std() + 1e-9)
    return centred


def overlap(clip: SyncClip, signal: Array, lag: int) -> tuple[Array, Array]:
    """The opening of frames n and `signal` (audio time) at n + lag, where both exist."""
    count = len(clip.opening)
    first, last = max(0, -lag), min(count, len(signal) - lag)
    return clip.opening[first:last], signal[first + lag : last + lag]


def correlations(clip: SyncClip, predicted: Array) -> Array:
    """Correlation of real and predicted opening at lags -MAX_LAG..MAX_LAG; -1 where too little overlaps."""
    found = np.full(2 * MAX_LAG + 1, -1.0)
    for k, lag in enumerate(range(-MAX_LAG, MAX_LAG + 1)):
        real, expected = overlap(clip, predicted, lag)
        if len(real) >= MIN_OVERLAP:
            found[k] = float(standard(real) @ standard(expected)) / len(real)
    return found


def fit_ridge(clips: list[SyncClip], contexts: list[Array], lags: list[int], penalty: float = 30.0) -> Array:
    """Weights of the predictor of standardised opening, given each clip's features with context and its lag."""
    size = contexts[0].shape[1]
    gram, moment = np.eye(size) * penalty, np.zeros(size)
    for clip, x, lag in zip(clips, contexts, lags, strict=True):
        first, last = max(0, -lag), min(len(clip.opening), len(x) - lag)
        window = x[first + lag : last + lag]
        gram += window.T @ window
        moment += window.T @ standard(clip.opening[first:last])
    weights: Array = np.linalg.solve(gram, moment)
    return weights


def estimate(clips: list[SyncClip], anchor: str, rounds: int = 2) -> list[Offset]:
    """Offsets of all clips. Clips of the group `anchor` are in step by definition and start the estimate.

    Without such clips all start it, as if they were in step: right if most are, or the errors cancel out.

    A short clip alone is ambiguous, so its group's mean correlation is added to its own, and it stays near the group's
    best lag. Each round predicts a group's clips by weights that were fitted without the group (the anchor's: with it).
    """
    groups = sorted({clip.group for clip in clips})
    lags = [0] * len(clips)
    anchored = any(clip.group == anchor for clip in clips)
    folds = {group: n % FOLDS for n, group in enumerate(groups)}
    scores = np.zeros((len(clips), 2 * MAX_LAG + 1))
    contexts = [with_neighbours(clip.features, CONTEXT).astype(np.float32) for clip in clips]
    for turn in range(rounds):
        for fold in range(FOLDS):
            fitted = [
                n
                for n, clip in enumerate(clips)
                if clip.group == anchor
                or (turn == 0 and not anchored)
                or (turn > 0 and folds[clip.group] != fold and scores[n].max() > KEEP_CORRELATION)
            ]
            if turn > 0 or fold == 0:  # the first round knows the anchor alone, whatever the fold
                weights = fit_ridge(
                    [clips[n] for n in fitted], [contexts[n] for n in fitted], [lags[n] for n in fitted]
                )
            for n, clip in enumerate(clips):
                if folds[clip.group] == fold:
                    scores[n] = correlations(clip, contexts[n] @ weights)
        for group in groups:
            members = [n for n, clip in enumerate(clips) if clip.group == group]
            shared = scores[members].mean(axis=0)
            near = np.abs(np.arange(len(shared)) - shared.argmax()) <= GROUP_SPREAD
            for n in members:
                likely = np.where(near, scores[n] + shared, -np.inf)
                lags[n] = 0 if group == anchor else int(likely.argmax()) - MAX_LAG
    return [Offset(lag, float(scores[n, lag + MAX_LAG])) for n, lag in enumerate(lags)]
