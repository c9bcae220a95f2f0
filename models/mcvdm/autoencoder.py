"""The triplane video autoencoder (paper section 3.3, after PVDM) and its reference-guided decoder.

A clip is encoded into three planes: xy (what stays), xt and yt (what moves). Two decoders share the trunk that turns the
planes into one volume per frame: the paper's paints every pixel from the latent; the reference-guided one warps the
portrait and paints only what the portrait cannot show. It sees the latent, the portrait and the head's rigid motion,
never the landmarks, so that the expression has to come from the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from avatard.models.mcvdm import warp
from avatard.models.mcvdm.layers import ResBlock, activate, conv, upsample

#: Side of a frame and of the latent grid, pixels and cells.
FRAME, CELLS = 256, 32
#: Scale of the flow heads: a fresh decoder moves nothing, a trained one moves a few cells at most.
COARSE, FINE = 0.1, 0.05


class Planes(NamedTuple):
    """A clip's latent, values in (-1, 1)."""

    xy: Tensor  # [B, C, 32, 32]
    xt: Tensor  # [B, C, S, 32], rows are frames
    yt: Tensor  # [B, C, S, 32]


class Portrait(NamedTuple):
    """What the decoder knows of a person; computed once."""

    picture: Tensor  # [B, 3, 256, 256] in [-1, 1]
    fine: Tensor  # [B, mid, 64, 64]
    coarse: Tensor  # [B, width, 32, 32]


class Rendering(NamedTuple):
    """A decoded clip and its parts, for the training losses. All `[B, S, …]`, pictures in about [-1, 1]."""

    frames: Tensor  # [B, S, 3, h, w]
    painted: Tensor  # before blending
    warped: Tensor  # the portrait under the flow
    flow: Tensor  # [B, S, 2, 32, 32], of the whole frame


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of the networks; travels in the checkpoint's metadata."""

    encoder: Literal["conv", "timesformer"] = "conv"
    decoder: Literal["reference", "plain"] = "reference"
    channels: int = 4  # of the latent
    width: int = 64  # at 32²
    mid: int = 48  # at 64²
    small: int = 32  # at 128², and the encoder's at 64²


class ConvEncoder(nn.Module):
    """Per-frame convolutions to 32², then one pooling per plane."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        small, width = config.small, config.width
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), conv(48, small), ResBlock(small))
        self.body = nn.Sequential(conv(small, width, stride=2), ResBlock(width), ResBlock(width))
        self.planes = nn.ModuleList(
            nn.Sequential(
                conv(2 * width, width), ResBlock(width), nn.LeakyReLU(0.2), conv(width, config.channels, gain=0.3)
            )
            for _ in range(3)
        )

    def forward(self, frames: Tensor) -> Planes:
        """Frames `[B, S, 3, 256, 256]` → planes before their tanh."""
        h = frames.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        h = self.body(activate(self.stem(h))).unflatten(0, frames.shape[:2])  # [B, S, W, 32, 32]
        pooled = [torch.cat([h.mean(dim), h.amax(dim)], dim=2 if dim > 1 else 1) for dim in (1, 3, 4)]
        xy, xt, yt = pooled[0], pooled[1].transpose(1, 2), pooled[2].transpose(1, 2)  # [B, 2W, 32 | S, 32]
        return Planes(*(net(activate(p)).float() for net, p in zip(self.planes, (xy, xt, yt), strict=True)))


class Trunk(nn.Module):
    """Planes → volumes: the broadcast sum of three 2D networks."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width = config.width
        self.planes = nn.ModuleList(
            nn.Sequential(conv(config.channels, width), ResBlock(width), ResBlock(width), conv(width, width, 1))
            for _ in range(3)
        )

    def forward(self, planes: Planes, frames: slice = slice(None)) -> Tensor:
        """Planes → volumes of the chosen frames `[B, k, W, 32, 32]`."""
        xy, xt, yt = (net(p) for net, p in zip(self.planes, planes, strict=True))  # [B, W, 32 | S, 32]
        xy = xy.permute(0, 2, 3, 1)[:, None]  # [B, 1, y, x, W]
        xt = xt[:, :, frames].permute(0, 2, 3, 1)[:, :, None]  # [B, k, 1, x, W]
        yt = yt[:, :, frames].permute(0, 2, 3, 1)[:, :, :, None]  # [B, k, y, 1, W]
        volume: Tensor = xy + xt + yt
        return volume.permute(0, 1, 4, 2, 3)


