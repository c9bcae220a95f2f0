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
from torch.nn import functional as F

from avatard.models.mcvdm.mouth_filler import REFERENCE_OPENING
from avatard.models.mcvdm.mouth_window import WINDOW_HEIGHT, WINDOW_WIDTH, window_size
from avatard.models.training.mouth.dataset import Mouth, Mouths

#: Share of the examples with a reference; of those of portraits, whose reference is their own mirrored picture.
REFERENCE, MIRRORED_REFERENCE = 0.5, 0.35
#: Share of the hints that are taken from what MC-VDM makes, where that is known.
AS_MADE = 0.7
#: Sources with fewer pixels per pixel of the window teach where teeth and tongue are, not how they look from near.
SHARP = 0.55


Size = tuple[int, int]
#: Heights and widths of the windows that are trained on, the smallest first.
SIZES: tuple[Size, ...] = ((48, 96), (64, 112), (WINDOW_HEIGHT, WINDOW_WIDTH))


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


class Chance:
    """Random numbers on a device."""

    def __init__(self, generator: torch.Generator):
        self.generator, self.device = generator, generator.device

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """From 0 to 1."""
        return torch.rand(*shape, generator=self.generator, device=self.device)


class Views(NamedTuple):
    """Maps from pixels of stored pictures to those of windows."""

    matrix: Tensor  # [B, 2, 3]
    size: Size  # of the windows

    @classmethod
    def middle(cls, count: int, device: torch.device) -> Views:
        """The views without chance: the largest window in the middle of the stored picture."""
        height, width = Mouth.STORED
        offset = [(WINDOW_WIDTH - width) / 2, (WINDOW_HEIGHT - height) / 2]
        matrix = torch.tensor([[1.0, 0.0, offset[0]], [0.0, 1.0, offset[1]]], device=device)
        return cls(matrix.expand(count, 2, 3), SIZES[-1])

    @classmethod
    def random(cls, chance: Chance, size: Size, spread: Tensor, flip: Tensor) -> Views:
        """Similarities; `spread` `[B]` is how far they go, `flip` `[B]` whether they mirror."""
        count = len(spread)
        turn = _rotation(torch.deg2rad(5 * spread * chance.normal(count)), 0.07 * spread * chance.normal(count))
        turn = turn * torch.stack([torch.where(flip, -1.0, 1.0), torch.ones_like(spread)], -1)[:, None]
        height, width = Mouth.STORED
        middle = _centre(*size, turn) + 4 * spread[:, None] * chance.normal(count, 2)
        offset = middle[..., None] - turn @ _centre(height, width, turn)[:, None]
        return cls(torch.cat([turn, offset], dim=2), size)

    def first(self, count: int) -> Views:
        """The first of them."""
        return Views(self.matrix[:count], self.size)

    def then(self, second: Tensor) -> Views:
        """These, and another map `[B, 2, 3]` of the window's pixels after them."""
        turn = second[..., :2] @ self.matrix[..., :2]
        offset = second[..., :2] @ self.matrix[..., 2:] + second[..., 2:]
        return Views(torch.cat([turn, offset], dim=2), self.size)

    @property
    def mirrored(self) -> Tensor:
        """Which of them mirror, `[B]`."""
        flipped: Tensor = torch.linalg.det(self.matrix[..., :2]) < 0
        return flipped

    def of(self, pictures: Tensor) -> Tensor:
        """Windows `[B, 3, H, W]` of stored pictures `[B, 3, h, w]`; beyond these their edge is repeated."""
        height, width = Mouth.STORED
        inverse = torch.linalg.inv(self.matrix[..., :2])
        back = torch.cat([inverse, -inverse @ self.matrix[..., 2:]], dim=2)
        pixels = _pixels(*self.size, back)
        at = torch.einsum("bij,hwj->bhwi", back[..., :2], pixels) + back[:, None, None, :, 2]
        grid = (2 * at + 1) / at.new_tensor([width, height]) - 1
        return F.grid_sample(pictures, grid, mode="bicubic", padding_mode="border", align_corners=False)


def small_motion(chance: Chance, count: int, size: Size) -> Tensor:
    """What a head does from one frame to the next, as maps `[B, 2, 3]` of the pixels of windows of this size."""
    turn = _rotation(torch.deg2rad(chance.normal(count)), 0.01 * chance.normal(count))
    middle = _centre(*size, turn)[:, None]
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
        pixels = _pixels(*views.size, ring)
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

    def varied(self, chance: Chance, spread: Tensor) -> Light:
        """Slightly other lights; `spread` `[B]`."""
        count = len(spread)
        tint = torch.exp(spread[:, None] * (0.05 * chance.normal(count, 1) + 0.02 * chance.normal(count, 3)))
        return Light(self.gain * tint, self.gamma * torch.exp(0.05 * spread * chance.normal(count)))

    def apply(self, pictures: Tensor) -> Tensor:
        """Pictures `[B, 3, H, W]` of grey levels → [-1, 1]."""
        curve = (pictures / 255).clamp(0, 1) ** self.gamma[:, None, None, None]
        return 2 * (curve * self.gain[..., None, None]).clamp(0, 1) - 1


