"""Animate portraits with the expressions of prepared videos: many more people to learn from.

Usage: python scripts/animate_portraits.py PORTRAITS_DIR... --data DATA_DIR --clips 2500

DATA_DIR is what scripts/prepare_data.py wrote; the clips become its source `factory` (with --validation: people kept
out of training, source `factory_validation`). A clip is a function of its number, so a run continues where it stopped;
clips whose faces, tracked again, are not where they were drawn are dropped. The index is updated every hundred clips.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from safetensors import safe_open
from tqdm import tqdm

from avatard.models.face.mesh import FaceMesh, region_of
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MESH_TO_68, OUTER_LIP, mouth_opening
from avatard.models.training.clips import Clip, Entry, is_validation, read_index, write_index
from avatard.models.training.synthesis.animate import Performance, Take, Variation, animate
from avatard.models.training.synthesis.mesh_warp import Portrait, Rig
from avatard.models.training.synthesis.mouth_interior import Teeth

SUFFIXES = {".jpg", ".jpeg", ".png"}
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


class OfflinePipeline:
    """Everything that clips are made from; each clip depends on its number and the seed alone."""

    def __init__(self, portraits: Sequence[Path], drivers: Sequence[Path], frames: int, seed: int):
        cv2.setNumThreads(1)
        self.paths, self.frames, self.seed = portraits, frames, seed
        self.mesh, self.model = FaceMesh(), MorphableModel.load()
        self.rig = Rig(self.model)
        self.drivers = []
        for path in drivers:
            opening = mouth_opening(Clip(path).landmarks + self.model.mean_68)
            if len(opening) >= frames:
                self.drivers.append(Driver(path, opening))
        spread = np.array([np.ptp(driver.opening) for driver in self.drivers])
        self.share = spread**2 / (spread**2).sum()

    @lru_cache(maxsize=512)  # noqa: B019 - one studio a process
    def portrait(self, path: Path) -> Portrait | None:
        """The portrait in a file, or None where it shows not exactly one face."""
        picture = cv2.imread(str(path))
        if picture is None:
            return None
        image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        found = self.mesh.detect(image)
        if len(found) != 1:
            return None
        return Portrait.of(path.stem, image, self.mesh.refine(image, found[0])[0].astype(np.float64), self.model)

    @lru_cache(maxsize=512)  # noqa: B019 - one studio a process
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

    def shoot(self, number: int) -> tuple[str, Take] | None:
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
        take = animate(self.rig, self.model, portrait, performance, variation, teeth)
        return (portrait.name, take) if self.as_drawn(take) else None

    def as_drawn(self, take: Take) -> bool:
        """Whether the tracker finds the mouths where they were drawn."""
        drawn = take.pose.project(take.canonical)
        for n in range(1, len(take.frames), CHECK_EVERY):
            found, presence = self.mesh.mesh(take.frames[n], region_of(drawn[n].astype(np.float32)))
            lips = (found - drawn[n])[MESH_TO_68][OUTER_LIP, :2]
            if presence < 0.5 or np.sqrt((lips**2).sum(axis=-1).mean()) > MAX_LIP_ERROR:
                return False
        return True


def _speaker(path: Path) -> str:
    with safe_open(path, framework="numpy") as file:
        return str(file.metadata()["speaker"])


def make(studio: OfflinePipeline, number: int, source: str, data: Path) -> Entry | None:
    """Make clip `number`, or find that it exists; its index entry."""
    file = Path(source) / f"{number:05d}.safetensors"
    if (data / file).exists():
        speaker = _speaker(data / file)
        return Entry(source, f"{number:05d}", speaker, len(Clip(data / file)), file.as_posix())
    made = studio.shoot(number)
    if made is None:
        return None
    name, take = made
    speaker = f"{name}-{number:05d}"  # shape and colours differ from clip to clip: each is another person
    metadata = {"source": source, "clip": f"{number:05d}", "speaker": speaker, "portrait": name, "fps": "25"}
    landmarks = studio.model.landmarks(take.canonical)
    Clip.write(data / file, take.frames, take.pose.project(take.canonical), landmarks, take.pose, metadata)
    return Entry(source, f"{number:05d}", speaker, len(take.frames), file.as_posix())


def add_to_index(data: Path, source: str, entries: Sequence[Entry]) -> None:
    """Put a source's entries into the index beside its others that are still there."""
    index = read_index(data)
    found = {e.clip: e for e in index if e.source == source and (data / e.path).exists()}
    found |= {entry.clip: entry for entry in entries}
    write_index(data, [e for e in index if e.source != source] + [found[clip] for clip in sorted(found)])


def main(
    portraits: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Folders of portraits.")],
    data: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Prepared data, read and added to.")],
    clips: Annotated[int, typer.Option(min=1)] = 2500,
    frames: Annotated[int, typer.Option(min=2, help="Frames of a clip, the portrait included.")] = 13,
    validation: Annotated[bool, typer.Option(help="Animate the people kept out of training.")] = False,
    performers: Annotated[str, typer.Option(help="Source whose videos drive the portraits.")] = "lrw_ar",
    seed: int = 0,
) -> None:
    """Add animated portraits to prepared data."""
    paths = [path for folder in portraits for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    paths = [path for path in paths if is_validation(path.parent.name, path.stem) == validation]
    source = "factory_validation" if validation else "factory"
    index = read_index(data)
    drivers = [data / e.path for e in index if e.source == performers and e.validation == validation]
    if not paths or not drivers:
        typer.echo(f"error: {len(paths)} portraits and {len(drivers)} prepared videos to animate them with", err=True)
        raise typer.Exit(1)
    studio = OfflinePipeline(paths, drivers, frames, seed)
    entries: list[Entry] = []
    for number in tqdm(range(clips), unit="clip"):
        entry = make(studio, number, source, data)
        if entry is not None:
            entries.append(entry)
        if number % 100 == 99 or number == clips - 1:
            add_to_index(data, source, entries)
    typer.echo(f"{len(entries)} clips of {len(paths)} portraits in {data / source}, {clips - len(entries)} dropped")


if __name__ == "__main__":
    typer.run(main)
