"""The landmark condition zl: what the landmarks say about every frame, as three planes.

Per frame, at 32²: the landmark raster, a thumbnail of the portrait pulled to the landmarks in closed form, the flow
that pulls it, and the part of that flow the head's pose does not explain. The diffusion sees them; the decoder does
not.
"""

from __future__ import annotations

from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from avatard.models.face import warp
from avatard.models.face.device_raster import raster_tensor
from avatard.models.face.raster import raster
from avatard.models.mcvdm.decoder import CELLS, FRAME
from avatard.models.mcvdm.latent import MOTION_SCALE, Planes
from avatard.models.mcvdm.layers import ResBlock, activate, channels_last, clips_of, conv

#: Side of the rasters and of the portrait's thumbnail.
THUMBNAIL = 2 * CELLS
#: Channels of a frame's maps: raster and thumbnail unshuffled to 32², two flows.
CHANNELS = 2 * 3 * 4 + 2 * 2


class Geometry(NamedTuple):
    """Where a clip's landmarks are, in pixels of the crop."""

    source: Tensor  # [B, 68, 2], of the portrait
    rigid: Tensor  # [B, S, 68, 2], of the portrait's face under the frames' head poses
    target: Tensor  # [B, S, 68, 2], of the frames

    def rigid_flow(self) -> Tensor:
        """The head's flow, `[B, S, 2, 32, 32]`."""
        source, rigid = warp.normalise(self.source)[:, None], warp.normalise(self.rigid)
        return warp.landmark_flow(source, rigid, rigid, CELLS)

    def landmark_flow(self, size: int = CELLS) -> Tensor:
        """The flow of all landmarks, `[B, S, 2, size, size]`."""
        source, rigid, target = (warp.normalise(p) for p in self)
        return warp.landmark_flow(source[:, None], rigid, target, size)

    def motion(self) -> Tensor:
        """What the expression adds to the head's flow, `[B, S, 2, 32, 32]`."""
        return self.landmark_flow() - self.rigid_flow()


def thumbnail(picture: Tensor) -> Tensor:
    """Portraits `[B, 3, 256, 256]` → `[B, 3, 64, 64]`."""
    return F.avg_pool2d(picture.float(), FRAME // THUMBNAIL)


def rasters(target: Tensor) -> Tensor:
    """Points `[B, S, 68, 2]` in pixels of the crop → rasters `[B, S, 3, 64, 64]` in [0, 1].

    On the CPU OpenCV draws them, as it did in training and in a fraction of the time.
    """
    if target.device.type != "cpu":
        return raster_tensor(target, THUMBNAIL, side=FRAME)
    points: NDArray[np.float64] = target.double().numpy()
    drawn = torch.from_numpy(raster(points, THUMBNAIL, side=FRAME))
    return drawn.permute(0, 1, 4, 2, 3).float() / 255


def condition_maps(geometry: Geometry, small: Tensor, rigid: Tensor) -> Tensor:
    """What the landmark encoder sees, `[B, S, 28, 32, 32]`.

    `small` is the portrait's thumbnail, `rigid` the head's flow.
    """
    flow = geometry.landmark_flow()
    lifted = clips_of(F.interpolate(flow.flatten(0, 1), THUMBNAIL, mode="bilinear"), flow)
    pulled = warp.sample(small, warp.absolute(lifted))
    pictures = F.pixel_unshuffle(torch.cat([rasters(geometry.target), pulled], 2), 2)
    return torch.cat([pictures, 4 * flow, MOTION_SCALE * (flow - rigid)], 2)


class LandmarkEncoder(nn.Module):
    """Maps → three planes, pooled as the video encoder pools frames."""

    def __init__(self, channels: int = 16, width: int = 48):
        super().__init__()
        self.body = nn.Sequential(conv(CHANNELS, width), ResBlock(width), ResBlock(width))
        self.planes = nn.ModuleList(
            nn.Sequential(conv(2 * width, width), ResBlock(width), nn.LeakyReLU(0.2), conv(width, channels))
            for _ in range(3)
        )
        channels_last(self)

    def forward(self, seen: Tensor) -> Planes:
        """`[B, S, 28, 32, 32]` → zl: planes with `channels` channels."""
        return self.pool(self.features(seen))

    def features(self, seen: Tensor) -> Tensor:
        """The frame-by-frame part, which overlapping clips share: `[B, S, 28, 32, 32]` → `[B, S, W, 32, 32]`."""
        return clips_of(self.body(seen.flatten(0, 1).contiguous(memory_format=torch.channels_last)), seen)

    def pool(self, h: Tensor) -> Planes:
        """The features of a clip's frames → its planes."""
        # `mean` and `amax` over these axes would take as long as the convolutions.
        frames = h.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        clip = clips_of(frames, h).unbind(1)
        xy = torch.cat([reduce(torch.add, clip) / len(clip), reduce(torch.maximum, clip)], 1)
        xt, yt = (
            clips_of(torch.cat([F.avg_pool2d(frames, line), F.max_pool2d(frames, line)], 1).flatten(2), h)
            for line in ((CELLS, 1), (1, CELLS))
        )
        xt, yt = xt.transpose(1, 2), yt.transpose(1, 2)
        return Planes(*(net(activate(p)).float() for net, p in zip(self.planes, (xy, xt, yt), strict=True)))
