"""By how many frames a clip's sound and picture are apart.

A ridge predictor of mouth opening from speech features, fitted on other people, is slid along each clip's real opening:
the lag of the highest correlation is the offset, with the fraction of a frame that a parabola through it gives. The
predictor is fitted anew at the offsets found so far. That leaves open where zero is: footage that was never in doubt
says so, in every round. Whether it is in step can be seen without any data set: `energy_after_parting`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from avatard.timebase import SAMPLE_RATE_HZ, SAMPLES_PER_FRAME

Array = NDArray[np.floating]

MAX_LAG = 8  # frames
MIN_OVERLAP = 16  # frames
#: Neighbouring feature frames that the predictor uses, on each side.
CONTEXT = 1
#: A clip is in step with its sound if the correlation at its offset is at least this.
KEEP_CORRELATION = 0.3
#: A short clip alone is ambiguous: its group's mean correlation counts as much as this many frames of its own.
GROUP_FRAMES = 84
FOLDS = 4
#: Resolution of the sound's energy, 10 ms, and how far around the parting of lips it is looked at.
STEP_SAMPLES, REACH_STEPS = 160, 24


@dataclass(frozen=True)
class SyncClip:
    """What the estimate needs of a clip."""

    features: Array  # [N, D], frame-aligned
    opening: Array  # [N], mouth opening
    group: str  # clips of one footage share their offset, more or less


@dataclass(frozen=True)
class Offset:
    """Landmark frame n belongs to audio frame n + `exact`."""

    exact: float
    correlation: float

    @property
    def frames(self) -> int:
        """To the nearest frame."""
        return round(self.exact)

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


def peak(curve: Array) -> float:
    """The lag of a curve's highest correlation, by a parabola through its neighbours; lags are -MAX_LAG..MAX_LAG."""
    best = int(curve.argmax())
    if not 0 < best < len(curve) - 1 or min(curve[best - 1], curve[best + 1]) <= -1:
        return float(best - MAX_LAG)
    before, top, after = curve[best - 1 : best + 2]
    bend = before - 2 * top + after
    return float(best - MAX_LAG + (0.5 * (before - after) / bend if bend < 0 else 0))


def fit_ridge(clips: list[SyncClip], contexts: list[Array], lags: list[float], penalty: float = 30.0) -> Array:
    """Weights of the predictor of standardised opening, given each clip's features with context and its lag.

    At a lag between two frames both take part, each by how near it is.
    """
    size = contexts[0].shape[1]
    gram, moment = np.eye(size) * penalty, np.zeros(size)
    for clip, x, exact in zip(clips, contexts, lags, strict=True):
        lower = int(np.floor(exact))
        for lag, share in ((lower, 1 - (exact - lower)), (lower + 1, exact - lower)):
            first, last = max(0, -lag), min(len(clip.opening), len(x) - lag)
            if share > 0 and last - first >= MIN_OVERLAP:
                window = x[first + lag : last + lag]
                gram += share * (window.T @ window)
                moment += share * (window.T @ standard(clip.opening[first:last]))
    weights: Array = np.linalg.solve(gram, moment)
    return weights


def estimate(clips: list[SyncClip], anchor: str, rounds: int = 4) -> list[Offset]:
    """Offsets of all clips. Clips of the group `anchor` are in step by definition and start the estimate.

    Without such clips all start it, as if they were in step: right if most are, or the errors cancel out.

    Each round predicts a group's clips by weights that were fitted without the group, on clips that agreed with the
    round before. The anchor's own mean offset, which should be 0, is then taken from everybody's.
    """
    groups = sorted({clip.group for clip in clips})
    lags = [0.0] * len(clips)
    anchored = any(clip.group == anchor for clip in clips)
    folds = {group: n % FOLDS for n, group in enumerate(groups)}
    scores = np.zeros((len(clips), 2 * MAX_LAG + 1))
    contexts = [with_neighbours(clip.features, CONTEXT).astype(np.float32) for clip in clips]
    for turn in range(rounds):
        agreed = [turn == 0 or scores[n].max() > KEEP_CORRELATION for n in range(len(clips))]
        for fold in range(FOLDS):
            if turn == 0:
                fitted = [n for n, clip in enumerate(clips) if clip.group == anchor or not anchored]
            else:
                fitted = [n for n, clip in enumerate(clips) if folds[clip.group] != fold and agreed[n]]
            if fold == 0 or turn > 0:  # the first round knows the anchor alone, whatever the fold
                weights = fit_ridge(
                    [clips[n] for n in fitted], [contexts[n] for n in fitted], [lags[n] for n in fitted]
                )
            for n, clip in enumerate(clips):
                if folds[clip.group] == fold:
                    scores[n] = correlations(clip, contexts[n] @ weights)
        shared = {group: scores[[n for n, clip in enumerate(clips) if clip.group == group]].mean(0) for group in groups}
        shift = peak(shared[anchor]) if anchored else 0.0
        for n, clip in enumerate(clips):
            own = len(clip.opening) / (len(clip.opening) + GROUP_FRAMES)
            likely = np.where(scores[n] > -1, own * scores[n] + (1 - own) * shared[clip.group], -1)
            lags[n] = 0.0 if clip.group == anchor else peak(likely) - shift
    at = np.arange(-MAX_LAG, MAX_LAG + 1)
    return [Offset(lag, float(np.interp(lag, at, scores[n]))) for n, lag in enumerate(lags)]


def energy_after_parting(openings: list[Array], sounds: list[NDArray[np.float32]]) -> tuple[float, int]:
    """How long after closed lips part the sound swells most, in milliseconds, and how often lips part.

    Air that was held back escapes when lips part: in footage that is in step this is 0 to within half a frame, whatever
    is spoken and whoever speaks. `openings` `[N]` at 25 fps, `sounds` `[640 N]` at 16 kHz. NaN where lips never part.
    """
    swells = []
    for opening, sound in zip(openings, sounds, strict=True):
        steps = sound[: len(sound) // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)
        energy = np.log10(np.square(np.diff(steps, axis=1)).mean(axis=1) + 1e-8)
        low, high = np.quantile(opening, [0.05, 0.9])
        parted, open_wide = low + 0.25 * (high - low), low + 0.6 * (high - low)
        for n in range(2, len(opening) - 3):
            if max(opening[n - 2], opening[n - 1]) < parted <= opening[n] and opening[n + 2] > open_wide:
                moment = n - 0.5 + (parted - opening[n - 1]) / (opening[n] - opening[n - 1])
                at = round(moment * SAMPLES_PER_FRAME / STEP_SAMPLES)
                if REACH_STEPS <= at < len(energy) - REACH_STEPS:
                    swells.append(energy[at - REACH_STEPS : at + REACH_STEPS])
    if not swells:
        return float("nan"), 0
    rise = np.convolve(np.diff(np.mean(swells, axis=0)), np.ones(5) / 5, mode="same")
    steepest = int(rise.argmax())
    near = slice(max(0, steepest - 7), steepest + 8)
    weight = rise[near].clip(min=0)
    steps_after = float(weight @ (np.arange(len(rise))[near] + 1 - REACH_STEPS) / weight.sum())
    return 1000 * steps_after * STEP_SAMPLES / SAMPLE_RATE_HZ, len(swells)
