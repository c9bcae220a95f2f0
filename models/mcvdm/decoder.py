"""The decoders of the video autoencoder: from volumes to pixels.

The paper's paints every pixel from the latent; the reference-guided one warps the portrait and paints only what the
portrait cannot show. It sees the latent, the portrait and the head's rigid motion, never the landmarks, so that the
expression has to come from the latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models.face import warp
from avatard.models.mcvdm.layers import SLOPE, ResBlock, activate, clips_of, conv, upsample
from avatard.timebase import CROP_SIDE

Pictures = NDArray[np.uint8]

#: Side of a frame, of the grid of the fine flow and of the latent's, in pixels and cells.
FRAME, FINE_CELLS, CELLS = CROP_SIDE, 64, 32
#: Scale of the flow heads: a fresh decoder moves nothing, a trained one moves a few cells at most.
COARSE, FINE = 0.1, 0.05


class PortraitFeatures(NamedTuple):
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


class Layers(NamedTuple):
    """What one frame is made of, for who puts it together at another resolution."""

    flow: NDArray[np.float32]  # [2, 64, 64], of the whole frame, normalised units (see `warp`)
    painted: Pictures  # [h, w, 3], RGB, of the part of the frame that may be painted
    keep: NDArray[np.uint8]  # [h, w], the share of the warp in it, of 255
    window: tuple[slice, slice]  # that part: rows and columns of the 256

    @classmethod
    def painted_only(cls, frame: Pictures) -> Layers:
        """Of a frame `[256, 256, 3]` that shows nothing of the portrait itself."""
        flow = np.zeros((2, FINE_CELLS, FINE_CELLS), np.float32)
        return cls(flow, frame, np.zeros(frame.shape[:2], np.uint8), (slice(0, FRAME), slice(0, FRAME)))


class Window(NamedTuple):
    """A square of the frame, in cells of 8 pixels: rendering only that saves most of the work."""

    corners: Sequence[tuple[int, int]]  # y, x of each clip's, or of all clips'
    size: int

    def crop(self, x: Tensor, of: Window | None = None) -> Tensor:
        """`[B, …, H, W]`, whole frames or `of` a window that all clips share, → the window's part of it.

        The resolution does not matter. It is a view if all clips share the window.
        """
        first_row, first_column = of.corners[0] if of is not None else (0, 0)
        scale = x.shape[-1] // (of.size if of is not None else CELLS)
        side = self.size * scale
        pictures = [x] if len(self.corners) == 1 else list(x)
        parts = []
        for picture, (top, left) in zip(pictures, self.corners, strict=True):
            row, column = scale * (top - first_row), scale * (left - first_column)
            parts.append(picture[..., row : row + side, column : column + side])
        return parts[0] if len(self.corners) == 1 else torch.stack(parts)

    @classmethod
    def around(cls, low: NDArray[np.floating], high: NDArray[np.floating]) -> Window:
        """The smallest one inside FACE in which what is painted between two corners (x, y; pixels) is right."""
        pixels = FRAME // CELLS
        first = np.array(FACE.corners[0][::-1])
        low = np.clip(np.floor((low - SEEN_AROUND) / pixels), first, first + FACE.size).astype(int)
        high = np.clip(np.ceil((high + SEEN_AROUND) / pixels), first, first + FACE.size).astype(int)
        size = max(1, int((high - low).max()))
        left, top = np.clip(low - (size - (high - low)) // 2, first, first + FACE.size - size).tolist()
        return cls([(top, left)], size)

    @property
    def pixels(self) -> tuple[slice, slice]:
        """Rows and columns of the frame, where all clips share the window."""
        (top, left), pixels = self.corners[0], FRAME // CELLS
        return slice(pixels * top, pixels * (top + self.size)), slice(pixels * left, pixels * (left + self.size))


WHOLE = Window([(0, 0)], CELLS)
#: Where the crops of `models/face/crop.py` have their faces: 176 pixels, a little below the middle.
FACE = Window([(7, 5)], 22)
#: Pixels that the layers which paint see around each; beyond a window there is zero padding.
SEEN_AROUND = 8
#: Pixels inside the border of FACE where nothing is painted, for the zero padding there, and over which paint sets in.
PADDED, FADE = 4, 16


class ReferenceDecoder(nn.Module):
    """Volumes + portrait + rigid motion → frames: m · warp(portrait) + (1 - m) · paint.

    Paint and the fine part of the flow belong to the face: they fade out towards the border of `FACE`, beyond which a
    frame is the warped portrait. That leaves half of the pixels to the expensive layers.
    """

    def __init__(self, width: int, mid: int, small: int):
        super().__init__()
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

    def portrait(self, picture: Tensor) -> PortraitFeatures:
        """Pictures `[B, 3, 256, 256]` in [-1, 1] → features."""
        stem = self.portrait_stem(picture.contiguous(memory_format=torch.channels_last))
        fine = self.portrait_fine(activate(stem))
        coarse = self.portrait_coarse(activate(fine))
        return PortraitFeatures(picture, self.see_fine(fine).float(), self.see_coarse(coarse).float())

    def forward(self, volume: Tensor, portrait: PortraitFeatures, rigid: Tensor, window: Window = WHOLE) -> Rendering:
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

    def render_uint8(self, volume: Tensor, portrait: PortraitFeatures, rigid: Tensor, photograph: Pictures) -> Pictures:
        """The frames of one clip as they are shown: those of `forward` within rounding, at a third of its cost.

        Args:
            volume: `[1, S, W, 32, 32]`.
            portrait: of the clip.
            rigid: `[1, S, 2, 32, 32]`.
            photograph: `warp.enlarge` of the portrait.

        Returns:
            RGB `[S, 256, 256, 3]`.
        """
        h, flow = self._flow(volume, portrait, rigid)
        frames = np.stack([warp.remap(photograph, f) for f in flow])
        face = FACE.crop(torch.from_numpy(frames).permute(0, 3, 1, 2))[None]  # a view: what is written is shown
        warped = face.contiguous().float().div_(127.5).sub_(1)
        painted, keep = self._paint(h, warped, FACE)
        face.copy_(_bytes(torch.lerp(painted, warped, keep)))
        return frames

    def layers(
        self,
        volume: Tensor,
        portrait: PortraitFeatures,
        rigid: Tensor,
        photograph: Pictures,
        painted_in: Window = FACE,
    ) -> list[Layers]:
        """What `render_uint8` puts together, for the same arguments, but apart.

        Args:
            volume: as there.
            portrait: as there.
            rigid: as there.
            photograph: as there.
            painted_in: a part of FACE: nothing else is painted, which saves a quarter of the work at a mouth.
        """
        h, flow = self._flow(volume, portrait, rigid)
        frames = np.stack([warp.remap(photograph, f, painted_in.pixels) for f in flow])
        warped = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float().div_(127.5).sub_(1)
        painted, keep = self._paint(painted_in.crop(h, of=FACE), warped, painted_in)
        paint = _bytes(painted.clone())[0].byte().permute(0, 2, 3, 1).contiguous().numpy()
        share = (keep[0, :, 0] * 255).round().byte().numpy()
        return [Layers(f, p, k, painted_in.pixels) for f, p, k in zip(flow, paint, share, strict=True)]

    def _flow(self, volume: Tensor, portrait: PortraitFeatures, rigid: Tensor) -> tuple[Tensor, NDArray[np.float32]]:
        """Of one clip: features of its frames in FACE, and their flow `[S, 2, 64, 64]`."""
        h, coarse_flow = self._move(volume, portrait, rigid)
        flow = _upsample_flow(coarse_flow, 2)
        h, correction = self._refine(h, FACE.crop(flow), portrait, FACE)
        FACE.crop(flow).add_(correction)
        return h, flow[0].numpy()

    def _move(self, volume: Tensor, portrait: PortraitFeatures, rigid: Tensor) -> tuple[Tensor, Tensor]:
        """The coarse level of whole frames: features `[B * S, W, 32, 32]` and the flow `[B, S, 2, 32, 32]`."""
        seen = _as_features(warp.sample(portrait.coarse, warp.absolute(rigid)), volume.dtype)
        h = activate(self.coarse(volume.flatten(0, 1) + seen + self.see_rigid(4 * rigid.flatten(0, 1))))
        return h, rigid + COARSE * _flow(self.coarse_flow(h), rigid)

    def _refine(self, h: Tensor, flow: Tensor, portrait: PortraitFeatures, window: Window) -> tuple[Tensor, Tensor]:
        """The fine level of a window: features `[B * S, mid, n, n]` and what to add to `flow` `[B, S, 2, n, n]`."""
        seen = _as_features(warp.sample(portrait.fine, flow + _grid(FINE_CELLS, window, flow)), h.dtype)
        h = window.crop(clips_of(self.to_mid(h), flow)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        h = activate(self.mid(upsample(h) + seen))
        return h, FINE * _flow(self.fine_flow(h), flow) * _fade(FINE_CELLS, window, flow)

    def _paint(self, h: Tensor, warped: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """The pixels of a window: painted `[B, S, 3, n, n]`, and the warp's share of them `[B, S, 1, n, n]`."""
        h = self.small(upsample(self.to_small(h)) + self.see_pixels(warped.flatten(0, 1)))
        paint = clips_of(without_nyquist(self.paint(h).float().contiguous()), warped)
        keep = torch.sigmoid(4 * torch.tanh(0.1 * paint[:, :, 3:]))
        if not self.training:  # the bound, which keeps gradients alive, would leave a veil of paint on everything
            keep = ((keep - 0.1) / 0.85).clamp(0, 1)
        return paint[:, :, :3], 1 - _fade(FRAME, window, warped) * (1 - keep)


