"""Figures of MC-VDM during its training, on unaugmented examples of unseen people, and sheets to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avatard.models.evaluation import image_metrics
from avatard.models.evaluation.reconstruction import warp_by_landmarks
from avatard.models.face.topology import inner_lip_heights
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.model import Mcvdm, pack
from avatard.models.pixels import normalise, to_bytes
from avatard.models.precision import inference_autocast
from avatard.models.training.loop import sheet
from avatard.models.training.mcvdm.dataset import Batch
from avatard.models.training.mcvdm.latent_cache import CLIP
from avatard.models.training.mcvdm.train_diffusion import noise_like

#: Equal pictures have an infinite PSNR; it is counted as this.
MOST_DB = 80.0
#: Rows of a sheet.
SHOWN = 12
#: Every third frame of a clip is rendered.
PICKED = slice(0, CLIP, 3)


class _Means:
    """PSNR of whole frames and of mouth boxes, by variant, and other figures; means over all."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, variant: str, made: Tensor, real: Tensor, points: Tensor) -> None:
        """Compare frames `[S, 3, 256, 256]` with mouths at points `[S, 68, 2]`."""
        ours, truth, where = to_bytes(made), to_bytes(real), points.cpu().numpy()
        for name, decibels in (
            ("psnr", image_metrics.psnr(ours, truth)),
            ("mouth", image_metrics.mouth_psnr(ours, truth, where)),
        ):
            self._values[f"{variant}_{name}"].append(float(np.minimum(decibels, MOST_DB).mean()))

    def note(self, name: str, value: Tensor) -> None:
        """Any other figure."""
        self._values[name].append(float(value))

    def figures(self) -> dict[str, float]:
        """The means."""
        return {name: float(np.mean(values)) for name, values in self._values.items()}


def _row(reference: Tensor, clips: Mapping[str, Tensor], points: Tensor) -> Tensor:
    """The portrait, and of each clip `[S, 3, 256, 256]` the frame in which the mouth is widest."""
    widest = int(inner_lip_heights(points).mean(-1).argmax())
    return torch.stack([reference, *(clip[widest].float() for clip in clips.values())])


@torch.inference_mode()
def validate_autoencoder(network: Autoencoder, examples: list[Batch], picture: Path) -> dict[str, float]:
    """Figures, and a sheet: portrait, target, frame, warp, painted, landmark warp, latent zeroed.

    `zeroed` and `shuffled` decode without a latent and with another clip's: both must cost in the mouth.
    """
    means, rows = _Means(), []
    previous: Planes | None = None
    for batch in examples:
        frames, reference = normalise(batch["frames"]), normalise(batch["reference"])
        tracked = Geometry(batch["source"], batch["rigid"], batch["target"])
        rigid = tracked.rigid_flow()
        with inference_autocast(frames.device):
            planes, portrait = network.encode(frames, tracked.motion()), network.portrait(reference)
            rendering = network.render(network.volume(planes), portrait, rigid)
            zeroed = network.decode(Planes(*(torch.zeros_like(p) for p in planes)), portrait, rigid)
            shuffled = network.decode(previous, portrait, rigid) if previous is not None else None
        baseline = warp_by_landmarks(reference, tracked)
        variants = {
            "still": reference[:, None].expand_as(frames)[0],
            "warp": baseline,
            "frames": rendering.frames[0],
            "zeroed": zeroed[0],
        }
        if shuffled is not None:
            variants["shuffled"] = shuffled[0]
        points = batch["target"][0]
        for name, made in variants.items():
            means.add(name, made, frames[0], points)
        shown = {
            "target": frames[0],
            "frames": rendering.frames[0],
            "warped": rendering.warped[0],
            "painted": rendering.painted[0],
            "warp": baseline,
            "zeroed": zeroed[0],
        }
        rows.append(_row(reference[0], shown, points))
        previous = planes
    sheet(picture, rows[:SHOWN])
    return means.figures()


@torch.inference_mode()
def validate_diffusion(model: Mcvdm, examples: list[Batch], picture: Path) -> dict[str, float]:
    """Figures, and a sheet: portrait, target, reconstruction, one step, two steps, landmark warp."""
    means, rows = _Means(), []
    for batch in examples:
        frames, reference = normalise(batch["frames"])[:, -CLIP:], normalise(batch["reference"])
        geometry = Geometry(batch["source"], batch["rigid"][:, -CLIP:], batch["target"][:, -CLIP:])
        points, truth, rigid = geometry.target[0, PICKED], frames[0, PICKED], geometry.rigid_flow()
        torch.manual_seed(0)
        made = {}
        with inference_autocast(frames.device):
            person = model.encode_identity(reference)
            zl = model.condition(geometry, person.small, rigid)
            encoded = model.autoencoder.encode(frames, geometry.motion())
            latents = {"reconstruction": encoded}
            for steps in (1, 2):
                sample = model.generate(zl, person.latent, None, noise_like(person.latent, CLIP), steps)
                latents[f"steps_{steps}"] = model.denormalise(sample)
                error = pack(sample) - pack(model.standardise(encoded))
                means.note(f"latent_{steps}", error.square().mean())
            for name, planes in latents.items():
                volume = model.autoencoder.volume(planes)[:, PICKED]
                made[name] = model.autoencoder.render(volume, person.portrait, rigid[:, PICKED]).frames[0]
        made["warp"] = warp_by_landmarks(reference, geometry)[PICKED]
        for name, clip in made.items():
            means.add(name, clip, truth, points)
        rows.append(_row(reference[0], {"target": truth, **made}, points))
    sheet(picture, rows)
    return means.figures()
