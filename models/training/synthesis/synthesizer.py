"""Clips of animated portraits by number: which portrait, driven by which performance, with whose teeth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.mesh import FaceMesh, region_of
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MESH_TO_68, OUTER_LIP, mouth_opening
from avatard.models.training.clips import Clip
from avatard.models.training.synthesis.animate import AnimatedClip, Performance, Variation, animate
from avatard.models.training.synthesis.mesh_warp import MeshWarper, PortraitMesh
from avatard.models.training.synthesis.mouth_interior import Teeth

#: Tracked again, the outer lips may lie this far (pixels, root mean square) from where they were drawn. It is generous:
#: the tracker takes wide mouths on smiling faces for narrower ones, and those are the ones that matter.
MAX_LIP_ERROR = 4.5
#: Share of clips that show the performer's teeth instead of a portrait's sharper ones.
PERFORMERS_TEETH = 0.12
#: Teeth are lent to other portraits if they were seen from no further aside (degrees).
MAX_TEETH_YAW = 8.0
#: Frames of a clip that are tracked again: every so many.
CHECK_EVERY = 4


@dataclass(frozen=True)
class Driver:
    """A prepared clip that may drive a portrait."""

    path: Path
    opening: NDArray[np.floating]  # [N] of the mouth, interocular distances


class ClipSynthesizer:
    """Everything that clips are made from; each clip depends on its number and the seed alone.

    Args:
        portraits: picture files.
        drivers: prepared clips that may drive a portrait.
        frames: of a clip, the portrait included.
        seed: of the random numbers.
    """

    def __init__(self, portraits: Sequence[Path], drivers: Sequence[Path], frames: int, seed: int):
        cv2.setNumThreads(1)
        self.paths, self.frames, self.seed = portraits, frames, seed
        self.mesh, self.model = FaceMesh(), MorphableModel.load()
        self.warper = MeshWarper(self.model)
        self.drivers = []
        for path in drivers:
            opening = mouth_opening(Clip(path).landmarks + self.model.mean_68)
            if len(opening) >= frames:
                self.drivers.append(Driver(path, opening))
        spread = np.array([np.ptp(driver.opening) for driver in self.drivers])
        self.share = spread**2 / (spread**2).sum()

    @lru_cache(maxsize=512)  # noqa: B019 - one synthesizer a process
    def portrait(self, path: Path) -> PortraitMesh | None:
        """The portrait in a file, or None where it shows not exactly one face."""
        picture = cv2.imread(str(path))
        if picture is None:
            return None
        image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        found = self.mesh.detect(image)
        if len(found) != 1:
            return None
        return PortraitMesh.of(path.stem, image, self.mesh.refine(image, found[0])[0].astype(np.float64), self.model)

    @lru_cache(maxsize=512)  # noqa: B019 - one synthesizer a process
    def teeth(self, path: Path) -> Teeth | None:
        """The teeth that a portrait shows."""
        portrait = self.portrait(path)
        return None if portrait is None else Teeth.of(portrait)

    def choose_teeth(self, rng: np.random.Generator, path: Path) -> Teeth | None:
        """For a portrait: its own teeth, else mostly another one's; None for the performer's."""
        if rng.random() < PERFORMERS_TEETH:
            return None
        own = self.teeth(path)
        if own is not None:
            return own
        others = (self.teeth(self.paths[int(rng.integers(len(self.paths)))]) for _ in range(20))
        return next((teeth for teeth in others if teeth is not None and teeth.yaw < MAX_TEETH_YAW), None)

    def synthesise(self, number: int) -> tuple[str, AnimatedClip] | None:
        """Clip `number`: its portrait's name and its frames; None where the result is not as drawn."""
        rng = np.random.default_rng((self.seed, number))
        path = self.paths[number % len(self.paths)]
        portrait = self.portrait(path)
        if portrait is None:
            return None
        driver = self.drivers[int(rng.choice(len(self.drivers), p=self.share))]
        clip, length = Clip(driver.path), self.frames - 1
        starts = [np.ptp(driver.opening[s : s + length]) for s in range(len(driver.opening) - length + 1)]
        start = int(rng.choice(np.argsort(starts)[-max(1, len(starts) // 3) :]))
        chosen = range(start, start + length)
        performance = Performance.of(clip.frames(), clip.points.astype(np.float64), self.model).part(chosen)
        variation, teeth = Variation.draw(rng, length, self.model), self.choose_teeth(rng, path)
        made = animate(self.warper, self.model, portrait, performance, variation, teeth)
        return (portrait.name, made) if self._is_as_drawn(made) else None

    def _is_as_drawn(self, made: AnimatedClip) -> bool:
        """Whether the tracker finds the mouths where they were drawn."""
        drawn = made.pose.project(made.canonical)
        for n in range(1, len(made.frames), CHECK_EVERY):
            found, presence = self.mesh.mesh(made.frames[n], region_of(drawn[n].astype(np.float32)))
            lips = (found - drawn[n])[MESH_TO_68][OUTER_LIP, :2]
            if presence < 0.5 or np.sqrt((lips**2).sum(axis=-1).mean()) > MAX_LIP_ERROR:
                return False
        return True
