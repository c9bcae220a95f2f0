"""Mouths to train the mouth painter with: what `scripts/prepare_mouths.py` writes, and the examples made of it."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from avatard.models.mcvdm.mouth_window import WINDOW_HEIGHT, WINDOW_WIDTH, lip_mask
from avatard.models.training.clips import DataError

Floats = NDArray[np.floating]
Picture = NDArray[np.uint8]
Part = Literal["train", "validation", "test"]

#: Shares of people that are test people, and that are test or validation people; of sources with few people more.
TEST, HELD_OUT = 1 / 16, 1 / 8
FEW_TEST, FEW_HELD_OUT = 0.16, 0.25
MANY = frozenset({"generated", "officials"})

#: Share of the examples that are of speech, the rest are of portraits.
SPEECH = 0.55
#: A mouth counts in proportion to its opening (interocular distances over this), within limits: wide vowels are rare.
USUAL_OPENING, OPENING_LIMITS = 0.12, (0.3, 3.0)
#: Share of the examples with a reference; of those of portraits, whose reference is their own mirrored picture.
REFERENCE, MIRRORED_REFERENCE = 0.5, 0.35
#: Share of the hints that are taken from what MC-VDM makes, where that is known.
AS_MADE = 0.7
#: A reference must be open this far (interocular distances) to show teeth.
REFERENCE_OPENING = 0.06


def part_of(source: str, person: str) -> Part:
    """Which part of the data a person belongs to, whatever else is in it.

    It agrees with `splits.SplitTable` on sources without a rule: MC-VDM's validation people are never learned from.
    """
    share = int(hashlib.sha1(person.encode(), usedforsecurity=False).hexdigest()[:4], 16) / 0x10000
    test, held_out = (TEST, HELD_OUT) if source in MANY else (FEW_TEST, FEW_HELD_OUT)
    return "test" if share < test else "validation" if share < held_out else "train"


@dataclass(frozen=True)
class Mouth:
    """One open mouth."""

    #: Height and width of what is stored: the painter's window and room to shift, turn and scale it.
    STORED: ClassVar[tuple[int, int]] = (160, 224)

    picture: Picture  # [160, 224, 3] RGB
    lips: Floats  # [20, 2], once around the inner lips, pixels of the picture
    person: str
    opening: float  # interocular distances
    yaw: float  # degrees
    sharpness: float  # pixels of the source per pixel of the window
    made: Picture | None = None  # the same window as MC-VDM makes it from the clip's most closed frame


def write_mouths(path: Path, mouths: Sequence[Mouth]) -> None:
    """Write one source's mouths, with what was made of them if all have that; the file appears whole or not at all."""
    names = sorted({mouth.person for mouth in mouths})
    numbers = {name: n for n, name in enumerate(names)}
    tensors: dict[str, NDArray[Any]] = {
        "pictures": np.stack([mouth.picture for mouth in mouths]),
        "lips": np.stack([mouth.lips for mouth in mouths]).astype(np.float32),
        "person": np.array([numbers[mouth.person] for mouth in mouths], np.int32),
        "opening": np.array([mouth.opening for mouth in mouths], np.float32),
        "yaw": np.array([mouth.yaw for mouth in mouths], np.float32),
        "sharpness": np.array([mouth.sharpness for mouth in mouths], np.float32),
    }
    made = [mouth.made for mouth in mouths if mouth.made is not None]
    if len(made) == len(mouths):
        tensors["made"] = np.stack(made)
    partial = path.with_suffix(".part")
    save_file(tensors, partial, {"people": json.dumps(names)})
    partial.replace(path)


def read_mouths(path: Path) -> list[Mouth]:
    """What `write_mouths` wrote; the pictures share one array."""
    with safe_open(path, framework="numpy") as file:
        names = json.loads(file.metadata()["people"])
        columns = [file.get_tensor(key) for key in ("pictures", "lips", "person", "opening", "yaw", "sharpness")]
        made = file.get_tensor("made") if "made" in file.keys() else [None] * len(columns[0])  # noqa: SIM118
    return [
        Mouth(picture, lips, names[person], float(opening), float(yaw), float(sharpness), made)
        for picture, lips, person, opening, yaw, sharpness, made in zip(*columns, made, strict=True)
    ]


