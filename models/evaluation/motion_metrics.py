"""How close generated motion is to real motion. Landmarks `[N, 68, 3]` in interocular distances at 25 fps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from avatard.models.face.topology import MOUTH, mouth_opening
from avatard.timebase import FPS

Array = NDArray[np.floating]

CLOSED_SHARE = 0.35


def correlation(a: Array, b: Array) -> float:
    """Pearson's r; 0 where either is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 1e-9 else 0.0


def best_lag(real: list[Array], made: list[Array], reach: int = 6) -> tuple[float, int]:
    """The highest correlation over lags, and the lag in frames (positive: what was made comes late)."""
    found = []
    for lag in range(-reach, reach + 1):
        pairs = [
            (r[max(0, -lag) : len(r) - max(0, lag)], m[max(0, lag) : len(m) - max(0, -lag)])
            for r, m in zip(real, made, strict=True)
            if len(r) > 2 * reach
        ]
        if pairs:
            found.append((correlation(*(np.concatenate(side) for side in zip(*pairs, strict=True))), lag))
    return max(found) if found else (0.0, 0)


def lip_error(real: Array, made: Array, centred: bool = False) -> float:
    """Mean distance of the 20 mouth points in the picture plane, % of the interocular distance.

    `centred` first removes each point's mean difference over the clip: what remains is motion.
    """
    gap = (made - real)[:, MOUTH, :2]
    if centred:
        gap = gap - gap.mean(axis=0)
    return 100 * float(np.linalg.norm(gap, axis=-1).mean())


def closures(
    real: list[Array], made: list[Array], words: list[list[tuple[str, float, float]]], starts: list[int]
) -> dict[str, float]:
    """How often the mouth closes when it should, of one or more clips' openings `[N]`.

    With `words` (word, start and end in seconds of the sound; the openings begin at frames `starts`): in words that
    begin with b, p or m. Without: where the real mouth closes between two openings. Closed means at most
    `CLOSED_SHARE` of the way from the least opening (5th percentile) to a wide one (90th), each side by its own: what
    96 % of the real words reach.
    """

    def closed(signals: list[Array]) -> list[NDArray[np.bool_]]:
        low, high = np.quantile(np.concatenate(signals), [0.05, 0.9])
        return [signal <= low + CLOSED_SHARE * (high - low) for signal in signals]

    shut, made_shut = closed(real), closed(made)
    hits: list[tuple[bool, bool]] = []
    for n, spoken in enumerate(words):
        for word, start, _ in spoken:
            first = round(start * FPS) - starts[n]
            if word[:1].lower() in "bpm" and first >= 0:
                near = slice(max(0, first - 4), first + 6)
                hits.append((bool(shut[n][near].any()), bool(made_shut[n][near].any())))
    if not any(words):
        for real_shut, own in zip(shut, made_shut, strict=True):
            opened = np.flatnonzero(~real_shut)
            for at in np.flatnonzero(real_shut[1:] & ~real_shut[:-1]) + 1:  # the frame in which it has just closed
                if (opened > at).any():
                    until = int(opened[opened > at][0])
                    hits.append((True, bool(own[max(0, at - 2) : until + 2].any())))
    if not hits:
        return {"bilabial_closure": float("nan"), "bilabial_closure_real": float("nan")}
    share = np.mean(np.array(hits), axis=0)
    return {"bilabial_closure": float(share[1]), "bilabial_closure_real": float(share[0])}


def jerk(landmarks: Array) -> Array:
    """Third differences of the mouth points `[N - 3, 20, 2]`, per frame cubed."""
    found: Array = np.diff(landmarks[:, MOUTH, :2], n=3, axis=0)
    return found


def drift(landmarks: Array) -> dict[str, float]:
    """How a face drifts over a long stream, in % of the interocular distance.

    `..._per_min`: the norm of each point's trend, averaged. `drift_face`: how far the mean face of the last minute is
    from that of the first (halves of a stream that is shorter than two), `drift_rest`: how much more open is the closed
    mouth (5th percentile).
    """
    minutes = np.arange(len(landmarks)) / (60 * FPS)
    minutes = minutes - minutes.mean()
    slope = np.tensordot(minutes, landmarks - landmarks.mean(axis=0), axes=1) / (minutes @ minutes)
    edge = min(60 * FPS, len(landmarks) // 2)
    first, last = landmarks[:edge], landmarks[-edge:]
    rest = [float(np.quantile(mouth_opening(part), 0.05)) for part in (first, last)]
    return {
        "drift_percent_iod_per_min": 100 * float(np.linalg.norm(slope, axis=-1).mean()),
        "drift_face_percent_iod": 100 * float(np.linalg.norm(last.mean(axis=0) - first.mean(axis=0), axis=-1).mean()),
        "drift_rest_percent_iod": 100 * (rest[1] - rest[0]),
    }
