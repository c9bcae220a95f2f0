"""Judging made video against real video of people that no training saw: what the evaluation scripts share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models import metrics
from avatard.models.dataset import Clip, Entry
from avatard.models.face.crop import CROP_SIDE
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.topology import MESH_TO_68, MESH_VERTICES, eye_opening, mouth_opening
from avatard.models.faceres import FaceRes

Pictures = NDArray[np.uint8]  # [N, 256, 256, 3]
Floats = NDArray[np.floating]
Figures = dict[str, float | None]

#: The costly measures look at every third frame.
STRIDE = 3
#: Share of the median opening above which eyes do not blink.
OPEN_EYES = 0.85


def unseen(folder: Path, entries: Iterable[Entry], count: int, least_frames: int = 16) -> list[Entry]:
    """At most `count` real clips of validation people, in turns: everyone is there before anyone is there twice.

    Made clips (the data factory's) are no measure of anything, and faces that leave the picture are tracking errors.
    """
    people: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda e: (e.source, e.speaker, e.clip)):
        if entry.validation and entry.frames >= least_frames and not entry.source.startswith("factory"):
            people[entry.source, entry.speaker].append(entry)
    turns = range(max(map(len, people.values()), default=0))
    ordered = (clips[turn] for turn in turns for clips in people.values() if turn < len(clips))
    return list(islice((entry for entry in ordered if _stays_inside(folder / entry.path)), count))


def _stays_inside(path: Path) -> bool:
    points = Clip(path).points[:, MESH_TO_68, :2]
    return bool((points >= 0).all() and (points < CROP_SIDE).all())


@dataclass(frozen=True)
class Real:
    """A real video and the frame that is its portrait: of those with open eyes the one with the most closed mouth."""

    name: str
    clip: Clip
    frames: Pictures
    points: Floats  # [N, 68, 2], pixels
    reference: int

    @classmethod
    def read(cls, folder: Path, entry: Entry) -> Real:
        """From a prepared folder."""
        clip = Clip(folder / entry.path)
        points = clip.points[:, MESH_TO_68, :2]
        name = f"{entry.source}-{entry.speaker}-{entry.clip}"
        eyes = eye_opening(points).mean(axis=-1)
        awake = eyes >= OPEN_EYES * np.median(eyes)
        return cls(name, clip, clip.frames(), points, int(np.argmin(np.where(awake, mouth_opening(points), np.inf))))

    @property
    def portrait(self) -> NDArray[np.uint8]:
        """`[256, 256, 3]`."""
        portrait: NDArray[np.uint8] = self.frames[self.reference]
        return portrait


class Judge:
    """Measures videos against real ones, and sums up over clips.

    Args:
        faceres: for identity; without it `csim` and `frechet` are undefined.
        hop: frames between two seams.
    """

    def __init__(self, faceres: FaceRes | None, hop: int):
        self._faceres, self._hop, self._mesh = faceres, hop, FaceMesh()
        self._measured: dict[str, dict[str, list[Floats]]] = defaultdict(lambda: defaultdict(list))

    def track(self, frames: Pictures) -> Floats:
        """Meshes `[N, 468, 3]` found in the frames, pixels; NaN where there is no face."""
        tracker = FaceTracker(self._mesh)
        found = [tracker(frame) for frame in frames]
        nothing = np.full((MESH_VERTICES, 3), np.nan, np.float32)
        return np.stack([nothing if mesh is None else mesh for mesh in found])

    def judge(self, variant: str, frames: Pictures, real: Real, **more: float) -> None:
        """Measure frames `[N, 256, 256, 3]` that should equal those of `real`; `more` are figures known already.

        The portrait's own frame counts in nothing but the changes over time: whoever repeats it has no error there.
        """
        others = np.delete(np.arange(len(frames)), real.reference)
        some = others[::STRIDE]
        points, target = self.track(frames)[others][:, MESH_TO_68, :2], real.points[others]
        self._note(
            variant,
            psnr=metrics.psnr(frames[others], real.frames[others]),
            ssim=metrics.ssim(frames[some], real.frames[some]),
            mouth_psnr=metrics.mouth_psnr(frames[others], real.frames[others], target),
            mouth_opening_error_px=np.abs(mouth_opening(points) - mouth_opening(target)),
            lmd_percent_iod=metrics.landmark_distances(points, target),
            mouth_lmd_percent_iod=metrics.landmark_distances(points, target, metrics.MOUTH),
        )
        self._judge_alone(variant, frames, frames[some], real.portrait, more)

    def judge_alone(self, variant: str, frames: Pictures, portrait: NDArray[np.uint8], **more: float) -> None:
        """Measure frames that have no target: likeness to the portrait `[256, 256, 3]`, sharpness, steadiness."""
        self._judge_alone(variant, frames, frames[::STRIDE], portrait, more)

    def _judge_alone(
        self, variant: str, frames: Pictures, some: Pictures, portrait: NDArray[np.uint8], more: Mapping[str, float]
    ) -> None:
        self._note(variant, cpbd=metrics.cpbd(some), changes=metrics.warped_differences(frames))
        if self._faceres is not None:
            features, likeness = self._faceres.features(some), self._faceres.features(portrait[None])[0]
            self._note(variant, features=features, csim=metrics.cosine(features, likeness))
        self._note(variant, **{name: np.array([value]) for name, value in more.items()})

    def _note(self, variant: str, **values: Floats) -> None:
        for name, value in values.items():
            self._measured[variant][name].append(value)

    def mouth_psnr(self, frames: Pictures, real: Real) -> float:
        """The mean of only that measure."""
        others = np.delete(np.arange(len(frames)), real.reference)
        return float(metrics.mouth_psnr(frames[others], real.frames[others], real.points[others]).mean())

    def knows(self, variant: str) -> bool:
        """Whether anything of this variant was judged."""
        return variant in self._measured

    def figures(self, variant: str, reference: str = "real") -> Figures:
        """The means over all that was judged; `None` where a measure is undefined."""
        measured = self._measured[variant]
        flat = {name: np.concatenate(values) for name, values in measured.items()}
        changes, features = flat.pop("changes"), flat.pop("features", None)
        figures = {name: float(np.nanmean(value)) for name, value in flat.items() if not np.isnan(value).all()}
        real = self._measured.get(reference)
        if real:
            still = float(np.concatenate(real["changes"]).mean())
            figures["flicker_ratio"] = float(changes.mean()) / still if still else math.nan
        figures["seam_ratio"] = metrics.seam_ratio(measured["changes"], self._hop)
        if features is not None and real:
            figures["frechet"] = metrics.frechet(features, np.concatenate(real["features"]))
        return {name: value if math.isfinite(value) else None for name, value in figures.items()}


# -- pictures to look at ---------------------------------------------------------------------------------------------


def labelled(picture: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """The picture with a line of text in its upper left corner."""
    marked = picture.copy()
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(marked, text, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, width, cv2.LINE_AA)
    return marked


def sheet(path: Path, rows: Mapping[str, Sequence[NDArray[np.uint8]]], side: int = 160) -> None:
    """Write a PNG of labelled rows of square pictures, all rows of one length."""
    strips = []
    for name, pictures in rows.items():
        small = [np.asarray(cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA), np.uint8) for p in pictures]
        strips.append(np.concatenate([labelled(small[0], name), *small[1:]], axis=1))
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(strips), cv2.COLOR_RGB2BGR))


def side_by_side(videos: Mapping[str, Pictures]) -> Pictures:
    """Videos of one length beside each other, each with its name: `[N, 256, 256 · K, 3]`."""
    columns = [np.stack([labelled(frame, name) for frame in frames]) for name, frames in videos.items()]
    return np.concatenate(columns, axis=2)
