"""What AToM-Net is trained to do: continue imperfect motion (paper eq. 4, with velocity and mouth opening)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avatard.models.atom.model import Atom
from avatard.models.diffusion import add_noise
from avatard.models.face.topology import MOUTH, inner_lip_heights
from avatard.models.training.atom.dataset import Batch


@dataclass(frozen=True)
class LossWeights:
    """How much each term of `motion_loss` counts beside the L2 of positions.

    An average of the motions that a sound may mean moves too little. So the network is also asked how much the lips
    vary within a few frames, whichever way: `windows` are pairs of the order of the differences (positions,
    velocities, accelerations) and the number of them in which the deviation is taken.
    """

    velocity: float = 2.0
    opening: float = 1.0
    liveliness: float = 3.0
    windows: tuple[tuple[int, int], ...] = ((0, 4), (1, 3), (2, 2))


#: Closed lips are seen at once when they are not: frames whose mouth is at most this much more open than at rest
#: (interocular distances) weigh `CLOSED_WEIGHT` times as much in the opening term.
CLOSED_OPENING, CLOSED_WEIGHT = 0.02, 4.0


def point_weights() -> Tensor:
    """Weight of each coordinate `[68, 3]`: the mouth is what is looked at, depth is what is measured worst."""
    weight = torch.full((68, 3), 0.3)
    weight[4:13] = 0.5
    weight[48:60] = 2.0
    weight[60:68] = 3.0
    weight[:, 2] *= 0.5
    return weight / weight.mean()


def weighted_mean(value: Tensor, weight: Tensor) -> Tensor:
    """Mean of `[B, S]` values by weight."""
    return (value * weight).sum() / weight.sum().clamp(min=1)


def local_deviation(x: Tensor, size: int) -> Tensor:
    """Standard deviations `[B, N - size + 1, C]` of signals `[B, N, C]` within `size` frames."""
    return (x.unfold(1, size, 1).var(-1, unbiased=False) + 1e-4).sqrt()  # the square root has no slope at 0


def liveliness_loss(
    x0: Tensor, target: Tensor, here: Tensor, windows: tuple[tuple[int, int], ...] = LossWeights.windows
) -> Tensor:
    """How differently lips vary within a few frames; windows count where `here` `[B, S]` is 1 in all their frames."""
    made, real = (torch.cat([x[:, :, MOUTH, :2].flatten(2), 2 * inner_lip_heights(x)], dim=-1) for x in (x0, target))
    loss = x0.new_zeros(())
    for order, size in windows:
        deviations = [local_deviation(x.diff(n=order, dim=1), size) for x in (made, real)]
        gap = (deviations[0] - deviations[1]).square().mean(-1)
        loss = loss + weighted_mean(gap, here.unfold(1, size + order, 1).amin(-1))
    return loss


def motion_loss(
    x0: Tensor, target: Tensor, predicted: Tensor, known: Tensor, shut: Tensor, weights: LossWeights | None = None
) -> Tensor:
    """Scalar: L2 of positions, velocities and opening, and of how much they vary.

    `x0` and `target` `[B, S, 68, 3]`, scaled; `predicted` `[B, S]` is 1 for frames the network had to find (the others
    take part as the neighbours of a velocity), `known` `[B, S]` 0 where the target is unknown, `shut` `[B, S]` true
    where the mouth is.
    """
    weights = weights or LossWeights()
    weight = point_weights().to(x0)
    x0 = torch.where(predicted[..., None, None] > 0, x0, target)
    position = ((x0 - target).square() * weight).mean((2, 3))
    velocity = ((x0.diff(dim=1) - target.diff(dim=1)).square() * weight).mean((2, 3))
    gap = (1 + (CLOSED_WEIGHT - 1) * shut) * (inner_lip_heights(x0) - inner_lip_heights(target)).square().mean(-1)
    here = predicted * known
    moved = here[:, 1:] * known[:, :-1]
    return (
        weighted_mean(position, here)
        + weights.velocity * weighted_mean(velocity, moved)
        + weights.opening * weighted_mean(gap, here)
        + weights.liveliness * liveliness_loss(x0, target, here, weights.windows)
    )


@dataclass(frozen=True)
class Corruption:
    """How training windows are made as hard as serving. Noise is in the network's scaled units."""

    hop: int = 4  # frames that are new at serving
    serving_share: float = 0.6  # of windows, with the prefix of serving
    no_prefix_share: float = 0.15
    jitter: float = 0.05  # per coordinate and frame of the prefix
    drift: float = 0.25  # per coordinate, constant over the prefix: what slow drift looks like
    drift_share: float = 0.5
    start_share: float = 0.35  # of windows at the sampler's first step: nothing but zeros to denoise
    path_share: float = 0.25  # of windows at a later step of a sampler that began with zeros


