"""A folder of prepared clips: faces whose mouths open more with every frame, pictures as bright as their number."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avatard.models.face.pose import Pose
from avatard.models.training.clips import Clip, Entry, write_index
from avatard.models.training.splits import Split
from tests.support.tiny_mcvdm import frontal

#: Source, clip, speaker and frames: two people to train on, one kept aside, and an animated portrait.
CLIPS = (("lrw_ar", "1", "a01", 12), ("lrw_ar", "2", "a02", 12), ("lrw_ar", "3", "b08", 12), ("factory", "4", "x", 5))


def level(n: int) -> int:
    """The grey level of frame n."""
    return 60 + 8 * n


def write_prepared(folder: Path, clips: Sequence[tuple[str, str, str, int]] = CLIPS, texture: float = 0.0) -> Path:
    """Clips as scripts/prepare_data.py writes them; b08 is a validation person. Texture is of squares of 32 pixels."""
    rng, rest, entries = np.random.default_rng(0), frontal(), []
    for source, clip, speaker, frames in clips:
        landmarks = np.zeros((frames, 68, 3), np.float32)
        landmarks[:, 65:68, 1] = np.linspace(0, 0.3, frames)[:, None]
        pose = Pose(*(np.repeat(np.asarray(v)[None], frames, 0) for v in (rest.rotation, rest.scale, rest.translation)))
        coarse = rng.normal(0, texture, (8, 8, 3)).repeat(32, 0).repeat(32, 1)
        pictures = [np.clip(level(n) + coarse, 0, 255).astype(np.uint8) for n in range(frames)]
        path = f"{source}/{clip}.safetensors"
        Clip.write(folder / path, pictures, np.zeros((frames, 468, 3)), landmarks, pose, {"speaker": speaker})
        split: Split = "validation" if speaker == "b08" else "train"
        entries.append(Entry(source, clip, speaker, frames, path, split, animated=source == "factory"))
    write_index(folder, entries)
    return folder
