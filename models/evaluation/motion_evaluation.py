"""Clips to evaluate AToM-Net on, the figures of its motion, and simpler ways to make motion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avatard.models.atom.model import Atom, reference_of
from avatard.models.evaluation.motion_baselines import Linear, loudness
from avatard.models.evaluation.motion_metrics import best_lag, closures, correlation, jerk, lip_error
from avatard.models.evaluation.streamed import encode_windows, new_features, roll_out
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import mouth_opening
from avatard.models.speech import SpeechEncoder
from avatard.models.training.clips import Clip, Entry
from avatard.timebase import SAMPLES_PER_FRAME

Array = NDArray[np.floating]
Word = tuple[str, float, float]  # text, start and end in seconds
Pair = tuple[Array, Array]  # real and generated landmarks [N, 68, 3]


@dataclass(frozen=True)
class EvaluationClip:
    """A clip to evaluate, or to fit a baseline on."""

    entry: Entry
    samples: NDArray[np.float32]  # [T], whole frames
    video: Array  # [N, 68, 3]
    neutral: NDArray[np.float32]  # [68, 3], from the first frame alone
    offset: int  # landmark frame n belongs to audio frame n + offset
    words: list[Word]

    @classmethod
    def read(
        cls,
        data: Path,
        entry: Entry,
        morphable: MorphableModel,
        offsets: Mapping[str, Any],
        words: Mapping[str, list[Word]],
    ) -> EvaluationClip:
        """Read one clip; `offsets` and `words` may lack it."""
        clip = Clip(data / entry.path)
        whole = clip.audio[: len(clip.audio) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
        samples: NDArray[np.float32] = np.divide(whole, 32768, dtype=np.float32)
        neutral = morphable.neutral(clip.landmarks[0]).astype(np.float32)
        offset = offsets.get(f"{entry.source}/{entry.clip}", {"frames": 0})["frames"]
        return cls(entry, samples, clip.landmarks, neutral, offset, words.get(entry.clip, []))

    @property
    def frames(self) -> int:
        """Of the sound."""
        return len(self.samples) // SAMPLES_PER_FRAME

    @property
    def landmarks(self) -> Array:
        """The portrait's landmarks `[68, 3]`: those of the first frame."""
        portrait: Array = self.video[0]
        return portrait

    def pair(self, made: Array) -> Pair:
        """Real and generated landmarks of the frames that have both; `made` `[M, 68, 3]` starts at audio frame 0."""
        first, stop = max(0, self.offset), min(len(made), len(self.video) + self.offset)
        return self.video[first - self.offset : stop - self.offset], made[first:stop]


#: (whose face, whose sound) → landmarks `[N, 68, 3]` from audio frame 0 on.
Generator = Callable[[EvaluationClip, EvaluationClip], Array]


def figures(clips: Sequence[EvaluationClip], pairs: Sequence[tuple[Array, Array]]) -> dict[str, float]:
    """Figures of (real, generated) landmarks of one speaker's clips."""
    real, made = zip(*[(mouth_opening(r), mouth_opening(m)) for r, m in pairs], strict=True)
    lagged, lag = best_lag(list(real), list(made))
    jerks = [float(np.sqrt(np.mean(np.concatenate([jerk(p[side]).ravel() for p in pairs]) ** 2))) for side in (0, 1)]
    closed = closures(list(real), list(made), [clip.words for clip in clips], [max(0, clip.offset) for clip in clips])
    return {
        "mouth_r": correlation(np.concatenate(real), np.concatenate(made)),
        "mouth_r_best_lag": lagged,
        "lag_frames": lag,
        "mouth_r_clip": float(np.mean([correlation(r, m) for r, m in zip(real, made, strict=True)])),
        "lip_error_percent_iod": float(np.mean([lip_error(r, m) for r, m in pairs])),
        "lip_error_centred": float(np.mean([lip_error(r, m, centred=True) for r, m in pairs])),
        "jerk_ratio": jerks[1] / jerks[0],
        "opening_ratio": float(np.concatenate(made).std() / np.concatenate(real).std()),
        **closed,
    }


def regressor(atom: Atom, speech: SpeechEncoder, hop: int, lookahead: int) -> Generator:
    """The same network used as a plain regressor: one evaluation, nothing of what was emitted before."""

    @torch.inference_mode()
    def generate(face: EvaluationClip, sound: EvaluationClip) -> Array:
        portrait = torch.from_numpy(face.landmarks.astype(np.float32))
        reference = reference_of(portrait, torch.from_numpy(face.neutral))[None]
        windows = encode_windows(speech, sound.samples, atom.config.audio_frames, hop, lookahead)
        moved = roll_out(atom, torch.split(windows, 1), reference, steps=1, lookahead=lookahead, hop=hop, prefix=False)
        frames: Array = (moved[0, : sound.frames] + atom.resting(reference)[0]).numpy()
        return frames

    return generate


def linear_generators(
    speech: SpeechEncoder, atom: Atom, fit: Sequence[EvaluationClip], hop: int, lookahead: int
) -> dict[str, Generator]:
    """Loudness and ridge, fitted on other people's clips; none where there are no others."""
    if not fit:
        return {}

    def features_of(clip: EvaluationClip) -> Array:
        windows = encode_windows(speech, clip.samples, atom.config.audio_frames, hop, lookahead)
        return new_features(windows, clip.frames, hop, lookahead)

    def fitted(features: Callable[[EvaluationClip], Array], penalty: float) -> Generator:
        pairs = []
        for clip in fit:
            x = features(clip)
            first, stop = max(0, clip.offset), min(len(x), len(clip.video) + clip.offset)
            pairs.append((x[first:stop], clip.video[first - clip.offset : stop - clip.offset] - clip.neutral))
        model = Linear.fit([x for x, _ in pairs], [y for _, y in pairs], penalty)
        return lambda face, sound: model(features(sound)) + face.neutral

    return {"loudness": fitted(lambda clip: loudness(clip.samples), 1e-3), "ridge": fitted(features_of, 3000.0)}


def hold_reference(face: EvaluationClip, sound: EvaluationClip) -> Array:
    """The portrait, unmoved."""
    return np.repeat(face.landmarks[None], sound.frames, axis=0)


def hold_neutral(face: EvaluationClip, sound: EvaluationClip) -> Array:
    """The portrait's neutral face, unmoved."""
    return np.repeat(face.neutral[None], sound.frames, axis=0)