class Window(NamedTuple):
    """A square of the frame, in cells of 8 pixels: decoding only that is what makes training affordable."""

    corners: Tensor  # [B, 2] int64: y, x
    size: int

    def crop(self, x: Tensor) -> Tensor:
        """`[B, …, H, W]` → the window's part of it, whatever its resolution."""
        scale = x.shape[-1] // CELLS if x.shape[-1] >= CELLS else 1
        side = self.size * scale
        parts = []
        for picture, (top, left) in zip(x, (self.corners * scale).tolist(), strict=True):
            parts.append(picture[..., top : top + side, left : left + side])
        return torch.stack(parts)


class ReferenceDecoder(nn.Module):
    """Volumes + portrait + rigid motion → frames: m · warp + (1 - m) · (warp + residual)."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width, mid, small = config.width, config.mid, config.small
        self.portrait_stem = nn.Sequential(nn.PixelUnshuffle(2), conv(12, small))
        self.portrait_fine = nn.Sequential(conv(small, mid, stride=2), ResBlock(mid))
        self.portrait_coarse = nn.Sequential(conv(mid, width, stride=2), ResBlock(width))

        self.see_coarse = conv(width + 2, width, 1)
        self.coarse = nn.Sequential(ResBlock(width), ResBlock(width))
        self.coarse_flow = conv(width + 2, 2, gain=0.0)
        self.to_mid = conv(width, mid)
        self.see_fine = conv(mid, mid, 1)
        self.mid = nn.Sequential(ResBlock(mid), ResBlock(mid))
        self.fine_flow = conv(mid + 2, 2, gain=0.0)
        self.to_small = conv(mid, small)
        self.see_pixels = nn.Conv2d(3, small, 2, stride=2)
        self.small = ResBlock(small)
        self.paint = nn.Sequential(nn.LeakyReLU(0.2), conv(small, 16, gain=0.1), nn.PixelShuffle(2))

    def portrait(self, picture: Tensor) -> Portrait:
        """Pictures `[B, 3, 256, 256]` in [-1, 1] → features."""
        stem = self.portrait_stem(picture.contiguous(memory_format=torch.channels_last))
        fine = self.portrait_fine(activate(stem))
        return Portrait(picture, fine, self.portrait_coarse(activate(fine)))

    def forward(self, volume: Tensor, portrait: Portrait, rigid: Tensor, window: Window | None = None) -> Rendering:
        """Render the frames of some volumes.

        Args:
            volume: `[B, S, W, 32, 32]`, from the trunk.
            portrait: of the same B clips.
            rigid: flow of the head alone, `[B, S, 2, 32, 32]`.
            window: the part of each clip's frames to render; all of them by default.
        """
        clips = volume.shape[:2]
        cells = warp.grid(CELLS, CELLS, rigid.device)
        seen = warp.sample(portrait.coarse, rigid + cells)
        h = volume + self.see_coarse(torch.cat([seen, 4 * rigid], 2).flatten(0, 1)).unflatten(0, clips)
        h = activate(self.coarse(h.flatten(0, 1)))
        guide = 4 * rigid.flatten(0, 1)
        coarse_flow = rigid + COARSE * self.coarse_flow(torch.cat([h, guide], 1)).unflatten(0, clips).float()

        h, flow = self.to_mid(h), coarse_flow
        if window:
            h = window.crop(h.unflatten(0, clips)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
            flow, guide = window.crop(flow), window.crop(guide.unflatten(0, clips)).flatten(0, 1)

        flow = _upsample_flow(flow, 2)
        seen = warp.sample(portrait.fine, flow + _grid(64, window, flow))
        h = self.mid(upsample(h) + self.see_fine(seen.flatten(0, 1)))
        h = activate(h)
        correction = self.fine_flow(torch.cat([h, upsample(guide)], 1)).unflatten(0, clips).float()
        flow = _upsample_flow(flow + FINE * correction, 4)
        warped = warp.sample(portrait.picture, flow + _grid(FRAME, window, flow))
        h = self.small(upsample(self.to_small(h)) + self.see_pixels(warped.flatten(0, 1)))
        paint = self.paint(h).unflatten(0, clips).float()  # [B, S, 4, h, w]
        # The residual must not drag the flow along: it repairs what the warp leaves.
        painted = warped.detach() + 0.5 * paint[:, :, :3]
        keep = torch.sigmoid(4 * torch.tanh(0.1 * paint[:, :, 3:]))
        return Rendering(keep * warped + (1 - keep) * painted, painted, warped, coarse_flow)


def _upsample_flow(flow: Tensor, factor: int) -> Tensor:
    return upsample(flow.flatten(0, 1), factor).unflatten(0, flow.shape[:2])


def _grid(resolution: int, window: Window | None, like: Tensor) -> Tensor:
    """Pixel centres of a frame, or of each clip's window of it, `[B or 1, 1, 2, h, w]`."""
    full = warp.grid(resolution, resolution, like.device)[None, None]
    return window.crop(full.expand(like.shape[0], -1, -1, -1, -1)) if window else full


