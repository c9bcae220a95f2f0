"""Train AToM-Net on one GPU in minutes, from a bundle of scripts/pack_motion.py.

    python scripts/train_atom_bundle.py BUNDLE_DIR RUN_DIR --minutes 8

Needs torch, numpy, opencv and safetensors. RUN_DIR receives `best.safetensors` (the best on validation people),
`early.safetensors`, `last.safetensors`, `log.csv`, `validation.csv` and the state from which it resumes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

from avatard.commands.script import run_parsed
from avatard.errors import UserError
from avatard.models.training.schedule import Clock


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path, help="what pack_motion.py wrote")
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--minutes", type=float, default=8.0, help="of the clock, with reading and validation; 8")
    parser.add_argument("--variant", default="nano", help="see variants() in models/training/atom/device_train.py")
    parser.add_argument("--batch", type=int, default=512, help="examples a step; 512")
    parser.add_argument("--steps", type=int, default=10**9, help="at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    return parser


def main(bundle: Path, run: Path, minutes: float, variant: str, batch: int, steps: int, seed: int, device: str) -> None:
    """Train."""
    clock = Clock(time.monotonic)
    import torch  # takes seconds: not for --help

    from avatard.models.device import choose_device
    from avatard.models.evaluation.motion_streams import Streams
    from avatard.models.training.atom.bundle import read
    from avatard.models.training.atom.device_train import SETTINGS, train, variants

    known = variants(seed)
    if variant not in known:
        raise UserError(f"no variant {variant!r}: expected one of {', '.join(known)}")
    if minutes <= 0 or batch < 1 or steps < 1:
        raise UserError("expected --minutes above 0, --batch and --steps from 1")
    torch.backends.cuda.matmul.allow_tf32 = True
    on_gpu = choose_device(device).type == "cuda"
    settings = replace(
        SETTINGS, steps=steps, batch=batch, minutes=minutes, log=min(steps, 100), precision="bf16" if on_gpu else "no"
    )
    train(read(bundle), known[variant], settings, run, device, lambda data: Streams(data).figures, clock)


if __name__ == "__main__":
    run_parsed(main, options())
