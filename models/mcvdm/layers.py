"""Building blocks without normalisation layers: what a frame looks like never depends on its batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Slope of every LeakyReLU.
SLOPE = 0.2


def activate(x: Tensor) -> Tensor:
    """LeakyReLU, the activation of every block."""
    return F.leaky_relu(x, SLOPE)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, gain: float = 1.0) -> nn.Conv2d:
    """A convolution that keeps (or with `stride` divides) the size, Kaiming weights times `gain`, zero bias."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
    nn.init.kaiming_normal_(layer.weight, SLOPE)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


class ResBlock(nn.Module):
    """x + conv(lrelu(conv(lrelu(x)))); the second convolution starts at zero, so a stack starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.first = conv(width, width)
        self.second = conv(width, width, gain=0.0)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → the same shape."""
        inner: Tensor = self.first(activate(x))
        residual: Tensor = self.second(F.leaky_relu(inner, SLOPE, inplace=True))
        return residual.add_(x)


def clips_of(frames: Tensor, like: Tensor) -> Tensor:
    """Frames `[B * S, …]` → `[B, S, …]`, the first two dimensions of `like`."""
    return frames.view(*like.shape[:2], *frames.shape[1:])


def channels_last(network: nn.Module) -> None:
    """Keep the network's convolution weights as the CPU's kernels want them."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def upsample(x: Tensor, factor: int = 2) -> Tensor:
    """`factor` times the height and width, bilinear."""
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)
