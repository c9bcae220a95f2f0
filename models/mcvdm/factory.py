"""Data factory: animates portraits with expressions of people in videos, so that many people are seen talking.

Expression, lids and head pose come from tracked clips; the inside of the mouth is the driving frame's, matched in colour.
Points, landmarks and poses are those of the mesh that was drawn, hence exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose, rotation_matrix
from avatard.models.mcvdm.rig import Mouth, Portrait, Rig, lid_gap, lip_gap, mouth_width, shrink, with_openings

Array = NDArray[np.floating]
Image = NDArray[np.uint8]

#: Where skin is plain: its colour is a face's colour.
CHEEKS: Final = np.array([50, 280, 205, 425, 101, 330, 117, 346])
#: Inner lips further apart than this (mean, interocular distances) make an open mouth.
OPEN_MOUTH: Final = 0.04
#: How open an eye is in the frames of a blink, as a share of its usual opening.
BLINK: Final = np.array([0.75, 0.3, 0.05, 0.05, 0.35, 0.7, 0.9])


@dataclass(frozen=True)
class Performance:
    """What one person did in front of a camera: N frames."""

    expression: Array  # [N, K_exp] coefficients
    lips: Array  # [N, 9] opening of the inner lips, interocular distances
    lids: Array  # [N, 2] opening of the eyes as a share of the person's usual opening
    pose: Pose  # [N]
    points: Array  # [N, 468, 3] crop pixels
    frames: Image  # [N, 256, 256, 3] RGB
    mouth_width: float  # of the person at rest, interocular distances

    @classmethod
    def of(cls, frames: Image, points: Array, model: MorphableModel) -> Performance:
        """From a tracked clip: frames `[N, 256, 256, 3]` and meshes `[N, 468, 3]` in crop pixels."""
        canonical, pose = model.frontal(points)
        _, expression = model.fit(canonical - model.mean)
        rest = model.mean + model.neutral(np.median(canonical, axis=0) - model.mean)
        lids = lid_gap(canonical).mean(axis=-1)
        usual = np.percentile(lids, 80, axis=0)
        return cls(expression, lip_gap(canonical), lids / usual, pose, points, frames, mouth_width(rest))

    def part(self, chosen: range) -> Performance:
        """Some of its frames."""
        n = slice(chosen.start, chosen.stop, chosen.step)
        return Performance(
            self.expression[n], self.lips[n], self.lids[n], self.pose[n], self.points[n], self.frames[n], self.mouth_width
        )


@dataclass(frozen=True)
class Variation:
    """How a portrait's clip differs from the performance that drives it."""

    shape: Array  # [468, 3] added to the face, canonical
    own_expression: float  # share of the portrait's own expression (a smile) that stays
    gain: float  # of the expression
    rotation: Array  # [N, 3, 3] after the performer's own
    translation: Array  # [N, 2] pixels
    scale: Array  # [N] factor
    blinks: Array  # [N] factor of the lids' opening
    colours: Image  # [1, 256, 3] look-up table
    closed_first: bool  # the first frame has its mouth closed even if the portrait has not

    @classmethod
    def draw(cls, rng: np.random.Generator, frames: int, model: MorphableModel) -> Variation:
        """A random one for a clip of so many frames."""
        shape = np.zeros_like(model.mean)
        if rng.random() < 0.6:
            alpha = np.clip(rng.normal(0, 0.6, min(12, len(model.identity))), -1.2, 1.2)
            shape = np.tensordot(alpha, model.identity[: len(alpha)], axes=1)
        time = np.arange(frames) / 25.0
        sway = [
            size * rng.normal() + 0.5 * size * rng.normal() * np.sin(2 * np.pi * (rng.uniform(0.2, 0.9) * time + rng.random()))
            for size in (6.0, 3.5, 2.5, 3.0, 2.5, 0.02)
        ]
        yaw, pitch, roll, x, y, log_scale = (np.clip(s, -2 * n, 2 * n) for s, n in zip(sway, (7, 4.5, 3, 4, 3, 0.03), strict=True))
        blinks = np.ones(frames)
        if rng.random() < 0.35:
            start = int(rng.integers(0, max(1, frames - len(BLINK))))
            part = BLINK[: frames - start]
            blinks[start : start + len(part)] = part
        level = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, 0.1)) * np.exp(rng.normal(0, 0.04, 3))
        if rng.random() < 0.5:
            level = np.repeat(np.linspace(0, 1, 256)[:, None], 3, axis=1)
        return cls(
            shape,
            float(rng.uniform(0, 0.4)),
            float(rng.uniform(0.9, 1.35)),
            np.stack([rotation_matrix(*angles) for angles in zip(yaw, pitch, roll, strict=True)]),
            np.stack([x, y], axis=-1),
            np.exp(log_scale),
            blinks,
            np.clip(255 * level + 0.5, 0, 255).astype(np.uint8)[None],
            bool(rng.random() < 0.4),
        )


