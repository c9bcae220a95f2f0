"""Learn the 3DMM from portraits and talking faces: mean face, identity basis, expression basis.

Usage: python scripts/train_morphable.py DATA_DIR [--out models/weights/morphable.safetensors]

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
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from avatard.media.video_file import read_frames
from avatard.models import checkpoint
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import align, rotation_matrix
from avatard.models.face.topology import MESH_TO_68, RIGID_MESH, interocular, mouth_opening

Array = NDArray[np.floating]
#: Mesh vertices that face each other across the midline, and its ends.
RIGHT_HALF, LEFT_HALF = [33, 133, 127, 234, 162, 21, 54, 61], [263, 362, 356, 454, 389, 251, 284, 291]
FOREHEAD, CHIN = 10, 152
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


def upright(face: Array) -> Array:
    """The face turned so that x runs from its right to its left half and y down its midline, eyes at the origin."""
    x = (face[LEFT_HALF] - face[RIGHT_HALF]).mean(axis=0)
    x /= np.linalg.norm(x)
    y = face[CHIN] - face[FOREHEAD]
    y -= x * (x @ y)
    y /= np.linalg.norm(y)
    return to_unit(face @ np.stack([x, y, np.cross(x, y)]).T)


def mean_face(faces: Array, rounds: int = 8) -> tuple[Array, NDArray[np.intp]]:
    """Symmetric Procrustes mean `[468, 3]` of portraits' meshes, in canonical units, and each vertex's mirror vertex.

    Frontal is how the average portrait looks at the camera: halves alike, and no pitch left between it and the mean.
    """
    mean = upright(faces[0])
    for _ in range(rounds):
        mean = upright(align(mean[RIGID_MESH], faces[:, RIGID_MESH]).unproject(faces).mean(axis=0))
        flipped = mean * [-1, 1, 1]
        mirror = linear_sum_assignment(((mean[:, None] - flipped[None]) ** 2).sum(axis=-1))[1]
        mean = (mean + flipped[mirror]) / 2
        pitch = float(np.mean(align(mean[RIGID_MESH], faces[:, RIGID_MESH]).yaw_pitch_roll[:, 1]))
        mean = to_unit(mean @ rotation_matrix(0, pitch, 0).T)
    return mean, mirror


def to_unit(mean: Array) -> Array:
    """The face moved and scaled to the canonical origin and unit."""
    eyes = mean[MESH_TO_68][36:48].reshape(2, 6, 3).mean(axis=1)
    unit: Array = (mean - eyes.mean(axis=0)) / interocular(mean[MESH_TO_68])
    return unit


def principal(samples: Array, components: int) -> tuple[Array, Array]:
    """PCA about zero of `[N, 468, 3]`: basis `[K, 468, 3]` in standard deviations, and each one's share of variance."""
    flat = samples.reshape(len(samples), -1)
    _, singular, vt = np.linalg.svd(flat, full_matrices=False)
    deviation = singular[:components] / np.sqrt(len(flat))
    share = singular**2 / (singular**2).sum()
    return (vt[:components] * deviation[:, None]).reshape(-1, *samples.shape[1:]), share[:components]


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
    still = np.concatenate(portraits)
    mean, mirror = mean_face(still)

    def mirrored(samples: Array) -> Array:
        return (samples * [-1, 1, 1])[:, mirror]

    def both(samples: Array) -> Array:
        return np.concatenate([samples, mirrored(samples)])

    basis = MorphableModel(mean, np.zeros((0, 468, 3)), np.zeros((0, 468, 3)))
    moving, rest = [], []
    for files in clips.values():
        neutral = []
        for meshes in files:
            canonical, _ = basis.frontal(meshes)
            opening = mouth_opening(canonical[:, MESH_TO_68])
            closed = canonical[opening <= np.quantile(opening, 0.2)].mean(axis=0)
            neutral.append(closed)
            moving.append(canonical - closed)
        rest.append(np.median(neutral, axis=0))
    motion = np.concatenate(moving)
    expression, share_expression = principal(both(motion), expression_components)
    faces = basis.pose(still).unproject(still)
    identity: Array = np.zeros((0, 468, 3))
    # Portraits smile. The speakers' closed mouths come first, so that a smile is expression, not identity.
    neutral_faces: Array = np.stack(rest)
    for _ in range(rounds):
        mean = to_unit(both(neutral_faces).mean(axis=0))
        identity, share_identity = principal(both(neutral_faces - mean), identity_components)
        model = MorphableModel(mean, identity, expression)
        neutral_faces = np.concatenate([mean + model.neutral(faces - mean), np.stack(rest)])

    def residual(samples: Array) -> float:
        alpha_id, alpha_exp = model.fit(samples)
        fitted = np.tensordot(alpha_id, model.identity, 1) + np.tensordot(alpha_exp, model.expression, 1)
        return float(np.sqrt(((samples - fitted) ** 2).sum(-1).mean()) * 100)

    figures = {
        "people": f"{len(portraits)} portraits, {len(clips)} speakers",
        "frames": str(len(motion)),
        "identity_variance_explained": f"{share_identity.sum():.4f}",
        "expression_variance_explained": f"{share_expression.sum():.4f}",
        "portrait_fit_rms_percent_iod": f"{residual(faces - mean):.2f}",
        "speaker_neutral_fit_rms_percent_iod": f"{residual(np.stack(rest) - mean):.2f}",
        "closed_mouth_opening_percent_iod": f"{100 * float(mouth_opening(mean[MESH_TO_68])):.2f}",
    }
    tensors = {"mean": model.mean, "identity": model.identity, "expression": model.expression}
    checkpoint.save(out, {key: value.astype(np.float32) for key, value in tensors.items()}, figures)
    for key, value in figures.items():
        typer.echo(f"{key}: {value}")


if __name__ == "__main__":
    typer.run(main)
