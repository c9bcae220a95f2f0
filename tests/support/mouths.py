"""A tiny folder of made-up mouths, as `scripts/prepare_mouths.py` writes it."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from avatard.models.training.mouth.dataset import Mouth, part_of, write_mouths

#: Names of which the first falls to training, the second to validation, the third to the test people.
PEOPLE = {
    part: [name for name in (f"person{n}" for n in range(400)) if part_of("talk", name) == part][:3]
    for part in ("train", "validation", "test")
}


def mouth(person: str, opening: float = 0.2, seed: int = 0) -> Mouth:
    """Skin with a dark mouth and light teeth in it."""
    height, width = Mouth.STORED
    rng = np.random.default_rng(seed)
    picture = np.full((height, width, 3), (200, 150, 130), np.uint8)
    angle = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    tall = 58 * opening
    lips = np.stack([width / 2 - 40 * np.cos(angle), height / 2 - tall * np.sin(angle)], axis=-1)
    y, x = np.indices((height, width))
    inside = ((x - width / 2) / 40) ** 2 + ((y - height / 2) / tall) ** 2 < 1
    picture[inside] = np.where((x // 7 % 5 > 0)[..., None], 220, 60)[inside].astype(np.uint8)
    noisy = picture + rng.normal(0, 3, picture.shape)
    return Mouth(noisy.clip(0, 255).astype(np.uint8), lips.astype(np.float32), person, opening, 0.0, 1.0)


def write_opened(folder: Path) -> None:
    """Closed portraits of training and test people as MC-VDM opened them: grey, without teeth."""
    found = []
    for part in ("train", "test"):
        names = [name for name in (f"closed{n}" for n in range(400)) if part_of("faces", name) == part][:2]
        for n, name in enumerate(names):
            for opening in (0.05, 0.2, 0.3):
                ring = mouth(name, opening, seed=n)
                grey = np.full_like(ring.picture, 90)
                found.append(replace(ring, picture=grey, lips=np.repeat(ring.lips, 2, axis=0)))
    (folder / "opened").mkdir(parents=True, exist_ok=True)
    write_mouths(folder / "opened" / "faces.safetensors", found)


def write_folder(folder: Path) -> None:
    """Six people of speech and, for training and validation, three portraits each."""
    talk, portraits = [], []
    for names in PEOPLE.values():
        for n, name in enumerate(names):
            talk += [mouth(name, opening, seed=n) for opening in (0.05, 0.15, 0.3)]
    for part in ("train", "validation"):
        names = [name for name in (f"face{n}" for n in range(400)) if part_of("faces", name) == part][:3]
        portraits += [mouth(name, 0.18, seed=n) for n, name in enumerate(names)]
    folder.mkdir(parents=True, exist_ok=True)
    write_mouths(folder / "talk.safetensors", talk)
    write_mouths(folder / "faces.safetensors", portraits)
