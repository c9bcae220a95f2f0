"""How well the solver of ARKit's coefficients tells motions of the face apart: a confusion table.

Faces of random people are moved by one shape, or by a pair for both sides, and measured with noise. A row is a motion;
a column is what the solver finds of a group of coefficients, as a share of the motion's strength.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from avatard.models.face.arkit import ARKIT_NAMES
from avatard.models.face.arkit_solver import ArkitSolver
from avatard.models.face.blendshapes import expression_basis
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MESH_TO_68

Array = NDArray[np.floating]

#: Motions that speech and expression mix, and that must not be taken for each other; left and right together.
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "jaw": ("jawOpen",),
    "close": ("mouthClose",),
    "pucker": ("mouthPucker",),
    "funnel": ("mouthFunnel",),
    "smile": ("mouthSmileLeft", "mouthSmileRight"),
    "frown": ("mouthFrownLeft", "mouthFrownRight"),
    "stretch": ("mouthStretchLeft", "mouthStretchRight"),
    "press": ("mouthPressLeft", "mouthPressRight"),
    "roll": ("mouthRollLower", "mouthRollUpper"),
    "blink": ("eyeBlinkLeft", "eyeBlinkRight"),
    "squint": ("eyeSquintLeft", "eyeSquintRight"),
    "wide": ("eyeWideLeft", "eyeWideRight"),
    "brow down": ("browDownLeft", "browDownRight"),
    "brow inner": ("browInnerUp",),
    "brow outer": ("browOuterUpLeft", "browOuterUpRight"),
}
STRENGTH: Final = 0.6
#: Standard deviations of x, y and z of each point, interocular distances.
NOISE: Final = np.array([0.005, 0.005, 0.0075])


@dataclass(frozen=True)
class Confusion:
    """A table over `GROUPS`."""

    found: Array  # [motion, group], means; 1 on the diagonal is perfect
    deviation: Array  # [motion, group], over people and noise

    def markdown(self) -> str:
        """The table; what is below 0.05 is left out."""
        names = list(GROUPS)
        lines = [f"| moved | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        for name, row in zip(names, self.found, strict=True):
            lines.append(f"| {name} | {' | '.join(f'{x:.2f}' if x >= 0.05 else '' for x in row)} |")
        return "\n".join(lines)


def confusion(people: int = 20, seed: int = 0, noise: Array = NOISE) -> Confusion:
    """Move random people of the morphable model by each group."""
    model, rng = MorphableModel.load(), np.random.default_rng(seed)
    found = np.empty((people, len(GROUPS), len(GROUPS)))
    for person in found:
        alpha = rng.normal(size=len(model.identity))
        neutral = np.tensordot(alpha, model.identity[:, MESH_TO_68], axes=1)
        basis, solve = expression_basis(model.mean_68 + neutral), ArkitSolver(model.mean_68, neutral)
        for row, names in zip(person, GROUPS.values(), strict=True):
            moved = neutral + STRENGTH * sum((basis[name] for name in names), np.zeros((68, 3)))
            weights = solve(moved + rng.normal(size=(68, 3)) * noise)
            row[:] = [np.mean([weights[ARKIT_NAMES.index(name)] for name in group]) for group in GROUPS.values()]
    return Confusion(found.mean(axis=0) / STRENGTH, found.std(axis=0) / STRENGTH)
