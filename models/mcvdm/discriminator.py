"""A patch discriminator for the mouth: what makes teeth and lips sharp where an average of all mouths is a blur.

It judges patches of 16 × 16 pixels of a window beside the warped portrait, so that it asks whether this person's mouth
looks like this. Training only. Sources: Isola et al. 2017 (patches), Lim and Ye 2017 (hinge).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from avatard.models.mcvdm.batches import MOUTH_WEIGHT
from avatard.models.mcvdm.decoder import Rendering, Window
from avatard.models.mcvdm.layers import SLOPE, channels_last, conv
from avatard.models.mcvdm.objective import border

#: Pixels a verdict stands for, and noise on what is judged: a discriminator that sees too well teaches nothing.
PATCH, NOISE = 8, 0.05


class Discriminator(nn.Module):
    """Pictures beside what the portrait alone would give → a verdict per patch, above 0 for real."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.layers = nn.Sequential(
            conv(6, width, stride=2),
            nn.LeakyReLU(SLOPE),
            conv(width, 2 * width, stride=2),
            nn.LeakyReLU(SLOPE),
            conv(2 * width, 4 * width, stride=2),
            nn.LeakyReLU(SLOPE),
            conv(4 * width, 1),
        )
        channels_last(self)

    def forward(self, pictures: Tensor, warped: Tensor) -> Tensor:
        """`[N, 3, h, w]` in [-1, 1], twice → `[N, 1, h / 8, w / 8]`."""
        seen = pictures + NOISE * torch.randn_like(pictures)
        verdict: Tensor = self.layers(torch.cat([seen, warped], 1).contiguous(memory_format=torch.channels_last))
        return verdict.float()


def adversarial_losses(
    discriminator: Discriminator, rendering: Rendering, frames: Tensor, weight: Tensor, window: Window
) -> dict[str, Tensor]:
    """What the discriminator learns (`judged`) and what the mouths of a rendered window learn from it (`believed`).

    `frames` `[B, S, 3, 256, 256]` and `weight` are whole; the gradient of `believed` stays outside the discriminator.
    """
    frames, weight = window.crop(frames).flatten(0, 1), window.crop(weight).flatten(0, 1)
    mouth = (weight >= MOUTH_WEIGHT).float() * border(weight.shape[-1])
    mouth = F.avg_pool2d(mouth, PATCH)
    made, warped = rendering.frames.flatten(0, 1), rendering.warped.flatten(0, 1).detach()

    def mean(verdict: Tensor) -> Tensor:
        return (verdict * mouth).sum() / mouth.sum().clamp_min(1)

    fixed = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
    real, false = discriminator(frames, warped), discriminator(made.detach(), warped)
    return {
        "judged": mean(F.relu(1 - real)) + mean(F.relu(1 + false)),
        "believed": -mean(functional_call(discriminator, fixed, (made, warped))),
    }


def balance(loss: Tensor, other: Tensor, pictures: Tensor, share: float) -> Tensor:
    """The weight of `other` that makes its gradient on `pictures` a `share` of that of `loss`."""
    wanted, found = (torch.autograd.grad(x, pictures, retain_graph=True)[0].norm() for x in (loss, other))
    weight: Tensor = share * wanted / found.clamp_min(1e-8)
    return weight.clamp(max=10.0).detach()
