"""The inside of a mouth: what the driving frame shows there, and sharp upper teeth from a smiling portrait."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.pose import Pose
from avatard.models.face.topology import INNER_LIP_RING, LOWER_INNER, MOUTH_CORNERS, UPPER_INNER
from avatard.models.training.synthesis.mesh_warp import (
    OVERSAMPLING,
    Opening,
    PortraitMesh,
    in_texture,
    mouth_width,
)
from avatard.models.training.synthesis.piecewise_affine import affine

Array = NDArray[np.floating]
Image = NDArray[np.uint8]

#: Where skin is plain: its colour is a face's colour.
CHEEKS: Final = np.array([50, 280, 205, 425, 101, 330, 117, 346])
#: The middle of the upper lip's lower edge.
UPPER_LIP: Final = 13
LUMA: Final = np.array([0.30, 0.59, 0.11], np.float32)
#: Teeth are brighter than these shares of the skin's luminance (ramp) ...
BRIGHT: Final = (0.42, 0.75)
#: ... and less red than this: (R - G) / max (ramp).
RED: Final = (0.30, 0.17)
#: Mouths have no more blue than this share of their green; studio lights and video make them violet.
MAX_BLUE: Final = 1.03
#: Colour of the cavity, as a share of the skin's.
CAVITY: Final = np.array([0.26, 0.15, 0.14], np.float32)
#: Tongues and palates have no more green and blue than this share of their red.
MAX_PALE: Final = 0.68
#: A tongue is no brighter than this share of the skin's luminance.
MAX_TONGUE: Final = 0.4
#: Share of the inner lips' area, and texture pixels, that teeth worth showing cover.
MIN_TEETH: Final = (0.45, 350)


def skin(image: Image, points: Array) -> Array:
    """Mean colour `[3]` of a face's cheeks."""
    x, y = np.clip(np.round(points[CHEEKS, :2]).astype(int), 0, image.shape[0] - 1).T
    colour: Array = cv2.blur(image, (5, 5))[y, x].astype(np.float64).mean(axis=0)
    return colour


def portrait_skin(portrait: PortraitMesh) -> Array:
    """Mean colour `[3]` of a portrait's cheeks."""
    return skin(portrait.texture, in_texture(portrait.pose.project(portrait.canonical)[:, :2]))


def relight(skin_from: Array, skin_to: Array, limits: tuple[float, float], cast: float) -> Array:
    """Factor `[3]` that takes what is beside one skin to what would be beside another, its brightness within limits.

    Skins differ in colour more than the light on them does: only the share `cast` of the difference is taken over.
    """
    luma = float(skin_to @ LUMA) / float(skin_from @ LUMA)
    factor: Array = np.clip(luma, *limits) * (skin_to / skin_from / luma) ** cast
    return factor


def _ramp(value: Array, low: float, high: float) -> Array:
    t = np.clip((value - low) / (high - low), 0, 1)
    smooth: Array = t * t * (3 - 2 * t)
    return smooth


def teethness(pixels: Array, skin_colour: Array) -> Array:
    """How much pixels `[..., 3]` look like teeth beside that skin, 0..1: bright and not red."""
    luma: Array = pixels @ LUMA
    redness: Array = (pixels[..., 0] - pixels[..., 1]) / np.maximum(pixels.max(axis=-1), 1)
    reference = float(skin_colour @ LUMA)
    bright, pale = _ramp(luma, BRIGHT[0] * reference, BRIGHT[1] * reference), _ramp(-redness, -RED[0], -RED[1])
    likeness: Array = np.multiply(bright, pale)
    return likeness


def _without_teeth(pixels: Array, skin_colour: Array) -> Array:
    """Tongue and cavity of a mouth's pixels `[H, W, 3]`, softly, with the dark where its teeth were."""
    others = 1 - teethness(pixels, skin_colour).astype(np.float32)[..., None]
    known: Array = np.asarray(cv2.GaussianBlur(others, (0, 0), 4.0), np.float32)[..., None]
    soft = np.asarray(cv2.GaussianBlur(pixels * others, (0, 0), 4.0), np.float32) / np.maximum(known, 1e-3)
    soft[..., 1:] = np.minimum(soft[..., 1:], MAX_PALE * soft[..., :1])
    too_light = soft @ LUMA / (MAX_TONGUE * float(skin_colour @ LUMA))
    soft /= np.maximum(too_light, 1)[..., None]
    cavity: Array = skin_colour * CAVITY + _ramp(known, 0.3, 0.9) * (soft - skin_colour * CAVITY)
    return cavity


