"""The triplane video autoencoder (paper section 3.3, after PVDM) and its reference-guided decoder.

A clip is encoded into three planes: xy (what stays), xt and yt (what moves). Two decoders share the trunk that turns
the planes into one volume per frame: the paper's paints every pixel from the latent; the reference-guided one warps the
portrait and paints only what the portrait cannot show. It sees the latent, the portrait and the head's rigid motion,
never the landmarks, so that the expression has to come from the latent. The encoder is shown the expression's flow
beside the frames: without it the decoder needs thousands of steps before it reads any motion from the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avatard.models.mcvdm import warp
from avatard.models.mcvdm.layers import SLOPE, ResBlock, activate, channels_last, clips_of, conv, upsample

Pictures = NDArray[np.uint8]

#: Side of a frame, of the grid of the fine flow and of the latent's, in pixels and cells.
FRAME, FINE_CELLS, CELLS = 256, 64, 32
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
    """A square of the frame, in cells of 8 pixels: rendering only that saves most of the work."""

    corners: Sequence[tuple[int, int]]  # y, x of each clip's, or of all clips'
    size: int

    def crop(self, x: Tensor) -> Tensor:
        """`[B, …, H, W]` → the window's part of it, whatever its resolution; a view if all clips share the window."""
        scale = x.shape[-1] // CELLS
        side = self.size * scale
        pictures = [x] if len(self.corners) == 1 else list(x)
        parts = [
            picture[..., scale * top : scale * top + side, scale * left : scale * left + side]
            for picture, (top, left) in zip(pictures, self.corners, strict=True)
        ]
        return parts[0] if len(self.corners) == 1 else torch.stack(parts)


WHOLE = Window([(0, 0)], CELLS)
#: Where the crops of `models/face/crop.py` have their faces: 176 pixels, a little below the middle.
FACE = Window([(7, 5)], 22)
#: Pixels inside the border of FACE where nothing is painted, for the zero padding there, and over which paint sets in.
PADDED, FADE = 4, 16


