"""Figures of AToM-Net during its training, on clips of unseen people, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from avatard.models.atom.model import Atom, reference_of
from avatard.models.evaluation.motion_metrics import correlation, lip_error
from avatard.models.evaluation.streamed import roll_out
from avatard.models.face.topology import mouth_opening
from avatard.models.precision import inference_autocast
from avatard.models.training.atom.dataset import MotionClip

Array = NDArray[np.floating]


@torch.inference_mode()
def generate_clips(
    atom: Atom, clips: Sequence[MotionClip], steps: int, lookahead: int, hop: int
) -> list[tuple[Array, Array]]:
    """Real and generated landmarks of equally long clips; the portrait is each one's first frame.

    The cached windows must end at `hop * k + lookahead`.
    """
    portrait = torch.from_numpy(np.stack([clip.landmarks[0] for clip in clips]))
    reference = reference_of(portrait, torch.from_numpy(np.stack([clip.neutrals[0] for clip in clips])))
    ends = [int(end) for end in clips[0].speech_ends]
    chosen = [ends.index(end) for end in range(hop + lookahead, ends[-1] + 1, hop)]
    windows = [torch.stack([clip.speech[n] for clip in clips]).float() for n in chosen]
    with inference_autocast():
        moved = roll_out(atom, windows, reference, steps=steps, lookahead=lookahead, hop=hop)
    faces = (moved + atom.resting(reference)[:, None]).numpy()
    pairs = []
    for clip, face in zip(clips, faces, strict=True):
        first, stop = max(0, clip.offset), min(len(face), len(clip.landmarks) + clip.offset)
        pairs.append((clip.landmarks[first - clip.offset : stop - clip.offset], face[first:stop]))
    return pairs


def halves(clips: Sequence[MotionClip]) -> tuple[list[MotionClip], list[MotionClip]]:
    """Two groups of people with about as many clips: one to choose weights by, one to report. One person is in both."""
    people: dict[str, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        people[f"{clip.entry.source}/{clip.entry.speaker}"].append(clip)
    groups: tuple[list[MotionClip], list[MotionClip]] = ([], [])
    for _, members in sorted(people.items(), key=lambda person: (-len(person[1]), person[0])):
        min(groups, key=len).extend(members)
    return (groups[0], groups[1] or groups[0])


def validate(
    atom: Atom, clips: Sequence[MotionClip], steps: int = 2, lookahead: int = 2, hop: int = 4
) -> dict[str, float]:
    """Figures over all clips: mouth-opening r (pooled, mean by clip), lip error and that of a held portrait.

    `score`, by which a training keeps its best weights, is r less the lip error's share of the held portrait's.
    """
    lengths: dict[int, list[MotionClip]] = defaultdict(list)
    for clip in clips:
        lengths[len(clip.speech_ends)].append(clip)
    pairs, held = [], []
    for equal in lengths.values():
        found = generate_clips(atom, equal, steps, lookahead, hop)
        pairs += found
        held += [lip_error(real, clip.landmarks[:1]) for clip, (real, _) in zip(equal, found, strict=True)]
    real, made = zip(*[(mouth_opening(r), mouth_opening(m)) for r, m in pairs], strict=True)
    mouth_r = correlation(np.concatenate(real), np.concatenate(made))
    error, still = float(np.mean([lip_error(r, m) for r, m in pairs])), float(np.mean(held))
    return {
        "score": mouth_r - error / still,
        "mouth_r": mouth_r,
        "mouth_r_clip": float(np.mean([correlation(r, m) for r, m in zip(real, made, strict=True)])),
        "lip_error_percent_iod": error,
        "lip_error_centred": float(np.mean([lip_error(r, m, centred=True) for r, m in pairs])),
        "lip_error_hold": still,
        "opening_ratio": float(np.concatenate(made).std() / np.concatenate(real).std()),
    }