class Batch(NamedTuple):
    """Examples for the painter; pictures in [-1, 1]."""

    window: Tensor  # [B, 3, H, W], as it is
    expected: Tensor  # [B, 3, H, W], where hints are taken from: the window itself, or as MC-VDM makes it
    mask: Tensor  # [B, 1, H, W], what to paint
    reference: Tensor  # [B, 4, H, W], another window of the person and its mask, or zero
    twin: Tensor  # [T, 3, H, W], the first T windows moved a little
    twin_expected: Tensor  # [T, 3, H, W], likewise of the twins
    twin_mask: Tensor  # [T, 1, H, W], drawn anew
    moved: Tensor  # [T, 2, 3], from normalised coordinates of the window to those of its twin


class Mouths:
    """The mouths of one part of the data.

    Args:
        folder: written by `scripts/prepare_mouths.py`.
        part: whose people are taken.
        sources: names of sources; all that are there by default.

    Raises:
        DataError: there are no mouths.
    """

    def __init__(self, folder: Path, part: Part, sources: Sequence[str] | None = None):
        self.mouths: list[Mouth] = []
        people: dict[tuple[str, str], list[int]] = defaultdict(list)
        for path in sorted(folder.glob("*.safetensors")):
            if sources is not None and path.stem not in sources:
                continue
            for mouth in read_mouths(path):
                if part_of(path.stem, mouth.person) == part:
                    people[path.stem, mouth.person].append(len(self.mouths))
                    self.mouths.append(mouth)
        if not self.mouths:
            raise DataError(f"{folder} has no mouths of {part} people: run scripts/prepare_mouths.py first")
        everyone = [np.array(numbers) for numbers in people.values()]
        self.count = len(everyone)
        #: All mouths of the person that a mouth belongs to.
        self.others = {int(n): numbers for numbers in everyone for n in numbers}
        talkers = [numbers for numbers in everyone if len(numbers) > 1]
        portraits = [numbers for numbers in everyone if len(numbers) == 1]
        self._groups = [group for group in (talkers, portraits) if group]

    def draw(self, rng: np.random.Generator) -> int:
        """The number of a mouth: speech or portrait, then a person, then one of theirs; wide ones are preferred."""
        group = self._groups[0 if rng.random() < SPEECH else -1]
        if len(group[0]) > 1:
            numbers = group[rng.integers(len(group))]
            return int(rng.choice(numbers, p=self._shares(numbers)))
        numbers = np.concatenate(group)
        return int(rng.choice(numbers, p=self._shares(numbers)))

    def _shares(self, numbers: NDArray[np.intp]) -> Floats:
        openings = np.array([self.mouths[n].opening for n in numbers])
        weights = np.clip(openings / USUAL_OPENING, *OPENING_LIMITS)
        shares: Floats = weights / weights.sum()
        return shares

    def reference(self, number: int, rng: np.random.Generator) -> tuple[Mouth, bool] | None:
        """Another mouth of a person, and whether to mirror it; a portrait is its own reference."""
        others = [n for n in self.others[number] if n != number and self.mouths[n].opening >= REFERENCE_OPENING]
        if others:
            return self.mouths[int(rng.choice(others))], False
        mouth = self.mouths[number]
        return (mouth, True) if mouth.opening >= REFERENCE_OPENING and rng.random() < MIRRORED_REFERENCE else None

    def batch(self, size: int, twins: int, rng: np.random.Generator) -> Batch:
        """Random examples, the first of them with twins."""
        return collate([self._example(self.draw(rng), n < twins, rng) for n in range(size)])

    def _example(self, number: int, twin: bool, rng: np.random.Generator) -> Example:
        mouth = self.mouths[number]
        light = Light.random(rng)
        matrix = random_view(rng)
        window, mask = view(mouth, matrix, Lips.random(rng), light)
        as_made = rng.random() < AS_MADE
        expected = view_made(mouth, matrix, light) if as_made else window
        found = self.reference(number, rng) if rng.random() < REFERENCE else None
        if found is None:
            reference = np.zeros((*mask.shape, 4), np.float32)
        else:
            other, mirrored = found
            spread = 2.0 if mirrored else 1.0
            seen = random_view(rng, spread, flip=(np.linalg.det(matrix[:, :2]) < 0) != mirrored)
            picture, covered = view(other, seen, Lips(), light.varied(rng, spread))
            reference = np.concatenate([picture, covered[..., None]], axis=-1)
        if not twin:
            return Example(window, expected, mask, reference, None)
        nudge = small_motion(rng)
        there = compose(nudge, matrix)
        moved, again = view(mouth, there, Lips.random(rng), light)
        twin_expected = view_made(mouth, there, light) if as_made else moved
        return Example(window, expected, mask, reference, Twin(moved, twin_expected, again, normalised(nudge)))


