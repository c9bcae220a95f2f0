"""The triplane video autoencoder (paper section 3.3, after PVDM) and its reference-guided decoder.

A clip is encoded into three planes: xy (what stays), xt and yt (what moves). Two decoders share the trunk that turns
the planes into one volume per frame: the paper's paints every pixel from the latent; the reference-guided one warps the
portrait and paints only what the portrait cannot show. It sees the latent, the portrait and the head's rigid motion,
never the landmarks, so that the expression has to come from the latent. The encoder is shown the expression's flow
beside the frames: without it the decoder needs thousands of steps before it reads any motion from the latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from avatard.models.mcvdm import warp
from avatard.models.mcvdm.layers import ResBlock, activate, channels_last, clips_of, conv, upsample

#: Side of a frame and of the latent grid, pixels and cells.
FRAME, CELLS = 256, 32
#: Scale of the flow heads: a fresh decoder moves nothing, a trained one moves a few cells at most.
COARSE, FINE = 0.1, 0.05
#: Scale of the expression's flow as the encoder sees it: a few hundredths of the side become of the order of one.
MOTION = 20.0


class Planes(NamedTuple):
    """A clip's latent, values in (-1, 1)."""

    xy: Tensor  # [B, C, 32, 32]
    xt: Tensor  # [B, C, S, 32], rows are frames
    yt: Tensor  # [B, C, S, 32]


class Portrait(NamedTuple):
    """What the decoder knows of a person; computed once."""

    picture: Tensor  # [B, 3, 256, 256] in [-1, 1]
    fine: Tensor  # [B, mid, 64, 64], ready to be warped and added
    coarse: Tensor  # [B, width, 32, 32], likewise


class Rendering(NamedTuple):
    """A decoded clip and its parts, for the training losses. All `[B, S, …]`, pictures in about [-1, 1]."""

    frames: Tensor  # [B, S, 3, h, w]
    painted: Tensor  # before blending
    warped: Tensor  # the portrait under the flow
    keep: Tensor  # [B, S, 1, h, w], the share of the warp
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
    transformer_width: int = 384  # of the TimeSformer
    transformer_depth: int = 8


