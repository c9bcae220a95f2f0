"""Average the weights of trainings that continued from the same one.

    python scripts/average_weights.py ONE.safetensors TWO.safetensors --out MEAN.safetensors

Their mean is often better on new people than any of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avatard.commands.script import run_script
from avatard.models.training.average import average


def main(
    weights: Annotated[list[Path], typer.Argument(help="Networks of one configuration.")],
    out: Annotated[Path, typer.Option(help="The file to write.")],
) -> None:
    """Write the mean."""
    average(weights, out)
    typer.echo(f"wrote {out}, the mean of {len(weights)}")


if __name__ == "__main__":
    run_script(main)