def _light_from_below(hole: Array) -> NDArray[np.float32]:
    """Factor `[H, W, 1]` of the light in an opening `[H, W, 1]`: the palate lies in the shadow, the tongue does not."""
    height = hole[..., 0].sum(axis=0)
    depth = np.cumsum(hole[..., 0], axis=0) / np.maximum(height, 1)
    light = cv2.GaussianBlur((0.45 + 0.7 * depth).astype(np.float32), (0, 0), 2.0)
    return np.asarray(light, np.float32)[..., None]


@dataclass(frozen=True)
class Teeth:
    """Upper teeth as a smiling portrait shows them."""

    portrait: PortraitMesh
    mask: NDArray[np.float32]  # over its texture, 0..1
    colour: Array  # [3] of the portrait's skin

    @classmethod
    def of(cls, portrait: PortraitMesh) -> Teeth | None:
        """A portrait's teeth, or None where it shows too little of them."""
        points = in_texture(portrait.pose.project(portrait.canonical)[:, :2])
        outline = points[INNER_LIP_RING]
        lips = np.zeros(portrait.texture.shape[:2], np.uint8)
        cv2.fillPoly(lips, [np.round(outline * 16).astype(np.int32)], 1, shift=4)
        within = np.asarray(cv2.erode(lips, np.ones((3, 3), np.uint8))) > 0
        colour = portrait_skin(portrait)
        mask = np.zeros(lips.shape, np.float32)
        mask[within] = teethness(portrait.texture[within].astype(np.float32), colour)
        area = float(mask.sum())
        if area < MIN_TEETH[1] or area < MIN_TEETH[0] * float(within.sum()):
            return None
        whole = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
        return cls(portrait, np.asarray(cv2.GaussianBlur(whole, (3, 3), 0.7), np.float32), colour)

    @property
    def yaw(self) -> float:
        """How far from the front they were seen, degrees, at least 0."""
        return float(abs(self.portrait.pose.yaw_pitch_roll[0]))

    def place(self, rest: Array, faces: Array) -> Array:
        """Where the teeth are placed in a head whose mouth at rest is `rest` `[468, 3]`: their origin `[3]`, canonical.

        They are at the height they have beside the resting upper lip, but never so low that a lip of `faces`
        `[N, 468, 3]` would rise above their upper edge.
        """
        size = mouth_width(rest) / mouth_width(self.portrait.rest)
        top = size * (self.portrait.canonical[UPPER_LIP, 1] - self.portrait.rest[UPPER_LIP, 1])
        lowest = (faces[:, UPPER_LIP, 1] - rest[UPPER_LIP, 1]).min()
        origin: Array = rest[UPPER_LIP] + np.array([0, min(0.0, lowest - top), 0])
        return origin

    def map(self, origin: Array, size: float, pose: Pose) -> NDArray[np.float32]:
        """Affine map `[3, 2]` from crop pixels of a head at a pose to pixels of the texture; see `place`."""
        frame = np.concatenate([np.zeros((1, 3)), np.eye(3)[:2]])
        there = in_texture(self.portrait.pose.project(self.portrait.rest[UPPER_LIP] + frame)[:, :2])
        here = pose.project(origin + size * frame)[:, :2]
        whole = affine(here[None], there[None])
        return np.asarray(whole[0], np.float32)


@dataclass(frozen=True)
class PlacedTeeth:
    """Teeth in a head."""

    teeth: Teeth
    origin: Array  # [3] canonical, see `Teeth.place`
    size: float  # factor
    light: float  # factor of their brightness