class Twin(NamedTuple):
    """A window moved a little; see `Batch`."""

    window: Floats
    expected: Floats
    mask: Floats
    moved: Floats


class Example(NamedTuple):
    """One example as arrays; see `Batch`."""

    window: Floats
    expected: Floats
    mask: Floats
    reference: Floats
    twin: Twin | None


def collate(examples: Sequence[Example]) -> Batch:
    """Examples → a batch; those with twins come first."""
    window = _planes([example.window for example in examples])
    expected = _planes([example.expected for example in examples])
    mask = _planes([example.mask for example in examples])
    reference = _planes([example.reference for example in examples])
    twins = [example.twin for example in examples if example.twin is not None]
    if not twins:
        return Batch(window, expected, mask, reference, window[:0], window[:0], mask[:0], window.new_zeros(0, 2, 3))
    matrices = torch.from_numpy(np.stack([twin.moved for twin in twins])).float()
    twin_window = _planes([twin.window for twin in twins])
    twin_expected = _planes([twin.expected for twin in twins])
    twin_mask = _planes([twin.mask for twin in twins])
    return Batch(window, expected, mask, reference, twin_window, twin_expected, twin_mask, matrices)


def _planes(pictures: Sequence[Floats]) -> Tensor:
    stack = np.stack(pictures).astype(np.float32)
    if stack.ndim == 3:
        return torch.from_numpy(stack)[:, None]
    return torch.from_numpy(stack).permute(0, 3, 1, 2).contiguous()


def random_view(rng: np.random.Generator, spread: float = 1.0, flip: bool | None = None) -> Floats:
    """A random similarity `[2, 3]` from a stored picture to a window, mirrored in half of the cases."""
    height, width = Mouth.STORED
    angle, size = np.radians(5 * spread * rng.normal()), np.exp(0.07 * spread * rng.normal())
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if rng.random() < 0.5 if flip is None else flip:
        turn = turn @ np.diag([-1.0, 1.0])
    middle = np.array([(WINDOW_WIDTH - 1) / 2, (WINDOW_HEIGHT - 1) / 2]) + 4 * spread * rng.normal(size=2)
    offset = middle - turn @ np.array([(width - 1) / 2, (height - 1) / 2])
    return np.concatenate([turn, offset[:, None]], axis=1)


#: The view without chance: the window in the middle of a stored picture.
MIDDLE: Floats = np.array(
    [
        [1.0, 0.0, (WINDOW_WIDTH - Mouth.STORED[1]) / 2],
        [0.0, 1.0, (WINDOW_HEIGHT - Mouth.STORED[0]) / 2],
    ]
)


def small_motion(rng: np.random.Generator) -> Floats:
    """What a head does from one frame to the next, as a map `[2, 3]` of the window's pixels."""
    angle, size = np.radians(rng.normal()), np.exp(0.01 * rng.normal())
    turn = size * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    middle = np.array([(WINDOW_WIDTH - 1) / 2, (WINDOW_HEIGHT - 1) / 2])
    offset = middle - turn @ middle + 1.5 * rng.normal(size=2)
    return np.concatenate([turn, offset[:, None]], axis=1)