def prefix_lengths(batch: int, frames: int, corruption: Corruption, rng: torch.Generator) -> Tensor:
    """How many frames are given, `[B]`."""
    draw = torch.rand(batch, generator=rng, device=rng.device)
    length = torch.randint(0, frames - corruption.hop + 1, (batch,), generator=rng, device=rng.device)
    length[draw < corruption.serving_share + corruption.no_prefix_share] = 0
    length[draw < corruption.serving_share] = frames - corruption.hop
    return length


@dataclass(frozen=True)
class NoisyWindows:
    """What the network is asked to denoise."""

    x: Tensor  # [B, S, 68, 3], scaled: the given prefix, then noisy frames
    clean: Tensor  # [B, S], 1 where a frame is given
    t: Tensor  # [B]
    x0: Tensor  # [B, S, 68, 3], scaled: the answer


def corrupt(atom: Atom, batch: Batch, lookahead: int, corruption: Corruption, rng: torch.Generator) -> NoisyWindows:
    """Windows with a prefix and noise, drawn by `rng`.

    The prefix is what the network itself makes of the sound. A real one would reveal where this clip's face really is.
    No stream ever knows that, and the network would come to rely on it.
    """
    device = batch.target.device
    size, frames = batch.target.shape[:2]
    x0 = (batch.target - atom.resting(batch.face)[:, None]) / atom.scale
    own = own_frames(atom, batch, lookahead)
    length = prefix_lengths(size, frames, corruption, rng).to(device)
    clean = (torch.arange(frames, device=device) < length[:, None]).float()
    drifts = (torch.rand(size, 1, 1, 1, generator=rng, device=rng.device) < corruption.drift_share).to(device)
    given = own + corruption.drift * drifts.float() * torch.randn(size, 1, 68, 3, generator=rng, device=rng.device).to(
        device
    )
    given = given + corruption.jitter * torch.randn(x0.shape, generator=rng, device=rng.device).to(device)
    t = torch.randint(0, atom.config.timesteps, (size,), generator=rng, device=rng.device).to(device)
    draw = torch.rand(size, generator=rng, device=rng.device).to(device)
    start, path = draw < corruption.start_share, draw > 1 - corruption.path_share
    t = torch.where(start, atom.config.timesteps - 1, t)
    noise = torch.randn(x0.shape, generator=rng, device=rng.device).to(device)
    noisy = add_noise(x0 * batch.weight[..., None, None], noise, atom.alpha_bar[t])
    calm = add_noise(own, torch.zeros_like(own), atom.alpha_bar[t])
    x = torch.where(path[:, None, None, None], calm, torch.where(start[:, None, None, None], 0.0, noisy))
    x = torch.where(clean[..., None, None] > 0, given, x)
    return NoisyWindows(x, clean, t, x0)


class AtomObjective(nn.Module):
    """AToM-Net with its loss; one forward pass, so that it can be distributed."""

    def __init__(self, atom: Atom, corruption: Corruption, weights: LossWeights | None = None) -> None:
        super().__init__()
        self.atom, self.corruption, self.weights = atom, corruption, weights or LossWeights()

    def forward(self, batch: Batch, lookahead: int, rng: torch.Generator) -> dict[str, Tensor]:
        """Losses by name; `total` is what is minimised."""
        windows = corrupt(self.atom, batch, lookahead, self.corruption, rng)
        predicted = self.atom(windows.x, windows.clean, windows.t, batch.audio, batch.reference, lookahead).float()
        shut = inner_lip_heights(windows.x0 * self.atom.scale).mean(-1) < CLOSED_OPENING
        return {"total": motion_loss(predicted, windows.x0, 1 - windows.clean, batch.weight, shut, self.weights)}


@torch.no_grad()
def own_frames(atom: Atom, batch: Batch, lookahead: int) -> Tensor:
    """What the network serves of the windows in one step and without a prefix, `[B, S, 68, 3]`, scaled."""
    x = torch.zeros_like(batch.target)
    t = torch.full((len(x),), atom.config.timesteps - 1, device=x.device)
    training = atom.training
    atom.eval()  # without dropout
    own: Tensor = atom(x, x[..., 0, 0], t, batch.audio, batch.reference, lookahead)
    atom.train(training)
    return own.float()
