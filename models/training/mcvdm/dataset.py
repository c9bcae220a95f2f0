"""Training examples: a portrait and a short clip of the same person, made in batches on the device that trains.

Every example is a function of (seed, number): a run resumes where it stopped, several processes never draw the same
one, and CPU and GPU see the same examples within rounding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.face.morphable import MorphableModel
from avatard.models.training.clips import DataError, in_turns
from avatard.models.training.draws import Draws
from avatard.models.training.mcvdm.augmentation import Changes
from avatard.models.training.mcvdm.footage import Footage, clips_in, footage_of
from avatard.models.training.mcvdm.recipe import McvdmRecipe
from avatard.models.training.mcvdm.regions import region_map

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
#: Examples side by side.
Batch = dict[str, Tensor]


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


@dataclass(frozen=True)
class Choice:
    """What some examples are made of; frames are counted over all clips of the footage."""

    reference: Integers  # [B], the portrait's frame
    frames: Integers  # [B, S], those of the clip
    shown: Integers  # [B, K], positions in `frames` that come as pictures
    changes: Changes


class Examples:
    """Examples by their numbers.

    An example is: `reference` uint8 `[3, 256, 256]`, `frames` uint8 `[K, 3, 256, 256]`, points in pixels `source`
    `[68, 2]`, `rigid` and `target` `[S, 68, 2]` (see `warp.landmark_flow`), `registered` `[1 + S, 68, 2]`, where the
    portrait and the frames have them (the others are as tracked in the daemon), `regions` uint8 `[K, 1, 256, 256]`
    (see `Region`) and `shown` `[K]`, the frames' places in the clip.

    Args:
        footage: the clips to draw from, with their device.
        mix: source name to its share; sources without a share are not used.
        sampling: see there.
        seed: of the random numbers.

    Raises:
        DataError: a source has a share but no clips.
    """

    def __init__(self, footage: Footage, mix: Mapping[str, float], sampling: Sampling, seed: int = 0):
        self.footage, self.sampling, self.seed = footage, sampling, seed
        usable = footage.lengths - footage.firsts > 1
        people: dict[tuple[str, str], list[int]] = defaultdict(list)
        for n, (entry, enough) in enumerate(zip(footage.entries, usable, strict=True)):
            if mix.get(entry.source, 0) > 0 and enough:
                people[entry.source, entry.speaker].append(n)
        missing = sorted({s for s, share in mix.items() if share > 0} - {source for source, _ in people})
        if missing:
            raise DataError(f"no training clips of {', '.join(missing)}")
        self._shares = _shares(people, mix, len(usable))
        #: The clips of each clip's person: where they begin in `_clips`, and how many they are.
        self._clips: Integers = np.concatenate([np.array(clips) for clips in people.values()])
        sizes = np.array([len(clips) for clips in people.values()])
        self._first, self._count = np.zeros((2, len(usable)), np.int64)
        for clips, start, size in zip(people.values(), np.cumsum(sizes) - sizes, sizes, strict=True):
            self._first[clips], self._count[clips] = start, size

    def batch(self, numbers: Sequence[int] | Integers) -> Batch:
        """The examples with these numbers, side by side."""
        return make(self.footage, self.choose(np.asarray(numbers, np.int64)))

    def choose(self, numbers: Integers) -> Choice:
        """What these examples are made of."""
        sampling, draws = self.sampling, Draws(self.seed, numbers)
        clip = np.searchsorted(self._shares, draws.uniform("clip"), side="right")
        another = self._clips[self._first[clip] + draws.index("other clip", self._count[clip])]
        other = np.where(draws.below("another clip", sampling.other_clip), another, clip)
        changes = Changes.random(draws) if sampling.augment else Changes.none(len(numbers))
        return Choice(self._portrait(draws, other), self._frames(draws, clip), self._shown(draws), changes)

    def _portrait(self, draws: Draws, clip: Integers) -> Integers:
        length, start = self.footage.lengths[clip], self.footage.starts[clip]
        closed = self.footage.by_opening[start + draws.index("closed portrait", -(-length // 4))]
        picked = draws.below("closed", self.sampling.closed_reference)
        return np.asarray(start + np.where(picked, closed, draws.index("portrait", length)))

    def _frames(self, draws: Draws, clip: Integers) -> Integers:
        sampling, count = self.sampling, self.sampling.frames
        begin = self.footage.starts[clip]
        first, length = self.footage.firsts[clip], (self.footage.lengths - self.footage.firsts)[clip]
        longest = (length - 1) // max(count - 1, 1)
        step = 1 + draws.index("step", np.clip(longest, 1, sampling.max_step))
        last = np.maximum(length - 1 - step * (count - 1), 0)
        start = draws.index("start", last + 1)
        rank = length - 1 - draws.index("widest", -(-length // 6))
        widest = self.footage.by_opening_filmed[begin + first + rank] - first
        around = widest - step * draws.index("place of the widest", count)
        start = np.where(draws.below("open", sampling.open_target), np.clip(around, 0, last), start)
        places = start[:, None] + step[:, None] * np.arange(count)
        turn = (length - 1)[:, None]  # clips that are shorter than asked for are played to and fro
        return np.asarray((begin + first)[:, None] + turn - np.abs(places % (2 * turn) - turn))

    def _shown(self, draws: Draws) -> Integers:
        count, tail, shown = self.sampling.frames, self.sampling.tail, self.sampling.shown
        if shown is None:
            return np.broadcast_to(np.arange(count), (len(draws), count))
        return np.sort(count - tail + np.argsort(draws.uniform("shown", tail))[:, :shown])


def _shares(people: Mapping[tuple[str, str], list[int]], mix: Mapping[str, float], clips: int) -> Floats:
    """How often each clip is drawn, added up to it and those before it.

    Within a source between uniform over people and uniform over clips: rare people count more than their clips.
    """
    share = np.zeros(clips)
    for (source, _), numbers in people.items():
        weight = sum(np.sqrt(len(others)) for (name, _), others in people.items() if name == source)
        share[numbers] = mix[source] / weight / np.sqrt(len(numbers))
    summed: Floats = np.cumsum(share / share.sum())
    summed[np.flatnonzero(share)[-1] :] = 1.0  # whatever was lost to rounding
    return summed


def make(footage: Footage, choice: Choice) -> Batch:
    """The examples of a choice; see `Examples`."""
    rows = np.arange(len(choice.frames))[:, None]
    shown = choice.frames[rows, choice.shown]
    pictures = footage.pictures(np.concatenate([choice.reference[:, None], shown], 1).ravel())
    pictures = choice.changes.pictures(pictures.view(len(rows), -1, *pictures.shape[1:]))
    reference, frames = footage.index(choice.reference), footage.index(choice.frames)
    face = footage.face[reference]
    s = frames.shape[1]
    points = choice.changes.points(
        torch.cat(
            [
                footage.project(face, reference)[:, None],
                footage.project(face[:, None], frames),
                footage.project(footage.face[frames], frames),
                footage.registered[reference][:, None],
                footage.registered[frames],
            ],
            1,
        )
    )
    source, rigid, target, registered = torch.split(points, [1, s, s, s + 1], 1)
    where = footage.index(choice.shown)
    outlined = registered[:, 1:][footage.index(rows), where]
    return {
        "reference": pictures[:, 0],
        "frames": pictures[:, 1:],
        "source": source[:, 0],
        "rigid": rigid,
        "target": target,
        "registered": registered,
        "regions": region_map(outlined.flatten(0, 1)).view(*where.shape, 1, *pictures.shape[-2:]),
        "shown": where,
    }


def training_examples(data: Path, recipe: McvdmRecipe, sampling: Sampling, device: torch.device, seed: int) -> Examples:
    """Examples of people who may be trained on, from prepared clips or a bundle. Raises `DataError`."""
    sources = [source for source, share in recipe.mix.items() if share > 0]
    mean_68 = MorphableModel.load().mean_68
    footage = footage_of(data, "train", mean_68, device, resident=recipe.resident, sources=sources)
    return Examples(footage, recipe.mix, sampling, seed)


def validation_examples(
    data: Path, mean_68: Floats, device: torch.device, clips: int, frames: int, step: int = 3
) -> list[Batch]:
    """A fixed set of unaugmented examples of unseen people, evenly over them; the portrait is the most closed mouth.

    Each is a batch of one.
    """
    found = [(e, c) for e, c in clips_in(data) if e.split == "validation" and e.frames > step * (frames - 1)]
    filmed = {(entry.source, entry.clip): clip for entry, clip in found}
    chosen = [(entry, filmed[entry.source, entry.clip]) for entry in islice(in_turns(e for e, _ in found), clips)]
    examples = []
    for entry, clip in chosen:
        footage = Footage([(replace(entry, animated=False), clip)], mean_68, device, resident=False)
        places = np.arange(0, step * frames, step)[None]
        choice = Choice(footage.by_opening[:1], places, np.arange(frames)[None], Changes.none(1))
        examples.append(make(footage, choice))
    return examples
