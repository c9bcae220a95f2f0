"""A real clip as MC-VDM makes it, frame by frame: what the mouth painter will be given to go by."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from avatard.models.face.pose import Pose
from avatard.models.mcvdm.decoder import CELLS
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.pixels import Pictures, to_bytes, to_tensor

Floats = NDArray[np.floating]

#: Frames denoised together, and rendered together.
CLIP, RENDERED = 16, 4


@torch.inference_mode()
def regenerate(model: Mcvdm, portrait: Pictures, faces: Floats, poses: Pose, reference: int, seed: int = 0) -> Pictures:
    """Generate each frame of a clip from one of them, in one step.

    Args:
        model: the networks.
        portrait: the reference frame's crop `[256, 256, 3]`.
        faces: the 68 points of each frame `[N, 68, 3]`, canonical.
        poses: `[N]`, in crop pixels.
        reference: number of the reference frame.
        seed: of the noise.

    Returns:
        `[N, 256, 256, 3]`.
    """
    count = len(faces)
    source = poses[reference].project(faces[reference])[:, :2]
    rigid = poses.project(np.broadcast_to(faces[reference], faces.shape))[..., :2]
    target = poses.project(faces)[..., :2]
    picture = to_tensor(portrait[None])
    identity = model.encode_identity(picture)
    rng = torch.Generator().manual_seed(seed)
    channels = model.config.unet.latent
    frames = []
    for first in range(0, count, CLIP):
        # The last clip is full, too: what it shows again is left out.
        start = max(0, min(first, count - CLIP))
        numbers = np.minimum(np.arange(start, start + CLIP), count - 1)
        geometry = Geometry(*(torch.from_numpy(p).float()[None] for p in (source, rigid[numbers], target[numbers])))
        flow = geometry.rigid_flow()
        noise = Planes(
            torch.randn(1, channels, CELLS, CELLS, generator=rng),
            torch.randn(1, channels, CLIP, CELLS, generator=rng),
            torch.randn(1, channels, CLIP, CELLS, generator=rng),
        )
        zl = model.condition(geometry, identity.small, flow)
        planes = model.denormalise(model.generate(zl, identity.latent, None, noise, steps=1))
        volume = model.autoencoder.volume(planes)
        for n in range(first - start, min(CLIP, count - start), RENDERED):
            some = slice(n, min(n + RENDERED, count - start))
            rendering = model.autoencoder.render(volume[:, some], identity.portrait, flow[:, some])
            frames.append(to_bytes(rendering.frames[0]))
    return np.concatenate(frames)
