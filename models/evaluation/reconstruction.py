"""What bounds generated video: the autoencoder on real frames, and a landmark warp without any network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from avatard.models.evaluation.reference_clip import GroundTruth
from avatard.models.face import warp
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.latent import Planes
from avatard.models.pixels import Pictures, to_bytes, to_tensor
from avatard.models.precision import inference_autocast
from avatard.timebase import CROP_SIDE

#: Frames that the autoencoder sees at once.
CLIP_FRAMES = 16
#: Side of the flow of a landmark warp, before it is interpolated to pixels.
FLOW_SIDE = 64


def warp_by_landmarks(picture: Tensor, geometry: Geometry) -> Tensor:
    """A portrait `[1, 3, 256, 256]` under the closed-form landmark flow of one clip: `[S, 3, 256, 256]`."""
    flow = F.interpolate(geometry.landmark_flow(FLOW_SIDE)[0], CROP_SIDE, mode="bilinear")
    return warp.sample(picture, warp.absolute(flow[None]))[0]


def cut(count: int) -> list[tuple[slice, slice]]:
    """Cut `count` frames into windows: slices of at most `CLIP_FRAMES`, and what to keep of each.

    What is kept has every frame once.
    """
    firsts = range(0, count, CLIP_FRAMES)
    starts = [min(first, max(count - CLIP_FRAMES, 0)) for first in firsts]
    return [
        (slice(start, min(start + CLIP_FRAMES, count)), slice(first - start, None))
        for start, first in zip(starts, firsts, strict=True)
    ]


class Reconstruction:
    """The autoencoder on real frames; keeps the latents of two clips, to decode one with those of the other."""

    def __init__(self, autoencoder: Autoencoder):
        self._autoencoder = autoencoder
        self._before: list[Planes] = []
        self._latents: list[Planes] = []

    def __call__(self, truth: GroundTruth) -> Pictures:
        """Frames decoded from their own latents."""
        frames, motion = to_tensor(truth.real.frames)[None], truth.geometry.motion()
        self._before = self._latents
        with inference_autocast():
            windows = cut(frames.shape[1])
            self._latents = [self._autoencoder.encode(frames[:, seen], motion[:, seen]) for seen, _ in windows]
        return self._decode(truth, self._latents)

    def shuffled(self, truth: GroundTruth) -> Pictures | None:
        """The same frames decoded from the latents of the clip before; None where the clips differ in length."""
        same = [planes.xt.shape for planes in self._before] == [planes.xt.shape for planes in self._latents]
        return self._decode(truth, self._before) if same else None

    def _decode(self, truth: GroundTruth, latents: list[Planes]) -> Pictures:
        rigid = truth.geometry.rigid_flow()
        windows = cut(rigid.shape[1])
        with inference_autocast():
            portrait = self._autoencoder.portrait(truth.picture)
            parts = [
                self._autoencoder.decode(planes, portrait, rigid[:, seen])[:, kept]
                for planes, (seen, kept) in zip(latents, windows, strict=True)
            ]
        return to_bytes(torch.cat(parts, dim=1)[0])