def without_nyquist(x: Tensor) -> Tensor:
    """Pictures `[N, C, H, W]` under a binomial filter of 3 × 3, which takes patterns of period two out.

    A pixel shuffle draws a checkerboard wherever that is the cheapest texture (Odena et al., "Deconvolution and
    Checkerboard Artifacts", 2016). The paint has little else up there.
    """
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    # A quarter of the neighbours' sum, one direction after the other: pooling is eight times slower.
    for _ in range(2):
        x = torch.lerp(x[..., 1:], x[..., :-1], 0.5)
        x = torch.lerp(x[..., 1:, :], x[..., :-1, :], 0.5)
    return x


def _bytes(pictures: Tensor) -> Tensor:
    """Pictures in about [-1, 1], which are overwritten, as whole numbers from 0 to 255."""
    return pictures.add_(1).mul_(127.5).round_().clamp_(0, 255)


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

    def __init__(self, width: int, mid: int, small: int):
        super().__init__()
        self.coarse = nn.Sequential(ResBlock(width), ResBlock(width), nn.LeakyReLU(0.2), conv(width, mid))
        self.mid = nn.Sequential(ResBlock(mid), ResBlock(mid), nn.LeakyReLU(0.2), conv(mid, small))
        self.small = nn.Sequential(ResBlock(small), nn.LeakyReLU(0.2), conv(small, 12, gain=0.1), nn.PixelShuffle(2))

    def forward(self, volume: Tensor, window: Window = WHOLE) -> Tensor:
        """Volumes `[B, S, W, 32, 32]` → frames `[B, S, 3, h, w]`."""
        h = self.coarse(volume.flatten(0, 1))
        h = window.crop(clips_of(h, volume)).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        frames: Tensor = clips_of(self.small(upsample(self.mid(upsample(h)))), volume).float()
        return frames
