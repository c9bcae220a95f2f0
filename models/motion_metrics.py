"""How close generated motion is to real motion. Landmarks `[N, 68, 3]` in interocular distances at 25 fps."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray

from avatard.models.atom import Atom
from avatard.models.face.topology import mouth_opening
from avatard.models.motion_data import MotionClip, MotionData

Array = NDArray[np.floating]

MOUTH = slice(48, 68)
FPS = 25


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


def jerk(landmarks: Array) -> Array:
    """Third differences of the mouth points `[N - 3, 20, 2]`, per frame cubed."""
    found: Array = np.diff(landmarks[:, MOUTH, :2], n=3, axis=0)
    return found


def drift(landmarks: Array) -> float:
    """How fast the mean face moves away over a long take: the norm of each point's trend, averaged, in % per minute."""
    minutes = np.arange(len(landmarks)) / (60 * FPS)
    minutes = minutes - minutes.mean()
    slope = np.tensordot(minutes, landmarks - landmarks.mean(axis=0), axes=1) / (minutes @ minutes)
    return 100 * float(np.linalg.norm(slope, axis=-1).mean())


@torch.inference_mode()
def roll_out(atom: Atom, clips: list[MotionClip], steps: int, lookahead: int, hop: int) -> list[tuple[Array, Array]]:
    """Real and generated landmarks of each clip: what serving does, but with the clips side by side.

    `clips` are equally long; the cached windows must end at `hop * k + lookahead`. The portrait is the first frame.
    """
    reference = torch.from_numpy(np.stack([clip.neutrals[0] for clip in clips]))
    emitted = torch.zeros(len(clips), atom.config.frames - hop, 68, 3)
    ends = [int(end) for end in clips[0].speech_ends]
    last = 0
    made = []
    for end in range(hop + lookahead, ends[-1] + 1, hop):
        window = ends.index(end)
        audio = torch.stack([clip.speech[window] for clip in clips]).float()
        noise = torch.zeros(len(clips), hop, 68, 3)
        with torch.autocast("cpu", torch.bfloat16):
            new = atom.sample(audio, reference, emitted, noise, steps=steps, lookahead=lookahead).float()
        emitted = torch.cat([emitted[:, hop:], new], dim=1)
        made.append(new)
        last = end - lookahead
    faces = (torch.cat(made, dim=1) + reference[:, None]).numpy()
    pairs = []
    for clip, face in zip(clips, faces, strict=True):
        first, stop = max(0, clip.offset), min(last, len(clip.landmarks) + clip.offset)
        pairs.append((clip.landmarks[first - clip.offset : stop - clip.offset], face[first:stop]))
    return pairs


def validate(atom: Atom, data: MotionData, steps: int = 2, lookahead: int = 2, hop: int = 4) -> dict[str, float]:
    """Figures over all clips: mouth-opening r (pooled, mean by clip), lip error and that of a held portrait."""
    lengths: dict[int, list[MotionClip]] = defaultdict(list)
    for clip in data.clips:
        lengths[len(clip.speech_ends)].append(clip)
    pairs, held = [], []
    for clips in lengths.values():
        found = roll_out(atom, clips, steps, lookahead, hop)
        pairs += found
        held += [lip_error(real, clip.landmarks[:1]) for clip, (real, _) in zip(clips, found, strict=True)]
    real, made = zip(*[(mouth_opening(r), mouth_opening(m)) for r, m in pairs], strict=True)
    return {
        "mouth_r": correlation(np.concatenate(real), np.concatenate(made)),
        "mouth_r_clip": float(np.mean([correlation(r, m) for r, m in zip(real, made, strict=True)])),
        "lip_error_percent_iod": float(np.mean([lip_error(r, m) for r, m in pairs])),
        "lip_error_centred": float(np.mean([lip_error(r, m, centred=True) for r, m in pairs])),
        "lip_error_hold": float(np.mean(held)),
        "opening_ratio": float(np.concatenate(made).std() / np.concatenate(real).std()),
    }
