"""Cut mouths out of portraits and videos, to train the mouth painter with.

    python scripts/prepare_mouths.py SOURCE_DIR... --out MOUTHS_DIR

Each SOURCE_DIR is one source, named after its folder: videos or portraits, with a `speakers.csv` (clip,speaker) where
files are not people. One safetensors file is written per source; a source that is there is kept. Closed mouths, which
hide what is to be painted, are left out, and faces that are too small or turned away. With --weights each frame of a
video is made anew by MC-VDM from the clip's most closed one: the painter learns from it what hints are worth.

With --motion VIDEOS_DIR MC-VDM also opens the closed mouths of training people, moved by those in these videos, into
MOUTHS_DIR/opened: what it paints where no photograph shows what is behind the lips.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.script import run_script
from avatard.errors import UserError
from avatard.media.video_file import MediaError, read_frames
from avatard.models.face.crop import Crop
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import INNER_LIP_RING, MESH_TO_68, mouth_opening
from avatard.models.mcvdm.mouth_window import WINDOW_SCALE, MouthWindow
from avatard.models.training.mouth.dataset import Mouth, part_of, write_mouths

if TYPE_CHECKING:
    from avatard.models.mcvdm.model import Mcvdm

Array = NDArray[np.floating]

VIDEOS, PORTRAITS = {".mp4", ".mkv", ".mov", ".webm"}, {".jpg", ".jpeg", ".png", ".webp"}
#: Smaller faces (interocular distance as a share of the window's scale) are too blurred to learn teeth from.
MIN_SCALE = 0.55
#: Degrees; the far half of mouths that are turned further is a guess of the mesh.
MAX_YAW = 35.0
#: Mouths that are open less (inner lips' mean height, interocular distances) hide what is to be painted.
MIN_OPENING = 0.025
#: Of a video's frames every second one, because neighbours are alike.
STRIDE = 2
#: Motions that open a closed mouth.
MOTIONS = 2


@cache
def networks() -> tuple[FaceMesh, MorphableModel]:
    """One set a process, which has one core."""
    import torch  # takes seconds: not for --help

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    return FaceMesh(), MorphableModel.load()


@cache
def video_network(weights: str) -> Mcvdm:
    """The networks that make videos anew, one set a process."""
    from avatard.models.mcvdm.model import Mcvdm

    return Mcvdm.load(weights)


def tracked(path: Path) -> tuple[list[NDArray[np.uint8]], Array]:
    """Pictures with a face, and their meshes `[N, 468, 3]`. Raises `MediaError` or `ValueError`."""
    mesh, _ = networks()
    if path.suffix.lower() in PORTRAITS:
        picture = cv2.imread(str(path))
        if picture is None:
            raise ValueError("not a picture")
        image = np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
        found = mesh.detect(image)
        if len(found) != 1:
            raise ValueError(f"{len(found)} faces")
        return [image], mesh.refine(image, found[0])[0][None].astype(np.float64)
    tracker = FaceTracker(mesh)
    seen = [(image, points) for image in read_frames(path) if (points := tracker(image)) is not None]
    if not seen:
        raise ValueError("no face")
    return [image for image, _ in seen], np.stack([points for _, points in seen]).astype(np.float64)


def made_anew(weights: str, images: list[NDArray[np.uint8]], meshes: Array, crop: Crop) -> NDArray[np.uint8]:
    """The clip's crops `[N, 256, 256, 3]` as the networks make them from the one with the most closed mouth."""
    from avatard.models.training.mouth.regenerate import regenerate

    _, morphable = networks()
    canonical, poses = morphable.frontal(crop.points(meshes))
    faces = canonical[:, MESH_TO_68]
    reference = int(np.argmin(mouth_opening(faces)))
    return regenerate(video_network(weights), crop.image(images[reference]), faces, poses, reference)


def mouths_of(path: Path, person: str, weights: str | None) -> list[Mouth] | str:
    """The open mouths of one file, or why there are none."""
    try:
        images, meshes = tracked(path)
    except (ValueError, MediaError) as reason:
        return str(reason)
    _, morphable = networks()
    crop = Crop.of(morphable.pose(meshes))
    anew = None if weights is None or len(images) == 1 else made_anew(weights, images, meshes, crop)
    images, meshes = images[::STRIDE], meshes[::STRIDE]
    if len(images) > 1:
        from avatard.models.training.registration import register  # imports torch

        registered = register([crop.image(image) for image in images], crop.points(meshes))
        meshes[..., :2] = (registered[..., :2] - crop.matrix[:, 2]) @ np.linalg.inv(crop.matrix[:, :2]).T
    canonical, pose = morphable.frontal(meshes)
    scale = float(np.median(pose.scale))
    if scale < MIN_SCALE * WINDOW_SCALE:
        return "face too small"
    opening = (canonical[:, 14, 1] - canonical[:, 13, 1]).astype(float)
    yaw, roll = pose.yaw_pitch_roll[:, 0], np.radians(pose.yaw_pitch_roll[:, 2])
    mouths = []
    for n, image in enumerate(images):
        if opening[n] < MIN_OPENING or abs(yaw[n]) > MAX_YAW:
            continue
        lips = meshes[n, INNER_LIP_RING]
        window = MouthWindow.around(lips, scale, float(roll[n]), *Mouth.STORED)
        made = None if anew is None else window.after(crop.matrix).cut(anew[STRIDE * n])
        sharpness = scale / WINDOW_SCALE
        mouths.append(Mouth(window.cut(image), window.points(lips), person, opening[n], float(yaw[n]), sharpness, made))
    return mouths or "no open mouth"


