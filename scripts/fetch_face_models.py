"""Rebuild the face detector, mesh and matting under models/weights/ from the PyPI package that carries them.

Downloads mediapipe 0.10.21 (Apache-2.0; newer wheels ship no networks), takes three files out of it, checks their
sha256 and writes them with the package's licence.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import typer

from avatard.commands.script import check_digest, download_wheel, run_script
from avatard.models.checkpoint import weights_dir

PACKAGE = "mediapipe==0.10.21"
FILES = {
    "mediapipe/modules/face_detection/face_detection_short_range.tflite": (
        "face_detection_short_range.tflite",
        "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8",
    ),
    "mediapipe/modules/face_landmark/face_landmark.tflite": (
        "face_landmark.tflite",
        "1055cb9d4a9ca8b8c688902a3a5194311138ba256bcc94e336d8373a5f30c814",
    ),
    "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite": (
        "selfie_segmentation.tflite",
        "9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
    ),
    "mediapipe-0.10.21.dist-info/LICENSE": (
        "mediapipe.LICENSE",
        "8707eef0533987efc5b155d64761eeb6e20793f50b9bd1a68dad1cf4719d0ed8",
    ),
}


def main() -> None:
    """Download, check, write."""
    with tempfile.TemporaryDirectory() as folder:
        platform = ("--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--only-binary=:all:")
        with zipfile.ZipFile(download_wheel(PACKAGE, Path(folder), *platform)) as wheel:
            for member, (name, expected) in FILES.items():
                content = wheel.read(member)
                check_digest(member, content, expected)
                (weights_dir() / name).write_bytes(content)
                typer.echo(f"wrote {name}, {len(content):,} bytes")


if __name__ == "__main__":
    run_script(main)
