"""Diffusion schedules and samplers that both networks use. Timesteps run from 0 (almost clean) to T - 1 (noise)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def cosine_alpha_bar(timesteps: int = 1000, s: float = 0.008) -> Tensor:
    """Cosine schedule: the signal's share of the variance, `[T]` f32. Source: Nichol and Dhariwal 2021, eq. 17."""
    t = torch.arange(1, timesteps + 1, dtype=torch.float64) / timesteps
    f = torch.cos((t + s) / (1 + s) * math.pi / 2).square()
    return (f / math.cos(s / (1 + s) * math.pi / 2) ** 2).clamp(min=1e-5).float()


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """q(x_t | x_0): `x0` `[B, ...]` with `noise` of the same shape at signal shares `alpha_bar` `[B]` (DDPM, eq. 4)."""
    signal = alpha_bar.view(-1, *[1] * (x0.ndim - 1))
    return signal.sqrt() * x0 + (1 - signal).sqrt() * noise


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids `[B, width]` of timesteps `[B]`. Source: DDPM, Ho et al. 2020, after Vaswani et al. 2017."""
    rate = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=t.device) / (width // 2))
    angle = t.float()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def few_timesteps(timesteps: int, steps: int) -> list[int]:
    """`steps` timesteps from T - 1 down, evenly spaced; the last one leads to the clean sample."""
    if not 1 <= steps <= timesteps:
        raise ValueError(f"got {steps} sampling steps, expected 1 to {timesteps}")
    return [timesteps - 1 - (k * timesteps) // steps for k in range(steps)]


def ddim(predict_x0: Callable[[Tensor, int], Tensor], x: Tensor, alpha_bar: Tensor, steps: int) -> Tensor:
    """DDIM, eta = 0, for a network that predicts x_0. Source: Song et al. 2021, eq. 12.

    `predict_x0(x_t, t)` gives the clean sample; `x` `[B, ...]` is the start noise (zeros stay near the mean).
    """
    path = few_timesteps(len(alpha_bar), steps)
    for t, following in zip(path, [*path[1:], None], strict=True):
        x0 = predict_x0(x, t)
        if following is None:
            return x0
        noise = (x - alpha_bar[t].sqrt() * x0) / (1 - alpha_bar[t]).sqrt()
        x = alpha_bar[following].sqrt() * x0 + (1 - alpha_bar[following]).sqrt() * noise
    raise AssertionError("unreachable: few_timesteps is never empty")


def sqrt_linear_alpha_bar(timesteps: int = 1000, first: float = 0.0015, last: float = 0.0195) -> Tensor:
    """The schedule of the paper's MC-VDM (that of latent diffusion): square roots of betas evenly spaced, `[T]`."""
    betas = torch.linspace(first**0.5, last**0.5, timesteps, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, 0).float()
