"""Draw the mouths that unseen people make for a voice: a sheet to look at.

    python scripts/draw_mouths.py DATA_DIR --voice speech.wav --out mouths.png

DATA_DIR was written by scripts/prepare_data.py; its portraits of people unknown to the networks are animated. A
column is a person's lower face. The rows are the portrait and four generated frames: the most closed mouth, the half
open one, the widest and, among the open ones, the narrowest, a rounded mouth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.offline import GeneratedClip, OfflinePipeline
from avatard.commands.script import run_script
from avatard.config import Config
from avatard.engine.motion_stream import LEAVING_FRAMES
from avatard.media.video_file import read_audio
from avatard.models.evaluation.contact_sheet import contact_sheet
from avatard.models.face.topology import mouth_opening
from avatard.models.training.clips import Clip, DataError, read_index, unseen_people

#: Corners of the mouth among the 68 points.
CORNERS = (48, 54)
#: Rows and columns of a frame.
LOWER_FACE = (slice(104, 232), slice(64, 192))


def mouth_shapes(made: GeneratedClip) -> dict[str, NDArray[np.uint8]]:
    """The frames with the four shapes, of those that have left the portrait's own expression."""
    points, frames = made.landmarks[LEAVING_FRAMES:], made.frames[LEAVING_FRAMES:]
    opening = mouth_opening(points)
    right, left = (points[:, corner] for corner in CORNERS)
    width = np.linalg.norm(left - right, axis=-1)
    open_enough = opening >= (opening.min() + opening.max()) / 3
    chosen = {
        "closed": np.argmin(opening),
        "half": np.argmin(np.abs(opening - (opening.min() + opening.max()) / 2)),
        "wide": np.argmax(opening),
        "rounded": np.argmin(np.where(open_enough, width, np.inf)),
    }
    return {name: frames[n] for name, n in chosen.items()}


def main(
    data: Annotated[Path, typer.Argument(help="Prepared data.")],
    voice: Annotated[Path, typer.Option(help="Speech, any sound file.")],
    out: Annotated[Path, typer.Option(help="The sheet, a PNG.")],
    people: Annotated[int, typer.Option(min=1, help="Most portraits to animate.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the video network.")] = 2,
) -> None:
    """Animate and draw."""
    torch.set_num_threads(1)
    unseen = [entry for entry in unseen_people(read_index(data), shipped=True) if entry.frames == 1]
    if not unseen:
        raise DataError(f"{data} has no portraits of people that are new to the networks")
    sound, pipeline = read_audio(voice), OfflinePipeline(Config(), steps)
    rows: dict[str, list[NDArray[np.uint8]]] = {}
    # Spread over the list: the sources lie behind each other in it.
    some = np.unique(np.linspace(0, len(unseen) - 1, people).round().astype(int))
    for n in tqdm(some, unit="person", disable=None):
        portrait = Clip(data / unseen[n].path).frame(0)
        for name, frame in {"portrait": portrait, **mouth_shapes(pipeline.generate(portrait, sound))}.items():
            rows.setdefault(name, []).append(frame[LOWER_FACE])
    contact_sheet(out, rows)


if __name__ == "__main__":
    run_script(main)
