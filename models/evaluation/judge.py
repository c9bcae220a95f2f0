"""Judging made video against real video of people that no training saw: what the evaluation scripts share."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.evaluation import image_metrics
from avatard.models.evaluation.faceres import FaceRes
from avatard.models.evaluation.inception import Inception
from avatard.models.evaluation.motion_metrics import best_lag, closures, correlation, jerk, lip_error
from avatard.models.evaluation.syncnet import SyncNet
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MESH_TO_68, MESH_VERTICES, MOUTH, eye_opening, mouth_opening
from avatard.models.training.clips import Clip, Entry
from avatard.models.training.perceptual import Perceptual
from avatard.timebase import CROP_SIDE

Pictures = NDArray[np.uint8]  # [N, 256, 256, 3]
Floats = NDArray[np.floating]
Figures = dict[str, float | None]

#: The costly measures look at every third frame.
STRIDE = 3
#: Share of the median opening above which eyes do not blink.
OPEN_EYES = 0.85


def unseen(folder: Path, entries: Iterable[Entry], count: int, least_frames: int = 16) -> list[Entry]:
    """At most `count` real clips of `dataset.unseen_people`, in turns: everyone comes once before anyone comes twice.

    Made clips (the data factory's) are no measure of anything, and faces that leave the picture are tracking errors.
    """
    people: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in sorted(entries, key=lambda e: (e.source, e.speaker, e.clip)):
        if entry.frames >= least_frames and not entry.source.startswith("factory"):
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
        reference = int(np.argmin(np.where(_awake(points), mouth_opening(points), np.inf)))
        return cls(name, clip, clip.frames(), points, reference)

    def from_the_start(self) -> Real:
        """The same with the first frame with open eyes as the portrait."""
        return replace(self, reference=int(np.argmax(_awake(self.points))))

    @property
    def portrait(self) -> NDArray[np.uint8]:
        """`[256, 256, 3]`."""
        portrait: NDArray[np.uint8] = self.frames[self.reference]
        return portrait


def _awake(points: Floats) -> NDArray[np.bool_]:
    """In which frames `[N, 68, 2]` the eyes do not blink, `[N]`."""
    eyes = eye_opening(points).mean(axis=-1)
    awake: NDArray[np.bool_] = eyes >= OPEN_EYES * np.median(eyes)
    return awake


class Judge:
    """Measures videos against real ones, and sums up over clips.

    Args:
        faceres: for identity; without it `csim` and `frechet` are undefined.
        hop: frames between two seams.
        inception: for `fid`.
        syncnet: for `lse_d` and `lse_c`.
        perceptual: for `mouth_frechet`.
    """

    def __init__(
        self,
        faceres: FaceRes | None,
        hop: int,
        inception: Inception | None = None,
        syncnet: SyncNet | None = None,
        perceptual: Perceptual | None = None,
    ):
        self._faceres, self._hop, self._mesh = faceres, hop, FaceMesh()
        self._inception, self._syncnet, self._perceptual = inception, syncnet, perceptual
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
            psnr=image_metrics.psnr(frames[others], real.frames[others]),
            ssim=image_metrics.ssim(frames[some], real.frames[some]),
            mouth_psnr=image_metrics.mouth_psnr(frames[others], real.frames[others], target),
            mouth_opening_error_px=np.abs(mouth_opening(points) - mouth_opening(target)),
            lmd_percent_iod=image_metrics.landmark_distances(points, target),
            mouth_lmd_percent_iod=image_metrics.landmark_distances(points, target, MOUTH),
        )
        self._judge_inside(variant, frames[some], real.points[some])
        self._judge_alone(variant, frames, frames[some], real.portrait, more)

    def _judge_inside(self, variant: str, frames: Pictures, points: Floats) -> None:
        """Texture between the lips, where the real video shows something there."""
        inside = image_metrics.inside_lips(points, *frames.shape[1:3])
        self._note(
            variant,
            checkerboard=image_metrics.checkerboard(frames, inside),
            horizontal_detail=image_metrics.horizontal_detail(frames, inside),
        )
        shown = inside.sum(axis=(1, 2)) >= image_metrics.LEAST_INSIDE
        if self._perceptual is not None and shown.any():
            self._note(
                variant, mouths=self._perceptual.texture(image_metrics.mouth_crops(frames[shown], points[shown]))
            )

    def judge_alone(self, variant: str, frames: Pictures, portrait: NDArray[np.uint8], **more: float) -> None:
        """Measure frames that have no target: likeness to the portrait `[256, 256, 3]`, sharpness, steadiness."""
        self._judge_alone(variant, frames, frames[::STRIDE], portrait, more)

    def _judge_alone(
        self, variant: str, frames: Pictures, some: Pictures, portrait: NDArray[np.uint8], more: Mapping[str, float]
    ) -> None:
        self._note(variant, cpbd=image_metrics.cpbd(some), changes=image_metrics.warped_differences(frames))
        if self._faceres is not None:
            features, likeness = self._faceres.features(some), self._faceres.features(portrait[None])[0]
            self._note(variant, features=features, csim=image_metrics.cosine(features, likeness))
        if self._inception is not None:
            self._note(variant, inception=self._inception.features(some))
        self._note(variant, **{name: np.array([value]) for name, value in more.items()})

    def judge_voice(self, variant: str, frames: Pictures, audio: NDArray[np.int16]) -> None:
        """Measure how well the lips of aligned frames `[N, 256, 256, 3]` fit their voice (16 kHz)."""
        if self._syncnet is not None:
            distance, confidence = self._syncnet.errors(frames, audio)
            self._note(variant, lse_d=np.array([distance]), lse_c=np.array([confidence]))

    def _note(self, variant: str, **values: Floats) -> None:
        for name, value in values.items():
            self._measured[variant][name].append(value)

    def mouth_psnr(self, frames: Pictures, real: Real) -> float:
        """The mean of only that measure."""
        others = np.delete(np.arange(len(frames)), real.reference)
        return float(image_metrics.mouth_psnr(frames[others], real.frames[others], real.points[others]).mean())

    def knows(self, variant: str) -> bool:
        """Whether anything of this variant was judged."""
        return variant in self._measured

    def figures(self, variant: str, reference: str = "real") -> Figures:
        """The means over all that was judged; `None` where a measure is undefined."""
        measured = self._measured[variant]
        flat = {name: np.concatenate(values) for name, values in measured.items()}
        changes, features, inception = flat.pop("changes"), flat.pop("features", None), flat.pop("inception", None)
        mouths = flat.pop("mouths", None)
        figures = {name: float(np.nanmean(value)) for name, value in flat.items() if not np.isnan(value).all()}
        real = self._measured.get(reference)
        if real:
            still = float(np.concatenate(real["changes"]).mean())
            figures["flicker_ratio"] = float(changes.mean()) / still if still else math.nan
        figures["seam_ratio"] = image_metrics.seam_ratio(measured["changes"], self._hop)
        if features is not None and real:
            figures["frechet"] = image_metrics.frechet(features, np.concatenate(real["features"]))
        if inception is not None and real:
            figures["fid"] = image_metrics.frechet(inception, np.concatenate(real["inception"]))
        if mouths is not None and real and len(mouths) > 1:
            figures["mouth_frechet"] = image_metrics.frechet(mouths, np.concatenate(real["mouths"]))
        return {name: value if math.isfinite(value) else None for name, value in figures.items()}


class MotionJudge:
    """Compares mouths in made pictures with real ones, by variant."""

    def __init__(self, judge: Judge, morphable: MorphableModel):
        self._judge, self._morphable = judge, morphable
        self._pairs: dict[str, list[tuple[Floats, Floats]]] = defaultdict(list)

    def compare(self, variant: str, frames: Pictures, real: Clip, offset: int) -> None:
        """Note the faces found in `frames`, of which frame n + offset belongs to the real clip's frame n."""
        meshes = self._judge.track(frames)
        found = ~np.isnan(meshes).any(axis=(1, 2))
        if found.mean() < 0.5:
            return  # no face: what there is to say about that, likeness says
        canonical, _ = self._morphable.frontal(meshes[found].astype(np.float64))
        landmarks = np.empty((len(frames), 68, 3))
        landmarks[found] = self._morphable.landmarks(canonical)
        landmarks[~found] = landmarks[found].mean(axis=0)
        first, stop = max(0, offset), min(len(frames), len(real.landmarks) + offset)
        self._pairs[variant].append((real.landmarks[first - offset : stop - offset], landmarks[first:stop]))

    def figures(self, variant: str) -> Figures:
        """The means over clips."""
        pairs = self._pairs[variant]
        if not pairs:
            return {}
        rest = self._morphable.mean_68
        openings = [[mouth_opening(pair[side] + rest) for pair in pairs] for side in (0, 1)]
        # Each clip about its own mean: how far a mouth opens differs more between people than within a sentence.
        real, made = ([opening - opening.mean() for opening in side] for side in openings)
        at_best, lag = best_lag(real, made)
        shaken = [np.concatenate([jerk(pair[side]).ravel() for pair in pairs]).std() for side in (0, 1)]
        closed = closures(real, made, [[] for _ in pairs], [0] * len(pairs))["bilabial_closure"]
        return {
            "lmd_percent_iod": float(
                np.mean([100 * np.linalg.norm((b - a)[..., :2], axis=-1).mean() for a, b in pairs])
            ),
            "mouth_lmd_percent_iod": float(np.mean([lip_error(a, b) for a, b in pairs])),
            "mouth_lmd_centred": float(np.mean([lip_error(a, b, centred=True) for a, b in pairs])),
            "mouth_r": correlation(np.concatenate(real), np.concatenate(made)),
            "mouth_r_best_lag": at_best,
            "lag_frames": float(lag),
            "closure": None if np.isnan(closed) else closed,
            "jerk_ratio": float(shaken[1] / shaken[0]) if shaken[0] else None,
        }


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