class Examples:
    """Batches of examples from mouths that lie on a device."""

    def __init__(self, mouths: Mouths, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        everyone = mouths.mouths
        self._pictures = self._bytes([mouth.picture for mouth in everyone])
        made = [n for n, mouth in enumerate(everyone) if mouth.made is not None]
        self._made = self._bytes([picture for mouth in everyone if (picture := mouth.made) is not None])
        row = torch.full((len(everyone),), -1)
        row[made] = torch.arange(len(made))
        self._made_row = row.to(self.device)
        self._lips = torch.from_numpy(np.stack([mouth.lips for mouth in everyone])).float().to(self.device)
        sharp = np.array([mouth.sharpness >= SHARP for mouth in everyone])
        self._sharp = torch.from_numpy(sharp).float().to(self.device)
        shares = torch.from_numpy(mouths.shares()).float().to(self.device)
        needed = torch.tensor([window_size(mouth.lips) for mouth in everyone], device=self.device)
        # Of each size of window, how often to draw each mouth: those that fit, where some do.
        fitting = [shares * (needed <= torch.tensor(size, device=self.device)).all(1) for size in SIZES]
        self._shares = [few if few.any() else shares for few in fitting]
        self._find_references(mouths)

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
        as_made = chance.uniform(count) < AS_MADE
        other, mirrored, there = self.references(numbers, chance)
        there &= chance.uniform(count) < REFERENCE
        spread = 1 + mirrored.float()
        seen = Views.random(chance, shape, spread, views.mirrored ^ mirrored)
        none = LipError.none(count, self.device)
        shown = light.varied(chance, spread).apply(seen.of(self._pictures[other].float()))
        reference = torch.cat([shown, none.mask(self._lips[other], seen)], 1) * there[:, None, None, None]
        window, expected = self._windows(numbers, views, light, as_made)
        mask = LipError.random(chance, count).mask(self._lips[numbers], views)
        nudge = small_motion(chance, twins, shape)
        near, firsts = views.first(twins).then(nudge), numbers[:twins]
        twin, twin_expected = self._windows(firsts, near, light.first(twins), as_made[:twins])
        twin_mask = LipError.random(chance, twins).mask(self._lips[firsts], near)
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
        always = torch.ones(count, dtype=torch.bool, device=self.device)
        other, mirrored, there = self.references(chosen, chance)
        shown = torch.cat(
            [light.apply(views.of(self._pictures[other].float())), usual.mask(self._lips[other], views)], 1
        )
        reference = shown * (there & ~mirrored)[:, None, None, None]
        nudge = small_motion(chance, count, views.size)
        near = views.then(nudge)
        window, expected = self._windows(chosen, views, light, always)
        twin, twin_expected = self._windows(chosen, near, light, always)
        masks = [usual.mask(self._lips[chosen], place) for place in (views, near)]
        inside = LipError.none(count, self.device, grow=0.0).mask(self._lips[chosen], views)
        sharp, moved = self._sharp[chosen], normalised(nudge, views.size)
        return Batch(window, expected, masks[0], reference, sharp, twin, twin_expected, masks[1], moved), inside

    def _windows(self, numbers: Tensor, views: Views, light: Light, as_made: Tensor) -> tuple[Tensor, Tensor]:
        """Windows, and where their hints come from: the windows, or what MC-VDM makes where that is known and asked."""
        window = light.apply(views.of(self._pictures[numbers].float()))
        row = self._made_row[numbers]
        if not len(self._made):
            return window, window
        made = light.apply(views.of(self._made[row.clamp_min(0)].float()))
        return window, torch.where((as_made & (row >= 0))[:, None, None, None], made, window)


def _rotation(angle: Tensor, log_size: Tensor) -> Tensor:
    """Rotations and scalings `[B, 2, 2]`."""
    size = torch.exp(log_size)
    sine, cosine = size * torch.sin(angle), size * torch.cos(angle)
    return torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], dim=-2)


def _centre(height: int, width: int, like: Tensor) -> Tensor:
    """Of a picture, pixels `[2]` (as a column `[2, 1]` with `[:, None]`)."""
    return like.new_tensor([(width - 1) / 2, (height - 1) / 2])


def _pixels(height: int, width: int, like: Tensor) -> Tensor:
    """Pixel centres x, y, `[height, width, 2]`."""
    y, x = torch.meshgrid(
        torch.arange(height, device=like.device, dtype=like.dtype),
        torch.arange(width, device=like.device, dtype=like.dtype),
        indexing="ij",
    )
    return torch.stack([x, y], dim=-1)


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