class PlainDecoder(nn.Module):
    """The paper's decoder, in convolutions: every pixel is painted from the latent."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width, mid, small = config.width, config.mid, config.small
        self.coarse = nn.Sequential(ResBlock(width), ResBlock(width), nn.LeakyReLU(0.2), conv(width, mid))
        self.mid = nn.Sequential(ResBlock(mid), ResBlock(mid), nn.LeakyReLU(0.2), conv(mid, small))
        self.small = nn.Sequential(ResBlock(small), nn.LeakyReLU(0.2), conv(small, 12, gain=0.1), nn.PixelShuffle(2))

    def forward(self, volume: Tensor, window: Window | None = None) -> Tensor:
        """Volumes `[B, S, W, 32, 32]` → frames `[B, S, 3, h, w]`."""
        clips = volume.shape[:2]
        h = self.coarse(volume.flatten(0, 1))
        if window:
            h = window.crop(h.unflatten(0, clips)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        frames: Tensor = self.small(upsample(self.mid(upsample(h)))).unflatten(0, clips).float()
        return frames


class Autoencoder(nn.Module):
    """Encoder, trunk and decoder behind one interface."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        if config.encoder == "conv":
            self.encoder: nn.Module = ConvEncoder(config)
        else:
            from avatard.models.mcvdm.timesformer import TimeSformerEncoder

            self.encoder = TimeSformerEncoder(config)
        self.trunk = Trunk(config)
        self.decoder = ReferenceDecoder(config) if config.decoder == "reference" else PlainDecoder(config)
        self.to(memory_format=torch.channels_last)

    def encode(self, frames: Tensor) -> Planes:
        """Clip `[B, S, 3, 256, 256]` in [-1, 1] → its latent. A portrait is a clip of one frame."""
        return squash(self.encoder(frames))

    def portrait(self, picture: Tensor) -> Portrait:
        """Picture `[B, 3, 256, 256]` in [-1, 1] → what the decoder needs of it; compute it once per identity."""
        if isinstance(self.decoder, PlainDecoder):
            return Portrait(picture, picture, picture)
        return self.decoder.portrait(picture)

    def volume(self, planes: Planes, frames: slice = slice(None)) -> Tensor:
        """Latent → volumes `[B, k, W, 32, 32]`; two clips' volumes of the same frame can be blended."""
        volume: Tensor = self.trunk(planes, frames)
        return volume

    def render(self, volume: Tensor, portrait: Portrait, rigid: Tensor, window: Window | None = None) -> Rendering:
        """Volumes → frames; see `ReferenceDecoder.forward`."""
        if isinstance(self.decoder, PlainDecoder):
            frames = self.decoder(volume, window)
            return Rendering(frames, frames, frames, rigid)
        rendering: Rendering = self.decoder(volume, portrait, rigid, window)
        return rendering

    def decode(self, planes: Planes, portrait: Portrait, rigid: Tensor, frames: slice = slice(None)) -> Tensor:
        """Latent → the chosen frames `[B, k, 3, 256, 256]`, clamped to [-1, 1]; `rigid` `[B, k, 2, 32, 32]` is theirs."""
        return self.render(self.volume(planes, frames), portrait, rigid).frames.clamp(-1, 1)


def squash(planes: Planes) -> Planes:
    """Bound raw planes to (-1, 1)."""
    return Planes(*(torch.tanh(p) for p in planes))
