"""Animates portraits with the expressions of people in videos, so that many people are seen talking.

Expression, lids and head pose come from tracked clips; the inside of the mouth is the driving frame's, matched in
colour, mostly with a smiling portrait's teeth. Points, landmarks and poses are what the tracker says of such faces in
videos: those of the drawn mesh, but for lips and lids, where the tracker sees more opening than there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose, rotation_matrix
from avatard.models.face.topology import LID_CREASES, UPPER_LIDS
from avatard.models.training.synthesis.mesh_warp import (
    MeshWarper,
    PortraitMesh,
    in_texture,
    lid_gap,
    lip_gap,
    mouth_width,
    shrink,
    with_openings,
)
from avatard.models.training.synthesis.mouth_interior import (
    LUMA,
    Mouth,
    PlacedTeeth,
    Teeth,
    portrait_skin,
    relight,
    skin,
)

Array = NDArray[np.floating]
Image = NDArray[np.uint8]

#: A head turns this far (degrees) from the pose in which it was photographed; the other cheek is not in the picture.
MAX_TURN: Final = 9.0
#: Inner lips further apart than this (mean, interocular distances) make an open mouth.
OPEN_MOUTH: Final = 0.04
#: How much of the tracked opening between the lips is really open: the tracker's inner lips lie in the lips' flesh.
VISIBLE_OPENING: Final = 0.83
#: Opening of an eye as the tracker sees it → as it is, in shares of the usual: it calls closed eyes half open.
SEEN_LIDS: Final = (0.5, 0.85, 1.03)
TRUE_LIDS: Final = (0.04, 0.85, 1.03)
#: Portraits whose lids cannot be closed believably keep them at least this far open.
OPEN_LIDS: Final = 0.8
#: Tracked opening of an eye in the frames of a blink.
BLINK: Final = np.array([0.85, 0.62, 0.5, 0.5, 0.64, 0.8, 0.93])
#: Skin above the lids darker than this share of the cheeks' luminance is shadow, lashes or a frame of glasses.
LID_LIGHT: Final = 0.55


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
            self.expression[n],
            self.lips[n],
            self.lids[n],
            self.pose[n],
            self.points[n],
            self.frames[n],
            self.mouth_width,
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
    blink: Array  # [N] tracked opening of the eyes, at most
    colours: Image  # [1, 256, 3] look-up table
    teeth_light: float  # factor of the teeth's brightness
    closed_first: bool  # the first frame has its mouth closed even if the portrait has not

    @classmethod
    def draw(cls, rng: np.random.Generator, frames: int, model: MorphableModel) -> Variation:
        """A random one for a clip of so many frames."""
        shape = np.zeros_like(model.mean)
        if rng.random() < 0.6:
            alpha = np.clip(rng.normal(0, 0.45, min(12, len(model.identity))), -0.9, 0.9)
            shape = np.tensordot(alpha, model.identity[: len(alpha)], axes=1)
        time = np.arange(frames) / 25.0
        sway = [
            size * rng.normal()
            + 0.5 * size * rng.normal() * np.sin(2 * np.pi * (rng.uniform(0.2, 0.9) * time + rng.random()))
            for size in (6.0, 3.5, 2.5, 3.0, 2.5, 0.02)
        ]
        yaw, pitch, roll, x, y, log_scale = (
            np.clip(s, -2 * n, 2 * n) for s, n in zip(sway, (7, 4.5, 3, 4, 3, 0.03), strict=True)
        )
        blink = np.full(frames, SEEN_LIDS[-1])
        if rng.random() < 0.3:
            start = int(rng.integers(0, max(1, frames - len(BLINK) + 1)))
            part = BLINK[: frames - start]
            blink[start : start + len(part)] = part
        level = np.linspace(0, 1, 256)[:, None] ** np.exp(rng.normal(0, 0.1)) * np.exp(rng.normal(0, 0.025, 3))
        if rng.random() < 0.5:
            level = np.repeat(np.linspace(0, 1, 256)[:, None], 3, axis=1)
        return cls(
            shape,
            float(rng.uniform(0, 0.4)),
            float(rng.uniform(0.9, 1.3)),
            np.stack([rotation_matrix(*angles) for angles in zip(yaw, pitch, roll, strict=True)]),
            np.stack([x, y], axis=-1),
            np.exp(log_scale),
            blink,
            np.clip(255 * level + 0.5, 0, 255).astype(np.uint8)[None],
            float(rng.uniform(0.75, 1.0)),
            bool(rng.random() < 0.4),
        )


@dataclass(frozen=True)
class AnimatedClip:
    """An animated clip; frame 0 is the portrait itself, the others follow the performance at its rate."""

    frames: list[Image]  # [256, 256, 3] RGB each
    canonical: Array  # [N, 468, 3]
    pose: Pose  # [N]


def can_blink(portrait: PortraitMesh) -> bool:
    """Whether plain skin lies above the portrait's lids, which would cover its eyes."""
    above = portrait.canonical[UPPER_LIDS] + 0.8 * (portrait.canonical[LID_CREASES] - portrait.canonical[UPPER_LIDS])
    x, y = np.round(in_texture(portrait.pose.project(above)[..., :2])).astype(int).reshape(-1, 2).T
    luma = cv2.blur(portrait.texture, (3, 3))[y, x] @ LUMA
    return bool(luma.min() > LID_LIGHT * portrait_skin(portrait) @ LUMA)


