"""Eyes that blink and look, drawn into the photograph before it is moved.

The video network moves lids by a few pixels of its 256 and squashes the iris under them. Here lids and eyeballs are
apart: the skin above an eye comes down over what it covers, with its lashes, and the iris turns between the lids.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.engine import affine
from avatard.models.face.topology import EYE_CORNERS, LOWER_LIDS, UPPER_LIDS

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Points = NDArray[np.float64]

# Lengths are in widths of the eye, from corner to corner, unless they say otherwise.
#: How far around the eye skin moves: beside the corners, above the upper lid and below the lower one.
BESIDE: Final = 0.12
ABOVE: Final = 0.3
BELOW: Final = 0.25
#: Of the way between the lids, what the lower one covers.
LOWER_SHARE: Final = 0.12
#: The clean skin that comes down begins so far above the lid's edge, where lashes and their shadow are.
LASHES: Final = 0.09
#: A crease, the rim of glasses or a brow is a line of that width, darker or brighter than both sides by that much (of
#: 255); the skin that moves begins below it, as far above the lid as that at least.
LINE_WIDTH: Final = 0.05
LINE_CONTRAST: Final = 28.0
NEAREST_LINE: Final = 0.14
WHOLE_LINE: Final = 0.65  # of the eye's width: less is hair
#: A lid that unrolls shows skin without lashes: within this above its edge it is smoothed along the eye by that much.
UNROLLED: Final = 0.2
SMOOTHED: Final = 0.05
#: It comes out of the fold and out of the brow's shadow into the light. Its shades, wider than the first, become the
#: colour of the skin below the eye times the second, by the third; no pixel gains more than the last.
SHADES: Final = 0.06
LIT: Final = 0.9
EVENED: Final = 0.85
MAX_LIGHT: Final = 2.5
#: Thickness of the line of lashes on a lid that comes down, and how dark it is.
LASH_LINE: Final = 0.035
LASH_STRENGTH: Final = 0.75
#: A lid that is closed by less than this has its own lashes; from there on they are drawn.
OWN_LASHES: Final = 0.3
#: Radius of an iris, and the distance from its centre beyond which nothing turns, in interocular distances.
IRIS: Final = 0.093
TURNS: Final = 0.22
#: Radius of an eyeball in interocular distances: 12 of 63 mm.
EYEBALL: Final = 0.19
MAX_GAZE: Final = 15.0  # degrees
#: Iris and white fade into the lids over this.
LID_FADE: Final = 0.06


class Eyes(NamedTuple):
    """What both eyes of a frame do."""

    closure: tuple[float, float] = (0.0, 0.0)  # right, left: 0 as photographed, 1 shut
    gaze: tuple[float, float] = (0.0, 0.0)  # degrees to the right of the picture and down, from where they look in it


#: As photographed.
REST: Final = Eyes()


class EyePainter:
    """Both eyes of a photograph.

    Args:
        source: the picture that frames are sampled from, `[H, W, 4]`; the eyes are drawn into it.
        points: the mesh in its pixels, `[468, 2]`.
        interocular: distance between the eyes in its pixels.
    """

    def __init__(self, source: Pixels, points: NDArray[np.floating], interocular: float) -> None:
        self._eyes = [_Eye(source, points, interocular, side) for side in range(2)]

    def __call__(self, eyes: Eyes) -> None:
        """Draw them as they are in the next frame."""
        for eye, closure in zip(self._eyes, eyes.closure, strict=True):
            eye.draw(closure, eyes.gaze)


class _Eye:
    """One eye: the patch of the picture around it, in its own coordinates.

    `s` runs from 0 at the left corner to 1 at the right one, `t` downwards at a right angle, in the same unit.
    """

    def __init__(self, source: Pixels, points: NDArray[np.floating], interocular: float, side: int) -> None:
        left, right = sorted(points[EYE_CORNERS[side]].astype(float).tolist())
        corner, axis = np.array(left), np.array(right) - np.array(left)
        width = float(np.hypot(*axis))
        along = axis / width
        down = np.array([-along[1], along[0]])
        to_eye = np.array([along, down]) / width
        to_eye = np.column_stack([to_eye, -to_eye @ corner])
        upper, lower = (affine.apply(to_eye, points[lids[side]]) for lids in (UPPER_LIDS, LOWER_LIDS))
        # The patch, as far as the picture goes.
        reach = affine.apply(
            affine.inverse(to_eye),
            np.array(
                [(s, t) for s in (-BESIDE, 1 + BESIDE) for t in (upper[:, 1].min() - ABOVE, lower[:, 1].max() + BELOW)]
            ),
        )
        size = np.array([source.shape[1], source.shape[0]])
        x0, y0 = np.clip(np.floor(reach.min(0)), 0, size - 1).astype(int)
        x1, y1 = np.clip(np.ceil(reach.max(0)) + 1, (x0 + 1, y0 + 1), size).astype(int)
        self._patch = source[y0:y1, x0:x1]
        self._photographed = self._patch.copy()
        x, y = np.meshgrid(np.arange(x0, x1, dtype=float), np.arange(y0, y1, dtype=float))
        own = affine.apply(to_eye, np.stack([x, y], -1))
        s, self._t = own[..., 0], own[..., 1].astype(np.float32)
        self._upper, self._lower = (_curve(lid, s) for lid in (upper, lower))
        self._lower = np.maximum(self._lower, self._upper)
        self._here = np.stack([x - x0, y - y0], -1).astype(np.float32)
        self._down = (down * width).astype(np.float32)
        # Skin at the patch's sides stays.
        self._side = _smooth((0.5 + BESIDE - np.abs(s - 0.5)) / BESIDE).astype(np.float32)
        self._above = _still(self._photographed, affine.inverse(to_eye) - np.array([[0, 0, x0], [0, 0, y0]]), upper, s)
        self._lash = _lash_colour(self._photographed, np.abs(self._t - self._upper) < LASHES)
        self._unrolled = self._smoothed(along, width)
        unit = interocular / width
        self._weight = self._turning(own, unit)
        self._degree = interocular * EYEBALL
        self._drawn: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def draw(self, closure: float, gaze: tuple[float, float]) -> None:
        """Draw the eye into the picture."""
        wanted = (round(min(max(closure, 0.0), 1.0), 3), round(gaze[0], 2), round(gaze[1], 2))
        if wanted == self._drawn:
            return
        self._drawn = wanted
        if wanted == (0.0, 0.0, 0.0):
            self._patch[...] = self._photographed
            return
        positions, skin = self._looking(wanted[1], wanted[2]), self._photographed
        if wanted[0] > 0:
            positions, edge, veil = self._closing(positions, wanted[0])
            ramp = min(1.0, wanted[0] / OWN_LASHES)
            skin = np.asarray(cv2.addWeighted(skin, 1 - ramp, self._unrolled, ramp, 0), np.uint8)
        # OpenCV's stubs do not know that both coordinates may come in one array.
        patch = cv2.remap(skin, positions, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
        if wanted[0] > 0:
            alpha = (veil * np.exp(-(((self._t - edge) / LASH_LINE) ** 2)))[..., None]
            patch = patch + (self._lash - patch) * alpha
        self._patch[...] = np.clip(np.rint(patch), 0, 255)

    def _looking(self, right: float, down: float) -> Floats:
        """Where the patch comes from when the eye turns by these degrees."""
        if not right and not down:
            return self._here
        turned = [math.sin(math.radians(max(-MAX_GAZE, min(MAX_GAZE, angle)))) for angle in (right, down)]
        return self._here - self._weight * (self._degree * np.array(turned, np.float32))

    def _closing(self, positions: Floats, closure: float) -> tuple[Floats, Floats, Floats]:
        """With the lids closed by a share: where the patch comes from, the upper lid's edge, how much lashes show."""
        gap = self._lower - self._upper
        share = closure * (1 - LOWER_SHARE)
        edge = self._upper + share * gap
        floor = self._lower - closure * LOWER_SHARE * gap
        ramp = min(1.0, closure / OWN_LASHES)
        # Skin above: it stretches the more the nearer it is to the lid. r + k r² = q, from the top of what moves.
        clean = self._upper - LASHES * ramp * self._side
        top = self._upper - self._above
        length, travel = clean - top, edge - clean
        q = (self._t - top) / length
        k = np.maximum(travel * self._side, 0) / length
        r = np.where(k > 1e-4, (np.sqrt(1 + 4 * k * np.maximum(q, 0)) - 1) / np.maximum(2 * k, 1e-4), q)
        above = top + r * length
        # Skin below, which moves little.
        rise = self._lower - floor
        depth = np.maximum(self._lower + BELOW - self._t, 0) / BELOW
        below = self._t + rise * depth**2
        there = np.where(self._t < edge, np.where(q > 0, above, self._t), np.where(self._t > floor, below, np.nan))
        moved = self._here + (there - self._t)[..., None] * self._down
        opened = np.isnan(there)[..., None]
        return np.where(opened, positions, moved).astype(np.float32), edge, LASH_STRENGTH * ramp * self._open()

    def _smoothed(self, along: Points, width: float) -> Pixels:
        """The photograph with the skin just above the eye smoothed along it."""
        reach = max(1, round(2.5 * SMOOTHED * width))
        offsets = np.arange(-reach, reach + 1)
        kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
        weights = np.exp(-0.5 * (offsets / (SMOOTHED * width)) ** 2)
        rows = np.clip(np.rint(offsets * along[1]).astype(int) + reach, 0, 2 * reach)
        columns = np.clip(np.rint(offsets * along[0]).astype(int) + reach, 0, 2 * reach)
        np.add.at(kernel, (rows, columns), weights / weights.sum())
        smooth = cv2.filter2D(self._photographed, -1, kernel, borderType=cv2.BORDER_REPLICATE)
        above = np.maximum(self._above, UNROLLED)
        near = _smooth((self._t - self._upper + above) / (0.5 * above)) * (self._t < self._upper)
        near = (near * self._side)[..., None]
        lit = np.clip(smooth * self._light(width), 0, 255)
        return np.asarray(np.rint(self._photographed * (1 - near) + lit * near), np.uint8)

    def _light(self, width: float) -> Floats:
        """By how much each pixel of the skin above the eye must be brighter when it lies in the light, `[h, w, 4]`."""
        gain = np.ones_like(self._photographed, np.float32)
        cheek = (self._t > self._lower + 0.1) & (self._t < self._lower + BELOW)
        if cheek.any():
            light = np.median(self._photographed[cheek][:, :3], axis=0)
            above = (self._t < self._upper - 0.5 * LASHES).astype(np.float32)[..., None]
            weighted = np.concatenate([self._photographed[..., :3] * above, above], axis=2)
            shades = cv2.GaussianBlur(weighted, (0, 0), SHADES * width)
            shade = shades[..., :3] / np.maximum(shades[..., 3:], 1e-3)
            brighter = np.clip(LIT * light / np.maximum(shade, 1), 1, MAX_LIGHT)
            gain[..., :3] = np.power(brighter, EVENED)
        return gain

    def _open(self) -> Floats:
        """1 where the lids are apart when open, 0 at the corners and beyond."""
        shown: Floats = _smooth((self._lower - self._upper) / 0.12).astype(np.float32)
        return shown

    def _turning(self, own: Points, unit: float) -> Floats:
        """How much of the iris's motion each pixel of the patch follows, `[h, w, 1]`; `unit`: eye widths of an IOD."""
        inside = np.minimum(self._t - self._upper, self._lower - self._t)
        centre = _iris(self._photographed, own, inside > 0, IRIS * unit)
        distance = np.hypot(own[..., 0] - centre[0], own[..., 1] - centre[1]) / unit
        near = _smooth((TURNS - distance) / (TURNS - 1.15 * IRIS))
        return np.asarray((near * _smooth(inside / LID_FADE))[..., None], np.float32)


