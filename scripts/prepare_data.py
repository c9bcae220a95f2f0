"""Track videos and portraits into training clips: crops, landmarks, pose and sound.

    python scripts/prepare_data.py SOURCE_DIR... --out DATA_DIR

Faces are tracked frame by frame, as in the daemon, and registered to each other (models/training/registration.py).
Each SOURCE_DIR is one source, named after its folder: videos (*.mp4, *.mkv, *.mov, *.webm) or portraits (*.jpg, *.png,
*.webp). Videos of any frame rate become clips of 25 a second: of each moment the picture that is nearest in time. A
silent video gives pictures and landmarks, and --motion-only leaves it out.

A `speakers.csv` (clip,speaker and perhaps sound: yes or no) in it says who speaks and whether that is what is heard;
without one, a folder of videos is one person, each portrait another. --crop 512 keeps crops of 512² beside those of
256², of videos that are sharp enough. Clips already written are kept; clips where a face is missing, leaves or jumps
are skipped and reported. `index.json` is written last; it says who is kept out of training (configs/train/splits.toml).
"""

from __future__ import annotations

import csv
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.script import run_script
from avatard.media.video_file import MediaError, read_audio, read_frames
from avatard.models.face.crop import CROP_SCALE, Crop
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MESH_TO_68, RIGID_MESH
from avatard.models.training.clips import SIDES, Clip, DataError, Entry, read_index, write_index
from avatard.models.training.splits import SplitTable
from avatard.timebase import CROP_SIDE, FPS, SAMPLES_PER_FRAME

VIDEOS, PORTRAITS = {".mp4", ".mkv", ".mov", ".webm"}, {".jpg", ".jpeg", ".png", ".webp"}
#: Between two frames the head may turn this far (degrees) or move this far (interocular distances); more is a cut.
MAX_TURN, MAX_MOVE = 12.0, 0.35
#: Faces smaller than this (pixels between the eyes) are too blurred to learn from.
MIN_INTEROCULAR = 20.0
#: Faces turned further than this (degrees of yaw, median) hide half of what is to be learned.
MAX_YAW = 35.0
#: Large crops of videos that would be enlarged more than this show nothing that the small ones do not.
ENLARGED = 0.8


class Rejected(ValueError):
    """A clip that is of no use, and why."""


@dataclass(frozen=True)
class Job:
    """One file to track."""

    path: Path
    source: str
    speaker: str
    out: Path
    pictures: bool = True  # whether the clip keeps its pictures
    sound: bool = True  # whether the sound is that of the face
    crop: int = CROP_SIDE  # side of the largest crops to keep

    @property
    def file(self) -> Path:
        """Where the clip goes, relative to the data folder."""
        return Path(self.source) / f"{self.path.stem}.safetensors"


@cache
def networks() -> tuple[FaceMesh, MorphableModel]:
    """One set for each process, which has one core."""
    import torch  # takes seconds: not for --help

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    return FaceMesh(), MorphableModel.load()


def load(path: Path) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """Pictures and their meshes `[N, 468, 3]`. Raises `Rejected` or `MediaError`."""
    mesh, _ = networks()
    if path.suffix.lower() in PORTRAITS:
        picture = cv2.imread(str(path))
        if picture is None:
            raise Rejected("not a picture")
        image = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)
        found = mesh.detect(image)
        if len(found) != 1:
            raise Rejected(f"{len(found)} faces")
        return [image], mesh.refine(image, found[0])[0][None].astype(np.float64)
    tracker = FaceTracker(mesh)
    images = list(read_frames(path))
    points = [tracker(image) for image in images]
    kept = [p for p in points if p is not None]
    if len(kept) < len(points) or not kept:
        raise Rejected("face lost")
    return images, np.stack(kept).astype(np.float64)


def prepare(job: Job) -> Entry | str:
    """Track one file and write its clip; the index entry, or why it was skipped."""
    target = job.out / job.file
    try:
        if not target.exists() or (job.pictures and int(Clip(target).metadata.get("crop", CROP_SIDE)) < job.crop):
            track(job, target)
        split = SplitTable.load().split(job.source, job.speaker)
        return Entry(job.source, job.path.stem, job.speaker, len(Clip(target)), job.file.as_posix(), split)
    except (Rejected, MediaError) as reason:
        return str(reason)


