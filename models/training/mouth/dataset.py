"""Mouths to train the mouth painter with: what `scripts/prepare_mouths.py` writes."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from avatard.models.training.clips import DataError

Floats = NDArray[np.floating]
Picture = NDArray[np.uint8]
Part = Literal["train", "validation", "test"]

#: Shares of people that are test people, and that are test or validation people; of sources with few people more.
TEST, HELD_OUT = 1 / 16, 1 / 8
FEW_TEST, FEW_HELD_OUT = 0.16, 0.25
MANY = frozenset({"generated", "officials"})

#: Share of the examples that are of speech, the rest are of portraits.
SPEECH = 0.55
#: A mouth counts in proportion to its opening (interocular distances over this), within limits: wide vowels are rare.
USUAL_OPENING, OPENING_LIMITS = 0.12, (0.3, 3.0)


#: JPEG qualities of pictures, and of what MC-VDM makes of them: that is blurred before anybody sees it.
PICTURE_QUALITY, MADE_QUALITY = 92, 80


def part_of(source: str, person: str) -> Part:
    """Which part of the data a person belongs to, whatever else is in it.

    It agrees with `splits.SplitTable` on sources without a rule: MC-VDM's validation people are never learned from.
    """
    share = int(hashlib.sha1(person.encode(), usedforsecurity=False).hexdigest()[:4], 16) / 0x10000
    test, held_out = (TEST, HELD_OUT) if source in MANY else (FEW_TEST, FEW_HELD_OUT)
    return "test" if share < test else "validation" if share < held_out else "train"


@dataclass(frozen=True)
class Mouth:
    """One open mouth."""

    #: Height and width of what is stored: the painter's window and room to shift, turn and scale it.
    STORED: ClassVar[tuple[int, int]] = (160, 224)

    picture: Picture  # [160, 224, 3] RGB
    lips: Floats  # [K, 2], once around the inner lips, pixels of the picture
    person: str
    opening: float  # interocular distances
    yaw: float  # degrees
    sharpness: float  # pixels of the source per pixel of the window
    made: Picture | None = None  # the same window as MC-VDM makes it from the clip's most closed frame


def write_mouths(path: Path, mouths: Sequence[Mouth]) -> None:
    """Write one source's mouths, pictures as JPEG; the file appears whole or not at all."""
    names = sorted({mouth.person for mouth in mouths})
    numbers = {name: n for n, name in enumerate(names)}
    made = {n: mouth.made for n, mouth in enumerate(mouths) if mouth.made is not None}
    tensors: dict[str, NDArray[Any]] = {
        "lips": np.stack([mouth.lips for mouth in mouths]).astype(np.float32),
        "person": np.array([numbers[mouth.person] for mouth in mouths], np.int32),
        "opening": np.array([mouth.opening for mouth in mouths], np.float32),
        "yaw": np.array([mouth.yaw for mouth in mouths], np.float32),
        "sharpness": np.array([mouth.sharpness for mouth in mouths], np.float32),
        "made_of": np.array(list(made), np.int32),
        **_packed("pictures", [mouth.picture for mouth in mouths], PICTURE_QUALITY),
        **_packed("made", list(made.values()), MADE_QUALITY),
    }
    partial = path.with_suffix(".part")
    save_file(tensors, partial, {"people": json.dumps(names)})
    partial.replace(path)


def read_mouths(path: Path) -> list[Mouth]:
    """What `write_mouths` wrote."""
    with safe_open(path, framework="numpy") as file:
        names = json.loads(file.metadata()["people"])
        columns = [file.get_tensor(key) for key in ("lips", "person", "opening", "yaw", "sharpness")]
        pictures = _unpacked("pictures", file)
        made = dict(zip(file.get_tensor("made_of").tolist(), _unpacked("made", file), strict=True))
    return [
        Mouth(picture, lips, names[person], float(opening), float(yaw), float(sharpness), made.get(n))
        for n, (picture, lips, person, opening, yaw, sharpness) in enumerate(zip(pictures, *columns, strict=True))
    ]


def _packed(name: str, pictures: Sequence[Picture], quality: int) -> dict[str, NDArray[Any]]:
    """RGB pictures as JPEG, one after the other, and where each ends."""
    files = [
        cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        for picture in pictures
    ]
    ends = np.cumsum([len(file) for file in files], dtype=np.int64)
    return {name: np.concatenate(files) if files else np.zeros(0, np.uint8), f"{name}_ends": ends}


def _unpacked(name: str, file: Any) -> list[Picture]:
    """The inverse, of an open safetensors file."""
    packed, ends = file.get_tensor(name), file.get_tensor(f"{name}_ends")
    parts = np.split(packed, ends[:-1]) if len(ends) else []
    return [np.asarray(cv2.cvtColor(_decoded(part), cv2.COLOR_BGR2RGB), np.uint8) for part in parts]


def _decoded(file: Picture) -> Picture:
    picture = cv2.imdecode(file, cv2.IMREAD_COLOR)
    if picture is None:
        raise DataError("mouths with a picture that cannot be read: run scripts/prepare_mouths.py again")
    return np.asarray(picture, np.uint8)


class Mouths:
    """The mouths of one part of the data.

    Args:
        folder: written by `scripts/prepare_mouths.py`.
        part: whose people are taken.
        sources: names of sources; all that are there by default.

    Raises:
        DataError: there are no mouths.
    """

    def __init__(self, folder: Path, part: Part, sources: Sequence[str] | None = None):
        self.mouths: list[Mouth] = []
        people: dict[tuple[str, str], list[int]] = defaultdict(list)
        for path in sorted(folder.glob("*.safetensors")):
            if sources is not None and path.stem not in sources:
                continue
            for mouth in read_mouths(path):
                if part_of(path.stem, mouth.person) == part:
                    people[path.stem, mouth.person].append(len(self.mouths))
                    self.mouths.append(mouth)
        if not self.mouths:
            raise DataError(f"{folder} has no mouths of {part} people: run scripts/prepare_mouths.py first")
        everyone = [np.array(numbers) for numbers in people.values()]
        self.count = len(everyone)
        #: All mouths of the person that a mouth belongs to.
        self.others = {int(n): numbers for numbers in everyone for n in numbers}
        talkers = [numbers for numbers in everyone if len(numbers) > 1]
        portraits = [numbers for numbers in everyone if len(numbers) == 1]
        self._groups = [group for group in (talkers, portraits) if group]

    def shares(self) -> Floats:
        """How often to draw each mouth: speech or portrait, then a person, then one of theirs; wide ones more often."""
        shares = np.zeros(len(self.mouths))
        parts = (SPEECH, 1 - SPEECH) if len(self._groups) == 2 else (1.0,)
        for group, part in zip(self._groups, parts, strict=True):
            # Who talks counts as a person; portraits, one mouth each, are compared with each other.
            people = group if len(group[0]) > 1 else [np.concatenate(group)]
            for numbers in people:
                openings = np.array([self.mouths[n].opening for n in numbers])
                weights = np.clip(openings / USUAL_OPENING, *OPENING_LIMITS)
                shares[numbers] = part / len(people) * weights / weights.sum()
        return shares


def opened_mouths(folder: Path) -> list[Mouth]:
    """What `scripts/prepare_mouths.py --motion` wrote beside the mouths of a folder: training people's, opened."""
    paths = sorted((folder / "opened").glob("*.safetensors"))
    return [mouth for path in paths for mouth in read_mouths(path) if part_of(path.stem, mouth.person) == "train"]
