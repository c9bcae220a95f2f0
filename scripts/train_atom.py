"""Train AToM-Net.

    accelerate launch scripts/train_atom.py DATA_DIR PREPARED_DIR RUN_DIR --steps 8000

DATA_DIR is what scripts/prepare_data.py wrote, PREPARED_DIR what scripts/prepare_motion.py wrote. RUN_DIR receives
`state.safetensors` (weights, averaged weights, optimiser), `log.csv` and `best.safetensors` (averaged weights of the
best validation on unseen speakers); a run that finds a state there goes on from it. Half of the unseen speakers choose
the best weights; the figures `reported_…` are of the other half. A single process needs no launcher.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm import tqdm

from avatard.errors import UserError
from avatard.models import checkpoint
from avatard.models.atom.model import CONFIGS, Atom, AtomConfig
from avatard.models.evaluation.motion_metrics import halves, validate
from avatard.models.training.atom.dataset import MotionData
from avatard.models.training.atom.loss import Recipe, training_loss
from avatard.models.training.loop import CsvLog, Ema, cosine, load_state, restore_optimizer, save_state


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("prepared", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--size", default="nano", help="nano, paper or a JSON object of AtomConfig's fields")
    parser.add_argument("--variant", default="C", choices=["A", "B", "C"], help="ablation of the paper's Table 3")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=64, help="windows a step and process")
    parser.add_argument("--rate", type=float, default=6e-4, help="learning rate")
    parser.add_argument("--decay", type=float, default=0.998, help="of the averaged weights")
    parser.add_argument("--validate", type=int, default=500, help="steps between validations")
    parser.add_argument("--exclude", default="", help="a source to leave out of training")
    parser.add_argument("--precision", default="bf16", choices=["no", "bf16"])
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def configuration(size: str, variant: str) -> AtomConfig:
    """The network's configuration. Raises `ValueError` for an unknown name or field."""
    if size in CONFIGS:
        return replace(CONFIGS[size], variant=variant)  # type: ignore[arg-type]
    try:
        return AtomConfig(**json.loads(size) | {"variant": variant})
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"--size: expected {', '.join(CONFIGS)} or a JSON object of fields, got {size!r}") from error


def best_so_far(path: Path) -> float:
    """The validation figure that the best weights reached."""
    if not path.exists():
        return -math.inf
    return float(json.loads(checkpoint.load(path)[1]["metrics"])["score"])


def train(arguments: argparse.Namespace, config: AtomConfig) -> None:
    """Train, or go on, until `--steps` are done. Raises `ValueError` where data or state do not fit."""
    accelerator = Accelerator(mixed_precision=arguments.precision)
    torch.manual_seed(arguments.seed)
    training = MotionData(arguments.data, arguments.prepared, exclude=arguments.exclude)
    choosing, reported = halves(MotionData(arguments.data, arguments.prepared, validation=True).clips)
    atom = Atom(config)
    training.set_statistics(atom)
    optimizer = torch.optim.AdamW(
        atom.parameters(), lr=arguments.rate, weight_decay=0.02, betas=(0.9, 0.98), fused=True
    )
    arguments.run.mkdir(parents=True, exist_ok=True)
    state, best_path, step = arguments.run / "state.safetensors", arguments.run / "best.safetensors", 0
    ema = Ema(atom, arguments.decay)
    if state.exists():
        saved, metadata = load_state(state)
        if metadata["config"] != config.to_json():
            raise ValueError(f"{state} was trained with another configuration: {metadata['config']}")
        atom.load_state_dict(saved["atom"])
        restore_optimizer(optimizer, saved["optimizer"])
        ema.weights, step = saved["ema"], int(metadata["step"])
    best, averaged, log = best_so_far(best_path), Atom(config).eval(), CsvLog(arguments.run / "log.csv")
    model, optimizer = accelerator.prepare(atom, optimizer)
    recipe, losses = Recipe(), []
    bar = tqdm(total=arguments.steps, initial=step, disable=not accelerator.is_main_process, unit="step", mininterval=5)
    while step < arguments.steps:
        # Every draw depends on the step alone, so that a resumed run continues the same sequence.
        rng = np.random.default_rng((arguments.seed, step, accelerator.process_index))
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        lookahead = int(rng.integers(1, config.max_lookahead + 1))
        batch = training.batch(arguments.batch, config.frames, lookahead, rng).to(accelerator.device)
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * cosine(step, arguments.steps)
        model.train()
        with accelerator.autocast():
            loss = training_loss(model, atom, batch, lookahead, recipe, noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(atom, step)
        step += 1
        losses.append(loss.item())
        bar.update()
        if not accelerator.is_main_process or (step % arguments.validate and step < arguments.steps):
            continue
        averaged.load_state_dict(ema.weights)
        metrics = validate(averaged, choosing)
        metrics |= {f"reported_{name}": value for name, value in validate(averaged, reported).items()}
        log.write({"step": step, "loss": float(np.mean(losses)), **metrics})
        bar.write(f"{step}: loss {np.mean(losses):.4f}  " + "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
        losses.clear()
        if metrics["score"] > best:
            best = metrics["score"]
            described = {"config": config.to_json(), "metrics": json.dumps(metrics), "step": str(step)}
            checkpoint.save(best_path, {key: value.half() for key, value in ema.weights.items()}, described)
        described = {"config": config.to_json(), "step": str(step)}
        save_state(state, {"atom": atom.state_dict(), "ema": ema.weights}, {"optimizer": optimizer}, described)
    accelerator.wait_for_everyone()
    accelerator.end_training()


def main(command_line: list[str] | None = None) -> int:
    """Train; the exit code."""
    arguments = parse(command_line)
    try:
        train(arguments, configuration(arguments.size, arguments.variant))
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
