"""What the mouth painter minimises, and the network that tells its mouths from photographs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from avatard.models.mcvdm.layers import SLOPE
from avatard.models.mcvdm.mouth_painter import MouthPainter, blurred, fill, observe
from avatard.models.training.mouth.examples import Batch
from avatard.models.training.mouth.recipe import LossWeights
from avatard.models.training.perceptual import Perceptual

#: Squares (pixels) that the loss on colour compares.
SQUARE = 4
#: Pixels of a mask below which it counts for less.
LEAST = 32
#: Share of a verdict's cell that must be painted for it to count.
SEES = 0.1
#: Height and width of the patch about the mouth that the discriminator and the perceptual loss look at, pixels.
PATCH = (64, 96)
#: Range of the blur of hints (pixels), and the share of them that are one colour.
HINT_BLURS, FLAT = (4.0, 9.0), 0.1
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
        verdict: Tensor = self.judge(h).float()
        return verdict, features


def patches(masks: Tensor, *pictures: Tensor, reach: int = 6) -> list[Tensor]:
    """The same patch about each mask `[B, 1, H, W]` of every `[B, C, H, W]`, moved by chance: `[B, C, h, w]` each."""
    places = []
    for axis, most in ((2, PATCH[0]), (3, PATCH[1])):
        whole = masks.shape[axis]
        size = min(most, whole)
        covered = (masks.amax((1, 5 - axis)) > 0.5).float()  # [B, H] or [B, W]
        at = torch.arange(whole, device=masks.device, dtype=torch.float32)
        count = covered.sum(1)
        middle = torch.where(count > 0, covered @ at / count.clamp_min(1), whole / 2)
        moved = middle.round().long() - size // 2 + torch.randint(-reach, reach + 1, middle.shape, device=masks.device)
        places.append(moved.clamp(0, whole - size)[:, None] + torch.arange(size, device=masks.device))
    example = torch.arange(len(masks), device=masks.device)[:, None, None]
    rows, columns = places[0][:, :, None], places[1][:, None, :]
    # Indexing puts the channels last.
    return [picture.permute(0, 2, 3, 1)[example, rows, columns].permute(0, 3, 1, 2) for picture in pictures]


def soften(window: Tensor, mask: Tensor) -> Tensor:
    """Some of the windows `[B, 3, H, W]`, outside their masks, as blurred as a decoder's picture."""
    deviation = float(torch.empty(()).uniform_(*SOFT_BLURS))
    offset = torch.arange(-4, 5, dtype=torch.float32, device=window.device)
    kernel = torch.exp(-0.5 * (offset / deviation) ** 2)
    rows = (kernel / kernel.sum()).view(1, 1, -1, 1).expand(3, 1, -1, 1)
    padded = F.pad(window, (4, 4, 4, 4), mode="replicate")
    soft = F.conv2d(F.conv2d(padded, rows, groups=3), rows.transpose(2, 3), groups=3)
    chosen = (torch.rand(len(window), 1, 1, 1, device=window.device) < SOFT).float()
    return torch.lerp(window, soft, chosen * (1 - mask))


class Doubt(NamedTuple):
    """How wrong the hints of a batch are, as wrong as a decoder's paint may be. A window and its twin share it."""

    deviation: float  # of the blur, pixels
    contrast: Tensor  # [B, 1, 1, 1]
    cast: Tensor  # [B, 3, 1, 1]
    clouds: Tensor  # [B, 1, 5, 7], light and shade
    shift: tuple[int, int]  # pixels down and right

    @classmethod
    def random(cls, count: int, device: torch.device) -> Doubt:
        """For a batch of windows."""
        down, right = (int(n) for n in torch.randint(-3, 4, (2,)))
        return cls(
            float(torch.empty(()).uniform_(*HINT_BLURS)),
            _contrast(count, device),
            0.06 * torch.randn(count, 1, 1, 1, device=device) + 0.02 * torch.randn(count, 3, 1, 1, device=device),
            0.06 * torch.randn(count, 1, 5, 7, device=device),
            (down, right),
        )

    def first(self, count: int) -> Doubt:
        """That of the first windows."""
        return self._replace(contrast=self.contrast[:count], cast=self.cast[:count], clouds=self.clouds[:count])


def _contrast(count: int, device: torch.device) -> Tensor:
    """Factors `[B, 1, 1, 1]`, some of them 0."""
    flat = torch.rand(count, 1, 1, 1, device=device) < FLAT
    return torch.empty(count, 1, 1, 1, device=device).uniform_(0.6, 1.15).masked_fill(flat, 0.0)


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


