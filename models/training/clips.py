"""Prepared training clips: what `scripts/prepare_data.py` writes and the training scripts read.

A clip is one safetensors file: JPEG crops (`frames`, `frame_offsets`), the 468-point mesh in crop pixels (`points`
[N, 468, 3]), frontal landmarks (`landmarks` [N, 68, 3], offsets from the mean face), the pose (`rotation` [N, 3, 3],
`scale` [N], `translation` [N, 2]) and, for videos, `audio` (int16 at 16 kHz; sample 0 is the start of frame 0) and
`registered` [N, 68, 2]: where the pictures show the landmarks (see `models/training/registration.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from avatard.errors import UserError
from avatard.models import checkpoint
from avatard.models.face.pose import Pose
from avatard.models.face.topology import MESH_TO_68

JPEG_QUALITY = 95

#: LRW-AR speaker clusters that no training ever sees.
VALIDATION_SPEAKERS = frozenset("a04 a11 a13 a14 b04 b05 b08 b09 b11 b12 b18 b21 b22".split())


#: Sources that the shipped weights learned from; people of any other source are new to them.
SHIPPED_SOURCES = frozenset({"lrw_ar", "grid_s1", "officials", "synthetic", "factory"})


def is_validation(source: str, speaker: str) -> bool:
    """Whether a person is kept out of training: fixed clusters of LRW-AR, an eighth of the people of other sources."""
    if source == "lrw_ar":
        return speaker in VALIDATION_SPEAKERS
    if source == "grid_s1":  # one person
        return False
    if source in ("factory", "factory_validation"):  # made of other sources' people, on both sides of the split
        return source == "factory_validation"
    return hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest()[0] < "2"


class DataError(UserError):
    """Training data that are missing or do not fit."""


@dataclass(frozen=True)
class Entry:
    """One line of a data folder's `index.json`."""

    source: str
    clip: str
    speaker: str
    frames: int
    path: str  # relative to the folder

    @property
    def validation(self) -> bool:
        """Whether the clip's person is kept out of training."""
        return is_validation(self.source, self.speaker)


def unseen_people(entries: Iterable[Entry], shipped: bool) -> list[Entry]:
    """The entries whose people are new to some weights: validation people; to `shipped` weights other sources' too."""
    return [entry for entry in entries if entry.validation or (shipped and entry.source not in SHIPPED_SOURCES)]


def in_turns(entries: Iterable[Entry]) -> Iterator[Entry]:
    """One clip of each person, then a second one of each, and so on; people and clips in alphabetical order."""
    people: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda e: (e.source, e.speaker, e.clip)):
        people[entry.source, entry.speaker].append(entry)
    for turn in range(max(map(len, people.values()), default=0)):
        yield from (clips[turn] for clips in people.values() if turn < len(clips))


def read_index(folder: Path) -> list[Entry]:
    """The clips of a prepared folder. Raises `DataError` where it was not prepared."""
    index = folder / "index.json"
    if not index.is_file():
        raise DataError(f"{folder} has no index.json: run scripts/prepare_data.py first")
    return [Entry(**row) for row in json.loads(index.read_text())]


def write_index(folder: Path, entries: Sequence[Entry]) -> None:
    """Write `index.json`, one clip a line."""
    rows = ",\n".join(json.dumps(asdict(entry)) for entry in entries)
    (folder / "index.json").write_text(f"[\n{rows}\n]\n")


class Clip:
    """A prepared clip; tensors are read and frames decoded when they are asked for."""

    def __init__(self, path: Path):
        self.path = path

    def _tensor(self, name: str) -> NDArray[Any]:
        with safe_open(self.path, framework="numpy") as file:
            tensor: NDArray[Any] = file.get_tensor(name)
            return tensor

    @cached_property
    def points(self) -> NDArray[np.float32]:
        """Mesh `[N, 468, 3]` in crop pixels (z: relative depth)."""
        return self._tensor("points")

    @cached_property
    def registered(self) -> NDArray[np.float32]:
        """The 68 points `[N, 68, 2]` in crop pixels, in step with the pictures; made clips are so from the start."""
        with safe_open(self.path, framework="numpy") as file:
            if "registered" not in file.keys():  # noqa: SIM118
                return self.points[:, MESH_TO_68, :2]
        return self._tensor("registered")

    @cached_property
    def landmarks(self) -> NDArray[np.float32]:
        """Frontal offsets from the mean face `[N, 68, 3]`, unit: its interocular distance."""
        return self._tensor("landmarks")

    @cached_property
    def pose(self) -> Pose:
        """Poses `[N]` in the crop."""
        return Pose(self._tensor("rotation"), self._tensor("scale"), self._tensor("translation"))

    @cached_property
    def audio(self) -> NDArray[np.int16]:
        """Samples `[T]`, 16 kHz mono."""
        return self._tensor("audio")

    @cached_property
    def _jpegs(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return self._tensor("frames"), self._tensor("frame_offsets")

    def __len__(self) -> int:
        return len(self._jpegs[1]) - 1

    def frame(self, n: int) -> NDArray[np.uint8]:
        """Frame n, `[256, 256, 3]` RGB."""
        data, offsets = self._jpegs
        picture = cv2.imdecode(data[offsets[n] : offsets[n + 1]], cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError(f"{self.path}: frame {n} is damaged")
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)

    def frames(self, indices: Sequence[int] | None = None) -> NDArray[np.uint8]:
        """Frames `[N, 256, 256, 3]` RGB, all or those asked for."""
        return np.stack([self.frame(n) for n in (range(len(self)) if indices is None else indices)])

    @staticmethod
    def write(
        path: Path,
        frames: Sequence[NDArray[np.uint8]],
        points: NDArray[np.floating],
        landmarks: NDArray[np.floating],
        pose: Pose,
        metadata: dict[str, str],
        audio: NDArray[np.int16] | None = None,
        registered: NDArray[np.floating] | None = None,
    ) -> None:
        """Write a clip; the file appears whole or not at all."""
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        jpegs = [cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)[1].ravel() for frame in frames]
        tensors: dict[str, NDArray[Any]] = {
            "frames": np.concatenate(jpegs),
            "frame_offsets": np.cumsum([0, *(len(jpeg) for jpeg in jpegs)], dtype=np.int64),
            "points": points.astype(np.float32),
            "landmarks": landmarks.astype(np.float32),
            "rotation": pose.rotation.astype(np.float32),
            "scale": pose.scale.astype(np.float32),
            "translation": pose.translation.astype(np.float32),
        }
        if audio is not None:
            tensors["audio"] = audio
        if registered is not None:
            tensors["registered"] = registered.astype(np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, tensors, metadata)
