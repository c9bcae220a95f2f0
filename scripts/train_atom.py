"""Train AToM-Net.

    accelerate launch scripts/train_atom.py DATA_DIR PREPARED_DIR RUN_DIR

DATA_DIR is what scripts/prepare_data.py wrote, PREPARED_DIR what scripts/prepare_motion.py wrote. RUN_DIR receives
`state.safetensors` (weights, averaged weights, optimiser), `log.csv`, `validation.csv` and `best.safetensors` (averaged
weights of the best validation on unseen people); a run that finds a state there resumes it. Half of the unseen people
choose the best weights; the figures `reported_…` are of the other half. A single process needs no launcher.

Sizes and the training's settings are the recipe's (configs/train/); --set changes any of them, such as
--set training.steps=2000, --set network.variant=A (an ablation of the paper's Table 3) or --set exclude=SOURCE.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avatard.commands.script import run_script
from avatard.models.evaluation.motion_validation import halves, validate
from avatard.models.training.atom.recipe import AtomRecipe
from avatard.models.training.atom.train import train_atom
from avatard.models.training.recipe import load_recipe


def main(
    data: Annotated[Path, typer.Argument(help="Prepared data.")],
    prepared: Annotated[Path, typer.Argument(help="What prepare_motion.py wrote.")],
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    recipe: Annotated[str, typer.Option(help="A name in configs/train or a TOML file.")] = "atom_nano",
    change: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe.")] = None,
) -> None:
    """Train."""
    train_atom(data, prepared, run, load_recipe(AtomRecipe, recipe, change or ()), halves, validate)


if __name__ == "__main__":
    run_script(main)
