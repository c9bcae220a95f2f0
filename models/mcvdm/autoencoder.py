"""The triplane video autoencoder (paper section 3.3, after PVDM).

A clip is encoded into three planes: xy (what stays), xt and yt (what moves). A trunk turns the planes into one volume
per frame, and a decoder of `decoder.py` the volumes into pixels. The encoder is shown the expression's flow beside the
frames: without it the decoder needs thousands of steps before it reads any motion from the latent.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from einops import einsum, rearrange, reduce
from torch import Tensor, nn

from avatard.models import checkpoint
from avatard.models.mcvdm.decoder import (
    CELLS,
    FACE,
    WHOLE,
    Layers,
    PlainDecoder,
    PortraitFeatures,
    ReferenceDecoder,
    Rendering,
    Window,
)
from avatard.models.mcvdm.latent import MOTION_SCALE, AutoencoderConfig, Planes
from avatard.models.mcvdm.layers import ResBlock, activate, channels_last, clips_of, conv
from avatard.models.mcvdm.timesformer import TimeSformerEncoder
from avatard.models.pixels import Pictures, to_bytes


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
        h = self.body(self.shrink(activate(h)) + self.see_motion(MOTION_SCALE * motion.flatten(0, 1)))
        h = clips_of(h, frames)  # [B, t, W, y, x]
        rows = einsum(h.float(), self.rows, "b t c y x, k c y -> k b t c x")
        columns = einsum(h.float(), self.columns, "b t c y x, k c x -> k b t c y")
        xy = torch.cat([reduce(h, "b t c y x -> b c y x", how) for how in ("mean", "max")], 1)  # [B, 2 W, y, x]
        xt = torch.cat([reduce(h, "b t c y x -> b t c x", "mean"), *rows], 2)  # [B, t, 3 W, x]
        yt = torch.cat([reduce(h, "b t c y x -> b t c y", "mean"), *columns], 2)  # [B, t, 3 W, y]
        xt, yt = (rearrange(plane, "b t c line -> b c t line") for plane in (xt, yt))
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
        xy = rearrange(xy, "b c y x -> b 1 y x c")
        xt = rearrange(xt[:, :, frames], "b c t x -> b t 1 x c")
        yt = rearrange(yt[:, :, frames], "b c t y -> b t y 1 c")
        volume: Tensor = rearrange(xy + xt + yt, "b t y x c -> b t c y x")
        return volume


class Autoencoder(nn.Module):
    """Encoder, trunk and decoder behind one interface."""

    def __init__(self, config: AutoencoderConfig):
        super().__init__()
        self.config = config
        encoder = ConvEncoder if config.encoder == "conv" else TimeSformerEncoder
        self.encoder = encoder(config)
        self.trunk = Trunk(config)
        decoder = ReferenceDecoder if config.decoder == "reference" else PlainDecoder
        self.decoder = decoder(config.width, config.mid, config.small)
        channels_last(self)

    @classmethod
    def load(cls, state: Path) -> Autoencoder:
        """The averaged weights of a state of scripts/train_autoencoder.py. Raises `CheckpointError`."""
        return checkpoint.build(
            state, "an autoencoder's training", lambda config: cls(AutoencoderConfig(**json.loads(config))), "ema/"
        )

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

    def portrait(self, picture: Tensor) -> PortraitFeatures:
        """Picture `[B, 3, 256, 256]` in [-1, 1] → what the decoder needs of it; compute it once per identity."""
        if isinstance(self.decoder, PlainDecoder):
            return PortraitFeatures(picture, picture, picture)
        return self.decoder.portrait(picture)

    def volume(self, planes: Planes, frames: slice = slice(None)) -> Tensor:
        """Latent → volumes `[B, k, W, 32, 32]`; two clips' volumes of the same frame can be blended."""
        volume: Tensor = self.trunk(planes, frames)
        return volume

    def render(self, volume: Tensor, portrait: PortraitFeatures, rigid: Tensor, window: Window = WHOLE) -> Rendering:
        """Volumes → frames; see `ReferenceDecoder.forward`."""
        if isinstance(self.decoder, PlainDecoder):
            frames = self.decoder(volume, window)
            return Rendering(frames, frames, frames, torch.zeros_like(frames[:, :, :1]), rigid)
        rendering: Rendering = self.decoder(volume, portrait, rigid, window)
        return rendering

    def render_uint8(self, volume: Tensor, portrait: PortraitFeatures, rigid: Tensor, photograph: Pictures) -> Pictures:
        """Volumes of one clip → pictures; see `ReferenceDecoder.show`."""
        if isinstance(self.decoder, PlainDecoder):
            return to_bytes(self.decoder(volume)[0])
        pictures: Pictures = self.decoder.render_uint8(volume, portrait, rigid, photograph)
        return pictures

    def layers(
        self,
        volume: Tensor,
        portrait: PortraitFeatures,
        rigid: Tensor,
        photograph: Pictures,
        painted_in: Window = FACE,
    ) -> list[Layers]:
        """Volumes of one clip → what each of its frames is made of; see `ReferenceDecoder.layers`."""
        if isinstance(self.decoder, PlainDecoder):
            return [Layers.painted_only(f) for f in self.render_uint8(volume, portrait, rigid, photograph)]
        layers: list[Layers] = self.decoder.layers(volume, portrait, rigid, photograph, painted_in)
        return layers

    def decode(self, planes: Planes, portrait: PortraitFeatures, rigid: Tensor, frames: slice = slice(None)) -> Tensor:
        """Latent → the chosen frames `[B, k, 3, 256, 256]` in [-1, 1]; `rigid` `[B, k, 2, 32, 32]` is theirs."""
        return self.render(self.volume(planes, frames), portrait, rigid).frames.clamp(-1, 1)
