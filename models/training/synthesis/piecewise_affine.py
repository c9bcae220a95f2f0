"""Warps by triangles: triangulation, affine maps, which triangle owns a pixel, where a pixel comes from."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay

Array = NDArray[np.floating]
Indices = NDArray[np.intp]


def signed_area(triangles: Array) -> Array:
    """Area `[T]` of triangles `[T, 3, 2]`, negative for those that turn the other way."""
    (bx, by), (cx, cy) = (np.moveaxis(triangles[:, i] - triangles[:, 0], -1, 0) for i in (1, 2))
    area: Array = (bx * cy - by * cx) / 2
    return area


def affine(target: Array, source: Array) -> NDArray[np.float32]:
    """Least-squares affine maps `[T, 3, 2]` that take `target` `[T, K, 2]` to `source` `[T, K, 2]`."""
    centre, source_centre = target.mean(axis=1, keepdims=True), source.mean(axis=1, keepdims=True)
    t, s = target - centre, source - source_centre
    transposed = np.swapaxes(t, 1, 2)
    gram = transposed @ t + 1e-6 * np.eye(2)  # slivers have no inverse; no pixel is theirs either
    linear = np.linalg.inv(gram) @ (transposed @ s)
    return np.concatenate([linear, source_centre - centre @ linear], axis=1).astype(np.float32)


def rasterise(polygons: Sequence[Array], side: int, oversampling: int) -> NDArray[np.int32]:
    """Which polygon `[K, 2]` (pixels of a square of `side`) owns each pixel of it, oversampled; the last one wins.

    Returns indices `[H, H]`, H = side × oversampling; -1 where there is none.
    """
    bits = 4
    owner = np.full((side * oversampling, side * oversampling), -1, np.int32)
    corners = oversampling * np.concatenate(polygons) + (oversampling - 1) / 2
    fixed = np.round(corners * (1 << bits)).astype(np.int32)
    start = 0
    for label, polygon in enumerate(polygons):
        end = start + len(polygon)
        if len(polygon) > 3:
            cv2.fillPoly(owner, [fixed[start:end]], label, shift=bits)
        else:
            cv2.fillConvexPoly(owner, fixed[start:end], label, shift=bits)
        start = end
    return owner


def sample(
    maps: NDArray[np.float32], owner: NDArray[np.int32], oversampling: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Source positions x, y `[H, H]` (the maps' unit) of each pixel of an oversampled square, by its owner's map."""
    side = owner.shape[0]
    at = ((np.arange(side) + 0.5) / oversampling - 0.5).astype(np.float32)
    across, down, constant = (np.take(np.ascontiguousarray(maps[:, i]), owner, axis=0, mode="wrap") for i in range(3))
    position = across * at[None, :, None] + down * at[:, None, None] + constant
    return np.ascontiguousarray(position[..., 0]), np.ascontiguousarray(position[..., 1])


def delaunay(points: Array, first: Sequence[int], apart: float = 1.5) -> Indices:
    """Delaunay triangles `[T, 3]` of points `[V, 2]`, those of `first` before the others, all turning the same way.

    The mesh curls inwards at lips and nostrils; points that come within `apart` of earlier ones are left out, because
    triangles between them would fold at the first movement.
    """
    chosen: list[int] = []
    for index in dict.fromkeys([*first, *range(len(points))]):
        if index in first or np.linalg.norm(points[chosen] - points[index], axis=-1).min() >= apart:
            chosen.append(index)
    triangles: Indices = np.array(chosen, np.intp)[Delaunay(points[chosen]).simplices]
    turned = signed_area(points[triangles]) < 0
    triangles[turned] = triangles[turned, ::-1]
    return triangles
