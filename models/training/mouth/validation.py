"""How well the mouth painter paints people it never saw: figures beside real mouths, and rows to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from avatard.models.evaluation import image_metrics
from avatard.models.mcvdm.mouth_painter import MouthPainter, blurred, fill, observe
from avatard.models.pixels import to_bytes
from avatard.models.training.mouth.dataset import Mouths
from avatard.models.training.mouth.examples import Batch, Examples
from avatard.models.training.mouth.views import Chance

#: Windows that go through the network together.
TOGETHER = 8
#: Windows of each kind in a sheet.
SHOWN = 6

#: What the painter is given beside the window: nothing, the true colours, those that MC-VDM makes, or these and a
#: reference.
Given = Literal["blind", "told", "hinted", "full"]


@dataclass(frozen=True)
class Group:
    """Windows of one kind, each with a twin."""

    batch: Batch
    inside: NDArray[np.bool_]  # [N, H, W] between the lips

    @classmethod
    def of(cls, examples: Examples, numbers: Sequence[int]) -> Group:
        """Windows as they are, with masks as far beyond the lips as is usual."""
        batch, inside = examples.middle(numbers, Chance(torch.Generator(examples.device).manual_seed(0)))
        return cls(batch, (inside[:, 0] > 0.5).cpu().numpy())

    @torch.inference_mode()
    def paint(self, painter: MouthPainter, given: Given, twins: bool = False) -> Tensor:
        """The windows or their twins as the painter fills them, `[N, 3, H, W]`, all with one code."""
        batch = self.batch
        window, mask = (batch.twin, batch.twin_mask) if twins else (batch.window, batch.mask)
        made = batch.twin_expected if twins else batch.expected
        colours = {"blind": None, "told": window, "hinted": made, "full": made}[given]
        parts = []
        for first in range(0, len(window), TOGETHER):
            some = slice(first, first + TOGETHER)
            hint = None
            if colours is not None:
                hint = torch.cat([blurred(colours[some], mask[some]), torch.ones_like(mask[some])], 1)
            reference = batch.reference[some] if given == "full" else None
            seen = observe(window[some], mask[some], hint, reference)
            painted = painter(seen, torch.zeros(len(seen), painter.config.code, device=seen.device))
            parts.append(fill(window[some], painted.clamp(-1, 1), mask[some]))
        return torch.cat(parts)

    def figures(self, painter: MouthPainter, given: Given) -> dict[str, float]:
        """L1 in the mask and unrest between the lips, pictures in [-1, 1]; texture there over that of real mouths."""
        painted, twins = self.paint(painter, given), self.paint(painter, given, twins=True)
        real, made = self._texture(self.batch.window), self._texture(painted)
        l1 = float(_mean((painted - self.batch.window).abs(), self.batch.mask))
        unrest = float(self.unrest(painted, twins))
        return {"l1": l1, "unrest": unrest} | {name: made[name] / real[name] for name in made}

    def _texture(self, pictures: Tensor) -> dict[str, float]:
        frames = to_bytes(pictures)
        board = image_metrics.checkerboard(frames, self.inside)
        detail = image_metrics.horizontal_detail(frames, self.inside)
        return {"checkerboard": float(np.nanmean(board)), "detail": float(np.nanmean(detail))}

    def unrest(self, pictures: Tensor, twins: Tensor) -> Tensor:
        """How much the inside of pictures and of their twins differ once the motion between them is undone."""
        grid = F.affine_grid(self.batch.moved, list(pictures.shape), align_corners=False)
        back = F.grid_sample(twins, grid, mode="bicubic", align_corners=False)
        inside = torch.from_numpy(self.inside)[:, None].float().to(pictures.device)
        return _mean((back - pictures).abs(), inside)


def _mean(difference: Tensor, mask: Tensor) -> Tensor:
    """Mean over windows of the mean in the mask."""
    return ((difference * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3)).clamp_min(1))).mean()


class Validation:
    """Fixed windows of people who are kept out of training.

    Args:
        mouths: of one part of the data.
        device: to paint on.
        portraits: most windows of portraits.
        speech: most windows of speech, spread over openings.
    """

    def __init__(self, mouths: Mouths, device: torch.device | str = "cpu", *, portraits: int = 20, speech: int = 28):
        examples = Examples(mouths, device)
        self.groups = {
            name: Group.of(examples, numbers)
            for name, numbers in (
                ("portraits", _spread(mouths, portraits, alone=True)),
                ("speech", _spread(mouths, speech, alone=False)),
            )
            if numbers
        }

    def figures(self, painter: MouthPainter) -> dict[str, float]:
        """What `Group.figures` has for each kind of window and all that the painter may be given there."""
        found = {}
        for name, group in self.groups.items():
            kinds: tuple[Given, ...] = ("blind", "told") if name == "portraits" else ("blind", "told", "hinted", "full")
            for given in kinds:
                for measure, value in group.figures(painter, given).items():
                    found[f"{name}_{given}_{measure}"] = value
        return found

    def rows(self, painter: MouthPainter) -> list[Tensor]:
        """Real, masked, painted blind, told, hinted and in full; what MC-VDM makes, and the reference."""
        columns = []
        for group in self.groups.values():
            batch = group.batch
            some = torch.linspace(0, len(batch.window) - 1, SHOWN).round().long()
            kinds: tuple[Given, ...] = ("blind", "told", "hinted", "full")
            painted = [group.paint(painter, given) for given in kinds]
            rows = [batch.window, batch.window * (1 - batch.mask), *painted, batch.expected, batch.reference[:, :3]]
            columns.append([row[some] for row in rows])
        return [torch.cat(parts) for parts in zip(*columns, strict=True)]


def _spread(mouths: Mouths, count: int, alone: bool) -> list[int]:
    """Numbers of mouths in order of opening, evenly taken; `alone`: of people with one mouth, else of the others."""
    numbers = [n for n, others in mouths.others.items() if (len(others) == 1) == alone]
    numbers.sort(key=lambda n: mouths.mouths[n].opening)
    if len(numbers) <= count:
        return numbers
    return [numbers[round(k)] for k in np.linspace(0, len(numbers) - 1, count)]
