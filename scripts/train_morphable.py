"""Learn the 3DMM from portraits and talking faces: mean face, identity basis, expression basis.

    python scripts/train_morphable.py DATA_DIR [--out models/weights/morphable.safetensors]

DATA_DIR holds portraits (*.jpg, *.png) and videos (*.mp4, *.mkv) in any folders; a folder's `speakers.csv`
(clip,speaker) says who speaks, otherwise a folder of videos is one person. Expression is what varies within a clip,
identity what varies between people once expression is taken away; mean and bases are learned from faces and their
mirror images.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.script import run_script
from avatard.media.video_file import read_frames
from avatard.models import checkpoint
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.training.morphable import learn

Array = NDArray[np.floating]
PORTRAITS, VIDEOS = {".jpg", ".jpeg", ".png"}, {".mp4", ".mkv"}


def track(path: Path) -> Array | None:
    """Image meshes `[N, 468, 3]` of a portrait (N = 1) or a video; None where a face is missing in any frame."""
    cv2.setNumThreads(1)
    mesh = FaceMesh()
    if path.suffix in PORTRAITS:
        picture = cv2.imread(str(path))
        if picture is None:
            return None
        image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        found = mesh.detect(image)
        return mesh.refine(image, found[0])[0][None] if len(found) == 1 else None
    tracker = FaceTracker(mesh)
    points = [tracker(frame) for frame in read_frames(path)]
    kept = [p for p in points if p is not None]
    return np.stack(kept) if kept and len(kept) == len(points) else None


def people(folder: Path, clips_each: int) -> dict[str, list[Path]]:
    """Who is in which files, at most `clips_each` videos a person, evenly chosen."""
    names: dict[Path, str] = {}
    for table in folder.rglob("speakers.csv"):
        for row in csv.DictReader(table.open()):
            names[table.parent / row["clip"]] = row["speaker"]
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix in PORTRAITS:
            found[f"portrait {path}"].append(path)
        elif path.suffix in VIDEOS:
            found[names.get(path, path.parent.name)].append(path)
    return {name: files[:: max(1, -(-len(files) // clips_each))] for name, files in found.items()}


def main(
    data: Annotated[Path, typer.Argument(exists=True, file_okay=False)],
    out: Annotated[Path, typer.Option(help="Where to write the model.")] = Path("models/weights/morphable.safetensors"),
    clips_each: Annotated[int, typer.Option(help="Videos taken of each person.")] = 16,
    identity_components: int = 40,
    expression_components: int = 32,
    rounds: int = 3,
    processes: int = 2,
) -> None:
    """Track, align, and alternate between expression and identity until they are apart."""
    who = people(data, clips_each)
    jobs = [(name, path) for name, files in who.items() for path in files]
    portraits: list[Array] = []
    clips: dict[str, list[Array]] = defaultdict(list)
    with ProcessPoolExecutor(processes) as pool:
        results = pool.map(track, [path for _, path in jobs], chunksize=4)
        for (name, _), meshes in zip(jobs, tqdm(results, total=len(jobs), desc="tracking"), strict=True):
            if meshes is not None:
                (portraits if len(meshes) == 1 else clips[name]).append(meshes)
    model, figures = learn(portraits, clips, identity_components, expression_components, rounds)
    tensors = {"mean": model.mean, "identity": model.identity, "expression": model.expression}
    checkpoint.save(out, {key: value.astype(np.float32) for key, value in tensors.items()}, figures)
    for key, value in figures.items():
        typer.echo(f"{key}: {value}")


if __name__ == "__main__":
    run_script(main)
