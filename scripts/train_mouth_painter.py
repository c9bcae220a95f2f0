"""Train the mouth painter, for a given time.

    scripts/train_mouth_painter.py train  MOUTHS_DIR RUN_DIR --perceptual vgg.safetensors
    scripts/train_mouth_painter.py export MOUTHS_DIR RUN_DIR --out models/weights/mouth_painter.safetensors
    scripts/train_mouth_painter.py test   MOUTHS_DIR RUN_DIR --weights mouth_painter

MOUTHS_DIR was written by scripts/prepare_mouths.py. `train` resumes RUN_DIR/state.safetensors if it is there and writes
log.csv, validation.csv and sheets of validation people (avatard/models/training/mouth/validation.py). `export` writes
the averaged weights. `test` measures weights on the test people: test.json and test.png.

Sizes and the training's settings are the recipe's (configs/train/); --set changes any of them, such as
--set training.minutes=30.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from avatard.commands.script import run_script
from avatard.errors import UserError
from avatard.models.mcvdm.layers import channels_last
from avatard.models.mcvdm.mouth_painter import MouthPainter, observe
from avatard.models.training.loop import sheet
from avatard.models.training.mouth.dataset import Mouths
from avatard.models.training.mouth.recipe import MouthRecipe
from avatard.models.training.mouth.train import export_mouth_painter, train_mouth_painter
from avatard.models.training.mouth.validation import Group, Validation
from avatard.models.training.recipe import load_recipe

#: Windows of test people.
PORTRAITS, SPEECH = 60, 120
#: Windows whose time is taken.
TIMED = 20


def core_ms(painter: MouthPainter, group: Group) -> float:
    """CPU time of a window, milliseconds."""
    seen, code = observe(group.batch.window[:1], group.batch.mask[:1]), torch.zeros(1, painter.config.code)
    with torch.inference_mode():
        painter(seen, code)
        began = time.process_time()
        for _ in range(TIMED):
            painter(seen, code)
    return 1000 * (time.process_time() - began) / TIMED


def test(mouths: Path, run: Path, weights: str) -> None:
    """Measure weights on people of whom nothing was seen, not even to choose them."""
    painter = MouthPainter.load(weights)
    channels_last(painter)
    validation = Validation(Mouths(mouths, "test"), portraits=PORTRAITS, speech=SPEECH)
    figures = validation.figures(painter) | {"core_ms": core_ms(painter, next(iter(validation.groups.values())))}
    text = json.dumps(figures, indent=2)
    (run / "test.json").write_text(text + "\n")
    sheet(run / "test.png", validation.rows(painter))
    typer.echo(text)


def main(
    stage: Annotated[Literal["train", "export", "test"], typer.Argument(help="What to do.")],
    mouths: Annotated[Path, typer.Argument(help="Prepared mouths.")],
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    perceptual: Annotated[Path | None, typer.Option(help="Trunk of the perceptual loss; none without.")] = None,
    recipe: Annotated[str, typer.Option(help="A name in configs/train or a TOML file.")] = "mouth_painter",
    change: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change the recipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="File to write (export).")] = None,
    note: Annotated[str, typer.Option(help="Goes into the exported file's metadata.")] = "",
    weights: Annotated[str, typer.Option(help="A shipped name or a file (test).")] = "mouth_painter",
    start: Annotated[str | None, typer.Option(help="Weights to begin with, a shipped name or a file (train).")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Of torch.")] = 1,
    device: Annotated[str, typer.Option(help="To train on, such as cuda.")] = "cpu",
) -> None:
    """Train, export or test."""
    torch.set_num_threads(threads)
    settings = load_recipe(MouthRecipe, recipe, change or ())
    if stage == "train":
        begin = None if start is None else MouthPainter.load(start)
        train_mouth_painter(mouths, run, settings, perceptual, time.monotonic, device, begin)
    elif stage == "test":
        test(mouths, run, weights)
    elif out is None:
        raise UserError("--out: give the file to write")
    else:
        export_mouth_painter(run, settings, out, note)


if __name__ == "__main__":
    run_script(main)
