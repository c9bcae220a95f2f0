"""Compare generated video with real video of people whom no training saw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from avatard.models.evaluation import image_metrics
from avatard.models.evaluation.faceres import FaceRes
from avatard.models.evaluation.inception import Inception
from avatard.models.evaluation.motion_metrics import best_lag, closures, correlation, jerk, lip_error
from avatard.models.evaluation.reference_clip import ReferenceClip
from avatard.models.evaluation.syncnet import SyncNet
from avatard.models.face.mesh import FaceMesh, FaceTracker
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import MESH_TO_68, MESH_VERTICES, MOUTH, mouth_opening
from avatard.models.pixels import Pictures
from avatard.models.training.clips import Clip
from avatard.models.training.perceptual import Perceptual

Floats = NDArray[np.floating]
Figures = dict[str, float | None]

#: Expensive measures look at every third frame.
STRIDE = 3


class VideoEvaluator:
    """Measures generated videos, by variant, and averages over clips.

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

    def compare(self, variant: str, frames: Pictures, real: ReferenceClip, **more: float) -> None:
        """Measure frames `[N, 256, 256, 3]` that should equal those of `real`; `more` are figures known already.

        The portrait's own frame counts only in the changes over time: to repeat it is no merit.
        """
        others = np.delete(np.arange(len(frames)), real.reference)
        some = others[::STRIDE]
        points, target = self.track(frames)[others][:, MESH_TO_68, :2], real.points[others]
        self._record(
            variant,
            psnr=image_metrics.psnr(frames[others], real.frames[others]),
            ssim=image_metrics.ssim(frames[some], real.frames[some]),
            mouth_psnr=image_metrics.mouth_psnr(frames[others], real.frames[others], target),
            mouth_opening_error_px=np.abs(mouth_opening(points) - mouth_opening(target)),
            lmd_percent_iod=image_metrics.landmark_distances(points, target),
            mouth_lmd_percent_iod=image_metrics.landmark_distances(points, target, MOUTH),
        )
        self._measure_inside(variant, frames[some], real.points[some])
        self._measure(variant, frames, frames[some], real.portrait, more)

    def _measure_inside(self, variant: str, frames: Pictures, points: Floats) -> None:
        """Measure texture between the lips, where the real video shows something there."""
        inside = image_metrics.inside_lips(points, *frames.shape[1:3])
        self._record(
            variant,
            checkerboard=image_metrics.checkerboard(frames, inside),
            horizontal_detail=image_metrics.horizontal_detail(frames, inside),
        )
        shown = inside.sum(axis=(1, 2)) >= image_metrics.LEAST_INSIDE
        if self._perceptual is not None and shown.any():
            crops = image_metrics.mouth_crops(frames[shown], points[shown])
            self._record(variant, mouths=self._perceptual.texture(crops))

    def measure(self, variant: str, frames: Pictures, portrait: NDArray[np.uint8], **more: float) -> None:
        """Measure frames that have no target: likeness to the portrait `[256, 256, 3]`, sharpness, steadiness."""
        self._measure(variant, frames, frames[::STRIDE], portrait, more)

    def _measure(
        self, variant: str, frames: Pictures, some: Pictures, portrait: NDArray[np.uint8], more: Mapping[str, float]
    ) -> None:
        self._record(variant, cpbd=image_metrics.cpbd(some), changes=image_metrics.warped_differences(frames))
        if self._faceres is not None:
            features, likeness = self._faceres.features(some), self._faceres.features(portrait[None])[0]
            self._record(variant, features=features, csim=image_metrics.cosine(features, likeness))
        if self._inception is not None:
            self._record(variant, inception=self._inception.features(some))
        self._record(variant, **{name: np.array([value]) for name, value in more.items()})

    def measure_lip_sync(self, variant: str, frames: Pictures, audio: NDArray[np.int16]) -> None:
        """Measure how well the lips of aligned frames `[N, 256, 256, 3]` fit their voice (16 kHz)."""
        if self._syncnet is not None:
            distance, confidence = self._syncnet.errors(frames, audio)
            self._record(variant, lse_d=np.array([distance]), lse_c=np.array([confidence]))

    def _record(self, variant: str, **values: Floats) -> None:
        for name, value in values.items():
            self._measured[variant][name].append(value)

    def mouth_psnr(self, frames: Pictures, real: ReferenceClip) -> float:
        """The mean of only that measure."""
        others = np.delete(np.arange(len(frames)), real.reference)
        return float(image_metrics.mouth_psnr(frames[others], real.frames[others], real.points[others]).mean())

    def has(self, variant: str) -> bool:
        """Whether anything of this variant was measured."""
        return variant in self._measured

    def figures(self, variant: str, reference: str = "real") -> Figures:
        """The means over all that was measured; `None` where a measure is undefined."""
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


class MotionEvaluator:
    """Compares the mouths in generated pictures with real ones, by variant."""

    def __init__(self, evaluator: VideoEvaluator, morphable: MorphableModel):
        self._evaluator, self._morphable = evaluator, morphable
        self._pairs: dict[str, list[tuple[Floats, Floats]]] = defaultdict(list)

    def compare(self, variant: str, frames: Pictures, real: Clip, offset: int) -> None:
        """Track the faces in `frames`, of which frame n + offset belongs to the real clip's frame n."""
        meshes = self._evaluator.track(frames)
        found = ~np.isnan(meshes).any(axis=(1, 2))
        if found.mean() < 0.5:
            return  # without a face `csim` says enough
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
