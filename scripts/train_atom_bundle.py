"""Train AToM-Net on one GPU in minutes, from a bundle of scripts/pack_motion.py.

    python scripts/train_atom_bundle.py BUNDLE_DIR RUN_DIR --minutes 8

Needs torch, numpy, scipy, opencv, safetensors and typer. RUN_DIR receives `best.safetensors` (the best on validation
people), `early.safetensors`, `last.safetensors`, `log.csv`, `validation.csv` and the state from which it resumes.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from avatard.commands.script import run_script
from avatard.models.training.schedule import Clock


def main(
    bundle: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="What pack_motion.py wrote.")],
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    minutes: Annotated[float, typer.Option(min=0, help="Of the clock, with reading and validation.")] = 8.0,
    variant: Annotated[str, typer.Option(help="See variants() in models/training/atom/device_train.py.")] = "nano",
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 512,
    steps: Annotated[int, typer.Option(min=1, help="At most.")] = 10**9,
    seed: int = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Train."""
    clock = Clock(time.monotonic)
    import torch  # takes seconds: not for --help

    from avatard.models.device import choose_device
    from avatard.models.evaluation.motion_streams import Streams
    from avatard.models.training.atom.bundle import read
    from avatard.models.training.atom.device_train import SETTINGS, train, variants

    torch.backends.cuda.matmul.allow_tf32 = True
    on_gpu = choose_device(device).type == "cuda"
    settings = replace(
        SETTINGS, steps=steps, batch=batch, minutes=minutes, log=min(steps, 100), precision="bf16" if on_gpu else "no"
    )
    train(read(bundle), variants(seed)[variant], settings, run, device, lambda data: Streams(data).figures, clock)


if __name__ == "__main__":
    run_script(main)
