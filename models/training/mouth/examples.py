"""Examples for the mouth painter: drawn, moved, mirrored and lit on the device that trains it.

All mouths stay on the device as bytes; a batch is a few operations on tensors, whatever its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.mcvdm.mouth_filler import REFERENCE_OPENING
from avatard.models.mcvdm.mouth_window import window_size
from avatard.models.training.mouth.dataset import Mouth, Mouths
from avatard.models.training.mouth.opened import OpenedMouths, rings
from avatard.models.training.mouth.views import SIZES, Chance, Size, Views, centre, pixel_centres, rotation

#: Share of the examples with a reference; of those of portraits, whose reference is their own mirrored picture.
REFERENCE, MIRRORED_REFERENCE = 0.5, 0.35
#: Share of the hints that are taken from what MC-VDM makes, where that is known; of all, with closed portraits at hand,
#: from what it makes of these.
AS_MADE, AS_OPENED = 0.7, 0.3
#: With closed portraits at hand, share of the examples that are one of them with another's mouth between its lips.
GRAFTED = 0.4
#: Sources with fewer pixels per pixel of the window teach where teeth and tongue are, not how they look from near.
SHARP = 0.55


class Batch(NamedTuple):
    """Examples for the painter; pictures in [-1, 1]."""

    window: Tensor  # [B, 3, H, W], as it is
    expected: Tensor  # [B, 3, H, W], where hints are taken from: the window itself, or as MC-VDM makes it
    mask: Tensor  # [B, 1, H, W], what to paint
    reference: Tensor  # [B, 4, H, W], another window of the person and its mask, or zero
    sharp: Tensor  # [B], 1 where the source has the detail of the window
    twin: Tensor  # [T, 3, H, W], the first T windows moved a little
    twin_expected: Tensor  # [T, 3, H, W], likewise of the twins
    twin_mask: Tensor  # [T, 1, H, W], drawn anew
    moved: Tensor  # [T, 2, 3], from normalised coordinates of the window to those of its twin


def small_motion(chance: Chance, count: int, size: Size) -> Tensor:
    """What a head does from one frame to the next, as maps `[B, 2, 3]` of the pixels of windows of this size."""
    turn = rotation(torch.deg2rad(chance.normal(count)), 0.01 * chance.normal(count))
    middle = centre(*size, turn)[:, None]
    offset = middle - turn @ middle + 1.5 * chance.normal(count, 2, 1)
    return torch.cat([turn, offset], dim=2)


def normalised(maps: Tensor, size: Size) -> Tensor:
    """Maps `[B, 2, 3]` of a window's pixels as those of coordinates that cross it from -1 to 1, centres inside."""
    half = maps.new_tensor([[size[1] / 2], [size[0] / 2]])
    centre = half - 0.5
    turn = maps[..., :2] * half.T / half
    offset = (maps[..., :2] @ centre + maps[..., 2:] - centre) / half
    return torch.cat([turn, offset], dim=2)


class LipError(NamedTuple):
    """How far tracked inner lips are off: what a mask of them covers is never quite what lies between the lips."""

    grow: Tensor  # [B], pixels beyond the polygon
    shift: Tensor  # [B, 2], pixels
    stretch: Tensor  # [B, 2], factors of width and height

    @classmethod
    def none(cls, count: int, device: torch.device, grow: float = 2.0) -> LipError:
        """The lips as they were tracked."""
        pairs = torch.ones(count, 2, device=device)
        return cls(torch.full((count,), grow, device=device), 0 * pairs, pairs)

    @classmethod
    def random(cls, chance: Chance, count: int) -> LipError:
        """As trackers are off, and a little more."""
        stretch = torch.exp(chance.normal(count, 2) * torch.tensor([0.04, 0.07], device=chance.device))
        return cls(4.5 * chance.uniform(count), chance.normal(count, 2), stretch)

    def mask(self, lips: Tensor, views: Views) -> Tensor:
        """What lies between the lips `[B, K, 2]` of stored pictures, in windows: `[B, 1, H, W]`, see `lip_mask`."""
        ring = lips @ views.matrix[..., :2].transpose(1, 2) + views.matrix[:, None, :, 2]
        middle = ring.mean(dim=1, keepdim=True)
        ring = (ring - middle) * self.stretch[:, None] + middle + self.shift[:, None]
        pixels = pixel_centres(*views.size, ring)
        return (_inside(ring, pixels) + self.grow[:, None, None]).clamp(0, 1)[:, None]


