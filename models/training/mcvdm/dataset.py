"""Training examples: a portrait and a short clip of the same person, augmented together.

Every example is a function of (seed, index), so that a run resumes where it stopped and several processes never draw
the same one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from avatard.models.face.topology import mouth_opening
from avatard.models.training.clips import Clip, DataError, Entry, in_turns
from avatard.models.training.mcvdm.regions import region_map
from avatard.timebase import CROP_SIDE

Floats = NDArray[np.floating]
#: Examples side by side.
Batch = dict[str, Tensor]
Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Sampling:
    """How clips and portraits are chosen, as probabilities."""

    frames: int = 4  # of a clip
    max_step: int = 4  # between two of them, drawn from 1 to this
    open_target: float = 0.6  # the clip is laid around a widely open mouth
    closed_reference: float = 0.5  # the portrait is one of the clip's most closed mouths
    other_clip: float = 0.06  # the portrait comes from another clip of the person
    #: Which of the clip's frames come as pictures (their points always come): that many of the last `tail`, or all.
    shown: int | None = None
    tail: int = 16
    augment: bool = True


@lru_cache(maxsize=4096)
def _clip(path: Path) -> Clip:
    return Clip(path)


class Examples(Dataset[dict[str, Tensor]]):
    """A map-style data set of `length` examples.

    Each is a dict: `reference` uint8 `[3, 256, 256]`, `frames` uint8 `[S, 3, 256, 256]`, points in pixels `source`
    `[68, 2]`, `rigid` and `target` `[S, 68, 2]` (see `warp.landmark_flow`), `registered` `[1 + S, 68, 2]`, where the
    portrait and the frames have them (the others are as tracked in the daemon), and `regions` uint8
    `[S, 1, 256, 256]` (see `Region`).

    Args:
        folder: prepared data; `entries` are of it.
        entries: the clips to draw from.
        mix: source name to its share; sources without a share are not used.
        mean_68: the 3DMM's mean face `[68, 3]`.
        sampling: see there.
        length: number of examples.
        seed: of the random numbers.
        start: index of the first example, for a resumed run.
    """

    def __init__(
        self,
        folder: Path,
        entries: Sequence[Entry],
        mix: Mapping[str, float],
        mean_68: Floats,
        sampling: Sampling,
        length: int,
        seed: int = 0,
        start: int = 0,
    ):
        self.folder, self.mean_68, self.sampling = folder, mean_68, sampling
        self.length, self.seed, self.start = length, seed, start
        self.people: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
        for entry in entries:
            if mix.get(entry.source, 0) > 0 and entry.frames > 1:
                self.people[entry.source][entry.speaker].append(entry)
        missing = [source for source, share in mix.items() if share > 0 and source not in self.people]
        if missing:
            raise DataError(f"no training clips of {', '.join(missing)} in {folder}")
        self.sources = sorted(self.people)
        self.shares = np.array([mix[source] for source in self.sources], np.float64)
        self.shares /= self.shares.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, self.start + index))
        people = self.people[self.sources[int(rng.choice(len(self.sources), p=self.shares))]]
        # Between uniform over people and uniform over clips: rare people count more than their clips.
        share = np.sqrt([len(clips) for clips in people.values()])
        clips = list(people.values())[int(rng.choice(len(share), p=share / share.sum()))]
        entry = clips[int(rng.integers(len(clips)))]
        clip = self.open(entry)
        opening = mouth_opening(clip.landmarks + self.mean_68)
        first = int(entry.animated)  # frame 0 is the portrait itself, at another moment
        frames = [first + n for n in self._choose_frames(rng, opening[first:])]
        other = clip
        if rng.random() < self.sampling.other_clip:
            other = self.open(clips[int(rng.integers(len(clips)))])
            opening = mouth_opening(other.landmarks + self.mean_68)
        reference = int(rng.integers(len(opening)))
        if rng.random() < self.sampling.closed_reference:
            reference = int(np.argsort(opening)[int(rng.integers(math.ceil(len(opening) / 4)))])
        count, tail, shown = self.sampling.frames, self.sampling.tail, range(self.sampling.frames)
        chosen = (
            shown
            if self.sampling.shown is None
            else sorted(count - tail + rng.choice(tail, self.sampling.shown, replace=False))
        )
        return example(clip, frames, other, reference, self.mean_68, rng if self.sampling.augment else None, chosen)

    def open(self, entry: Entry) -> Clip:
        """The clip of an entry, kept in memory."""
        return _clip(self.folder / entry.path)

    def _choose_frames(self, rng: np.random.Generator, opening: Floats) -> list[int]:
        count = self.sampling.frames
        longest = (len(opening) - 1) // max(count - 1, 1)
        step = int(rng.integers(1, max(1, min(self.sampling.max_step, longest)) + 1))
        last = len(opening) - 1 - step * (count - 1)
        if last < 0:  # shorter than asked for: played to and fro
            turn = len(opening) - 1
            return [turn - abs(n % (2 * turn) - turn) for n in range(count)]
        start = int(rng.integers(last + 1))
        if rng.random() < self.sampling.open_target:
            widest = np.argsort(opening)[::-1][: math.ceil(len(opening) / 6)]
            start = int(rng.choice(widest)) - step * int(rng.integers(count))
        start = min(max(start, 0), last)
        return [start + step * n for n in range(count)]


def example(
    clip: Clip,
    frames: Sequence[int],
    other: Clip,
    reference: int,
    mean_68: Floats,
    rng: np.random.Generator | None,
    shown: Sequence[int] | None = None,
) -> dict[str, Tensor]:
    """The example of some frames of `clip` with frame `reference` of `other` as the portrait; see `Examples`.

    `shown` are positions in `frames`: only those come as pictures, and are listed in the example under `shown`.
    """
    shown = range(len(frames)) if shown is None else shown
    pictures = [other.frame(reference), *(clip.frame(frames[n]) for n in shown)]
    face = other.landmarks[reference] + mean_68
    chosen = np.asarray(frames)
    target = clip.pose[chosen].project(clip.landmarks[chosen] + mean_68)[..., :2]
    rigid = clip.pose[chosen].project(np.broadcast_to(face, (*target.shape[:-1], 3)))[..., :2]
    source = other.pose[reference].project(face)[..., :2]
    registered = [other.registered[reference : reference + 1], clip.registered[chosen]]
    points = np.concatenate([source[None], rigid, target, *registered])
    if rng is not None:
        pictures, points = augment(rng, pictures, points)
    s = len(chosen)
    stacked = torch.from_numpy(np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2)))
    placed = torch.from_numpy(points.astype(np.float32))
    return {
        "reference": stacked[0],
        "frames": stacked[1:],
        "source": placed[0],
        "rigid": placed[1 : s + 1],
        "target": placed[s + 1 : 2 * s + 1],
        "registered": placed[2 * s + 1 :],
        "regions": torch.from_numpy(np.stack([region_map(points[2 * s + 2 + n]) for n in shown]))[:, None],
        "shown": torch.tensor(list(shown)),
    }


def augment(rng: np.random.Generator, pictures: list[Pictures], points: Floats) -> tuple[list[Pictures], Floats]:
    """Mirror, move, recolour and degrade all pictures of an example alike; `points` `[..., 2]` follow."""
    if rng.random() < 0.5:
        pictures = [np.ascontiguousarray(p[:, ::-1]) for p in pictures]
        points = np.stack([CROP_SIDE - 1 - points[..., 0], points[..., 1]], -1)
    if rng.random() < 0.6:
        matrix = _placement(rng)
        pictures = [
            np.asarray(
                cv2.warpAffine(
                    p, matrix, (CROP_SIDE, CROP_SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
                ),
                np.uint8,
            )
            for p in pictures
        ]
        points = points @ matrix[:, :2].T + matrix[:, 2]
    if rng.random() < 0.8:
        tables = _colour(rng)
        pictures = [np.asarray(cv2.LUT(p, tables), np.uint8) for p in pictures]
    if rng.random() < 0.03:
        pictures = [np.repeat(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)[..., None], 3, -1).astype(np.uint8) for p in pictures]
    if rng.random() < 0.1:
        sigma = float(rng.uniform(0.4, 1.1))
        pictures = [np.asarray(cv2.GaussianBlur(p, (0, 0), sigma), np.uint8) for p in pictures]
    if rng.random() < 0.1:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 85))]
        pictures = [np.asarray(cv2.imdecode(cv2.imencode(".jpg", p, quality)[1], 1), np.uint8) for p in pictures]
    return pictures, points


def _placement(rng: np.random.Generator) -> Floats:
    """A small similarity about the centre with a little anisotropy, `[2, 3]`."""
    angle, scale = math.radians(rng.normal(0, 4)), math.exp(rng.normal(0.02, 0.07))
    stretch = math.exp(rng.normal(0, 0.03))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    linear = scale * turn @ np.diag([stretch, 1 / stretch])
    centre = np.full(2, (CROP_SIDE - 1) / 2)
    return np.concatenate([linear, (centre + rng.normal(0, 6, 2) - linear @ centre)[:, None]], 1)


def _colour(rng: np.random.Generator) -> Pictures:
    """A look-up table `[1, 256, 3]`: brightness, contrast, gamma and a colour cast."""
    level = np.linspace(0, 1, 256)[:, None] ** math.exp(rng.normal(0, 0.2))
    gain = math.exp(rng.normal(0, 0.12)) * np.exp(rng.normal(0, 0.06, 3))
    table = (level - 0.5) * gain + 0.5 + rng.normal(0, 0.04)
    return np.clip(table * 255, 0, 255).round().astype(np.uint8)[None]


def validation_examples(
    folder: Path, entries: Sequence[Entry], mean_68: Floats, clips: int, frames: int, step: int = 3
) -> list[dict[str, Tensor]]:
    """A fixed set of unaugmented examples of unseen people, evenly over them; the portrait is the most closed mouth."""
    usable = (entry for entry in entries if entry.split == "validation" and entry.frames > step * (frames - 1))
    examples = []
    for entry in islice(in_turns(usable), clips):
        clip = _clip(folder / entry.path)
        closed = int(np.argmin(mouth_opening(clip.landmarks + mean_68)))
        examples.append(example(clip, range(0, step * frames, step), clip, closed, mean_68, None))
    return examples