def network_autocast(device: torch.device) -> torch.autocast:
    """bfloat16 for convolutions where the device multiplies it fast."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


class Objective(nn.Module):
    """The losses of painter and discriminator on a batch."""

    def __init__(
        self,
        painter: MouthPainter,
        discriminator: Discriminator,
        perceptual: Perceptual | None,
        weights: LossWeights,
        hinted: float = 0.55,
    ):
        super().__init__()
        self.hinted = hinted
        self.painter, self.discriminator, self.perceptual, self.weights = painter, discriminator, perceptual, weights

    def paint(self, batch: Batch) -> Painting:
        """Fill a batch's windows, with what the painter may be given in some of them."""
        window = soften(batch.window, batch.mask)
        code = torch.randn(len(window), self.painter.config.code, device=window.device)
        hinted = (torch.rand(len(window), 1, 1, 1, device=window.device) < self.hinted).float()
        doubt = Doubt.random(len(window), window.device)
        hint = hints(batch.expected, batch.mask, hinted, doubt)
        with network_autocast(window.device):
            painted = self.painter(observe(window, batch.mask, hint, batch.reference), code)
        return Painting(window, painted, fill(window, painted, batch.mask), code, hinted, doubt)

    def critic(self, batch: Batch, painting: Painting) -> Tensor:
        """The discriminator's hinge loss (Lim and Ye 2017) on one patch of each window."""
        made, real, mask = patches(batch.mask, painting.shown.detach(), painting.window, batch.mask)
        with network_autocast(made.device):
            verdict, _ = self.discriminator(torch.cat([made, real]), mask.repeat(2, 1, 1, 1))
        weight = _within(mask * batch.sharp[:, None, None, None], verdict)
        return ((F.relu(1 + verdict[: len(made)]) + F.relu(1 - verdict[len(made) :])) * weight).sum()

    def forward(self, batch: Batch, painting: Painting, adversarial: bool) -> dict[str, Tensor]:
        """The painter's losses by name; `total` is what is minimised."""
        weights, window, painted, mask = self.weights, painting.window, painting.painted, batch.mask
        sharp = batch.sharp / batch.sharp.mean().clamp_min(1e-3)
        difference = (painted - window) * mask / mask.sum((1, 2, 3), keepdim=True).clamp_min(LEAST)
        losses = {
            "l1": (difference.abs().sum((1, 2, 3)) * sharp).mean() / 3,
            "colour": F.avg_pool2d(difference, SQUARE).abs().sum((1, 2, 3)).mean() * SQUARE**2 / 3,
        }
        losses["total"] = weights.l1 * losses["l1"] + weights.colour * losses["colour"]
        if len(batch.twin):
            losses["steady"] = self._steady(batch, painting)
            losses["total"] = losses["total"] + weights.steady * losses["steady"]
        made, real, mask = patches(mask, painting.shown, window, mask)
        if self.perceptual is not None:
            # The sharpest first, in random order: only they show what detail looks like.
            order = torch.argsort(batch.sharp + 0.5 * torch.rand_like(batch.sharp), descending=True)
            some = order[: max(1, round(LOOKED_AT * len(made)))]
            with network_autocast(made.device):
                losses["perceptual"] = self.perceptual(made[some], real[some])
            losses["total"] = losses["total"] + weights.perceptual * losses["perceptual"]
        if adversarial:
            losses |= self._adversarial(made, real, mask, batch.sharp)
            judged = weights.adversarial * losses["fooled"] + weights.features * losses["features"]
            losses["total"] = losses["total"] + judged
        return losses

    def _steady(self, batch: Batch, painting: Painting) -> Tensor:
        """How much more than it moved the paint of a window and of its twin differ."""
        twins = len(batch.twin)
        doubt = painting.doubt.first(twins)
        hint = hints(batch.twin_expected, batch.twin_mask, painting.hinted[:twins], doubt)
        seen = observe(batch.twin, batch.twin_mask, hint, batch.reference[:twins])
        with network_autocast(seen.device):
            again = self.painter(seen, painting.code[:twins])
        painted = painting.painted[:twins]
        grid = F.affine_grid(batch.moved, list(painted.shape), align_corners=False)
        back = F.grid_sample(torch.cat([again, batch.twin_mask], 1), grid, mode="bicubic", align_corners=False)
        common = batch.mask[:twins] * back[:, 3:].clamp(0, 1)
        weight = common / common.sum((1, 2, 3), keepdim=True).clamp_min(LEAST)
        return ((back[:, :3] - painted).abs() * weight).sum((1, 2, 3)).mean() / 3

    def _adversarial(self, made: Tensor, real: Tensor, mask: Tensor, sharp: Tensor) -> dict[str, Tensor]:
        """How far the discriminator is from being fooled, and the distance between its features of both."""
        self.discriminator.requires_grad_(False)
        with network_autocast(made.device):
            verdict, features = self.discriminator(made, mask)
            with torch.no_grad():
                _, wanted = self.discriminator(real, mask)
        self.discriminator.requires_grad_(True)
        share = sharp[:, None, None, None]
        apart = [((f - w).abs().float() * share).mean() for f, w in zip(features, wanted, strict=True)]
        return {"fooled": -(verdict * _within(mask * share, verdict)).sum(), "features": torch.stack(apart).mean()}


def _within(mask: Tensor, verdict: Tensor) -> Tensor:
    """Weights `[B, 1, h, w]` of the verdicts that see paint, of sum one: where there is none, made is real."""
    seen = (F.adaptive_avg_pool2d(mask, (verdict.shape[-2], verdict.shape[-1])) > SEES).float()
    return seen / seen.sum().clamp_min(1)