class Light(NamedTuple):
    """Exposure, contrast and tint of photographs."""

    gain: Tensor  # [B, 3]
    gamma: Tensor  # [B]

    @classmethod
    def none(cls, count: int, device: torch.device) -> Light:
        """As they were taken."""
        return cls(torch.ones(count, 3, device=device), torch.ones(count, device=device))

    @classmethod
    def random(cls, chance: Chance, count: int) -> Light:
        """Anything between a dim lamp and a studio."""
        gain = torch.exp(0.15 * chance.normal(count, 1) + 0.05 * chance.normal(count, 3)).clamp(0.5, 1.3)
        return cls(gain, torch.exp(0.15 * chance.normal(count)))

    def first(self, count: int) -> Light:
        """The first of them."""
        return Light(self.gain[:count], self.gamma[:count])

    def chosen(self, numbers: Tensor) -> Light:
        """Some of them."""
        return Light(self.gain[numbers], self.gamma[numbers])

    def varied(self, chance: Chance, spread: Tensor) -> Light:
        """Slightly other lights; `spread` `[B]`."""
        count = len(spread)
        tint = torch.exp(spread[:, None] * (0.05 * chance.normal(count, 1) + 0.02 * chance.normal(count, 3)))
        return Light(self.gain * tint, self.gamma * torch.exp(0.05 * spread * chance.normal(count)))

    def apply(self, pictures: Tensor) -> Tensor:
        """Pictures `[B, 3, H, W]` of grey levels → [-1, 1]."""
        curve = (pictures / 255).clamp(0, 1) ** self.gamma[:, None, None, None]
        return 2 * (curve * self.gain[..., None, None]).clamp(0, 1) - 1


class _Kinds(NamedTuple):
    """What the examples of a batch are made of."""

    as_made: Tensor  # [B], hints from what MC-VDM makes of the person, where that is known
    as_opened: Tensor  # [B], hints from what it makes of a closed portrait
    grafted: Tensor  # [B], the mouth is between the lips of that portrait
    blob: Tensor  # [B], which portrait; 0 where there are none

    def first(self, count: int) -> _Kinds:
        """The first of them."""
        return _Kinds(*(part[:count] for part in self))