class ConvEncoder(nn.Module):
    """Per-frame convolutions to 32², then one pooling per plane: the mean and learned projections along its axis."""

    PROJECTIONS = 2

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        small, width, k = config.small, config.width, self.PROJECTIONS
        self.stem = nn.Sequential(nn.PixelUnshuffle(4), conv(48, small), ResBlock(small))
        self.shrink, self.see_motion = conv(small, width, stride=2), conv(2, width)
        self.body = nn.Sequential(ResBlock(width), ResBlock(width))
        # A mean over 32 rows hides a mouth that fills four of them; random projections do not.
        self.rows, self.columns = (nn.Parameter(torch.randn(k, width, CELLS) / CELLS**0.5) for _ in range(2))
        self.planes = nn.ModuleList(
            nn.Sequential(
                conv(inputs * width, width), ResBlock(width), nn.LeakyReLU(0.2), conv(width, config.channels, gain=0.5)
            )
            for inputs in (2, 1 + k, 1 + k)
        )

    def forward(self, frames: Tensor, motion: Tensor) -> Planes:
        """Frames `[B, S, 3, 256, 256]` and motion `[B, S, 2, 32, 32]` → the latent."""
        h = self.stem(frames.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        h = self.body(self.shrink(activate(h)) + self.see_motion(MOTION * motion.flatten(0, 1)))
        h = clips_of(h, frames)  # [B, S, W, y, x]
        xy = torch.cat([h.mean(1), h.amax(1)], 1)
        xt = torch.cat([h.mean(3), *torch.einsum("bscyx,kcy->kbscx", h.float(), self.rows)], 2).transpose(1, 2)
        yt = torch.cat([h.mean(4), *torch.einsum("bscyx,kcx->kbscy", h.float(), self.columns)], 2).transpose(1, 2)
        return Planes(*(torch.tanh(net(activate(p)).float()) for net, p in zip(self.planes, (xy, xt, yt), strict=True)))


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
    """Volumes + portrait + rigid motion → frames: m · warp(portrait) + (1 - m) · paint."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width, mid, small = config.width, config.mid, config.small
        self.portrait_stem = nn.Sequential(nn.PixelUnshuffle(2), conv(12, small))
        self.portrait_fine = nn.Sequential(conv(small, mid, stride=2), ResBlock(mid))
        self.portrait_coarse = nn.Sequential(conv(mid, width, stride=2), ResBlock(width))

        # Applied before the warp, once per person: a 1 × 1 convolution and a warp commute.
        self.see_coarse, self.see_fine = conv(width, width, 1), conv(mid, mid, 1)
        self.see_rigid = conv(2, width, 1)
        self.coarse = nn.Sequential(ResBlock(width), ResBlock(width))
        self.coarse_flow = conv(width + 2, 2, gain=0.0)
        self.to_mid = conv(width, mid)
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
        coarse = self.portrait_coarse(activate(fine))
        return Portrait(picture, self.see_fine(fine).float(), self.see_coarse(coarse).float())

    def forward(self, volume: Tensor, portrait: Portrait, rigid: Tensor, window: Window | None = None) -> Rendering:
        """Render the frames of some volumes.

        Args:
            volume: `[B, S, W, 32, 32]`, from the trunk.
            portrait: of the same B clips.
            rigid: flow of the head alone, `[B, S, 2, 32, 32]`.
            window: the part of each clip's frames to render; all of them by default.
        """
        cells = warp.grid(CELLS, CELLS, rigid.device)
        guide = 4 * rigid.flatten(0, 1)
        seen = _as_features(warp.sample(portrait.coarse, rigid + cells), volume.dtype)
        h = activate(self.coarse(volume.flatten(0, 1) + seen + self.see_rigid(guide)))
        coarse_flow = rigid + COARSE * self._flow(self.coarse_flow, h, guide, rigid)

        h, flow = self.to_mid(h), coarse_flow
        if window:
            h = window.crop(clips_of(h, volume)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
            flow, guide = window.crop(flow), window.crop(clips_of(guide, rigid)).flatten(0, 1)

        flow = _upsample_flow(flow, 2)
        seen = _as_features(warp.sample(portrait.fine, flow + _grid(64, window, flow)), h.dtype)
        h = activate(self.mid(upsample(h) + seen))
        correction = self._flow(self.fine_flow, h, upsample(guide), rigid)
        flow = _upsample_flow(flow + FINE * correction, 4)
        # What is shown is interpolated sharply; gradients of the plain kernel are as good and cheaper.
        mode: Literal["bilinear", "bicubic"] = "bilinear" if self.training else "bicubic"
        warped = warp.sample(portrait.picture, flow + _grid(FRAME, window, flow), mode)
        h = self.small(upsample(self.to_small(h)) + self.see_pixels(warped.flatten(0, 1)))
        paint = clips_of(self.paint(h).float().contiguous(), rigid)  # [B, S, 4, h, w]
        painted = paint[:, :, :3]
        keep = torch.sigmoid(4 * torch.tanh(0.1 * paint[:, :, 3:]))
        if not self.training:  # the bound, which keeps gradients alive, would leave a veil of paint on everything
            keep = ((keep - 0.1) / 0.85).clamp(0, 1)
        return Rendering(torch.lerp(painted, warped, keep), painted, warped, keep, coarse_flow)

    @staticmethod
    def _flow(head: nn.Module, h: Tensor, guide: Tensor, like: Tensor) -> Tensor:
        """A flow head's output; planar, because two interleaved channels upsample four times slower."""
        return clips_of(head(torch.cat([h, guide], 1)).float().contiguous(), like)


def _as_features(clips: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, S, C, H, W]` → `[B * S, C, H, W]`, narrowed before its channels are moved inwards: half the copy."""
    return clips.to(dtype).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _upsample_flow(flow: Tensor, factor: int) -> Tensor:
    return clips_of(upsample(flow.flatten(0, 1), factor), flow)


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
        h = self.coarse(volume.flatten(0, 1))
        if window:
            h = window.crop(clips_of(h, volume)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        frames: Tensor = clips_of(self.small(upsample(self.mid(upsample(h)))), volume).float()
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
        channels_last(self)

    def encode(self, frames: Tensor, motion: Tensor | None = None) -> Planes:
        """Clip → its latent.

        Args:
            frames: `[B, S, 3, 256, 256]` in [-1, 1]; a portrait is a clip of one frame.
            motion: how the expression differs from the portrait's, `[B, S, 2, 32, 32]`: the flow of the landmarks less
                that of the head. None for the portrait itself.
        """
        if motion is None:
            motion = frames.new_zeros(*frames.shape[:2], 2, CELLS, CELLS)
        planes: Planes = self.encoder(frames, motion)
        return planes

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
            return Rendering(frames, frames, frames, torch.zeros_like(frames[:, :, :1]), rigid)
        rendering: Rendering = self.decoder(volume, portrait, rigid, window)
        return rendering

    def decode(self, planes: Planes, portrait: Portrait, rigid: Tensor, frames: slice = slice(None)) -> Tensor:
        """Latent → the chosen frames `[B, k, 3, 256, 256]` in [-1, 1]; `rigid` `[B, k, 2, 32, 32]` is theirs."""
        return self.render(self.volume(planes, frames), portrait, rigid).frames.clamp(-1, 1)
