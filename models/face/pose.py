"""Head pose: scaled orthographic projection (POS), its inverse, and smoothing.

Source: DeMenthon and Davis, "Model-Based Object Pose in 25 Lines of Code" (1995), the POS step; paper section 3.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]

#: Standard deviation of `smooth`: half the power is left at 1.7 Hz, above which trackers jitter more than heads move.
SMOOTHING_FRAMES: Final = 2.0


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


def smooth(pose: Pose, deviation_frames: float = SMOOTHING_FRAMES) -> Pose:
    """A video's poses `[N]` after a Gaussian filter over time, which adds no lag.

    It is applied to rotation, log scale and translation; the first and the last pose are held at the ends.
    """
    from scipy.ndimage import gaussian_filter1d  # machines that only train lack it

    def filtered(values: Array) -> Array:
        smoothed: Array = gaussian_filter1d(values, deviation_frames, axis=0, mode="nearest")
        return smoothed

    rotation = _orthonormal(filtered(pose.rotation))
    return Pose(rotation, np.exp(filtered(np.log(pose.scale))), filtered(pose.translation))
