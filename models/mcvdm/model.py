"""MC-VDM as a whole: landmarks and a portrait to a clip's latent, and its latent to frames."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from avatard.models import checkpoint
from avatard.models.device import CPU
from avatard.models.diffusion import cosine_alpha_bar, ddim, sqrt_linear_alpha_bar
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.decoder import PortraitFeatures
from avatard.models.mcvdm.landmark_encoder import Geometry, LandmarkEncoder, condition_maps, thumbnail
from avatard.models.mcvdm.latent import AutoencoderConfig, Planes
from avatard.models.mcvdm.unet import UNet, UNetConfig
from avatard.models.precision import narrowed

#: Length of the diffusion in training; few steps of it are taken when generating.
TIMESTEPS = 1000


@dataclass(frozen=True)
class McvdmConfig:
    """Configuration of the three networks, JSON in the checkpoint's metadata."""

    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    #: `x0`: cosine schedule, few steps. `epsilon`: the paper's noise prediction and schedule, many steps.
    objective: Literal["x0", "epsilon"] = "x0"
    clip: int = 16  # frames of a clip in training

    @classmethod
    def from_json(cls, text: str) -> McvdmConfig:
        """The configuration that `to_json` wrote. Raises `ValueError` or `TypeError` on anything else."""
        values = json.loads(text)
        unet = dict(values.pop("unet"))
        unet["multiples"] = tuple(unet["multiples"])
        return cls(AutoencoderConfig(**values.pop("autoencoder")), UNetConfig(**unet), **values)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))


class IdentityEncoding(NamedTuple):
    """What is computed once per portrait."""

    portrait: PortraitFeatures
    latent: Tensor  # zr^xy, standardised, [B, 4, 32, 32]
    small: Tensor  # [B, 3, 64, 64]


class Mcvdm(nn.Module):
    """The autoencoder, the landmark encoder and the diffusion UNet, with the latent's statistics."""

    def __init__(self, config: McvdmConfig):
        super().__init__()
        self.config = config
        self.autoencoder = Autoencoder(config.autoencoder)
        self.landmarks = LandmarkEncoder(config.unet.landmark, config.unet.width)
        self.unet = UNet(config.unet)
        channels = config.autoencoder.channels
        # Mean and standard deviation of the latent, by plane and channel.
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros(3, channels))
        self.std: Tensor
        self.register_buffer("std", torch.ones(3, channels))
        epsilon = config.objective == "epsilon"
        self.alpha_bar: Tensor
        schedule = sqrt_linear_alpha_bar(TIMESTEPS) if epsilon else cosine_alpha_bar(TIMESTEPS)
        self.register_buffer("alpha_bar", schedule, persistent=False)

    def standardise(self, planes: Planes) -> Planes:
        """Latents of the autoencoder → the diffusion's."""
        parts = zip(planes, self.mean, self.std, strict=True)
        return Planes(*((p - m[:, None, None]) / s[:, None, None] for p, m, s in parts))

    def denormalise(self, planes: Planes) -> Planes:
        """The diffusion's latents → the autoencoder's."""
        parts = zip(planes, self.mean, self.std, strict=True)
        return Planes(*((p * s[:, None, None] + m[:, None, None]).clamp(-1, 1) for p, m, s in parts))

    def encode_identity(self, picture: Tensor) -> IdentityEncoding:
        """A portrait `[B, 3, 256, 256]` in [-1, 1] → what every clip of it needs."""
        return IdentityEncoding(self.autoencoder.portrait(picture), self.identity(picture), thumbnail(picture))

    def identity(self, picture: Tensor) -> Tensor:
        """zr^xy of portraits `[B, 3, 256, 256]`: their own latent's xy plane, standardised."""
        return self.standardise_xy(self.autoencoder.encode(picture[:, None]).xy)

    def standardise_xy(self, plane: Tensor) -> Tensor:
        """An xy plane of the autoencoder in the diffusion's units."""
        return (plane - self.mean[0][:, None, None]) / self.std[0][:, None, None]

    def condition(self, geometry: Geometry, small: Tensor, rigid: Tensor) -> Planes:
        """The landmark planes zl of a clip; `rigid` is `geometry.rigid_flow()`."""
        planes: Planes = self.landmarks(condition_maps(geometry, small, rigid))
        return planes

    def predict(self, noisy: Planes, t: Tensor, zl: Planes, latent: Tensor, previous: Planes) -> Planes:
        """The clean latent that the network sees in a noisy one at timesteps `t` `[B]`."""
        out: Planes = self.unet(noisy, t, zl, latent, previous)
        if self.config.objective == "x0":
            return out
        signal = self.alpha_bar[t].view(-1, 1, 1, 1)
        return Planes(*((z - (1 - signal).sqrt() * e) / signal.sqrt() for z, e in zip(noisy, out, strict=True)))

    def generate(self, zl: Planes, latent: Tensor, previous: Planes | None, noise: Planes, steps: int) -> Planes:
        """Sample a clip's latent by DDIM in `steps` evaluations, starting from `noise`; all standardised."""
        before = Planes(*map(torch.zeros_like, noise)) if previous is None else previous
        shapes = [n.shape for n in noise]

        def predict_x0(flat: Tensor, t: int) -> Tensor:
            at = torch.full((len(flat),), t, device=flat.device)
            return pack(self.predict(unpack(flat, shapes), at, zl, latent, before))

        return unpack(ddim(predict_x0, pack(noise), self.alpha_bar, steps), shapes)

    @classmethod
    def load(cls, name_or_path: str | Path = "mcvdm_nano") -> Mcvdm:
        """A trained network, in float32, for inference. Raises `CheckpointError`."""
        return checkpoint.build(name_or_path, "weights of MC-VDM", lambda config: cls(McvdmConfig.from_json(config)))

    def for_inference(self, device: torch.device = CPU) -> Mcvdm:
        """This network on a device, its weights in the format that it computes in there; see `narrowed`."""
        self.to(device)
        narrowed(self, device)
        return self

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.mean.device

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the weights in float16, with the configuration and `metadata` (data, steps, metrics, licence)."""
        tensors = {key: value.half() for key, value in self.state_dict().items()}
        checkpoint.save(path, tensors, {**metadata, "config": self.config.to_json()})


def pack(planes: Planes) -> Tensor:
    """Planes → one tensor `[B, N]`."""
    return torch.cat([p.flatten(1) for p in planes], 1)


def unpack(flat: Tensor, shapes: list[torch.Size]) -> Planes:
    """The inverse of `pack`."""
    pieces = torch.split(flat, [shape[1:].numel() for shape in shapes], 1)
    return Planes(*(piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)))
