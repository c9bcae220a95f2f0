"""Training clips in a few files of limited size, for a machine to which only such files go.

A bundle is `index.json` and `part_000.bin`, `part_001.bin`, …. A part is the motion of some clips (landmarks, poses and
registered points, quantised, as differences from frame to frame, LZMA) and, after it, the pictures of each as a small
H.264 file of their own. The index says what is where, and has a SHA-256 of every part and of itself. Writing needs
PyAV; reading needs numpy and OpenCV alone.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.pose import Pose
from avatard.models.training.clips import Entry
from avatard.models.training.packing import (
    LANDMARK_STEPS,
    BundleError,
    differences,
    from_differences,
    packed,
    unpacked,
)
from avatard.models.training.splits import Split
from avatard.timebase import CROP_SIDE, FPS

Pictures = NDArray[np.uint8]

FORMAT: Final = "avatard clips 1"
INDEX: Final = "index.json"
#: Constant quality of the pictures.
CRF: Final = 20
#: Steps of registered points (pixels) and of poses: rotation vector (radians), log scale, translation (pixels).
REGISTERED_STEP: Final = 1 / 16
POSE_STEPS: Final = np.array([1e-4, 1e-4, 1e-4, 2e-4, 1 / 64, 1 / 64], np.float32)
#: Numbers of a frame's motion: landmarks, registered points, pose.
NUMBERS: Final = 68 * 3 + 68 * 2 + 6


@dataclass(frozen=True)
class PackedMotion:
    """The quantised motion of a clip: differences, `[N, NUMBERS]`."""

    moved: NDArray[np.int16]

    @classmethod
    def of(cls, landmarks: NDArray[np.floating], registered: NDArray[np.floating], pose: Pose) -> PackedMotion:
        """Quantise."""
        turn = np.stack([cv2.Rodrigues(np.asarray(r, np.float64))[0][:, 0] for r in pose.rotation])
        numbers = np.concatenate([turn, np.log(pose.scale)[:, None], pose.translation], 1)
        parts = [
            differences(landmarks, LANDMARK_STEPS),
            differences(registered, REGISTERED_STEP),
            differences(numbers, POSE_STEPS),
        ]
        return cls(np.concatenate([part.reshape(len(part), -1) for part in parts], 1))

    @property
    def _parts(self) -> list[NDArray[np.int16]]:
        return np.split(self.moved, [68 * 3, 68 * 5], axis=1)

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """`[N, 68, 3]`."""
        return from_differences(self._parts[0].reshape(-1, 68, 3), LANDMARK_STEPS)

    @property
    def registered(self) -> NDArray[np.float32]:
        """`[N, 68, 2]`."""
        return from_differences(self._parts[1].reshape(-1, 68, 2), REGISTERED_STEP)

    @property
    def pose(self) -> Pose:
        """Poses `[N]`."""
        numbers = from_differences(self._parts[2], POSE_STEPS).astype(np.float64)
        rotation = np.stack([cv2.Rodrigues(turn)[0] for turn in numbers[:, :3]])
        return Pose(rotation, np.exp(numbers[:, 3]), numbers[:, 4:])


@dataclass(frozen=True)
class ClipToPack:
    """A clip on its way into a bundle."""

    entry: Entry
    motion: PackedMotion
    video: bytes  # H.264 in MP4
    side: int = CROP_SIDE  # of its pictures


@dataclass(frozen=True)
class _Place:
    """Where a clip is, in the index."""

    source: str
    clip: str
    speaker: str
    split: Split
    animated: bool
    frames: int
    side: int  # of its pictures
    part: int
    first: int  # of its frames in the part's motion
    start: int  # of its video in the part, and bytes of it
    size: int


def encode_video(frames: Pictures, crf: int = CRF) -> bytes:
    """RGB pictures `[N, H, W, 3]`, sides even, as an MP4 file with H.264."""
    import av  # machines that only read bundles lack it

    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf), "preset": "medium"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for n, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_video(video: bytes) -> Pictures | None:
    """The inverse of `encode_video`, within its losses; None if there is not a single picture."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(video)
        file.flush()
        capture = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        frames = []
        while (read := capture.read())[0]:
            frames.append(np.asarray(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB), np.uint8))
        capture.release()
    return np.stack(frames) if frames else None


