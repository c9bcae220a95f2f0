"""Draw the mouths that unseen people make for a voice: a sheet to look at.

    python scripts/draw_mouths.py DATA_DIR --voice speech.wav --out mouths.png

DATA_DIR was written by scripts/prepare_data.py; its portraits of people unknown to the networks are animated. A
column is a person's lower face; the rows are the portrait and, of the frames made, the one with the most closed mouth,
the half open one, the widest and, among the open ones, the narrowest: a rounded mouth.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from evaluate import OfflinePipeline, Performance
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.config import Config
from avatard.engine.motion_stream import LEAVING_FRAMES
from avatard.errors import UserError
from avatard.media.video_file import read_audio
from avatard.models.evaluation.judge import sheet
from avatard.models.face.topology import mouth_opening
from avatard.models.training.clips import Clip, read_index, unseen_people

#: Corners of the mouth among the 68 points.
CORNERS = (48, 54)
#: Of a frame.
LOWER_FACE = (slice(104, 232), slice(64, 192))


def shapes(performance: Performance) -> dict[str, NDArray[np.uint8]]:
    """The frames that show the four shapes of the mouth, of those that have left the portrait's own expression."""
    points, frames = performance.points[LEAVING_FRAMES:], performance.frames[LEAVING_FRAMES:]
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


def main() -> int:
    """Draw; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared data")
    parser.add_argument("--voice", type=Path, required=True, help="speech, any sound file")
    parser.add_argument("--out", type=Path, required=True, help="the sheet, a PNG")
    parser.add_argument("--people", type=int, default=12, help="most portraits to animate")
    parser.add_argument("--steps", type=int, default=2, help="of the video network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    try:
        unseen = [e for e in unseen_people(read_index(arguments.data), shipped=True) if e.frames == 1]
        if not unseen:
            raise ValueError(f"{arguments.data} has no portraits of people that are new to the networks")
        voice = read_audio(arguments.voice)
        studio = OfflinePipeline(Config(), arguments.steps)
        rows: dict[str, list[NDArray[np.uint8]]] = {}
        # Spread over the list: the sources lie behind each other in it.
        some = np.unique(np.linspace(0, len(unseen) - 1, arguments.people).round().astype(int))
        for n in tqdm(some, unit="person", disable=None):
            portrait = Clip(arguments.data / unseen[n].path).frame(0)
            made = {"portrait": portrait, **shapes(studio.perform(portrait, voice))}
            for name, frame in made.items():
                rows.setdefault(name, []).append(frame[LOWER_FACE])
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sheet(arguments.out, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
