"""Train the triplane video autoencoder (first stage of MC-VDM).

    accelerate launch scripts/train_autoencoder.py DATA_DIR RUN_DIR --perceptual vgg.safetensors

DATA_DIR was written by scripts/prepare_data.py, the perceptual trunk by scripts/fetch_perceptual.py. RUN_DIR receives
`state.safetensors` (weights, averaged weights, optimiser), `log.csv`, `validation.csv` and a sheet of pictures for each
validation; a run that finds a state there resumes it. A single process needs no launcher.

Sizes and the training's settings are the recipe's (configs/train/); --set changes any of them, such as
--set autoencoder_stage.training.steps=2000 or --set "mix={my_videos=1}".
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from avatard.commands.script import run_script
from avatard.models.evaluation.video_validation import validate_autoencoder
from avatard.models.training.mcvdm.recipe import McvdmRecipe
from avatard.models.training.mcvdm.train_autoencoder import train_autoencoder
from avatard.models.training.recipe import load_recipe


def main(
    data: Annotated[Path, typer.Argument(help="Prepared data.")],
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    perceptual: Annotated[Path | None, typer.Option(help="Trunk of the perceptual loss; L1 alone without.")] = None,
    recipe: Annotated[str, typer.Option(help="A name in configs/train or a TOML file.")] = "mcvdm_nano",
    change: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of torch, per process.")] = 1,
) -> None:
    """Train."""
    torch.set_num_threads(threads)
    settings = load_recipe(McvdmRecipe, recipe, change or ())
    train_autoencoder(data, run, settings, perceptual, validate_autoencoder)


if __name__ == "__main__":
    run_script(main)
