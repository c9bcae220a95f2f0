"""Measure how people blink, raise their brows and move their heads: the defaults of avatard.engine.idle_motion.

    python scripts/measure_idle.py DATA_DIR

DATA_DIR is what scripts/prepare_data.py wrote. Prints one JSON object per source, of the people who may be trained on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from avatard.commands.script import run_script
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import LEFT_BROW, RIGHT_BROW, eye_opening
from avatard.models.training.atom.dataset import clips_with_sound
from avatard.models.training.clips import Clip
from avatard.timebase import FPS

Array = NDArray[np.floating]

#: Lids that cover this share of the eye's usual opening are a blink (the mesh shows a shut eye as half open); those
#: that cover the second one have begun it.
BLINK, BEGUN = 0.3, 0.08


def blinks(openness: Array) -> list[tuple[int, int, float, float]]:
    """Closing and opening time (frames), depth and difference of the eyes, of each blink in `[N, 2]` (1 = usual)."""
    mean, found, n = openness.mean(axis=1), [], 0
    while n < len(mean):
        if mean[n] > 1 - BLINK:
            n += 1
            continue
        last = n
        while last + 1 < len(mean) and mean[last + 1] <= 1 - BLINK:
            last += 1
        meet = n + int(mean[n : last + 1].argmin())
        first, end = meet, meet
        while first > 0 and mean[first] < 1 - BEGUN:
            first -= 1
        while end < len(mean) - 1 and mean[end] < 1 - BEGUN:
            end += 1
        depth = 1 - openness[meet]
        found.append((meet - first, end - meet, float(depth.mean()), float((depth[0] - depth[1]) / depth.mean())))
        n = max(end, last) + 1
    return found


def measure(clips: list[Clip], mean: Array) -> dict[str, float]:
    """Statistics of one source's clips."""
    found, minutes, brows, angles, shifts = [], 0.0, [], [], []
    for clip in clips:
        opening = eye_opening(clip.landmarks + mean)
        found += blinks(opening / np.quantile(opening, 0.75, axis=0))
        minutes += len(opening) / FPS / 60
        height = np.concatenate([clip.landmarks[:, RIGHT_BROW, 1], clip.landmarks[:, LEFT_BROW, 1]], axis=1)
        brows.append(height.mean(axis=1).std())
        angles.append(clip.pose.yaw_pitch_roll.std(axis=0))
        shifts.append((clip.pose.translation / np.median(clip.pose.scale)).std(axis=0))
    whole = np.array([blink for blink in found if min(blink[:2]) > 0])
    return {
        "minutes": minutes,
        "blinks": len(found),
        "blink_interval_s": 60 * minutes / max(1, len(found)),
        "blink_closing_frames": float(whole[:, 0].mean()),
        "blink_opening_frames": float(whole[:, 1].mean()),
        "blink_depth": float(np.quantile(whole[:, 2], 0.75)),  # the shallow ones are glances down
        "blink_asymmetry": float(whole[:, 3].std()),
        "brow_iod": float(np.mean(brows)),
        "head_degrees": [round(float(angle), 3) for angle in np.mean(angles, axis=0)],  # type: ignore[dict-item]
        "head_iod": [round(float(shift), 4) for shift in np.mean(shifts, axis=0)],  # type: ignore[dict-item]
    }


def main(data: Annotated[Path, typer.Argument(help="Prepared data.")]) -> None:
    """Measure and print."""
    sources: dict[str, list[Clip]] = defaultdict(list)
    for entry in clips_with_sound(data):
        if entry.split == "train":
            sources[entry.source].append(Clip(data / entry.path))
    mean = MorphableModel.load().mean_68
    typer.echo(json.dumps({source: measure(clips, mean) for source, clips in sources.items()}, indent=1))


if __name__ == "__main__":
    run_script(main)
