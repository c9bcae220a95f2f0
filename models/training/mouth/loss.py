"""What the mouth painter minimises, and the network that tells its mouths from photographs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from avatard.models.mcvdm.layers import SLOPE
from avatard.models.mcvdm.mouth_painter import MouthPainter, blurred, fill, observe
from avatard.models.training.mouth.dataset import Batch
from avatard.models.training.perceptual import Perceptual

#: Weights of the losses: absolute error of pixels and of squares of `SQUARE` pixels, …, difference between a window and
#: its twin. Squares ask what colour is where; pixels ask where each tooth ends, which nobody can know, and get a blur.
L1, COLOUR, PERCEPTUAL, ADVERSARIAL, FEATURES, STEADY = 0.6, 1.4, 0.4, 0.2, 2.0, 0.6
SQUARE = 4
#: Pixels of a mask below which it counts for less.
LEAST = 32
#: Share of a verdict's cell that must be painted for it to count.
SEES = 0.1
#: Height and width of the patch about the mouth that the discriminator and the perceptual loss look at, pixels.
PATCH = (64, 96)
#: Share of the examples with a hint; of those, the range of its blur (pixels).
HINTED, HINT_BLURS = 0.55, (4.0, 9.0)
#: Share of the windows whose surroundings are as blurred as a decoder's picture, pixels.
SOFT, SOFT_BLURS = 0.35, (0.6, 1.6)
#: Share of the examples of the perceptual loss, which costs as much as the painter.
LOOKED_AT = 0.5


class Discriminator(nn.Module):
    """Judges patches of mouths and their masks: real or painted, by overlapping pieces (Isola et al. 2017)."""

    def __init__(self, width: int = 48):
        super().__init__()
        widths = (4, width, 2 * width, 3 * width)
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.judge = spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, patch: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Patches `[B, 3, h, w]` and masks `[B, 1, h, w]` → verdicts `[B, 1, h / 8, w / 8]` and features by layer."""
        h = torch.cat([patch, mask], dim=1)
        features = []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), SLOPE)
            features.append(h)
        verdict: Tensor = self.judge(h)
        return verdict, features