@dataclass(frozen=True)
class Take:
    """An animated clip; frame 0 is the portrait itself, the others follow the performance at its rate."""

    frames: list[Image]  # [256, 256, 3] RGB each
    canonical: Array  # [N, 468, 3]
    pose: Pose  # [N]


def skin(image: Image, points: Array) -> Array:
    """Mean colour `[3]` of a face's cheeks."""
    x, y = np.clip(np.round(points[CHEEKS, :2]).astype(int), 0, image.shape[0] - 1).T
    colour: Array = cv2.blur(image, (5, 5))[y, x].astype(np.float64).mean(axis=0)
    return colour


def animate(rig: Rig, model: MorphableModel, portrait: Portrait, performance: Performance, v: Variation) -> Take:
    """The portrait gives the performance: N + 1 frames for N of the performance."""
    _, own = model.fit(portrait.canonical - model.mean)
    base = portrait.rest + v.shape + v.own_expression * np.tensordot(own, model.expression, axes=1)
    eyes = lid_gap(portrait.canonical)
    size = float(np.clip(mouth_width(portrait.rest) / performance.mouth_width, 0.85, 1.2)) * v.gain
    light = skin(portrait.crop, portrait.pose.project(portrait.canonical)) / skin(performance.frames[0], performance.points[0])
    gain = np.clip(light, 0.55, 1.5)
    middle = np.median(performance.pose.rotation, axis=0)
    at, unit = portrait.pose, np.median(performance.pose.scale)
    faces, poses, mouths = [portrait.canonical + v.shape], [at], [Mouth.own(portrait)]
    if v.closed_first or lip_gap(portrait.canonical).mean() < OPEN_MOUTH:
        faces[0] = with_openings(base, np.zeros(9), None) if v.closed_first else faces[0]
    for n, expression in enumerate(performance.expression):
        face = base + v.gain * np.tensordot(expression, model.expression, axes=1)
        lids = eyes * np.clip(performance.lids[n] * v.blinks[n], 0.04, 1.03)[:, None]
        faces.append(with_openings(face, np.maximum(performance.lips[n] * size, 0), lids))
        turned = v.rotation[n] @ performance.pose.rotation[n] @ middle.T @ at.rotation
        moved = (performance.pose.translation[n] - np.median(performance.pose.translation, axis=0)) * at.scale / unit
        scale = at.scale * v.scale[n] * performance.pose.scale[n] / unit
        u, _, vt = np.linalg.svd(turned)
        poses.append(Pose(u @ vt, scale, at.translation + moved + v.translation[n]))
        mouths.append(Mouth.of(performance.frames[n], performance.points[n], gain))
    frames = [shrink(rig.render(portrait, *take)) for take in zip(faces, poses, [v.shape] * len(faces), mouths, strict=True)]
    return Take(
        [cv2.LUT(frame, v.colours).astype(np.uint8, copy=False) for frame in frames],
        np.stack(faces),
        Pose(*(np.stack([getattr(pose, name) for pose in poses]) for name in ("rotation", "scale", "translation"))),
    )
