"""Training of the mouth painter, for a given time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from avatard.models.mcvdm.layers import channels_last
from avatard.models.mcvdm.mouth_painter import MouthPainter, PainterConfig
from avatard.models.training.clips import DataError
from avatard.models.training.loop import (
    CsvLog,
    averaged_model,
    load_state,
    restore_optimizer,
    save_state,
    sheet,
    warmup_cosine,
)
from avatard.models.training.mouth.dataset import Mouths, opened_mouths
from avatard.models.training.mouth.examples import Batch, Examples
from avatard.models.training.mouth.loss import Discriminator, Objective
from avatard.models.training.mouth.recipe import MouthRecipe
from avatard.models.training.mouth.validation import Validation
from avatard.models.training.mouth.views import Chance
from avatard.models.training.perceptual import Perceptual

#: Of the rates, where their half cosine ends.
FLOOR = 0.02
#: Columns of the log.
LOGGED = ("total", "l1", "colour", "perceptual", "steady", "critic", "fooled", "features")


class Training:
    """Networks, optimisers and progress of a run; what its state says goes before the recipe's sizes.

    A run without a state begins with the weights of `start`, if given, and a discriminator that knows nothing.
    """

    def __init__(
        self, run: Path, recipe: MouthRecipe, device: torch.device | str = "cpu", start: MouthPainter | None = None
    ):
        self.path, self.settings = run / "state.safetensors", recipe.training
        self.device = torch.device(device)
        groups: dict[str, dict[str, Tensor]] = {}
        metadata: dict[str, str] = {}
        if self.path.exists():
            groups, metadata = load_state(self.path)
        torch.manual_seed(recipe.seed)
        config = recipe.painter if start is None else start.config
        if metadata:
            config = PainterConfig.from_json(metadata["config"])
        self.painter, self.discriminator = MouthPainter(config), Discriminator()
        if groups:
            self.painter.load_state_dict(groups["painter"])
            self.discriminator.load_state_dict(groups["discriminator"])
        elif start is not None:
            self.painter.load_state_dict(start.state_dict())
        for network in (self.painter, self.discriminator):
            network.to(self.device)
            channels_last(network)
        self.averaged = averaged_model(self.painter, self.settings.decay)
        self.adam = torch.optim.AdamW(self.painter.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
        self.critic_adam = torch.optim.Adam(self.discriminator.parameters(), betas=(0.5, 0.99))
        if groups:
            self.averaged.module.load_state_dict(groups["ema"])
            restore_optimizer(self.adam, groups.get("painter_adam", {}))
            restore_optimizer(self.critic_adam, groups.get("discriminator_adam", {}))
        self.step = int(metadata.get("step", 0))
        self.minutes = float(metadata.get("minutes", 0.0))
        self.averaged.n_averaged.fill_(self.step)

    def save(self) -> None:
        """Write the state."""
        networks = {
            "painter": self.painter.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "ema": self.averaged.module.state_dict(),
        }
        config = self.painter.config.to_json()
        metadata = {"config": config, "step": str(self.step), "minutes": f"{self.minutes:.3f}"}
        save_state(self.path, networks, {"painter_adam": self.adam, "discriminator_adam": self.critic_adam}, metadata)

    def average(self) -> MouthPainter:
        """A painter with the averaged weights."""
        painter = MouthPainter(self.painter.config)
        painter.load_state_dict(self.averaged.module.state_dict())
        return painter.to(self.device).eval().requires_grad_(False)

    def update(self, objective: Objective, batch: Batch) -> dict[str, Tensor]:
        """One step of the painter, after those of the discriminator; the losses."""
        settings, progress = self.settings, self.minutes / self.settings.minutes
        factor = min((self.step + 1) / settings.warmup, 1.0) * warmup_cosine(round(1000 * progress), 1000, 0, FLOOR)
        for adam, rate in ((self.adam, settings.rate), (self.critic_adam, settings.critic_rate)):
            for group in adam.param_groups:
                group["lr"] = factor * rate
        adversarial = progress >= settings.adversary_from
        painting, found = objective.paint(batch), dict[str, Tensor]()
        for _ in range(settings.critics if progress >= settings.critic_from else 0):
            critic = objective.critic(batch, painting)
            critic.backward()  # type: ignore[no-untyped-call]
            self.critic_adam.step()
            self.critic_adam.zero_grad(set_to_none=True)
            found["critic"] = critic.detach()
        losses = objective(batch, painting, adversarial)
        losses["total"].backward()
        nn.utils.clip_grad_norm_(self.painter.parameters(), 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.painter)
        return found | {name: loss.detach() for name, loss in losses.items()}


def train_mouth_painter(
    data: Path,
    run: Path,
    recipe: MouthRecipe,
    trunk: Path | None,
    seconds: Callable[[], float],
    device: torch.device | str = "cpu",
    start: MouthPainter | None = None,
) -> None:
    """Train, or resume, until the recipe's minutes are over.

    Args:
        data: written by `scripts/prepare_mouths.py`.
        run: receives the state, `log.csv`, `validation.csv` and sheets of validation people.
        recipe: sizes and settings.
        trunk: of the perceptual loss; None for none.
        seconds: a clock that runs on.
        device: to train on.
        start: weights that a new run begins with; random ones without.

    Raises:
        DataError: there are no mouths.
    """
    examples = Examples(Mouths(data, "train"), device, opened_mouths(data))
    validation = Validation(Mouths(data, "validation"), device)
    run.mkdir(parents=True, exist_ok=True)
    training = Training(run, recipe, device, start)
    perceptual = None if trunk is None else Perceptual(trunk).to(training.device)
    objective = Objective(training.painter, training.discriminator, perceptual, recipe.loss, recipe.hinted)
    log, figures = CsvLog(run / "log.csv"), CsvLog(run / "validation.csv")
    before, began, settings = training.minutes, seconds(), recipe.training
    while training.minutes < settings.minutes:
        # Seeded by the step: a run that was cut off goes on with the examples it would have seen.
        torch.manual_seed(recipe.seed + training.step)
        chance = Chance(torch.Generator(training.device).manual_seed((recipe.seed << 32) + training.step))
        size = int(torch.multinomial(torch.tensor(settings.sizes), 1))
        losses = training.update(objective, examples.batch(settings.batch, settings.twins, size, chance))
        training.step += 1
        training.minutes = before + (seconds() - began) / 60
        if training.step % settings.log == 0:
            row = {"step": training.step, "minutes": training.minutes}
            log.write(row | {name: float(losses.get(name, torch.nan)) for name in LOGGED})
        if training.step % settings.validate == 0:
            training.save()
            _validate(training, validation, figures)
    training.save()
    _validate(training, validation, figures)


def _validate(training: Training, validation: Validation, figures: CsvLog) -> None:
    """Figures and a sheet of the averaged weights."""
    painter = training.average()
    figures.write({"step": training.step, "minutes": training.minutes} | validation.figures(painter))
    sheet(training.path.parent / f"sheet_{training.step:06}.png", validation.rows(painter))


def export_mouth_painter(run: Path, recipe: MouthRecipe, out: Path, note: str) -> None:
    """Write a run's averaged weights. Raises `DataError` where there is no state."""
    if not (run / "state.safetensors").is_file():
        raise DataError(f"{run} has no state.safetensors: run the stage `train` first")
    training = Training(run, recipe)
    training.average().save(out, {"step": str(training.step), "note": note})
