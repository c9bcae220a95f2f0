"""Measure how well ARKit's coefficients tell motions of the face apart: prints the table of protocols/README.md.

python scripts/measure_arkit.py
"""

from typing import Annotated

import numpy as np
import typer

from avatard.models.evaluation.arkit_confusion import confusion


def main(
    people: Annotated[int, typer.Option(min=2, help="How many random faces.")] = 50,
    seed: Annotated[int, typer.Option(help="Of the faces and the noise.")] = 0,
) -> None:
    """Print the confusion table."""
    table = confusion(people, seed)
    right = np.diag(table.found)
    print(table.markdown())
    print(f"\nof the motion itself: mean {right.mean():.2f}, least {right.min():.2f}")
    print(f"of another: at most {(table.found - np.diag(right)).max():.2f}")


if __name__ == "__main__":
    typer.run(main)