def write_bundle(folder: Path, clips: Iterable[ClipToPack], part_bytes: int) -> list[Path]:
    """Write clips in parts of at most `part_bytes`; the files.

    Raises:
        BundleError: a clip is larger than a part, or the folder has a bundle.
    """
    if is_bundle(folder) or any(folder.glob("part_*.bin")):
        raise BundleError(f"{folder} has a bundle: give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    places: list[_Place] = []
    files: list[Path] = []
    for number, group in enumerate(_parts(clips, part_bytes)):
        motion = lzma.compress(packed(np.concatenate([clip.motion.moved for clip in group])))
        place, first = len(motion), 0
        for clip in group:
            entry, frames = clip.entry, len(clip.motion.moved)
            places.append(
                _Place(
                    *(entry.source, entry.clip, entry.speaker, entry.split, entry.animated),
                    *(frames, clip.side, number, first, place, len(clip.video)),
                )
            )
            place, first = place + len(clip.video), first + frames
        files.append(folder / f"part_{number:03}.bin")
        files[-1].write_bytes(b"".join([motion, *(clip.video for clip in group)]))
    parts = [[path.stat().st_size, _digest(path.read_bytes())] for path in files]
    index: dict[str, Any] = {"format": FORMAT, "parts": parts, "clips": [asdict(p) for p in places]}
    index["digest"] = _digest(_canonical(index))
    files.append(folder / INDEX)
    files[-1].write_text(json.dumps(index, indent=1) + "\n")
    return files


def _parts(clips: Iterable[ClipToPack], part_bytes: int) -> Iterator[list[ClipToPack]]:
    """Groups of clips that fit into a part each."""
    group: list[ClipToPack] = []
    filled = overhead = 1024  # LZMA's headers; it never needs more than that beyond the numbers themselves
    for clip in clips:
        size = clip.motion.moved.nbytes + clip.motion.moved.nbytes // 1000 + len(clip.video)
        if overhead + size > part_bytes:
            raise BundleError(
                f"{clip.entry.source}/{clip.entry.clip} takes {size:,} bytes, a part has {part_bytes:,}: cut the clip"
            )
        if filled + size > part_bytes:
            yield group
            group, filled = [], overhead
        group.append(clip)
        filled += size
    if group:
        yield group


def is_bundle(folder: Path) -> bool:
    """Whether the index of a bundle, and not that of prepared data, is there."""
    index = folder / INDEX
    return index.is_file() and index.read_bytes()[:200].lstrip().startswith(b"{")


@dataclass(frozen=True)
class PackedClip:
    """A clip of a bundle: what `Clip` has but mesh and sound."""

    part: Path
    name: str
    motion: PackedMotion
    side: int
    start: int
    size: int

    @cached_property
    def landmarks(self) -> NDArray[np.float32]:
        """Frontal offsets from the mean face `[N, 68, 3]`, unit: its interocular distance."""
        return self.motion.landmarks

    @cached_property
    def registered(self) -> NDArray[np.float32]:
        """The 68 points `[N, 68, 2]` in pixels of the crop of 256², in step with the pictures."""
        return self.motion.registered

    @cached_property
    def pose(self) -> Pose:
        """Poses `[N]` in the crop of 256²."""
        return self.motion.pose

    def pictures(self) -> Pictures:
        """All frames as they were packed, `[N, side, side, 3]` RGB. Raises `BundleError`."""
        with self.part.open("rb") as file:
            file.seek(self.start)
            frames = decode_video(file.read(self.size))
        if frames is None or len(frames) != len(self.motion.moved):
            raise BundleError(f"{self.part}: {self.name} cannot be decoded: copy the file again")
        return frames

    def frames(self, indices: Sequence[int] | None = None) -> Pictures:
        """Frames `[N, 256, 256, 3]` RGB, all or those asked for."""
        pictures = self.pictures()
        chosen = pictures if indices is None else pictures[list(indices)]
        return chosen if self.side == CROP_SIDE else np.stack([_halved(picture) for picture in chosen])


def _halved(picture: Pictures) -> Pictures:
    return np.asarray(cv2.resize(picture, (CROP_SIDE, CROP_SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def read_bundle(folder: Path) -> list[tuple[Entry, PackedClip]]:
    """The clips of a bundle; their pictures are decoded when they are asked for.

    Raises:
        BundleError: there is none, or a file is missing, cut off or altered.
    """
    if not is_bundle(folder):
        raise BundleError(f"{folder} has no bundle: scripts/pack_data.py writes one")
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        digest = index.pop("digest")
        if digest != _digest(_canonical(index)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BundleError(f"{path} is cut off or altered: copy it again") from None
    if index["format"] != FORMAT:
        raise BundleError(f"{path} is of the format {index['format']!r}, expected {FORMAT!r}: pack the data again")
    motions: list[NDArray[np.int16]] = []
    for number, (size, digest) in enumerate(index["parts"]):
        part = folder / f"part_{number:03}.bin"
        if not part.is_file():
            raise BundleError(f"{part} is missing: copy it too")
        data = part.read_bytes()
        if len(data) != size:
            raise BundleError(f"{part} has {len(data):,} bytes of {size:,}: copy it again")
        if _digest(data) != digest:
            raise BundleError(f"{part} is altered: copy it again")
        motions.append(unpacked(lzma.LZMADecompressor().decompress(data), np.int16, (-1, NUMBERS)))
    found = []
    for row in index["clips"]:
        place = _Place(**row)
        name = f"{place.source}/{place.clip}"
        entry = Entry(
            place.source, place.clip, place.speaker, place.frames, f"{name}.safetensors", place.split, place.animated
        )
        motion = PackedMotion(motions[place.part][place.first : place.first + place.frames])
        part = folder / f"part_{place.part:03}.bin"
        found.append((entry, PackedClip(part, name, motion, place.side, place.start, place.size)))
    return found


def _canonical(index: dict[str, Any]) -> bytes:
    return json.dumps(index, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
