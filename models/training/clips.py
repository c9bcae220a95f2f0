"""Prepared training clips: what `scripts/prepare_data.py` writes and the training scripts read.

A clip is one safetensors file: JPEG crops (`frames`, `frame_offsets`; none in motion-only clips), perhaps the same ones
at 512² (`frames_512`, `frame_offsets_512`), the 468-point mesh in crop pixels (`points` [N, 468, 3]; not in clips that
came out of a bundle), frontal landmarks (`landmarks` [N, 68, 3], offsets from the mean face), the pose
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
from avatard.timebase import CROP_SIDE

JPEG_QUALITY = 95
#: Sides of crops; landmarks, meshes and poses are always in pixels of the first.
SIDES = (CROP_SIDE, 2 * CROP_SIDE)


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
    def metadata(self) -> dict[str, str]:
        """What is said of the clip."""
        with safe_open(self.path, framework="numpy") as file:
            return dict(file.metadata() or {})

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
    def _jpegs(self) -> dict[int, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        return {side: self._of_side(side) for side in self.sides}

    def _of_side(self, side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        suffix = _suffix(side)
        return self._tensor(f"frames{suffix}"), self._tensor(f"frame_offsets{suffix}")

    @cached_property
    def sides(self) -> list[int]:
        """The sides of the crops that are there; none in motion-only clips."""
        with safe_open(self.path, framework="numpy") as file:
            names = set(file.keys())
            found = [side for side in SIDES if f"frames{_suffix(side)}" in names]
            return [side for side in found if file.get_slice(f"frame_offsets{_suffix(side)}").get_shape()[0] > 1]

    def __len__(self) -> int:
        with safe_open(self.path, framework="numpy") as file:
            return int(file.get_slice("landmarks").get_shape()[0])

    def frame(self, n: int, side: int = CROP_SIDE) -> NDArray[np.uint8]:
        """Frame n, `[side, side, 3]` RGB. Raises `DataError` where it has no such crops."""
        if side not in self._jpegs:
            raise DataError(
                f"{self.path} has no crops of {side}²: run scripts/prepare_data.py again, with --crop {side}"
            )
        data, offsets = self._jpegs[side]
        picture = cv2.imdecode(data[offsets[n] : offsets[n + 1]], cv2.IMREAD_COLOR)
        if picture is None:
            raise ValueError(f"{self.path}: frame {n} is damaged")
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB).astype(np.uint8, copy=False)

    def frames(self, indices: Sequence[int] | None = None, side: int = CROP_SIDE) -> NDArray[np.uint8]:
        """Frames `[N, side, side, 3]` RGB, all or those asked for."""
        return np.stack([self.frame(n, side) for n in (range(len(self)) if indices is None else indices)])

    @staticmethod
    def write(
        path: Path,
        frames: Sequence[NDArray[np.uint8]],
        points: NDArray[np.floating] | None,
        landmarks: NDArray[np.floating],
        pose: Pose,
        metadata: dict[str, str],
        audio: NDArray[np.int16] | None = None,
        registered: NDArray[np.floating] | None = None,
        large: Sequence[NDArray[np.uint8]] = (),
    ) -> None:
        """Write a clip; the file appears whole or not at all. Without `frames` it has motion and sound only.

        `large` are the same crops at 512²; a clip without the mesh `points` has `registered` ones.
        """
        tensors: dict[str, NDArray[Any]] = {
            **_jpegs(frames, CROP_SIDE),
            **(_jpegs(large, SIDES[1]) if large else {}),
            "landmarks": landmarks.astype(np.float32),
            "rotation": pose.rotation.astype(np.float32),
            "scale": pose.scale.astype(np.float32),
            "translation": pose.translation.astype(np.float32),
        }
        if points is not None:
            tensors["points"] = points.astype(np.float32)
        if audio is not None:
            tensors["audio"] = audio
        if registered is not None:
            tensors["registered"] = registered.astype(np.float32)
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(path, tensors, metadata)


def _suffix(side: int) -> str:
    """Of the names of tensors with crops of a side."""
    return "" if side == CROP_SIDE else f"_{side}"


def _jpegs(frames: Sequence[NDArray[np.uint8]], side: int) -> dict[str, NDArray[Any]]:
    """Pictures as JPEG, one after the other, and where each ends."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    files = [cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), quality)[1].ravel() for frame in frames]
    return {
        f"frames{_suffix(side)}": np.concatenate([np.zeros(0, np.uint8), *files]),
        f"frame_offsets{_suffix(side)}": np.cumsum([0, *(len(file) for file in files)], dtype=np.int64),
    }
