"""Head pose: scaled orthographic projection (POS), its inverse, and smoothing.

Source: DeMenthon and Davis, "Model-Based Object Pose in 25 Lines of Code" (1995), the POS step; paper section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Pose:
    """Scaled orthographic pose: `image_xy = scale * (rotation @ X)[:2] + translation`. Leading dimensions are batch."""

    rotation: Array  # [..., 3, 3], identity = frontal
    scale: Array  # [...], pixels per unit of the canonical frame (interocular distance)
    translation: Array  # [..., 2], pixels: where the canonical origin falls

    def __getitem__(self, index: int | slice | NDArray[np.intp] | NDArray[np.bool_]) -> Pose:
        return Pose(self.rotation[index], self.scale[index], self.translation[index])

    def project(self, points: Array) -> Array:
        """Canonical points `[..., K, 3]` → image points `[..., K, 3]`: x, y and relative depth, in pixels."""
        image: Array = np.asarray(self.scale)[..., None, None] * (points @ np.swapaxes(self.rotation, -1, -2))
        image[..., :2] += self.translation[..., None, :]
        return image

    def unproject(self, image: Array) -> Array:
        """Image points `[..., K, 3]` (x, y and relative depth, pixels) → canonical points `[..., K, 3]`."""
        centred = image.copy()
        centred[..., :2] -= self.translation[..., None, :]
        canonical: Array = (centred / np.asarray(self.scale)[..., None, None]) @ self.rotation
        return canonical

    @property
    def yaw_pitch_roll(self) -> Array:
        """Angles `[..., 3]` in degrees, within ±90, ±180, ±180.

        Positive yaw turns the nose to the right of the picture, positive pitch lifts it, positive roll turns the
        picture clockwise. Roll is exactly the slope of the head's left-right axis in the picture.
        """
        r = self.rotation
        yaw = np.arctan2(r[..., 2, 0], np.hypot(r[..., 0, 0], r[..., 1, 0]))
        pitch = np.arctan2(-r[..., 2, 1], r[..., 2, 2])
        roll = np.arctan2(r[..., 1, 0], r[..., 0, 0])
        angles: Array = np.degrees(np.stack([yaw, pitch, roll], axis=-1))
        return angles


def rotation_matrix(yaw: float, pitch: float, roll: float) -> Array:
    """Rotation `[3, 3]` with the angles (degrees) of `Pose.yaw_pitch_roll`: pitch first, then yaw, then roll."""
    cy, sy = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    cp, sp = math.cos(math.radians(pitch)), math.sin(math.radians(pitch))
    cr, sr = math.cos(math.radians(roll)), math.sin(math.radians(roll))
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    matrix: Array = about_z @ about_y @ about_x
    return matrix


def _orthonormal(rows: Array) -> Array:
    """The closest matrix `[..., R, 3]` with orthonormal rows (polar decomposition by SVD)."""
    u, _, vt = np.linalg.svd(rows, full_matrices=False)
    closest: Array = u @ vt
    return closest


def pos(points: Array, image: Array) -> Pose:
    """Pose from orthography: least squares over both rows of the scaled rotation, orthonormalised by SVD.

    `points` `[..., K, 3]` are canonical (rigid ones only), `image` `[..., K, 2]` pixels, K ≥ 4 and not in one plane.
    """
    centre, image_centre = points.mean(axis=-2), image.mean(axis=-2)
    rows = np.swapaxes(np.linalg.pinv(points - centre[..., None, :]) @ (image - image_centre[..., None, :]), -1, -2)
    scale = np.linalg.norm(rows, axis=-1).mean(axis=-1)
    first_two = _orthonormal(rows)
    third = np.cross(first_two[..., 0, :], first_two[..., 1, :])
    rotation = np.concatenate([first_two, third[..., None, :]], axis=-2)
    translation = image_centre - scale[..., None] * (first_two @ centre[..., None])[..., 0]
    return Pose(rotation, scale, translation)


def align(points: Array, image: Array) -> Pose:
    """Pose of a 3D measurement: the similarity that maps canonical `points` `[..., K, 3]` onto `image` `[..., K, 3]`.

    Depth resolves what two rows cannot, so this is the fit for meshes that carry it. Source: Umeyama (1991).
    """
    points = np.broadcast_to(points, image.shape)
    centre, image_centre = points.mean(axis=-2, keepdims=True), image.mean(axis=-2, keepdims=True)
    a, b = points - centre, image - image_centre
    u, singular, vt = np.linalg.svd(np.swapaxes(b, -1, -2) @ a)
    sign = np.ones(singular.shape)
    sign[..., 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[..., None, :]) @ vt
    scale = (singular * sign).sum(axis=-1) / (a**2).sum(axis=(-1, -2))
    origin = image_centre[..., 0, :] - scale[..., None] * (rotation @ np.swapaxes(centre, -1, -2))[..., 0]
    return Pose(rotation, scale, origin[..., :2])


class OneEuro:
    """One-euro filter for arrays that arrive once a frame. Source: Casiez, Roussel and Vogel (CHI 2012).

    `cutoff_hz` sets the smoothing at rest, `beta` how fast it yields to motion (per unit per second).
    """

    def __init__(self, rate_hz: float = 25.0, cutoff_hz: float = 1.0, beta: float = 0.0, slope_cutoff_hz: float = 1.0):
        self.rate_hz, self.cutoff_hz, self.beta, self.slope_cutoff_hz = rate_hz, cutoff_hz, beta, slope_cutoff_hz
        self._value: Array | None = None
        self._slope: Array | None = None

    def _alpha(self, cutoff_hz: Array | float) -> Array | float:
        return 1.0 / (1.0 + self.rate_hz / (2 * math.pi * cutoff_hz))

    def __call__(self, value: Array) -> Array:
        """The smoothed value, same shape; the first passes unchanged."""
        if self._value is None or self._slope is None:
            self._value, self._slope = value.copy(), np.zeros_like(value)
            return self._value
        slope = (value - self._value) * self.rate_hz
        self._slope = self._slope + self._alpha(self.slope_cutoff_hz) * (slope - self._slope)
        alpha = self._alpha(self.cutoff_hz + self.beta * np.abs(self._slope))
        self._value = self._value + alpha * (value - self._value)
        return self._value


def smooth(pose: Pose, rate_hz: float = 25.0, cutoff_hz: float = 1.0, beta: float = 0.5) -> Pose:
    """A video's poses `[N]` after a one-euro filter on rotation, log scale and translation (in interocular units)."""
    filters = [OneEuro(rate_hz, cutoff_hz, beta) for _ in range(3)]
    rotation, scale, translation = [], [], []
    unit = float(np.median(pose.scale))
    for n in range(len(pose.scale)):
        rotation.append(_orthonormal(filters[0](pose.rotation[n])))
        scale.append(np.exp(filters[1](np.log(pose.scale[n : n + 1])))[0])
        translation.append(filters[2](pose.translation[n] / unit) * unit)
    return Pose(np.stack(rotation), np.stack(scale), np.stack(translation))