def track(job: Job, target: Path) -> None:
    """Meshes → crop, landmarks and pose → one file. Raises `Rejected` or `MediaError`."""
    from avatard.models.training.registration import register  # imports torch

    _, morphable = networks()
    images, meshes = load(job.path)
    sound = sound_of(job)
    if sound is None and not job.pictures:
        raise Rejected("silent")
    rough = morphable.pose(meshes)
    if np.median(rough.scale) < MIN_INTEROCULAR:
        raise Rejected("face too small")
    if abs(np.median(rough.yaw_pitch_roll[:, 0])) > MAX_YAW:
        raise Rejected("face turned away")
    crop = Crop.of(rough)
    points = crop.points(meshes)
    canonical, pose = morphable.frontal(points)
    if len(images) > 1:
        turn = np.abs(np.diff(pose.yaw_pitch_roll, axis=0)).max()
        move = np.linalg.norm(np.diff(points[:, RIGID_MESH].mean(axis=1), axis=0), axis=-1).max() / CROP_SCALE
        if turn > MAX_TURN or move > MAX_MOVE:
            raise Rejected("face jumps")
    if sound is not None:
        wanted = len(images) * SAMPLES_PER_FRAME
        sound = np.pad(sound[:wanted], (0, max(wanted - len(sound), 0)))
    metadata = {"source": job.source, "clip": job.path.stem, "speaker": job.speaker, "fps": str(FPS)}
    if job.crop > CROP_SIDE:
        metadata["crop"] = str(job.crop)  # asked for, whether or not the video is sharp enough
    if not job.pictures:
        Clip.write(target, [], points, morphable.landmarks(canonical), pose, metadata, sound)
        return
    frames = [crop.image(image) for image in images]
    registered = register(frames, points)[:, MESH_TO_68, :2]
    sharp = job.crop > CROP_SIDE and crop.factor < ENLARGED
    large = [crop.image(image, job.crop) for image in images] if sharp else []
    Clip.write(target, frames, points, morphable.landmarks(canonical), pose, metadata, sound, registered, large)


def sound_of(job: Job) -> NDArray[np.int16] | None:
    """The samples of a video; None where the face is not heard. Raises `MediaError`."""
    if job.path.suffix.lower() not in VIDEOS or not job.sound:
        return None
    samples = read_audio(job.path)
    return samples if samples.any() else None


def jobs_of(folder: Path, out: Path, pictures: bool, crop: int) -> list[Job]:
    """The files of one source."""
    table = folder / "speakers.csv"
    rows = {row["clip"]: row for row in csv.DictReader(table.open())} if table.exists() else {}
    found = []
    for path in sorted(folder.iterdir()):
        row = rows.get(path.name, {})
        if path.suffix.lower() in VIDEOS:
            heard = row.get("sound", "yes") != "no"
            found.append(Job(path, folder.name, row.get("speaker", folder.name), out, pictures, heard, crop))
        elif path.suffix.lower() in PORTRAITS and pictures:
            found.append(Job(path, folder.name, row.get("speaker", path.stem), out, crop=crop))
    return found


def main(
    sources: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Folders of clips or portraits.")],
    out: Annotated[Path, typer.Option(help="The data folder to write; resumed where it exists.")],
    processes: Annotated[int, typer.Option(min=1)] = 2,
    motion_only: Annotated[
        bool, typer.Option("--motion-only", help="Landmarks and sound of videos, no pictures: enough for AToM-Net.")
    ] = False,
    crop: Annotated[
        int, typer.Option(help=f"Side of the largest crops to keep, {' or '.join(map(str, SIDES))}.")
    ] = CROP_SIDE,
) -> None:
    """Track every file of every source into clips under --out."""
    if crop not in SIDES:
        raise DataError(f"got --crop {crop}, expected {' or '.join(map(str, SIDES))}")
    jobs = [job for folder in sources for job in jobs_of(folder.resolve(), out, not motion_only, crop)]
    if not jobs:
        raise DataError("no videos or portraits in " + ", ".join(map(str, sources)))
    out.mkdir(parents=True, exist_ok=True)
    entries, skipped = [], []
    with ProcessPoolExecutor(processes) as pool:
        results = pool.map(prepare, jobs, chunksize=4)
        for job, result in zip(jobs, tqdm(results, total=len(jobs), unit="clip"), strict=True):
            if isinstance(result, Entry):
                entries.append(result)
            else:
                skipped.append((job, result))
    others = {job.source for job in jobs}
    if (out / "index.json").exists():
        entries = [entry for entry in read_index(out) if entry.source not in others] + entries
    write_index(out, entries)
    for job, reason in skipped:
        typer.echo(f"skipped {job.source}/{job.path.name}: {reason}")
    for (source, reason), count in Counter((job.source, reason) for job, reason in skipped).items():
        typer.echo(f"{source}: {count} × {reason}")
    typer.echo(f"{len(entries)} clips, {sum(entry.frames for entry in entries)} frames in {out}")


if __name__ == "__main__":
    run_script(main)
