"""How well the mouth painter paints people it never saw: figures beside real mouths, and rows to look at."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from avatard.models.evaluation import image_metrics
from avatard.models.mcvdm.mouth_painter import MouthPainter, blurred, fill, observe
from avatard.models.training.mouth.dataset import MIDDLE, Example, Light, Lips, Mouths, collate, view, view_made

#: Windows that go through the network together.
TOGETHER = 8
#: Windows of a sheet.
SHOWN = 10


class Validation:
    """Fixed windows of people who are kept out of training.

    Args:
        mouths: of one part of the data.
        portraits: most windows of portraits.
        speech: most windows of speech, spread over people and openings.
    """

    def __init__(self, mouths: Mouths, portraits: int = 20, speech: int = 28):
        chosen = _spread(mouths, portraits, alone=True) + _spread(mouths, speech, alone=False)
        rng = np.random.default_rng(0)
        examples, inside = [], []
        for number in chosen:
            window, mask = view(mouths.mouths[number], MIDDLE, Lips(), Light())
            inside.append(view(mouths.mouths[number], MIDDLE, Lips(grow=0.0), Light())[1] > 0.5)
            reference = np.zeros((*mask.shape, 4), np.float32)
            found = mouths.reference(number, rng)
            if found is not None and not found[1]:
                picture, covered = view(found[0], MIDDLE, Lips(), Light())
                reference = np.concatenate([picture, covered[..., None]], axis=-1)
            expected = view_made(mouths.mouths[number], MIDDLE, Light())
            examples.append(Example(window, expected, mask, reference, None))
        self.batch = collate(examples)
        self.referred = self.batch.reference.abs().amax((1, 2, 3)) > 0
        self.inside = np.stack(inside)

    @torch.inference_mode()
    def paint(self, painter: MouthPainter, hinted: bool, referred: bool) -> Tensor:
        """The windows as the painter fills them, `[N, 3, H, W]`, all with one code."""
        batch, parts = self.batch, []
        for first in range(0, len(batch.window), TOGETHER):
            some = slice(first, first + TOGETHER)
            window, mask = batch.window[some], batch.mask[some]
            hint = torch.cat([blurred(batch.expected[some], mask), torch.ones_like(mask)], 1) if hinted else None
            reference = batch.reference[some] if referred else None
            seen = observe(window, mask, hint, reference)
            code = torch.zeros(len(seen), painter.config.code)
            parts.append(fill(window, painter(seen, code).clamp(-1, 1), mask))
        return torch.cat(parts)

    def figures(self, painter: MouthPainter) -> dict[str, float]:
        """L1 in the mask, and texture between the lips beside the real mouths', by what the painter is given."""
        real = self._texture(self.batch.window)
        found = {f"real_{name}": value for name, value in real.items()}
        for given, hinted, referred in (("blind", False, False), ("hinted", True, False), ("full", True, True)):
            painted = self.paint(painter, hinted, referred)
            found[f"{given}_l1"] = self._l1(painted)
            found[f"{given}_l1_referred"] = self._l1(painted, self.referred)
            for name, value in self._texture(painted).items():
                found[f"{given}_{name}"] = value / real[name]
        return found

    def _texture(self, pictures: Tensor) -> dict[str, float]:
        frames = ((pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        board = image_metrics.checkerboard(frames, self.inside)
        detail = image_metrics.horizontal_detail(frames, self.inside)
        return {"checkerboard": float(np.nanmean(board)), "detail": float(np.nanmean(detail))}

    def _l1(self, painted: Tensor, some: Tensor | None = None) -> float:
        """Mean absolute error in the masks of some or all windows, pictures in [-1, 1]."""
        mask = self.batch.mask
        error = ((painted - self.batch.window).abs() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)).clamp_min(1))
        return float(error.mean() if some is None else error[some].mean())

    def rows(self, painter: MouthPainter) -> list[Tensor]:
        """Real, masked, painted from nothing, from a hint, from hint and reference, and the reference."""
        batch = self.batch
        some = torch.linspace(0, len(batch.window) - 1, SHOWN).round().long()
        masked = batch.window * (1 - batch.mask)
        pictures = [
            batch.window,
            masked,
            self.paint(painter, False, False),
            self.paint(painter, True, False),
            self.paint(painter, True, True),
            batch.reference[:, :3],
        ]
        return [picture[some] for picture in pictures]


def _spread(mouths: Mouths, count: int, alone: bool) -> list[int]:
    """Numbers of mouths in order of opening, evenly taken; `alone`: of people with one mouth, else of the others."""
    numbers = [n for n, others in mouths.others.items() if (len(others) == 1) == alone]
    numbers.sort(key=lambda n: mouths.mouths[n].opening)
    if len(numbers) <= count:
        return numbers
    return [numbers[round(k)] for k in np.linspace(0, len(numbers) - 1, count)]