def _curve(lid: Points, s: Points) -> Floats:
    """A lid's `t` at every `s`: a smooth line through its points and both corners, 0 beyond them."""
    points = np.concatenate([[[0.0, 0.0]], lid[np.argsort(lid[:, 0])], [[1.0, 0.0]]])
    fine = np.linspace(-BESIDE - 0.1, 1 + BESIDE + 0.1, 257)
    height = np.interp(fine, points[:, 0], points[:, 1])
    smooth = cv2.GaussianBlur(height[None], (0, 0), 0.03 * 256 / (1 + 2 * BESIDE), borderType=cv2.BORDER_REPLICATE)[0]
    return np.asarray(np.interp(s, fine, smooth), np.float32)


def _still(patch: Pixels, to_patch: Points, upper: Points, s: Points) -> Floats:
    """How far above the lid the skin begins that moves, at every `s`: below whatever line there is."""
    columns, offsets = np.linspace(0.1, 0.9, 41), np.arange(0.0, ABOVE + 2 * LINE_WIDTH, LINE_WIDTH / 4)
    lid = np.interp(columns, *upper[np.argsort(upper[:, 0])].T)
    where = np.stack(np.broadcast_arrays(columns, lid - offsets[:, None]), -1)
    at = affine.apply(to_patch, where).astype(np.float32)
    luma = cv2.GaussianBlur(cv2.cvtColor(patch, cv2.COLOR_RGBA2GRAY), (0, 0), 0.7).astype(np.float32)
    seen = cv2.remap(luma, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    before, line, after = seen[:-8], seen[4:-4], seen[8:]
    contrast = np.maximum(np.minimum(before, after) - line, line - np.maximum(before, after))
    found = (contrast > LINE_CONTRAST) & (offsets[4:-4, None] > NEAREST_LINE)
    if found.any(0).mean() < WHOLE_LINE:
        return np.full_like(s, ABOVE, np.float32)
    first = np.where(found.any(0), offsets[4:-4][found.argmax(0)] - LINE_WIDTH, ABOVE)
    steady = np.array([np.quantile(first[max(0, k - 8) : k + 9], 0.4) for k in range(len(first))])
    steady = np.convolve(np.pad(steady, 5, "edge"), np.full(11, 1 / 11), "valid")
    return np.asarray(np.interp(s, columns, steady.clip(NEAREST_LINE - LINE_WIDTH, ABOVE)), np.float32)


def _iris(patch: Pixels, own: Points, inside: NDArray[np.bool_], radius: float) -> Points:
    """Centre `[2]` of the iris in the eye's coordinates: the disc that is darkest against the ring around it."""
    luma = cv2.GaussianBlur(cv2.cvtColor(patch, cv2.COLOR_RGBA2GRAY).astype(np.float32), (0, 0), 1.0)
    mask = inside.astype(np.float32)
    width = 1 / max(float(np.hypot(*(own[0, 1] - own[0, 0]))), 1e-6) if own.shape[1] > 1 else 1.0
    pixels = max(2, round(radius * width))
    disc = np.zeros((4 * pixels + 1, 4 * pixels + 1), np.float32)
    cv2.circle(disc, (2 * pixels, 2 * pixels), pixels, 1.0, -1)
    ring = np.zeros_like(disc)
    cv2.circle(ring, (2 * pixels, 2 * pixels), round(1.7 * pixels), 1.0, -1)
    ring -= disc
    means = []
    for kernel in (disc, ring):
        weight = cv2.filter2D(mask, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        means.append(cv2.filter2D(luma * mask, -1, kernel, borderType=cv2.BORDER_CONSTANT) / np.maximum(weight, 1))
    # An iris is neither in a corner nor outside the lids.
    allowed = inside & (np.abs(own[..., 0] - 0.5) < 0.25)
    if not allowed.any():
        return np.array([0.5, 0.0])
    score = np.where(allowed, means[1] - means[0], -np.inf)
    best: Points = own[np.unravel_index(int(np.argmax(score)), score.shape)]
    return best


def _lash_colour(patch: Pixels, near: NDArray[np.bool_]) -> Floats:
    """Colour `[4]` of lashes: the darkest tenth of what is around the upper lid's edge."""
    around = patch[near] if near.any() else patch.reshape(-1, 4)
    luma = around[:, :3].astype(np.float32).mean(axis=1)
    dark = around[luma <= np.quantile(luma, 0.1)].astype(np.float32)
    return np.asarray(dark.mean(axis=0), np.float32)


def _smooth(x: NDArray[np.floating]) -> NDArray[np.floating]:
    """0 below 0, 1 above 1, and without a corner between."""
    t = np.clip(x, 0.0, 1.0)
    eased: NDArray[np.floating] = t * t * (3 - 2 * t)
    return eased
