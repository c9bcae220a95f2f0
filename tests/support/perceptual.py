"""A perceptual loss of a few random channels."""

from pathlib import Path

import torch

from avatard.models import checkpoint
from avatard.models.training.perceptual import Perceptual


def write_trunk(path: Path) -> Path:
    """A file as scripts/fetch_perceptual.py writes it."""
    torch.manual_seed(0)
    tensors = {"shift": torch.zeros(1, 3, 1, 1), "scale": torch.ones(1, 3, 1, 1)}
    for level, (inputs, outputs) in enumerate([(3, 4), (4, 4), (4, 4)]):
        tensors[f"level{level}.00.weight"] = torch.randn(outputs, inputs, 3, 3)
        tensors[f"level{level}.00.bias"] = torch.zeros(outputs)
    checkpoint.save(path, tensors, {})
    return path


def tiny_trunk(folder: Path) -> Perceptual:
    return Perceptual(write_trunk(folder / "vgg.safetensors"))
