"""One hop of MC-VDM, of one stream or of several at once: from landmarks in new frames to volumes that can be rendered.

All that a stream remembers from hop to hop is in `HopState`, so that hops of several streams can share a pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from avatard.engine.crossfade import blend
from avatard.inference.engine_api import Timer, untimed
from avatard.models.mcvdm.decoder import FACE, LayerTensors, PortraitFeatures, Window
from avatard.models.mcvdm.landmark_encoder import Geometry, condition_maps
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.precision import inference_autocast


class HopState(NamedTuple):
    """What a hop leaves to the next one."""

    flow: Tensor  # [B, S, 2, 32, 32], of the head, in the last clip's frames
    features: Tensor  # [B, S, W, 32, 32], what the landmark encoder made of each of them
    latent: Planes  # of the last clip
    held: Tensor  # [B, X, W, 32, 32], volumes of its last frames


class HopInputs(NamedTuple):
    """What a hop is made of."""

    geometry: Geometry  # of the H new frames
    small: Tensor  # [B, 3, 64, 64], the portrait's thumbnail
    identity: Tensor  # [B, 4, 32, 32], zr^xy
    noise: Planes  # of the clip's S frames
    fade: Tensor  # [B, X], the new clip's weights in the frames that it shares with the one before
    before: HopState | None  # None: the first hop


class HopMade(NamedTuple):
    """What a hop makes."""

    volumes: Tensor  # [B, X + H, W, 32, 32], of the clip's last frames, blended with those held
    flow: Tensor  # [B, X + H, 2, 32, 32], of the head
    state: HopState


class LayerInputs(NamedTuple):
    """What pictures are made of."""

    volumes: Tensor  # [B, k, W, 32, 32]
    portrait: PortraitFeatures
    flow: Tensor  # [B, k, 2, 32, 32], of the head
    photograph: Tensor  # [B, 3, 512, 512], `warp.enlarged_tensor` of the portrait


@torch.inference_mode()
def make_hop(mcvdm: Mcvdm, inputs: HopInputs, steps: int, timer: Timer = untimed) -> HopMade:
    """Denoise the clips that end with the new frames.

    Args:
        mcvdm: the networks.
        inputs: of the streams that share the pass, on the networks' device.
        steps: denoising steps.
        timer: entered around each network.
    """
    geometry, before, fade = inputs.geometry, inputs.before, inputs.fade.shape[1]
    hop, clip = geometry.target.shape[1], inputs.noise.xt.shape[2]
    new = hop + fade
    rigid = geometry.rigid_flow()
    with inference_autocast(mcvdm.device):
        with timer("landmark encoder"):
            seen = mcvdm.landmarks.features(condition_maps(geometry, inputs.small, rigid))
            flow = _rolled(None if before is None else before.flow, rigid, clip)
            features = _rolled(None if before is None else before.features, seen, clip)
            zl = mcvdm.landmarks.pool(features)
        with timer("diffusion UNet"):
            previous = None if before is None else before.latent
            latent = mcvdm.generate(zl, inputs.identity, previous, inputs.noise, steps)
        with timer("decoder trunk"):
            volumes = mcvdm.autoencoder.volume(mcvdm.denormalise(latent), slice(clip - new, None))
        if before is not None and fade:
            faded = blend(before.held, volumes[:, :fade], inputs.fade)
            volumes = torch.cat([faded, volumes[:, fade:]], 1)
    return HopMade(volumes, flow[:, -new:], HopState(flow, features, latent, volumes[:, hop:].clone()))


@torch.inference_mode()
def make_layers(mcvdm: Mcvdm, inputs: LayerInputs, painted_in: Window = FACE) -> LayerTensors:
    """What the frames of some volumes are made of, for a compositor that uses paint in this window."""
    with inference_autocast(mcvdm.device):
        return mcvdm.autoencoder.layers(*inputs, painted_in)


def _rolled(old: Tensor | None, new: Tensor, clip: int) -> Tensor:
    """The last S frames `[B, S, …]`; before the first one the face rests where the first one has it."""
    if old is None:
        old = new[:, :1].expand(-1, clip, *new.shape[2:])
    return torch.cat([old, new], 1)[:, -clip:]
