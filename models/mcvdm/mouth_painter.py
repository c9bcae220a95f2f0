"""The mouth painter: fills what lies between the lips of a window (`mouth_window.py`) with teeth, tongue and dark.

An inpainting network. It sees the window around the gap, and of the gap itself at most colours without detail: what
the decoder painted there, blurred, which says whether teeth, tongue or dark is to be seen. The detail is its own, or
that of a second window of the same person. It upsamples by nearest neighbour and convolution, which cannot draw the
checkerboard of a pixel shuffle (Odena et al., "Deconvolution and Checkerboard Artifacts", 2016).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models import checkpoint
from avatard.models.mcvdm.layers import SLOPE, ResBlock, activate, conv
from avatard.models.mcvdm.mouth_window import WINDOW_HEIGHT

#: Channels that the network sees: window, mask, presence of a hint, row, reference and the reference's mask.
SEEN = 3 + 1 + 1 + 1 + 4
#: Standard deviation of a hint's blur, pixels of the window.
HINT_BLUR = 6.0


@dataclass(frozen=True)
class PainterConfig:
    """Configuration of the network, JSON in the checkpoint's metadata."""

    #: Channels at half the window's size, at a quarter and so on.
    widths: tuple[int, ...] = (24, 48, 80, 112)
    full: int = 12  # channels at the window's size
    code: int = 8  # numbers that choose among what may be behind the same lips

    @classmethod
    def from_json(cls, text: str) -> PainterConfig:
        """The configuration that `to_json` wrote. Raises `ValueError` or `TypeError` on anything else."""
        values = json.loads(text)
        return cls(**{**values, "widths": tuple(values["widths"])})

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @property
    def multiple(self) -> int:
        """Height and width of a window must be multiples of this, pixels."""
        return 1 << len(self.widths)


def observe(window: Tensor, mask: Tensor, hint: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
    """What the network sees of windows; pictures are in [-1, 1].

    Args:
        window: `[B, 3, H, W]`; what the mask covers is not looked at.
        mask: `[B, 1, H, W]`, 1 where to paint.
        hint: `[B, 4, H, W]`, colours to expect in the mask, without detail (see `blurred`), and whether to (0 or 1).
        reference: `[B, 4, H, W]`, another window of the same person and its mask; zero for none.

    Returns:
        `[B, 10, H, W]`.
    """
    b, _, height, width = window.shape
    hint = window.new_zeros(b, 4, height, width) if hint is None else hint
    reference = window.new_zeros(b, 4, height, width) if reference is None else reference
    row = (torch.arange(height, device=window.device, dtype=window.dtype) - (height - 1) / 2) * (2 / WINDOW_HEIGHT)
    expected = hint[:, 3:] * mask
    return torch.cat(
        [
            window * (1 - mask) + hint[:, :3] * expected,
            mask,
            expected,
            row[:, None].expand(b, 1, height, width),
            reference,
        ],
        dim=1,
    )


def blurred(window: Tensor, mask: Tensor, deviation: float = HINT_BLUR) -> Tensor:
    """The colours in a mask without detail: a Gaussian blur that takes nothing from outside it.

    Args:
        window: `[B, 3, H, W]`.
        mask: `[B, 1, H, W]`.
        deviation: standard deviation of the blur, pixels.

    Returns:
        `[B, 3, H, W]`; of use only in the mask.
    """
    reach = round(3 * deviation)
    offset = torch.arange(-reach, reach + 1, device=window.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offset / deviation) ** 2)
    both = torch.cat([window * mask, mask], dim=1).float()
    channels = both.shape[1]
    rows = (kernel / kernel.sum()).view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    both = F.conv2d(both, rows, padding=(reach, 0), groups=channels)
    both = F.conv2d(both, rows.transpose(2, 3), padding=(0, reach), groups=channels)
    mean: Tensor = both[:, :3] / both[:, 3:].clamp_min(1e-4)
    return mean


def fill(window: Tensor, painted: Tensor, mask: Tensor) -> Tensor:
    """The windows `[B, 3, H, W]` with paint where the mask `[B, 1, H, W]` is."""
    return torch.lerp(window, painted, mask)


class MouthPainter(nn.Module):
    """A U-Net behind a pixel unshuffle of two, without normalisation layers."""

    def __init__(self, config: PainterConfig):
        super().__init__()
        self.config = config
        widths = config.widths
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), conv(4 * SEEN, widths[0]))
        self.down = nn.ModuleList(ResBlock(width) for width in widths)
        self.shrink = nn.ModuleList(conv(a, b, stride=2) for a, b in pairwise(widths))
        self.choose = nn.Linear(config.code, widths[-1])
        self.up = nn.ModuleList(ResBlock(width) for width in widths)
        self.grow = nn.ModuleList(conv(b, a) for a, b in pairwise(widths))
        self.full = conv(widths[0], config.full)
        self.paint = conv(config.full, 3, gain=0.1)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.paint.weight.device

    def forward(self, seen: Tensor, code: Tensor) -> Tensor:
        """Paint.

        Args:
            seen: `[B, 10, H, W]`, see `observe`; height and width multiples of `config.multiple`.
            code: `[B, config.code]`, standard normal in training; one for all windows of a person, so that what is
                painted changes with nothing but what is seen.

        Returns:
            `[B, 3, H, W]` in about [-1, 1], of use in the mask: see `fill`.
        """
        h = self.stem(seen.contiguous(memory_format=torch.channels_last))  # [B, w0, H / 2, W / 2]
        skips = []
        for level, block in enumerate(self.down):
            h = block(h)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](activate(h))
        h = h + self.choose(code)[:, :, None, None]  # [B, w3, H / 16, W / 16]
        for level in reversed(range(len(self.up))):
            h = self.up[level](h)
            if level:
                h = skips[level - 1] + self.grow[level - 1](_doubled(activate(h)))
        h = self.full(_doubled(activate(h)))  # [B, full, H, W]
        painted: Tensor = self.paint(F.leaky_relu(h, SLOPE, inplace=True)).float()
        return painted

    @classmethod
    def load(cls, name_or_path: str | Path = "mouth_painter") -> MouthPainter:
        """A trained network, in float32, for inference. Raises `CheckpointError`."""
        return checkpoint.build(
            name_or_path, "weights of the mouth painter", lambda config: cls(PainterConfig.from_json(config))
        )

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the weights in float16, with the configuration and `metadata` (data, steps, licence)."""
        tensors = {key: value.half() for key, value in self.state_dict().items()}
        checkpoint.save(path, tensors, {**metadata, "config": self.config.to_json()})


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")