class ReferenceDecoder(nn.Module):
    """Volumes + portrait + rigid motion → frames: m · warp(portrait) + (1 - m) · paint.

    Paint and the fine part of the flow belong to the face: they fade out towards the border of `FACE`, beyond which a
    frame is the warped portrait. That leaves half of the pixels to the dear layers.
    """

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
        self.coarse_flow = conv(width, 2, gain=0.0)
        self.to_mid = conv(width, mid)
        self.mid = nn.Sequential(ResBlock(mid), ResBlock(mid))
        self.fine_flow = conv(mid, 2, gain=0.0)
        self.to_small = conv(mid, small)
        self.see_pixels = nn.Conv2d(3, small, 2, stride=2)
        self.small = ResBlock(small)
        self.paint = nn.Sequential(nn.LeakyReLU(SLOPE), conv(small, 16, gain=0.1), nn.PixelShuffle(2))

    def portrait(self, picture: Tensor) -> Portrait:
        """Pictures `[B, 3, 256, 256]` in [-1, 1] → features."""
        stem = self.portrait_stem(picture.contiguous(memory_format=torch.channels_last))
        fine = self.portrait_fine(activate(stem))
        coarse = self.portrait_coarse(activate(fine))
        return Portrait(picture, self.see_fine(fine).float(), self.see_coarse(coarse).float())

    def forward(self, volume: Tensor, portrait: Portrait, rigid: Tensor, window: Window = WHOLE) -> Rendering:
        """Render the frames of some volumes, for training and comparison.

        Args:
            volume: `[B, S, W, 32, 32]`, from the trunk.
            portrait: of the same B clips.
            rigid: flow of the head alone, `[B, S, 2, 32, 32]`.
            window: the part of each clip's frames to render.
        """
        h, coarse_flow = self._move(volume, portrait, rigid)
        flow = window.crop(_upsample_flow(coarse_flow, 2))
        h, correction = self._refine(h, flow, portrait, window)
        flow = _upsample_flow(flow + correction, FRAME // FINE_CELLS)
        # What is shown is interpolated sharply; gradients of the plain kernel are as good and cheaper.
        mode: Literal["bilinear", "bicubic"] = "bilinear" if self.training else "bicubic"
        warped = warp.sample(portrait.picture, flow + _grid(FRAME, window, flow), mode)
        painted, keep = self._paint(h, warped, window)
        return Rendering(torch.lerp(painted, warped, keep), painted, warped, keep, coarse_flow)

    def show(self, volume: Tensor, portrait: Portrait, rigid: Tensor, photograph: Pictures) -> Pictures:
        """The frames of one clip as they are shown: those of `forward` within rounding, at a third of its cost.

        Args:
            volume: `[1, S, W, 32, 32]`.
            portrait: of the clip.
            rigid: `[1, S, 2, 32, 32]`.
            photograph: `warp.enlarge` of the portrait.

        Returns:
            RGB `[S, 256, 256, 3]`.
        """
        h, coarse_flow = self._move(volume, portrait, rigid)
        flow = _upsample_flow(coarse_flow, 2)
        h, correction = self._refine(h, FACE.crop(flow), portrait, FACE)
        FACE.crop(flow).add_(correction)
        frames = np.stack([warp.remap(photograph, f) for f in flow[0].numpy()])
        face = FACE.crop(torch.from_numpy(frames).permute(0, 3, 1, 2))[None]  # a view: what is written is shown
        warped = face.contiguous().float().div_(127.5).sub_(1)
        painted, keep = self._paint(h, warped, FACE)
        blended = torch.lerp(painted, warped, keep)
        face.copy_(blended.add_(1).mul_(127.5).round_().clamp_(0, 255))
        return frames

    def _move(self, volume: Tensor, portrait: Portrait, rigid: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse level of whole frames: features `[B * S, W, 32, 32]` and the flow `[B, S, 2, 32, 32]`."""
        seen = _as_features(warp.sample(portrait.coarse, warp.absolute(rigid)), volume.dtype)
        h = activate(self.coarse(volume.flatten(0, 1) + seen + self.see_rigid(4 * rigid.flatten(0, 1))))
        return h, rigid + COARSE * _flow(self.coarse_flow(h), rigid)

    def _refine(self, h: Tensor, flow: Tensor, portrait: Portrait, window: Window) -> tuple[Tensor, Tensor]:
        """The fine level of a window: features `[B * S, mid, n, n]` and what to add to `flow` `[B, S, 2, n, n]`."""
        seen = _as_features(warp.sample(portrait.fine, flow + _grid(FINE_CELLS, window, flow)), h.dtype)
        h = window.crop(clips_of(self.to_mid(h), flow)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        h = activate(self.mid(upsample(h) + seen))
        return h, FINE * _flow(self.fine_flow(h), flow) * _fade(FINE_CELLS, window, flow)

    def _paint(self, h: Tensor, warped: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """The pixels of a window: painted `[B, S, 3, n, n]`, and the warp's share of them `[B, S, 1, n, n]`."""
        h = self.small(upsample(self.to_small(h)) + self.see_pixels(warped.flatten(0, 1)))
        paint = clips_of(self.paint(h).float().contiguous(), warped)
        keep = torch.sigmoid(4 * torch.tanh(0.1 * paint[:, :, 3:]))
        if not self.training:  # the bound, which keeps gradients alive, would leave a veil of paint on everything
            keep = ((keep - 0.1) / 0.85).clamp(0, 1)
        return paint[:, :, :3], 1 - _fade(FRAME, window, warped) * (1 - keep)


def _flow(head: Tensor, like: Tensor) -> Tensor:
    """A flow head's output; planar, because two interleaved channels upsample four times slower."""
    return clips_of(head.float().contiguous(), like)


def _as_features(clips: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, S, C, H, W]` → `[B * S, C, H, W]`, narrowed before its channels are moved inwards: half the copy."""
    return clips.to(dtype).flatten(0, 1).contiguous(memory_format=torch.channels_last)


def _upsample_flow(flow: Tensor, factor: int) -> Tensor:
    return clips_of(upsample(flow.flatten(0, 1), factor), flow)


def _grid(resolution: int, window: Window, like: Tensor) -> Tensor:
    """Pixel centres of each clip's window, `[B or 1, 1, 2, h, w]`."""
    full = warp.grid(resolution, resolution, like.device)[None, None]
    return window.crop(full.expand(len(window.corners), -1, -1, -1, -1))


def _fade(resolution: int, window: Window, like: Tensor) -> Tensor:
    """1 inside FACE, falling to 0 at its border and beyond, in each clip's window: `[B or 1, 1, 1, h, w]`."""
    centres = (torch.arange(resolution, device=like.device) + 0.5) * (CELLS / resolution)
    top, left = FACE.corners[0]
    pixels = FRAME // CELLS
    y, x = (
        ((torch.minimum(centres - first, first + FACE.size - centres) * pixels - PADDED) / FADE).clamp(0, 1)
        for first in (top, left)
    )
    full = (y[:, None] * x)[None, None, None]
    return window.crop(full.expand(len(window.corners), -1, -1, -1, -1))


class PlainDecoder(nn.Module):
    """The paper's decoder, in convolutions: every pixel is painted from the latent."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        width, mid, small = config.width, config.mid, config.small
        self.coarse = nn.Sequential(ResBlock(width), ResBlock(width), nn.LeakyReLU(0.2), conv(width, mid))
        self.mid = nn.Sequential(ResBlock(mid), ResBlock(mid), nn.LeakyReLU(0.2), conv(mid, small))
        self.small = nn.Sequential(ResBlock(small), nn.LeakyReLU(0.2), conv(small, 12, gain=0.1), nn.PixelShuffle(2))

    def forward(self, volume: Tensor, window: Window = WHOLE) -> Tensor:
        """Volumes `[B, S, W, 32, 32]` → frames `[B, S, 3, h, w]`."""
        h = self.coarse(volume.flatten(0, 1))
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

    def render(self, volume: Tensor, portrait: Portrait, rigid: Tensor, window: Window = WHOLE) -> Rendering:
        """Volumes → frames; see `ReferenceDecoder.forward`."""
        if isinstance(self.decoder, PlainDecoder):
            frames = self.decoder(volume, window)
            return Rendering(frames, frames, frames, torch.zeros_like(frames[:, :, :1]), rigid)
        rendering: Rendering = self.decoder(volume, portrait, rigid, window)
        return rendering

    def show(self, volume: Tensor, portrait: Portrait, rigid: Tensor, photograph: Pictures) -> Pictures:
        """Volumes of one clip → pictures; see `ReferenceDecoder.show`."""
        if isinstance(self.decoder, PlainDecoder):
            frames = (self.decoder(volume)[0].clamp(-1, 1) + 1) * 127.5
            return np.asarray(frames.round().byte().permute(0, 2, 3, 1).contiguous())
        pictures: Pictures = self.decoder.show(volume, portrait, rigid, photograph)
        return pictures

    def decode(self, planes: Planes, portrait: Portrait, rigid: Tensor, frames: slice = slice(None)) -> Tensor:
        """Latent → the chosen frames `[B, k, 3, 256, 256]` in [-1, 1]; `rigid` `[B, k, 2, 32, 32]` is theirs."""
        return self.render(self.volume(planes, frames), portrait, rigid).frames.clamp(-1, 1)
