"""Training clips on a device: landmarks and poses of all frames, and their pictures as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.models.face.pose import Pose
from avatard.models.face.topology import mouth_opening
from avatard.models.training.bundle import is_bundle, read_bundle
from avatard.models.training.clips import Clip, DataError, Entry, read_index
from avatard.timebase import CROP_SIDE

Floats = NDArray[np.floating]
Integers = NDArray[np.int64]
Pictures = NDArray[np.uint8]

#: Threads that decode pictures; OpenCV's decoders run beside each other.
DECODERS = 16


class Filmed(Protocol):
    """A clip with pictures, from wherever: see `Clip`."""

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """Frontal offsets from the mean face `[N, 68, 3]`."""

    @property
    def pose(self) -> Pose:
        """Poses `[N]` in the crop."""

    @property
    def registered(self) -> NDArray[np.float32]:
        """Where the pictures show the points `[N, 68, 2]`."""

    def frames(self, indices: Sequence[int] | None = None) -> Pictures:
        """Frames `[N, 256, 256, 3]` RGB."""


def clips_in(data: Path) -> list[tuple[Entry, Filmed]]:
    """The clips of a prepared folder or of a bundle, with more than one frame. Raises `DataError` or `BundleError`."""
    clips: list[tuple[Entry, Filmed]] = (
        [*read_bundle(data)]
        if is_bundle(data)
        else [(entry, Clip(data / entry.path)) for entry in read_index(data) if entry.frames > 1]
    )
    return [(entry, clip) for entry, clip in clips if entry.frames > 1]


class Footage:
    """The clips of some people.

    Args:
        clips: at least one.
        mean_68: the 3DMM's mean face `[68, 3]`.
        device: where landmarks and poses go, and pictures.
        resident: whether all pictures lie on the device as bytes (196 KB each); else each is decoded when it is needed.
    """

    def __init__(
        self, clips: Sequence[tuple[Entry, Filmed]], mean_68: Floats, device: torch.device, *, resident: bool
    ) -> None:
        self.entries = [entry for entry, _ in clips]
        self.device = device
        self._clips = [clip for _, clip in clips]
        faces = [np.asarray(clip.landmarks + mean_68) for clip in self._clips]
        poses = [clip.pose for clip in self._clips]
        #: Frames of each clip, and where they begin among all frames.
        self.lengths: Integers = np.array([len(face) for face in faces])
        self.starts: Integers = np.cumsum(self.lengths) - self.lengths
        #: The frame of each clip that is the photograph of an animated portrait comes before this one.
        self.firsts: Integers = np.array([int(entry.animated) for entry in self.entries])
        openings = [mouth_opening(face) for face in faces]
        #: Frames of each clip, the most closed mouth first; and the same without photographs, which lead their clip.
        self.by_opening = np.concatenate([np.argsort(opening) for opening in openings])
        self.by_opening_filmed = np.concatenate(
            [
                np.concatenate([np.arange(first), first + np.argsort(opening[first:])])
                for first, opening in zip(self.firsts, openings, strict=True)
            ]
        )
        self.face = self._on_device(np.concatenate(faces))
        self.camera = self._on_device(
            np.concatenate([np.asarray(pose.scale)[:, None, None] * pose.rotation[:, :2] for pose in poses])
        )
        self.origin = self._on_device(np.concatenate([pose.translation for pose in poses]))
        self.registered = self._on_device(np.concatenate([clip.registered for clip in self._clips]))
        self._bytes = self._decoded_all() if resident else None

    def _on_device(self, values: Floats) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(self.device)

    def _decoded_all(self) -> Tensor:
        """All pictures, `[F, 3, 256, 256]`."""
        size = (int(self.lengths.sum()), 3, CROP_SIDE, CROP_SIDE)
        pictures = torch.empty(size, dtype=torch.uint8, device=self.device)
        with ThreadPoolExecutor(DECODERS) as pool:
            # One clip after the other: a map over all of them would hold all their pictures on the host.
            for first in range(0, len(self._clips), DECODERS):
                some = range(first, min(first + DECODERS, len(self._clips)))
                for n, frames in zip(some, pool.map(lambda n: self._clips[n].frames(), some), strict=True):
                    start = int(self.starts[n])
                    pictures[start : start + len(frames)] = _planar(frames).to(self.device)
        return pictures

    def pictures(self, frames: Integers) -> Tensor:
        """The pictures of frames `[N]`, counted over all clips, uint8 `[N, 3, 256, 256]`."""
        if self._bytes is not None:
            return self._bytes[self.index(frames)]
        clips = np.searchsorted(self.starts, frames, side="right") - 1
        decoded = [
            self._clips[clip].frames([int(frame - self.starts[clip])])
            for clip, frame in zip(clips, frames, strict=True)
        ]
        return _planar(np.concatenate(decoded)).to(self.device)

    def index(self, frames: Integers) -> Tensor:
        """Numbers of frames on the device."""
        return torch.from_numpy(np.array(frames)).to(self.device)

    def project(self, faces: Tensor, frames: Tensor) -> Tensor:
        """Faces `[..., 68, 3]` under the head poses of frames `[...]`: pixels `[..., 68, 2]`."""
        return faces @ self.camera[frames].transpose(-1, -2) + self.origin[frames][..., None, :]


def footage_of(
    data: Path, split: str, mean_68: Floats, device: torch.device, *, resident: bool, sources: Sequence[str] = ()
) -> Footage:
    """The clips of one split; of some `sources` if they are named.

    Raises:
        DataError: there are none, or a named source has none.
    """
    chosen = [
        (entry, clip)
        for entry, clip in clips_in(data)
        if entry.split == split and (not sources or entry.source in sources)
    ]
    missing = sorted(set(sources) - {entry.source for entry, _ in chosen})
    if missing:
        raise DataError(f"no {'training' if split == 'train' else split} clips of {', '.join(missing)} in {data}")
    if not chosen:
        raise DataError(f"no {split} clips in {data}")
    return Footage(chosen, mean_68, device, resident=resident)


def _planar(frames: Pictures) -> Tensor:
    """`[N, H, W, 3]` → `[N, 3, H, W]`."""
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
