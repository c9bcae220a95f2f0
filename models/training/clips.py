"""Prepared training clips: what `scripts/prepare_data.py` writes and the training scripts read.

A clip is one safetensors file: JPEG crops (`frames`, `frame_offsets`; none in motion-only clips), the 468-point mesh in
crop pixels (`points` [N, 468, 3]), frontal landmarks (`landmarks` [N, 68, 3], offsets from the mean face), the pose
(`rotation` [N, 3, 3], `scale` [N], `translation` [N, 2]) and, for videos, `audio` (int16 at 16 kHz; sample 0 is the
start of frame 0) and `registered` [N, 68, 2]: where the pictures show the landmarks (see
`models/training/registration.py`).
"""

from __future__ import annotations

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
from avatard.models.training.splits import Split, SplitTable

JPEG_QUALITY = 95


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
    split: Split = "train"
    animated: bool = False  # made of a portrait, which is its frame 0


def unseen_people(entries: Iterable[Entry], shipped: bool) -> list[Entry]:
    """The entries whose people are new to some weights: those kept out of training.

    To `shipped` weights, people of sources that they did not learn from are new as well.
    """
    known = SplitTable.load().shipped
    return [entry for entry in entries if entry.split != "train" or (shipped and entry.source not in known)]


def in_turns(entries: Iterable[Entry]) -> Iterator[Entry]:
    """One clip of each person, then a second one of each, and so on; people and clips in alphabetical order."""
    people: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda e: (e.source, e.speaker, e.clip)):
        people[entry.source, entry.speaker].append(entry)
    for turn in range(max(map(len, people.values()), default=0)):
        yield from (clips[turn] for clips in people.values() if turn < len(clips))


def read_index(folder: Path) -> list[Entry]:
    """The clips of a prepared folder; an index without splits is completed by `SplitTable`.

    Raises:
        DataError: the folder was not prepared.
    """
    index = folder / "index.json"
    if not index.is_file():
        raise DataError(f"{folder} has no index.json: run scripts/prepare_data.py first")
    table = SplitTable.load()
    entries = []
    for row in json.loads(index.read_text()):
        row.setdefault("split", table.split(row["source"], row["speaker"]))
        row.setdefault("animated", table.animated(row["source"]))
        entries.append(Entry(**row))
    return entries


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
        with safe_open(self.path, framework="numpy") as file:
            return int(file.get_slice("landmarks").get_shape()[0])

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
        """Write a clip; the file appears whole or not at all. Without `frames` it has motion and sound only."""
        quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        jpegs = [cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)[1].ravel() for frame in frames]
        tensors: dict[str, NDArray[Any]] = {
            "frames": np.concatenate([np.zeros(0, np.uint8), *jpegs]),
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
