"""Open closed mouths with MC-VDM: the hints that the mouth painter gets when a portrait shows no teeth.

    python scripts/prepare_hints.py SOURCE_DIR... --motion VIDEOS_DIR --out MOUTHS_DIR/opened --weights mcvdm_nano

Each SOURCE_DIR is one source of portraits or videos, as for scripts/prepare_mouths.py; of a video the most closed frame
is taken. Portraits with parted lips are left out. Each is moved by lips of two training people in the videos under
--motion. What MC-VDM then paints between its lips is a pale blob; what belongs there nobody knows. It is stored as
mouths are, and `training/mouth/opened.py` gives it to real mouths of the same shape as a hint.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.script import run_script
from avatard.errors import UserError
from avatard.media.video_file import MediaError
from avatard.models.face.crop import Crop
from avatard.models.face.topology import MESH_TO_68, mouth_opening
from avatard.models.mcvdm.mouth_window import WINDOW_SCALE, MouthWindow, inner_lips
from avatard.models.training.mouth.dataset import Mouth, part_of, write_mouths
from scripts.prepare_mouths import MAX_YAW, MIN_OPENING, MIN_SCALE, files_of, networks, tracked

if TYPE_CHECKING:
    from avatard.models.mcvdm.model import Mcvdm

Array = NDArray[np.floating]

#: Frames that are generated of a portrait in one go, the first of them as it is; how often; and how many are kept.
FRAMES, TIMES, KEPT = 16, 2, 6
#: How far the motion of one person is taken by another.
STRENGTHS = (0.7, 1.4)


def motions(folders: list[Path]) -> list[Array]:
    """Landmarks `[N, 68, 3]` of the training people's videos, offsets from their most closed frame."""
    _, morphable = networks()
    found = []
    for folder in folders:
        for path, person in tqdm(files_of(folder.resolve()), unit="file", desc=folder.name, disable=None):
            if part_of(folder.resolve().name, person) != "train":
                continue
            try:
                _, meshes = tracked(path)
            except (ValueError, MediaError):
                continue
            faces = morphable.frontal(meshes)[0][:, MESH_TO_68]
            if len(faces) >= FRAMES:
                found.append(faces - faces[np.argmin(mouth_opening(faces))])
    return found


def opened(path: Path, person: str, model: Mcvdm, moves: list[Array], rng: np.random.Generator) -> list[Mouth] | str:
    """The mouth of one file opened in a few ways, or why it is not."""
    from avatard.models.face.pose import Pose
    from avatard.models.training.mouth.regenerate import regenerate

    try:
        images, meshes = tracked(path)
    except (ValueError, MediaError) as reason:
        return str(reason)
    _, morphable = networks()
    canonical, poses = morphable.frontal(meshes)
    closed = int(np.argmin(canonical[:, 14, 1] - canonical[:, 13, 1]))
    if canonical[closed, 14, 1] - canonical[closed, 13, 1] >= MIN_OPENING:
        return "lips apart"
    if abs(poses[closed].yaw_pitch_roll[0]) > MAX_YAW:
        return "turned away"
    if float(poses[closed].scale) < MIN_SCALE * WINDOW_SCALE:
        return "face too small"
    image = images[closed]
    crop = Crop.of(poses[closed])
    canonical, poses = morphable.frontal(crop.points(meshes[closed][None]))
    still = canonical[0, MESH_TO_68]
    pose = Pose(*(np.repeat(part, FRAMES, axis=0) for part in (poses.rotation, poses.scale, poses.translation)))
    scale, yaw, roll = float(pose.scale[0]), *np.asarray(pose.yaw_pitch_roll[0])[[0, 2]].tolist()
    portrait = crop.image(image)
    found = []
    for _ in range(TIMES):
        move = moves[int(rng.integers(len(moves)))]
        # Around a wide moment of the clip: there are enough small ones on the way to it.
        opening = mouth_opening(still + move)
        middle = int(rng.choice(np.argsort(opening)[len(move) // 2 :]))
        first = int(np.clip(middle - FRAMES // 2, 0, len(move) - FRAMES))
        moved = still + rng.uniform(*STRENGTHS) * move[first : first + FRAMES]
        moved[0] = still
        made = regenerate(model, portrait, moved, pose, 0, int(rng.integers(1 << 30)))
        opening = mouth_opening(moved)
        wide = np.argsort(opening)[FRAMES // 4 :]
        for n in wide[np.linspace(0, len(wide) - 1, KEPT).round().astype(int)]:
            lips = inner_lips(pose[int(n)].project(moved[n])[:, :2])
            window = MouthWindow.around(lips, scale, float(np.radians(roll)), *Mouth.STORED)
            picture = window.cut(made[n])
            sharpness = scale / WINDOW_SCALE
            found.append(Mouth(picture, window.points(lips), person, float(opening[n]), yaw, sharpness))
    return found


def main(
    sources: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Folders of clips or portraits.")],
    motion: Annotated[list[Path], typer.Option(exists=True, file_okay=False, help="Videos whose lips move.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    weights: Annotated[str, typer.Option(help="MC-VDM, shipped or a file.")] = "mcvdm_nano",
) -> None:
    """Open the closed mouths of every source into one file each under --out."""
    from avatard.models.mcvdm.model import Mcvdm

    model, rng = Mcvdm.load(weights), np.random.default_rng(0)
    moves = motions(motion)
    if not moves:
        raise UserError("--motion: no video of a training person with a face")
    out.mkdir(parents=True, exist_ok=True)
    for folder in sources:
        source = folder.resolve().name
        target = out / f"{source}.safetensors"
        if target.exists():
            continue
        found: list[Mouth] = []
        skipped: Counter[str] = Counter()
        people = [(path, person) for path, person in files_of(folder.resolve()) if part_of(source, person) == "train"]
        for path, person in tqdm(people, unit="file", desc=source, disable=None):
            result = opened(path, person, model, moves, rng)
            if isinstance(result, str):
                skipped[result] += 1
            else:
                found += result
        if found:
            write_mouths(target, found)
        reasons = ", ".join(f"{count} × {reason}" for reason, count in skipped.items()) or "nothing"
        typer.echo(f"{source}: {len(found)} hints of {len({m.person for m in found})} people; left out: {reasons}")


if __name__ == "__main__":
    run_script(main)
