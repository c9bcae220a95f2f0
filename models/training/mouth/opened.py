"""Closed portraits that MC-VDM opened, as examples: hints of what nobody photographed.

A portrait with closed lips that opens gets a pale blob from the decoder, whatever belongs there. No pair of such a
blob and the truth exists. But a hint has no detail, so the blob of one person, moved onto the lips of another whose
mouth is as wide and as high, and lit alike, is a hint for theirs; and what is between the lips of the other, moved
between those of the portrait, is what might be behind its blob.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.training.mouth.dataset import Mouth
from avatard.models.training.mouth.views import Views

#: Among how many blobs of the most similar shape one is chosen.
SIMILAR = 24
#: The part of a stored picture that is mostly skin, whatever the mouth does; its median is the light.
SKIN = (slice(30, 130), slice(32, 192))
#: Points of a line around lips.
POINTS = 24
#: Limits of the factor between the lights of two people.
FACTORS = (0.5, 1.6)


class OpenedMouths:
    """Blobs of closed portraits, and which of them suit each of the real mouths.

    Args:
        opened: written by `scripts/prepare_mouths.py --motion`; at least one.
        mouths: the real ones.
        device: where both lie.
    """

    def __init__(self, opened: Sequence[Mouth], mouths: Sequence[Mouth], device: torch.device):
        pictures = np.stack([mouth.picture for mouth in opened])
        self.pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().to(device)
        self.lips = torch.from_numpy(rings(opened)).float().to(device)
        shapes, wanted = (torch.from_numpy(_shapes(some)) for some in (opened, mouths))
        few = min(SIMILAR, len(opened))
        self._similar = torch.cdist(wanted, shapes).topk(few, largest=False).indices.to(device)
        self._blobs, self._real = (torch.from_numpy(_boxes(some)).float().to(device) for some in (opened, mouths))
        self._lights, self._wanted = (torch.from_numpy(_lights(some)).float().to(device) for some in (opened, mouths))

    def choose(self, numbers: Tensor, chance: Tensor) -> Tensor:
        """A blob for each of the mouths `[B]`, by numbers `[B]` between 0 and 1."""
        few = self._similar.shape[1]
        place = (chance * few).long().clamp(0, few - 1)
        return self._similar[numbers, place]

    def blobs(self, numbers: Tensor, chosen: Tensor, views: Views) -> Tensor:
        """Blobs `[B]` moved onto the lips of mouths `[B]`, as views of these show them: grey levels `[B, 3, H, W]`."""
        onto = _onto(self._blobs[chosen], self._real[numbers])
        light = (self._wanted[numbers] / self._lights[chosen]).clamp(*FACTORS)
        return views.after(onto).of(self.pictures[chosen].float()) * light[..., None, None]

    def between(self, numbers: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """How to move mouths `[B]` between the lips of blobs `[B]`: maps of pixels `[B, 2, 3]`, factors `[B, 3]`."""
        light = (self._lights[chosen] / self._wanted[numbers]).clamp(*FACTORS)
        return _onto(self._real[numbers], self._blobs[chosen]), light


def rings(mouths: Sequence[Mouth]) -> NDArray[np.float32]:
    """The lips of mouths with the same number of points, `[N, POINTS, 2]`: a few are left out or repeated."""
    found = []
    for mouth in mouths:
        count = len(mouth.lips)
        found.append(mouth.lips[np.arange(POINTS) * count // POINTS])
    return np.stack(found).astype(np.float32)


def _onto(box: Tensor, other: Tensor) -> Tensor:
    """Maps `[B, 2, 3]` of pixels of one box (see `_boxes`) to those of another."""
    factor = other[:, 2:] / box[:, 2:]
    return torch.cat([torch.diag_embed(factor), (other[:, :2] - factor * box[:, :2])[..., None]], dim=2)


def _boxes(mouths: Sequence[Mouth]) -> NDArray[np.floating]:
    """Middle, width and height of the lips `[N, 4]`, pixels of the stored pictures."""
    low, high = (np.stack([edge(mouth.lips, axis=0) for mouth in mouths]) for edge in (np.min, np.max))
    return np.concatenate([(low + high) / 2, np.maximum(high - low, 2.0)], axis=1).astype(np.float64)


def _shapes(mouths: Sequence[Mouth]) -> NDArray[np.float32]:
    """The lips about their middle, in a row `[N, 2 * POINTS]`, pixels: a smile is not a vowel of the same size."""
    lines = rings(mouths)
    about: NDArray[np.float32] = (lines - lines.mean(axis=1, keepdims=True)).reshape(len(lines), -1)
    return about


def _lights(mouths: Sequence[Mouth]) -> NDArray[np.floating]:
    """Median colour of the skin `[N, 3]`, grey levels."""
    medians = [np.median(mouth.picture[SKIN].reshape(-1, 3), axis=0) for mouth in mouths]
    lights: NDArray[np.floating] = np.maximum(np.stack(medians), 8.0)
    return lights
