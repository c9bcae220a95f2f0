"""Measure how much of the tracked motion of real mouths is the face tracker's own noise.

    python scripts/measure_tracker.py DATA_DIR --clips 60

DATA_DIR is what scripts/prepare_data.py wrote. Every frame of a clip is tracked twice, each time moved by up to two
pixels and scaled by up to one percent, and mapped back: what the two have in common is motion, the rest is noise.
Prints one JSON object per source, in % of the interocular distance:

    jerk             deviation of the mouth's third differences in the data folder
    jerk_repeatable  the same of what is common to both
    share            the second to the first: the `jerk_ratio` of perfect motion without noise
    noise            of one tracking of a frame, per point of the mouth and axis
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.script import run_script
from avatard.models.evaluation.motion_metrics import jerk
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MOUTH
from avatard.models.training.clips import Clip, DataError, read_index

Array = NDArray[np.floating]

PIXELS, SCALE = 2.0, 0.01


def track(
    frames: NDArray[np.uint8], mesh: FaceMesh, morphable: MorphableModel, rng: np.random.Generator
) -> Array | None:
    """Landmarks `[N, 68, 3]` of frames that were moved a little and back, None where the face was lost."""
    tracker, found = FaceTracker(mesh), []
    for frame in frames:
        scale, move = 1 + rng.uniform(-SCALE, SCALE), rng.uniform(-PIXELS, PIXELS, 2)
        matrix = np.array([[scale, 0, move[0]], [0, scale, move[1]]])
        size = (frame.shape[1], frame.shape[0])
        moved = cv2.warpAffine(frame, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        points = tracker(moved.astype(np.uint8))
        if points is None:
            return None
        found.append((points - [*move, 0]) / scale)
    return morphable.landmarks(morphable.frontal(np.stack(found))[0])


def measure(clips: list[Clip], rng: np.random.Generator) -> dict[str, float]:
    """Figures of one source's clips. Raises `DataError` where every face was lost."""
    mesh, morphable = FaceMesh(), MorphableModel.load()
    tracked, twice, noise = [], [], []
    for clip in tqdm(clips, unit="clip", disable=None):
        frames = clip.frames()
        pair = [track(frames, mesh, morphable, rng) for _ in range(2)]
        if pair[0] is None or pair[1] is None:
            continue
        tracked.append(jerk(clip.landmarks).ravel())
        twice.append(np.stack([jerk(points).ravel() for points in pair if points is not None]))
        noise.append((pair[0] - pair[1])[:, MOUTH, :2].ravel())
    if not tracked:
        raise DataError("the face was lost in every clip")
    whole, pairs = np.concatenate(tracked), np.concatenate(twice, axis=1)
    total, common = float(whole.std()), float(np.sqrt(max(0.0, np.mean(pairs[0] * pairs[1]))))
    return {
        "clips": len(tracked),
        "jerk": 100 * total,
        "jerk_repeatable": 100 * common,
        "share": common / total,
        "noise": 100 * float(np.concatenate(noise).std()) / np.sqrt(2),
    }


def main(
    data: Annotated[Path, typer.Argument(help="Prepared data.")],
    clips: Annotated[int, typer.Option(min=1, help="Of each source, unseen people first.")] = 60,
    seed: int = 0,
) -> None:
    """Measure and print."""
    rng = np.random.default_rng(seed)
    entries = [entry for entry in read_index(data) if entry.frames > 3 and not entry.animated]
    sources: dict[str, list[Clip]] = defaultdict(list)
    for n in sorted(rng.permutation(len(entries)), key=lambda n: entries[n].split == "train"):
        if len(sources[entries[n].source]) < clips:
            sources[entries[n].source].append(Clip(data / entries[n].path))
    typer.echo(json.dumps({source: measure(found, rng) for source, found in sources.items()}, indent=1))


if __name__ == "__main__":
    run_script(main)