def patches(masks: Tensor, *pictures: Tensor, reach: int = 6) -> list[Tensor]:
    """The same patch about each mask `[B, 1, H, W]` of every `[B, C, H, W]`, moved by chance: `[B, C, h, w]` each."""
    height, width = masks.shape[-2:]
    corners = []
    for mask in masks[:, 0]:
        rows, columns = (torch.nonzero(mask.amax(axis) > 0.5).flatten().float() for axis in (1, 0))
        middle = (float(rows.mean()) if len(rows) else height / 2, float(columns.mean()) if len(columns) else width / 2)
        corners.append(
            [
                min(max(round(at) - size // 2 + int(torch.randint(-reach, reach + 1, ())), 0), whole - size)
                for at, size, whole in zip(middle, PATCH, (height, width), strict=True)
            ]
        )
    return [
        torch.stack([x[:, y : y + PATCH[0], z : z + PATCH[1]] for x, (y, z) in zip(picture, corners, strict=True)])
        for picture in pictures
    ]


def soften(window: Tensor, mask: Tensor) -> Tensor:
    """Some of the windows `[B, 3, H, W]`, outside their masks, as blurred as a decoder's picture."""
    deviation = float(torch.empty(()).uniform_(*SOFT_BLURS))
    offset = torch.arange(-4, 5, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offset / deviation) ** 2)
    rows = (kernel / kernel.sum()).view(1, 1, -1, 1).expand(3, 1, -1, 1)
    padded = F.pad(window, (4, 4, 4, 4), mode="replicate")
    soft = F.conv2d(F.conv2d(padded, rows, groups=3), rows.transpose(2, 3), groups=3)
    chosen = (torch.rand(len(window), 1, 1, 1) < SOFT).float()
    return torch.lerp(window, soft, chosen * (1 - mask))


class Doubt(NamedTuple):
    """How wrong the hints of a batch are, as wrong as a decoder's paint may be. A window and its twin share it."""

    deviation: float  # of the blur, pixels
    contrast: Tensor  # [B, 1, 1, 1]
    cast: Tensor  # [B, 3, 1, 1]
    clouds: Tensor  # [B, 1, 5, 7], light and shade
    shift: tuple[int, int]  # pixels down and right

    @classmethod
    def random(cls, count: int) -> Doubt:
        """For a batch of windows."""
        down, right = (int(n) for n in torch.randint(-3, 4, (2,)))
        return cls(
            float(torch.empty(()).uniform_(*HINT_BLURS)),
            torch.empty(count, 1, 1, 1).uniform_(0.6, 1.15),
            0.06 * torch.randn(count, 1, 1, 1) + 0.02 * torch.randn(count, 3, 1, 1),
            0.06 * torch.randn(count, 1, 5, 7),
            (down, right),
        )

    def first(self, count: int) -> Doubt:
        """That of the first windows."""
        return self._replace(contrast=self.contrast[:count], cast=self.cast[:count], clouds=self.clouds[:count])


def hints(expected: Tensor, mask: Tensor, hinted: Tensor, doubt: Doubt) -> Tensor:
    """Hints `[B, 4, H, W]` for the windows where `hinted` `[B, 1, 1, 1]` is 1."""
    b, _, height, width = expected.shape
    colours = blurred(expected, mask, doubt.deviation)
    mean = (colours * mask).sum((2, 3), keepdim=True) / mask.sum((2, 3), keepdim=True).clamp_min(1)
    clouds = F.interpolate(doubt.clouds, (height, width), mode="bilinear")
    colours = mean + doubt.contrast * (colours - mean) + doubt.cast + clouds
    colours = colours.roll(doubt.shift, dims=(2, 3))
    return torch.cat([colours, hinted.expand(b, 1, height, width)], dim=1)


class Painting(NamedTuple):
    """A batch as the painter filled it."""

    window: Tensor  # [B, 3, H, W], what was to be painted
    painted: Tensor  # [B, 3, H, W], of use in the mask
    shown: Tensor  # [B, 3, H, W]
    code: Tensor  # [B, N]
    hinted: Tensor  # [B, 1, 1, 1]
    doubt: Doubt


class Objective(nn.Module):
    """The losses of painter and discriminator on a batch."""

    def __init__(self, painter: MouthPainter, discriminator: Discriminator, perceptual: Perceptual | None):
        super().__init__()
        self.painter, self.discriminator, self.perceptual = painter, discriminator, perceptual

    def paint(self, batch: Batch) -> Painting:
        """Fill a batch's windows, with what the painter may be given in some of them."""
        window = soften(batch.window, batch.mask)
        code = torch.randn(len(window), self.painter.config.code)
        hinted = (torch.rand(len(window), 1, 1, 1) < HINTED).float()
        doubt = Doubt.random(len(window))
        hint = hints(batch.expected, batch.mask, hinted, doubt)
        painted = self.painter(observe(window, batch.mask, hint, batch.reference), code)
        return Painting(window, painted, fill(window, painted, batch.mask), code, hinted, doubt)

    def critic(self, batch: Batch, painting: Painting) -> Tensor:
        """The discriminator's hinge loss (Lim and Ye 2017) on one patch of each window."""
        made, real, mask = patches(batch.mask, painting.shown.detach(), painting.window, batch.mask)
        verdict, _ = self.discriminator(torch.cat([made, real]), mask.repeat(2, 1, 1, 1))
        weight = _within(mask, verdict)
        return ((F.relu(1 + verdict[: len(made)]) + F.relu(1 - verdict[len(made) :])) * weight).sum()

    def forward(self, batch: Batch, painting: Painting, adversarial: bool) -> dict[str, Tensor]:
        """The painter's losses by name; `total` is what is minimised."""
        window, painted, mask = painting.window, painting.painted, batch.mask
        difference = (painted - window) * mask / mask.sum((1, 2, 3), keepdim=True).clamp_min(LEAST)
        losses = {
            "l1": difference.abs().sum((1, 2, 3)).mean() / 3,
            "colour": F.avg_pool2d(difference, SQUARE).abs().sum((1, 2, 3)).mean() * SQUARE**2 / 3,
        }
        losses["total"] = L1 * losses["l1"] + COLOUR * losses["colour"]
        if len(batch.twin):
            losses["steady"] = self._steady(batch, painting)
            losses["total"] = losses["total"] + STEADY * losses["steady"]
        made, real, mask = patches(mask, painting.shown, window, mask)
        if self.perceptual is not None:
            some = torch.randperm(len(made))[: max(1, round(LOOKED_AT * len(made)))]
            losses["perceptual"] = self.perceptual(made[some], real[some])
            losses["total"] = losses["total"] + PERCEPTUAL * losses["perceptual"]
        if adversarial:
            losses |= self._adversarial(made, real, mask)
            losses["total"] = losses["total"] + ADVERSARIAL * losses["fooled"] + FEATURES * losses["features"]
        return losses

    def _steady(self, batch: Batch, painting: Painting) -> Tensor:
        """How much more than it moved the paint of a window and of its twin differ."""
        twins = len(batch.twin)
        doubt = painting.doubt.first(twins)
        hint = hints(batch.twin_expected, batch.twin_mask, painting.hinted[:twins], doubt)
        seen = observe(batch.twin, batch.twin_mask, hint, batch.reference[:twins])
        again, painted = self.painter(seen, painting.code[:twins]), painting.painted[:twins]
        grid = F.affine_grid(batch.moved, list(painted.shape), align_corners=False)
        back = F.grid_sample(torch.cat([again, batch.twin_mask], 1), grid, mode="bicubic", align_corners=False)
        common = batch.mask[:twins] * back[:, 3:].clamp(0, 1)
        weight = common / common.sum((1, 2, 3), keepdim=True).clamp_min(LEAST)
        return ((back[:, :3] - painted).abs() * weight).sum((1, 2, 3)).mean() / 3

    def _adversarial(self, made: Tensor, real: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """How far the discriminator is from being fooled, and the distance between its features of both."""
        self.discriminator.requires_grad_(False)
        verdict, features = self.discriminator(made, mask)
        with torch.no_grad():
            _, wanted = self.discriminator(real, mask)
        self.discriminator.requires_grad_(True)
        apart = [(f - w).abs().mean() for f, w in zip(features, wanted, strict=True)]
        return {"fooled": -(verdict * _within(mask, verdict)).sum(), "features": torch.stack(apart).mean()}


def _within(mask: Tensor, verdict: Tensor) -> Tensor:
    """Weights `[B, 1, h, w]` of the verdicts that see paint, of sum one: where there is none, made is real."""
    seen = (F.adaptive_avg_pool2d(mask, (verdict.shape[-2], verdict.shape[-1])) > SEES).float()
    return seen / seen.sum().clamp_min(1)
