"""Train AToM-Net on one GPU in minutes, from a bundle of scripts/pack_motion.py.

    python scripts/train_atom_bundle.py BUNDLE_DIR RUN_DIR --minutes 8

Needs torch, numpy, scipy, opencv, safetensors, typer, accelerate and tqdm. RUN_DIR receives `best.safetensors` (the
best on validation people), `early.safetensors`, `last.safetensors`, `log.csv` and `validation.csv`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from avatard.commands.script import run_script


def main(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What pack_motion.py wrote.")],
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    minutes: Annotated[float, typer.Option(min=0, help="Of the clock, with reading and validation.")] = 8.0,
    variant: Annotated[str, typer.Option(help="See variants() in models/training/atom/device_train.py.")] = "nano",
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="At most.")] = 10**9,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="cuda or cpu; by itself the GPU where there is one.")] = "",
) -> None:
    """Train."""
    begun = time.monotonic()
    import torch  # takes seconds: not for --help

    from avatard.models.evaluation.motion_streams import Streams
    from avatard.models.training.atom.bundle import read
    from avatard.models.training.atom.device_train import Budget, train, variants

    torch.backends.cuda.matmul.allow_tf32 = True
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    budget = Budget(minutes, batch=batch, most_steps=steps, log_steps=min(steps, 100))
    train(
        *(read(bundle), variants(seed)[variant], budget, run, chosen),
        validation=lambda data: Streams(data).figures,
        seconds=lambda: time.monotonic() - begun,
    )


if __name__ == "__main__":
    run_script(main)