def within_sight(turn: Array, at: Pose) -> Array:
    """A turn `[3, 3]` of a head held back where it would show what the portrait, taken at a pose, does not."""
    yaw, pitch, roll = Pose(turn, np.ones(()), np.zeros(2)).yaw_pitch_roll
    hidden = at.yaw_pitch_roll[0]
    away = np.sign(yaw) == np.sign(hidden)
    most = MAX_TURN if away else max(MAX_TURN - 0.7 * abs(hidden), 3.0)
    return rotation_matrix(most * np.tanh(yaw / most), MAX_TURN * np.tanh(pitch / MAX_TURN), float(roll))


def animate(
    warper: MeshWarper,
    model: MorphableModel,
    portrait: PortraitMesh,
    performance: Performance,
    v: Variation,
    teeth: Teeth | None,
) -> AnimatedClip:
    """The portrait gives the performance: N + 1 frames for N of the performance.

    `teeth` replace the performer's own in the mouth's inside.
    """
    _, own = model.fit(portrait.canonical - model.mean)
    base = portrait.rest + v.shape + v.own_expression * np.tensordot(own, model.expression, axes=1)
    eyes, lowest = lid_gap(portrait.canonical), SEEN_LIDS[0] if can_blink(portrait) else OPEN_LIDS
    size = float(np.clip(mouth_width(portrait.rest) / performance.mouth_width, 0.85, 1.12)) * v.gain
    colour = portrait_skin(portrait)
    gain = relight(skin(performance.frames[0], performance.points[0]), colour, (0.55, 1.5), 0.7)
    middle = np.median(performance.pose.rotation, axis=0)
    at, unit = portrait.pose, np.median(performance.pose.scale)
    first: Array = portrait.canonical + v.shape
    if v.closed_first and lip_gap(portrait.canonical).mean() > OPEN_MOUTH:
        first = with_openings(base, np.zeros(9), None)
    faces, drawn, poses = [first], [first], [at]
    for n, expression in enumerate(performance.expression):
        face = base + v.gain * np.tensordot(expression, model.expression, axes=1)
        lips = np.maximum(performance.lips[n] * size, 0)
        lids = np.clip(min(float(performance.lids[n].mean()), float(v.blink[n])), lowest, SEEN_LIDS[-1])
        faces.append(with_openings(face, lips, eyes * lids))
        drawn.append(with_openings(face, VISIBLE_OPENING * lips, eyes * np.interp(lids, SEEN_LIDS, TRUE_LIDS)))
        turn = within_sight(v.rotation[n] @ performance.pose.rotation[n] @ middle.T, at)
        moved = (performance.pose.translation[n] - np.median(performance.pose.translation, axis=0)) * at.scale / unit
        scale = at.scale * v.scale[n] * performance.pose.scale[n] / unit
        poses.append(Pose(turn @ at.rotation, scale, at.translation + moved + v.translation[n]))
    placed = None
    if teeth is not None:
        rest = portrait.rest + v.shape
        width = mouth_width(rest) / mouth_width(teeth.portrait.rest)
        placed = PlacedTeeth(teeth, teeth.place(rest, np.stack(drawn[1:])), width, v.teeth_light)
    mouths = [Mouth.own(portrait)]
    mouths += [
        Mouth.of(f, p, gain, colour, placed) for f, p in zip(performance.frames, performance.points, strict=True)
    ]
    frames = []
    for seen, pose, mouth in zip(drawn, poses, mouths, strict=True):
        image, opening = warper.render(portrait, seen, pose, v.shape, mouth.points)
        mouth.paint(image, opening, pose)
        frames.append(shrink(image))
    return AnimatedClip(
        [cv2.LUT(frame, v.colours).astype(np.uint8, copy=False) for frame in frames],
        np.stack(faces),
        Pose(*(np.stack([getattr(pose, name) for pose in poses]) for name in ("rotation", "scale", "translation"))),
    )