class Examples:
    """Batches of examples from mouths that lie on a device.

    Args:
        mouths: of one part of the data.
        device: where they lie.
        opened: closed portraits as MC-VDM opens them, for hints; none without.
    """

    def __init__(self, mouths: Mouths, device: torch.device | str = "cpu", opened: Sequence[Mouth] = ()):
        self.device = torch.device(device)
        everyone = mouths.mouths
        self._pictures = self._bytes([mouth.picture for mouth in everyone])
        made = [n for n, mouth in enumerate(everyone) if mouth.made is not None]
        self._made = self._bytes([picture for mouth in everyone if (picture := mouth.made) is not None])
        row = torch.full((len(everyone),), -1)
        row[made] = torch.arange(len(made))
        self._made_row = row.to(self.device)
        self._lips = torch.from_numpy(rings(everyone)).float().to(self.device)
        sharp = np.array([mouth.sharpness >= SHARP for mouth in everyone])
        self._sharp = torch.from_numpy(sharp).float().to(self.device)
        shares = torch.from_numpy(mouths.shares()).float().to(self.device)
        needed = torch.tensor([window_size(mouth.lips) for mouth in everyone], device=self.device)
        # Of each size of window, how often to draw each mouth: those that fit, where some do.
        fitting = [shares * (needed <= torch.tensor(size, device=self.device)).all(1) for size in SIZES]
        self._shares = [few if few.any() else shares for few in fitting]
        self._find_references(mouths)
        self._opened = OpenedMouths(opened, everyone, self.device) if opened else None

    def _bytes(self, pictures: list[NDArray[np.uint8]]) -> Tensor:
        if not pictures:
            return torch.zeros(0, 3, *Mouth.STORED, dtype=torch.uint8, device=self.device)
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous().to(self.device)

    def _find_references(self, mouths: Mouths) -> None:
        """Open mouths, person after person, and for each mouth where those of its person begin and how many they are.

        A mouth is never a reference of itself: the person's next one is; who has no next is mirrored.
        """
        shown: list[int] = []
        first, count = np.zeros((2, len(mouths.mouths)), np.int64)
        for numbers in {id(numbers): numbers for numbers in mouths.others.values()}.values():
            opened = [int(n) for n in numbers if mouths.mouths[n].opening >= REFERENCE_OPENING]
            first[numbers], count[numbers] = len(shown), len(opened)
            shown += opened
        self._shown = torch.tensor([*shown, 0], device=self.device)  # who has none begins at the end
        self._first, self._count = (torch.from_numpy(x).to(self.device) for x in (first, count))

    def references(self, numbers: Tensor, chance: Chance) -> tuple[Tensor, Tensor, Tensor]:
        """For mouths `[B]`: numbers of others of the person, whether to mirror them, if there is one; each `[B]`."""
        first, count = self._first[numbers], self._count[numbers]
        most = count.clamp_min(1)
        place = (chance.uniform(len(numbers)) * most).long().minimum(most - 1)
        own = self._shown[first + place] == numbers
        found = self._shown[first + torch.where(own, (place + 1) % most, place)]
        mirrored = found == numbers
        there = (count > 0) & (~mirrored | (chance.uniform(len(numbers)) < MIRRORED_REFERENCE))
        return found, mirrored, there

    def batch(self, count: int, twins: int, size: int, chance: Chance) -> Batch:
        """Random examples, the first of them with twins, in windows of one of `SIZES`."""
        numbers = torch.multinomial(self._shares[size], count, replacement=True, generator=chance.generator)
        light = Light.random(chance, count)
        shape, ones = SIZES[size], torch.ones(count, device=self.device)
        views = Views.random(chance, shape, ones, chance.uniform(count) < 0.5)
        kinds = self._kinds(numbers, chance)
        other, mirrored, there = self.references(numbers, chance)
        there &= (chance.uniform(count) < REFERENCE) & ~kinds.grafted
        spread = 1 + mirrored.float()
        seen = Views.random(chance, shape, spread, views.mirrored ^ mirrored)
        none = LipError.none(count, self.device)
        shown = light.varied(chance, spread).apply(seen.of(self._pictures[other].float()))
        reference = torch.cat([shown, none.mask(self._lips[other], seen)], 1) * there[:, None, None, None]
        window, expected = self._windows(numbers, views, light, kinds)
        mask = self._masks(numbers, views, LipError.random(chance, count), kinds)
        nudge = small_motion(chance, twins, shape)
        near, firsts = views.first(twins).then(nudge), numbers[:twins]
        twin, twin_expected = self._windows(firsts, near, light.first(twins), kinds.first(twins))
        twin_mask = self._masks(firsts, near, LipError.random(chance, twins), kinds.first(twins))
        sharp, moved = self._sharp[numbers], normalised(nudge, shape)
        return Batch(window, expected, mask, reference, sharp, twin, twin_expected, twin_mask, moved)

    def middle(self, numbers: Sequence[int], chance: Chance) -> tuple[Batch, Tensor]:
        """Windows of these mouths as they are, each with a twin, hints as made, references that are not mirrored.

        Returns:
            The batch, and masks `[B, 1, H, W]` of what lies between the lips and no further.
        """
        count, chosen = len(numbers), torch.tensor(list(numbers), device=self.device)
        light, usual = Light.none(count, self.device), LipError.none(count, self.device)
        views = Views.middle(count, self.device)
        always, never = (torch.full((count,), is_so, device=self.device) for is_so in (True, False))
        kinds = _Kinds(always, never, never, torch.zeros_like(chosen))
        other, mirrored, there = self.references(chosen, chance)
        shown = torch.cat(
            [light.apply(views.of(self._pictures[other].float())), usual.mask(self._lips[other], views)], 1
        )
        reference = shown * (there & ~mirrored)[:, None, None, None]
        nudge = small_motion(chance, count, views.size)
        near = views.then(nudge)
        window, expected = self._windows(chosen, views, light, kinds)
        twin, twin_expected = self._windows(chosen, near, light, kinds)
        masks = [usual.mask(self._lips[chosen], place) for place in (views, near)]
        inside = LipError.none(count, self.device, grow=0.0).mask(self._lips[chosen], views)
        sharp, moved = self._sharp[chosen], normalised(nudge, views.size)
        return Batch(window, expected, masks[0], reference, sharp, twin, twin_expected, masks[1], moved), inside

    def _kinds(self, numbers: Tensor, chance: Chance) -> _Kinds:
        """By chance."""
        as_made, never = chance.uniform(len(numbers)) < AS_MADE, torch.zeros_like(numbers, dtype=torch.bool)
        if self._opened is None:
            return _Kinds(as_made, never, never, torch.zeros_like(numbers))
        as_opened, grafted = (chance.uniform(len(numbers)) < share for share in (AS_OPENED, GRAFTED))
        return _Kinds(as_made, as_opened, grafted, self._opened.choose(numbers, chance.uniform(len(numbers))))

    def _windows(self, numbers: Tensor, views: Views, light: Light, kinds: _Kinds) -> tuple[Tensor, Tensor]:
        """Windows, and where their hints come from."""
        pictures = self._pictures[numbers].float()
        window = light.apply(views.of(pictures))
        expected = window
        if len(self._made):
            row = self._made_row[numbers]
            made = light.apply(views.of(self._made[row.clamp_min(0)].float()))
            expected = torch.where((kinds.as_made & (row >= 0))[:, None, None, None], made, expected)
        if self._opened is not None:
            some = (kinds.as_opened & ~kinds.grafted).nonzero()[:, 0]
            if len(some):
                blobs = self._opened.blobs(numbers[some], kinds.blob[some], views.chosen(some))
                expected = expected.index_copy(0, some, light.chosen(some).apply(blobs))
            some = kinds.grafted.nonzero()[:, 0]
            if len(some):
                portraits, grafts = self._grafts(self._opened, numbers[some], views.chosen(some), kinds.blob[some])
                expected = expected.index_copy(0, some, light.chosen(some).apply(portraits))
                window = window.index_copy(0, some, light.chosen(some).apply(grafts))
        return window, expected

    def _grafts(self, opened: OpenedMouths, numbers: Tensor, views: Views, blob: Tensor) -> tuple[Tensor, Tensor]:
        """Opened portraits, and these with other mouths between their lips, grey levels."""
        portraits = views.of(opened.pictures[blob].float())
        onto, factor = opened.between(numbers, blob)
        there = views.after(onto)
        exact = LipError.none(len(numbers), self.device, grow=0.5)
        # What lies beyond either pair of lips would give away what is between them.
        inside = exact.mask(self._lips[numbers], there) * exact.mask(opened.lips[blob], views)
        mouths = there.of(self._pictures[numbers].float()) * factor[..., None, None]
        return portraits, torch.lerp(portraits, mouths, inside)

    def _masks(self, numbers: Tensor, views: Views, error: LipError, kinds: _Kinds) -> Tensor:
        """What to paint in windows, `[B, 1, H, W]`."""
        lips = self._lips[numbers]
        if self._opened is not None:
            lips = torch.where(kinds.grafted[:, None, None], self._opened.lips[kinds.blob], lips)
        return error.mask(lips, views)


def _inside(ring: Tensor, pixels: Tensor) -> Tensor:
    """How far pixels `[h, w, 2]` lie within polygons `[B, K, 2]`: `[B, h, w]`, negative outside."""
    distance = ring.new_full((len(ring), *pixels.shape[:2]), torch.inf)
    odd = torch.zeros_like(distance, dtype=torch.bool)
    for n in range(ring.shape[1]):
        start, end = ring[:, n, None, None], ring[:, (n + 1) % ring.shape[1], None, None]
        along, off = end - start, pixels - start
        share = ((off * along).sum(-1) / (along**2).sum(-1).clamp_min(1e-6)).clamp(0, 1)
        distance = torch.minimum(distance, (off - share[..., None] * along).square().sum(-1))
        crosses = (start[..., 1] > pixels[..., 1]) != (end[..., 1] > pixels[..., 1])
        slope = along[..., 0] / torch.where(
            along[..., 1].abs() < 1e-9, torch.full_like(along[..., 1], 1e-9), along[..., 1]
        )
        odd ^= crosses & (pixels[..., 0] < start[..., 0] + (pixels[..., 1] - start[..., 1]) * slope)
    return torch.where(odd, distance.sqrt(), -distance.sqrt())