def motion_in(path: Path) -> Array | None:
    """How the face in a video moves, where that can be told."""
    from avatard.models.training.mouth.opening import motion_of

    try:
        _, meshes = tracked(path)
    except (ValueError, MediaError):
        return None
    _, morphable = networks()
    return motion_of(morphable.frontal(meshes)[0][:, MESH_TO_68])


def opened_of(path: Path, person: str, weights: str, moves: list[Array], seed: int) -> list[Mouth] | str:
    """The closed mouth of one file as the networks open it, or why there is none."""
    from avatard.models.training.mouth.opening import open_mouths

    try:
        images, meshes = tracked(path)
    except (ValueError, MediaError) as reason:
        return str(reason)
    _, morphable = networks()
    canonical, poses = morphable.frontal(meshes)
    opening = canonical[:, 14, 1] - canonical[:, 13, 1]
    n = int(np.argmin(opening))
    if opening[n] >= MIN_OPENING:
        return "lips apart"
    if poses.scale[n] < MIN_SCALE * WINDOW_SCALE:
        return "face too small"
    if abs(poses.yaw_pitch_roll[n, 0]) > MAX_YAW:
        return "turned away"
    return open_mouths(video_network(weights), morphable, images[n], meshes[n], person, moves, seed)


def files_of(folder: Path) -> list[tuple[Path, str]]:
    """The files of one source and the people in them."""
    table = folder / "speakers.csv"
    names = {row["clip"]: row["speaker"] for row in csv.DictReader(table.open())} if table.exists() else {}
    return [
        (path, names.get(path.name, path.stem))
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in VIDEOS | PORTRAITS
    ]


def training_files(folder: Path) -> list[tuple[Path, str]]:
    """Those of `files_of` whose people are trained on."""
    return [(path, name) for path, name in files_of(folder) if part_of(folder.name, name) == "train"]


def write(target: Path, results: Iterable[list[Mouth] | str], count: int) -> None:
    """Collect one source's mouths into a file, and say what was left out."""
    found: list[Mouth] = []
    skipped: Counter[str] = Counter()
    for result in tqdm(results, total=count, unit="file", desc=target.stem, disable=None):
        if isinstance(result, str):
            skipped[result] += 1
        else:
            found += result
    if found:
        write_mouths(target, found)
    reasons = ", ".join(f"{count} × {reason}" for reason, count in skipped.items()) or "nothing"
    people = len({mouth.person for mouth in found})
    typer.echo(f"{target.stem}: {len(found)} mouths of {people} people; left out: {reasons}")


def main(
    sources: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Folders of clips or portraits.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    weights: Annotated[str | None, typer.Option(help="MC-VDM, shipped or a file: make the videos anew, too.")] = None,
    motion: Annotated[
        list[Path] | None, typer.Option(exists=True, file_okay=False, help="Videos to open closed mouths by.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Cut the open mouths of every source out into one file each under --out."""
    if motion and weights is None:
        raise UserError("--motion: give --weights, too: MC-VDM opens the mouths")
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(processes) as pool:
        for folder in [source.resolve() for source in sources]:
            target = out / f"{folder.name}.safetensors"
            if not target.exists():
                files = files_of(folder)
                results = pool.map(mouths_of, *zip(*files, strict=True), repeat(weights), chunksize=2)
                write(target, results, len(files))
        if motion and weights is not None:
            videos = [path for folder in motion for path, _ in training_files(folder.resolve())]
            moves = [move for move in pool.map(motion_in, videos) if move is not None]
            if not moves:
                raise UserError("--motion: no video of a training person with a face")
            (out / "opened").mkdir(exist_ok=True)
            for folder in [source.resolve() for source in sources]:
                target = out / "opened" / f"{folder.name}.safetensors"
                files = training_files(folder)
                if target.exists() or not files:
                    continue
                rng = np.random.default_rng(0)
                some = [[moves[n] for n in rng.integers(len(moves), size=MOTIONS)] for _ in files]
                results = pool.map(opened_of, *zip(*files, strict=True), repeat(weights), some, range(len(files)))
                write(target, results, len(files))


if __name__ == "__main__":
    run_script(main)
