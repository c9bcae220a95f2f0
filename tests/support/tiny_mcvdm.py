"""MC-VDM with random weights and a few channels, and a face to animate: for tests of what surrounds the weights."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from avatard.models.face.crop import CROP_ORIGIN, CROP_SCALE
from avatard.models.face.pose import Pose
from avatard.models.mcvdm.latent import AutoencoderConfig
from avatard.models.mcvdm.model import Mcvdm, McvdmConfig
from avatard.models.mcvdm.unet import UNetConfig

TINY_AUTOENCODER = AutoencoderConfig(width=8, mid=8, small=8, transformer_width=16, transformer_depth=1)
TINY = McvdmConfig(TINY_AUTOENCODER, UNetConfig(landmark=4, width=8, head=8))


def tiny(config: McvdmConfig = TINY) -> Mcvdm:
    """Every parameter random, the ones that start at zero too, so that everything has an effect."""
    torch.manual_seed(0)
    model = Mcvdm(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return model.eval().requires_grad_(False)


def frontal() -> Pose:
    return Pose(np.eye(3), np.array(CROP_SCALE), np.array(CROP_ORIGIN))


@dataclass
class Someone:
    portrait: NDArray[np.uint8]
    landmarks: NDArray[np.float32]
    pose: Pose


def someone() -> Someone:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    return Someone(noise.repeat(8, 0).repeat(8, 1), np.zeros((68, 3), np.float32), frontal())
