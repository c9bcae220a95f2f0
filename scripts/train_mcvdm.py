"""Train the diffusion of MC-VDM (second stage), in four commands that share a run folder.

    scripts/train_mcvdm.py cache   DATA_DIR RUN_DIR --autoencoder AE_RUN/state.safetensors
    scripts/train_mcvdm.py latents DATA_DIR RUN_DIR --autoencoder AE_RUN/state.safetensors
    scripts/train_mcvdm.py pixels  DATA_DIR RUN_DIR --perceptual vgg.safetensors
    scripts/train_mcvdm.py export  DATA_DIR RUN_DIR --out models/weights/mcvdm.safetensors

`cache` encodes clips with the trained autoencoder. `latents` trains the UNet and the landmark encoder on them. `pixels`
continues through the decoder, on the network's own samples, which is what the decoder will see. `export` writes the
averaged weights. `latents` and `pixels` resume `RUN_DIR/state.safetensors` if it is theirs.

Sizes and the training's settings are the recipe's (configs/train/); --set changes any of them, such as
--set latent_stage.steps=2000 or --set "mix={my_videos=1}".
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from avatard.commands.script import run_script
from avatard.models.evaluation.video_validation import validate_diffusion
from avatard.models.training.clips import DataError
from avatard.models.training.mcvdm.latent_cache import write_cache
from avatard.models.training.mcvdm.recipe import McvdmRecipe
from avatard.models.training.mcvdm.train_diffusion import export, train_diffusion, trained_autoencoder
from avatard.models.training.recipe import load_recipe


class Stage(StrEnum):
    """What to do."""

    CACHE = "cache"
    LATENTS = "latents"
    PIXELS = "pixels"
    EXPORT = "export"


def main(
    stage: Annotated[Stage, typer.Argument()],
    data: Annotated[Path, typer.Argument(help="Prepared data.")],
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    autoencoder: Annotated[Path | None, typer.Option(help="State of its training (cache; first latents).")] = None,
    perceptual: Annotated[Path | None, typer.Option(help="Trunk of the perceptual loss (pixels).")] = None,
    out: Annotated[Path | None, typer.Option(help="The file to write (export).")] = None,
    note: Annotated[str, typer.Option(help="For the exported file's metadata.")] = "",
    recipe: Annotated[str, typer.Option(help="A name in configs/train or a TOML file.")] = "mcvdm_nano",
    change: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of torch, per process.")] = 1,
) -> None:
    """Run one stage."""
    torch.set_num_threads(threads)
    settings = load_recipe(McvdmRecipe, recipe, change or ())
    match stage:
        case Stage.CACHE:
            network = trained_autoencoder(autoencoder)
            write_cache(data, run, settings, network, lambda path: typer.echo(path.name))
        case Stage.LATENTS | Stage.PIXELS:
            train_diffusion(
                data,
                run,
                settings,
                "latents" if stage is Stage.LATENTS else "pixels",
                autoencoder=autoencoder,
                trunk=perceptual,
                validate=validate_diffusion,
            )
        case Stage.EXPORT:
            if out is None:
                raise DataError("--out: give the file to write")
            export(run, out, note)
            typer.echo(f"wrote {out}, {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_script(main)
