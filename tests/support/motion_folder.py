"""A tiny data folder whose mouths follow the loudness of their sound."""

from pathlib import Path

import numpy as np

from avatard.models.face.pose import Pose
from avatard.models.training.clips import Clip, Entry, write_index
from avatard.models.training.splits import Split
from avatard.timebase import SAMPLES_PER_FRAME

SPEAKERS = [("grid_s1", "grid_s1", 3), ("lrw_ar", "a05", 2), ("lrw_ar", "a04", 2)]  # a04 is a validation person


def envelope(frames: int, rng: np.random.Generator) -> np.ndarray:
    """Loudness of syllables, per sample of `frames` frames, 0 to 1."""
    time = np.arange(frames * SAMPLES_PER_FRAME) / 16_000
    return np.clip(np.sin(2 * np.pi * rng.uniform(2, 3) * time + rng.uniform(0, 6)), 0, 1)


def write_folder(folder: Path, frames: int = 30, lag: int = 0) -> list[Entry]:
    """Clips of three speakers. Outside grid_s1 the picture is `lag` frames ahead of the sound."""
    entries: list[Entry] = []
    for source, speaker, count in SPEAKERS:
        for n in range(count):
            rng = np.random.default_rng((len(entries), 7))
            shift = lag if source != "grid_s1" else 0
            loud = envelope(frames + shift, rng)
            wave = (rng.standard_normal(len(loud)) * loud * 6000).astype(np.int16)
            opening = loud.reshape(-1, SAMPLES_PER_FRAME).mean(axis=1)[shift:]
            landmarks = np.zeros((frames, 68, 3))
            landmarks[:, 55:60, 1] = landmarks[:, 65:68, 1] = 0.15 * opening[:, None]
            landmarks += rng.normal(0, 0.002, landmarks.shape) + rng.normal(0, 0.03, (68, 3))
            pose = Pose(np.tile(np.eye(3), (frames, 1, 1)), np.full(frames, 60.0), np.full((frames, 2), 128.0))
            path = f"{source}/{speaker}_{n}.safetensors"
            Clip.write(
                folder / path,
                [np.zeros((8, 8, 3), np.uint8)] * frames,
                np.zeros((frames, 468, 3)),
                landmarks,
                pose,
                {"source": source, "clip": f"{speaker}_{n}", "speaker": speaker, "fps": "25"},
                wave[: frames * SAMPLES_PER_FRAME],
            )
            split: Split = "validation" if speaker == "a04" else "train"
            entries.append(Entry(source, f"{speaker}_{n}", speaker, frames, path, split))
    write_index(folder, entries)
    return entries