@dataclass(frozen=True)
class Mouth:
    """What is seen between the lips in one frame."""

    points: Array  # [468, 2] where `picture` has the inner lips, its pixels
    picture: Image  # [H, W, 3] of an open mouth
    gain: Array  # [3] factor of its colours
    skin: Array  # [3] of the portrait that it is painted into
    teeth: PlacedTeeth | None = None  # instead of the picture's own

    @classmethod
    def of(
        cls,
        picture: Image,
        points: Array,
        gain: Array,
        colour: Array,
        teeth: PlacedTeeth | None = None,
        inset: tuple[float, float] = (0.05, 0.18),
    ) -> Mouth:
        """From a picture and its mesh, without what the tracker's inner lips include of upper and lower lip."""
        tight = points[:, :2].copy()
        height = tight[LOWER_INNER] - tight[UPPER_INNER]
        tight[UPPER_INNER] += inset[0] * height
        tight[LOWER_INNER] -= inset[1] * height
        corners = list(MOUTH_CORNERS)
        tight[corners] += 0.08 * (tight[corners].mean(axis=0) - tight[corners])
        return cls(tight, picture, gain, colour, teeth)

    @classmethod
    def own(cls, portrait: PortraitMesh) -> Mouth:
        """The portrait's own mouth as photographed."""
        points = in_texture(portrait.pose.project(portrait.canonical)[:, :2])
        return cls(points, portrait.texture, np.ones(3), portrait_skin(portrait))

    def paint(self, image: Image, opening: Opening, pose: Pose, edge: int = 9) -> None:
        """Fill the opening of a rendered picture, with a soft shadow line where it meets the lips."""
        if not opening.inside.any():
            return
        rows, columns = (np.flatnonzero(opening.inside.any(axis=axis)) for axis in (1, 0))
        top, left = max(rows[0] - edge, 0), max(columns[0] - edge, 0)
        box = (slice(top, rows[-1] + edge), slice(left, columns[-1] + edge))
        hole, lips = opening.inside[box].astype(np.float32)[..., None], image[box].astype(np.float32)
        x, y = opening.x[box], opening.y[box]
        pixels = cv2.remap(self.picture, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)
        painted = pixels.astype(np.float32) * self.gain.astype(np.float32)
        painted[..., 2] = np.minimum(painted[..., 2], MAX_BLUE * painted[..., 1])
        if self.teeth is not None:
            painted = self._with_teeth(self.teeth, painted, hole, (left, top), pose)
        near = cv2.blur(1 - hole, (edge, edge))[..., None]
        around = cv2.blur((1 - hole) * lips, (edge, edge)) / np.maximum(near, 1e-3)
        soft = np.minimum(cv2.GaussianBlur(hole, (5, 5), 1.0)[..., None], hole)
        mixed = (1 - hole) * lips + (hole - soft) * 0.7 * around + soft * painted
        image[box] = np.clip(mixed + 0.5, 0, 255).astype(np.uint8)

    def _with_teeth(
        self, placed: PlacedTeeth, painted: Array, hole: Array, corner: tuple[int, int], pose: Pose
    ) -> Array:
        """Replace the picture's teeth by the dark, and draw the portrait's before it."""
        dark = _without_teeth(painted, self.skin) * _light_from_below(hole)
        height, width = painted.shape[:2]
        offset = np.array(corner) + 0.5
        across = ((np.arange(width) + offset[0]) / OVERSAMPLING - 0.5).astype(np.float32)
        down = ((np.arange(height) + offset[1]) / OVERSAMPLING - 0.5).astype(np.float32)
        teeth, a = placed.teeth, placed.teeth.map(placed.origin, placed.size, pose)
        x = a[0, 0] * across[None] + a[1, 0] * down[:, None] + a[2, 0]
        y = a[0, 1] * across[None] + a[1, 1] * down[:, None] + a[2, 1]
        pixels = cv2.remap(teeth.portrait.texture, x, y, cv2.INTER_CUBIC).astype(np.float32)
        alpha = cv2.remap(teeth.mask, x, y, cv2.INTER_LINEAR)[..., None]
        light = placed.light * relight(teeth.colour, self.skin, (0.6, 1.25), 0.33)
        shown: Array = dark + alpha * (pixels * light - dark)
        return shown
