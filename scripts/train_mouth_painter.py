"""Train the mouth painter, for a given time.

    scripts/train_mouth_painter.py train  MOUTHS_DIR RUN_DIR --perceptual vgg.safetensors --minutes 90
    scripts/train_mouth_painter.py export MOUTHS_DIR RUN_DIR --out models/weights/mouth_painter.safetensors
    scripts/train_mouth_painter.py test   MOUTHS_DIR RUN_DIR --weights mouth_painter

MOUTHS_DIR was written by scripts/prepare_mouths.py. `train` resumes `RUN_DIR/state.safetensors` if it is there; the
learning rate and the discriminator follow the share of `--minutes` that is over, of all calls together. It writes
`log.csv`, `validation.csv` and sheets of validation people (avatard/models/training/mouth/validation.py). `export`
writes the averaged weights. `test` measures exported ones on the test people: `test.json` and `test.png`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from avatard.errors import UserError
from avatard.models.mcvdm.layers import channels_last
from avatard.models.mcvdm.mouth_painter import MouthPainter, PainterConfig, observe
from avatard.models.training.loop import CsvLog, Ema, cosine, load_state, restore_optimizer, save_state, sheet
from avatard.models.training.mouth.dataset import Batch, Mouths
from avatard.models.training.mouth.loss import Discriminator, Objective
from avatard.models.training.mouth.validation import Validation
from avatard.models.training.perceptual import Perceptual

#: The discriminator joins when this share of the time is over.
ADVERSARY_FROM = 0.12
#: Steps of warm-up of the learning rate.
WARMUP = 100
#: Steps of the discriminator to one of the painter, which costs ten times as much.
CRITICS = 3
#: Windows whose time is taken.
TIMED = 20


def main() -> int:
    """Train or export; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train", "export", "test"])
    parser.add_argument("mouths", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--perceptual", type=Path, help="trunk of the perceptual loss (scripts/fetch_perceptual.py)")
    parser.add_argument("--minutes", type=float, default=90.0, help="of training, of all calls together")
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--twins", type=int, default=3, help="examples of a batch whose steadiness is trained")
    parser.add_argument("--rate", type=float, default=4e-4, help="learning rate")
    parser.add_argument("--widths", default="32,64,96,128", help="channels at half the window's size and below")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--validate", type=int, default=200, help="steps between validations")
    parser.add_argument("--log", type=int, default=20, help="steps between rows of the log")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="file to write (export)")
    parser.add_argument("--weights", default="mouth_painter", help="a shipped name or a file (test)")
    parser.add_argument("--note", default="", help="goes into the exported file's metadata")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(1)
    arguments.run.mkdir(parents=True, exist_ok=True)
    try:
        {"train": train, "export": export, "test": test}[arguments.stage](arguments)
    except (ValueError, TypeError, FileNotFoundError, UserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class Training:
    """Networks, optimisers and progress of a run."""

    def __init__(self, arguments: argparse.Namespace):
        self.path: Path = arguments.run / "state.safetensors"
        groups: dict[str, dict[str, Tensor]] = {}
        metadata: dict[str, str] = {}
        if self.path.exists():
            groups, metadata = load_state(self.path)
        torch.manual_seed(arguments.seed)
        widths = tuple(int(width) for width in arguments.widths.split(","))
        config = PainterConfig.from_json(metadata["config"]) if metadata else PainterConfig(widths)
        self.painter, self.discriminator = MouthPainter(config), Discriminator()
        if groups:
            self.painter.load_state_dict(groups["painter"])
            self.discriminator.load_state_dict(groups["discriminator"])
        for network in (self.painter, self.discriminator):
            channels_last(network)
        self.averaged = Ema(self.painter, arguments.ema)
        # Spectral normalisation makes a discriminator slow: it needs the larger steps (Heusel et al. 2017).
        self.rates = {"painter_adam": arguments.rate, "discriminator_adam": 2 * arguments.rate}
        self.adams = {
            "painter_adam": torch.optim.AdamW(self.painter.parameters(), betas=(0.9, 0.99), weight_decay=1e-4),
            "discriminator_adam": torch.optim.Adam(self.discriminator.parameters(), betas=(0.5, 0.99)),
        }
        if groups:
            self.averaged.weights = groups["ema"]
            for name, adam in self.adams.items():
                restore_optimizer(adam, groups.get(name, {}))
        self.step = int(metadata.get("step", 0))
        self.minutes = float(metadata.get("minutes", 0.0))

    def save(self) -> None:
        """Write the state."""
        networks = {
            "painter": self.painter.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.averaged.weights,
        }
        metadata = {
            "config": self.painter.config.to_json(),
            "step": str(self.step),
            "minutes": f"{self.minutes:.3f}",
        }
        save_state(self.path, networks, self.adams, metadata)

    def average(self) -> MouthPainter:
        """A painter with the averaged weights."""
        painter = MouthPainter(self.painter.config)
        painter.load_state_dict(self.averaged.weights)
        return painter.eval().requires_grad_(False)


def train(arguments: argparse.Namespace) -> None:
    """Train until the time is over."""
    mouths = Mouths(arguments.mouths, "train")
    validation = Validation(Mouths(arguments.mouths, "validation"))
    training = Training(arguments)
    perceptual = None if arguments.perceptual is None else Perceptual(arguments.perceptual)
    objective = Objective(training.painter, training.discriminator, perceptual)
    log, figures = CsvLog(arguments.run / "log.csv"), CsvLog(arguments.run / "validation.csv")
    print(f"{len(mouths.mouths)} mouths of {mouths.count} people; step {training.step}", flush=True)
    before = training.minutes
    began = time.monotonic()
    while training.minutes < arguments.minutes:
        # Seeded by the step: a run that was cut off goes on with the examples it would have seen.
        rng = np.random.default_rng((arguments.seed, training.step))
        torch.manual_seed(arguments.seed + training.step)
        progress = training.minutes / arguments.minutes
        losses = update(training, objective, mouths.batch(arguments.batch, arguments.twins, rng), progress)
        training.step += 1
        training.minutes = before + (time.monotonic() - began) / 60
        if training.step % arguments.log == 0:
            row = {"step": training.step, "minutes": training.minutes}
            wanted = ("total", "l1", "colour", "perceptual", "steady", "critic", "fooled", "features")
            log.write(row | {name: losses.get(name, float("nan")) for name in wanted})
        if training.step % arguments.validate == 0:
            training.save()
            validate(training, validation, figures, arguments.run)
    training.save()
    validate(training, validation, figures, arguments.run)


def update(training: Training, objective: Objective, batch: Batch, progress: float) -> dict[str, float]:
    """One step of painter and discriminator."""
    warm = min((training.step + 1) / WARMUP, 1.0)
    for name, adam in training.adams.items():
        for group in adam.param_groups:
            group["lr"] = training.rates[name] * warm * cosine(round(1000 * progress), 1000, warmup=0)
    painting, found = objective.paint(batch), {}
    adversarial = progress >= ADVERSARY_FROM
    for _ in range(CRITICS if adversarial else 0):
        critic = objective.critic(batch, painting)
        critic.backward()
        training.adams["discriminator_adam"].step()
        training.adams["discriminator_adam"].zero_grad(set_to_none=True)
        found["critic"] = float(critic.detach())
    losses = objective(batch, painting, adversarial)
    losses["total"].backward()
    torch.nn.utils.clip_grad_norm_(training.painter.parameters(), 1.0)
    training.adams["painter_adam"].step()
    training.adams["painter_adam"].zero_grad(set_to_none=True)
    training.averaged.update(training.painter, training.step)
    return found | {name: float(loss.detach()) for name, loss in losses.items()}


def validate(training: Training, validation: Validation, figures: CsvLog, run: Path) -> None:
    """Figures and a sheet of the averaged weights."""
    painter = training.average()
    found = validation.figures(painter)
    figures.write({"step": training.step, "minutes": training.minutes} | found)
    sheet(run / f"sheet_{training.step:06}.png", validation.rows(painter))
    summary = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    print(f"{time.strftime('%X')} step {training.step}: {summary}", flush=True)


def export(arguments: argparse.Namespace) -> None:
    """Write the averaged weights."""
    if arguments.out is None:
        raise ValueError("--out: give the file to write")
    if not (arguments.run / "state.safetensors").exists():
        raise FileNotFoundError(f"{arguments.run} has no state.safetensors: run the stage `train` first")
    training = Training(arguments)
    training.average().save(arguments.out, {"step": str(training.step), "note": arguments.note})
    print(f"wrote {arguments.out}, step {training.step}")


def test(arguments: argparse.Namespace) -> None:
    """Measure weights on people of whom nothing was seen, not even to choose them."""
    painter = MouthPainter.load(arguments.weights)
    channels_last(painter)
    validation = Validation(Mouths(arguments.mouths, "test"), portraits=60, speech=120)
    figures = validation.figures(painter)
    window = next(iter(validation.groups.values())).batch
    seen, code = observe(window.window[:1], window.mask[:1]), torch.zeros(1, painter.config.code)
    with torch.inference_mode():
        painter(seen, code)
        began = time.process_time()
        for _ in range(TIMED):
            painter(seen, code)
    figures["core_ms"] = 1000 * (time.process_time() - began) / TIMED
    (arguments.run / "test.json").write_text(json.dumps(figures, indent=2) + "\n")
    sheet(arguments.run / "test.png", validation.rows(painter))
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    sys.exit(main())