def compose(second: Floats, first: Floats) -> Floats:
    """The map `[2, 3]` that does one after the other."""
    turn, offset = second[:, :2] @ first[:, :2], second[:, :2] @ first[:, 2] + second[:, 2]
    return np.concatenate([turn, offset[:, None]], axis=1)


def normalised(matrix: Floats) -> Floats:
    """A map of the window's pixels as one of coordinates that cross it from -1 to 1, pixel centres inside."""
    half = np.array([WINDOW_WIDTH / 2, WINDOW_HEIGHT / 2])
    centre = half - 0.5
    turn = matrix[:, :2] * half[None] / half[:, None]
    offset = (matrix[:, :2] @ centre + matrix[:, 2] - centre) / half
    return np.concatenate([turn, offset[:, None]], axis=1)


@dataclass(frozen=True)
class Lips:
    """How far a tracked inner lip is off: what a mask of it covers is never quite what lies between the lips."""

    grow: float = 2.0  # pixels beyond the polygon
    shift: tuple[float, float] = (0.0, 0.0)  # pixels
    stretch: tuple[float, float] = (1.0, 1.0)  # factor of width and height

    @classmethod
    def random(cls, rng: np.random.Generator) -> Lips:
        """As trackers are off, and a little more."""
        dx, dy = rng.normal(size=2)
        sx, sy = np.exp(rng.normal(size=2) * (0.04, 0.07))
        return cls(float(rng.uniform(0.0, 4.5)), (float(dx), float(dy)), (float(sx), float(sy)))

    def apply(self, lips: Floats) -> Floats:
        """The polygon `[K, 2]` that a tracker would give."""
        middle = lips.mean(axis=0)
        moved: Floats = (lips - middle) * self.stretch + middle + self.shift
        return moved


@dataclass(frozen=True)
class Light:
    """Exposure, contrast and tint of a photograph."""

    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0

    @classmethod
    def random(cls, rng: np.random.Generator) -> Light:
        """Anything between a dim lamp and a studio."""
        tint = np.exp(0.15 * rng.normal() + 0.05 * rng.normal(size=3))
        return cls(tuple(np.clip(tint, 0.5, 1.3)), float(np.exp(0.15 * rng.normal())))

    def varied(self, rng: np.random.Generator, spread: float) -> Light:
        """A slightly other light."""
        tint = np.array(self.gain) * np.exp(spread * (0.05 * rng.normal() + 0.02 * rng.normal(size=3)))
        return Light(tuple(tint), self.gamma * float(np.exp(0.05 * spread * rng.normal())))

    def apply(self, picture: Picture) -> Floats:
        """Bytes `[H, W, 3]` → [-1, 1]."""
        curve = 255 * (np.arange(256, dtype=np.float32) / 255) ** self.gamma
        table = np.clip(curve[:, None] * np.array(self.gain, np.float32), 0, 255) / 127.5 - 1
        lit: Floats = np.stack([table[:, c].astype(np.float32)[picture[..., c]] for c in range(3)], axis=-1)
        return lit


def view(mouth: Mouth, matrix: Floats, lips: Lips, light: Light) -> tuple[Floats, Floats]:
    """A window `[H, W, 3]` on a stored mouth and its mask `[H, W]`."""
    polygon = mouth.lips @ matrix[:, :2].T + matrix[:, 2]
    return light.apply(_warped(mouth.picture, matrix)), lip_mask(lips.apply(polygon), grow=lips.grow)


def view_made(mouth: Mouth, matrix: Floats, light: Light) -> Floats:
    """The same window as MC-VDM makes it, or where that is unknown as it is."""
    return light.apply(_warped(mouth.picture if mouth.made is None else mouth.made, matrix))


def _warped(picture: Picture, matrix: Floats) -> Picture:
    size = (WINDOW_WIDTH, WINDOW_HEIGHT)
    window = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(window, np.uint8)
