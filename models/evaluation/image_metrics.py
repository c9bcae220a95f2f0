"""Measures of pictures and identity, for the evaluation scripts; `motion_metrics` has those of motion.

Pictures are uint8 `[N, H, W, 3]` RGB, N consecutive frames; landmarks `[N, 68, 2 or 3]`. Where a measure is undefined
(nothing moves, no such frames) it is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.models.face.topology import INNER_LIP, MOUTH, OUTER_LIP, interocular

Pictures = NDArray[np.uint8]
Floats = NDArray[np.floating]


def psnr(pictures: Pictures, target: Pictures) -> Floats:
    """Peak signal-to-noise ratio of each picture `[N]`, dB; infinite where they are equal."""
    error = np.square(pictures.astype(np.float64) - target).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        decibels: Floats = 10 * np.log10(255.0**2 / error)
    return decibels


def mouth_box(points: Floats, margin: float = 0.2) -> tuple[slice, slice]:
    """Rows and columns around the lips of `[68, 2+]` (pixels), grown by `margin` of the mouth's width."""
    lips = points[OUTER_LIP, :2]
    low, high = lips.min(axis=0), lips.max(axis=0)
    grow = margin * (high - low)[0]
    left, top = np.maximum(np.floor(low - grow), 0).astype(int)
    right, bottom = np.ceil(high + grow).astype(int) + 1
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def mouth_psnr(pictures: Pictures, target: Pictures, points: Floats) -> Floats:
    """PSNR inside the mouth box of the target's points `[N, 68, 2+]` (pixels), `[N]`."""
    boxes = [mouth_box(face) for face in points]
    return np.concatenate(
        [psnr(a[None, *box], b[None, *box]) for a, b, box in zip(pictures, target, boxes, strict=True)]
    )


def ssim(pictures: Pictures, target: Pictures) -> Floats:
    """Structural similarity of the luma of each picture, `[N]`. Source: Wang et al. 2004, Gaussian window of 11."""
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2

    def blur(x: Floats) -> Floats:
        return np.asarray(cv2.GaussianBlur(x, (11, 11), 1.5), np.float64)

    scores = []
    for a, b in zip(_luma(pictures), _luma(target), strict=True):
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        covariance = blur(a * b) - mean_a * mean_b
        structure = (2 * covariance + c2) / (var_a + var_b + c2)
        scores.append((structure * (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)).mean())
    return np.array(scores)


def _luma(pictures: Pictures) -> Floats:
    luma: Floats = pictures @ np.array([0.299, 0.587, 0.114])
    return luma


CPBD_BLOCK = 64
#: A block with a smaller share of edge pixels is not judged.
CPBD_EDGES = 0.002
CPBD_BETA = 3.6
#: Blur is seen with this probability at the width that is just noticeable.
CPBD_NOTICED = 0.63


def cpbd(pictures: Pictures) -> Floats:
    """Cumulative probability of blur detection of each picture, `[N]`: 1 is sharp, 0 blurred. NaN without edges.

    Source: Narvekar and Karam 2011, with edge widths after Marziliano et al. 2002.
    """
    return np.array([_cpbd(luma) for luma in _luma(pictures)])


def _cpbd(luma: Floats) -> float:
    edges = cv2.Canny(luma.round().astype(np.uint8), 50, 100, L2gradient=True) > 0
    widths = edge_widths(luma)
    sharp = judged = 0
    for top in range(0, luma.shape[0] - CPBD_BLOCK + 1, CPBD_BLOCK):
        for left in range(0, luma.shape[1] - CPBD_BLOCK + 1, CPBD_BLOCK):
            block = slice(top, top + CPBD_BLOCK), slice(left, left + CPBD_BLOCK)
            if edges[block].mean() <= CPBD_EDGES:
                continue
            noticeable = 5.0 if np.ptp(luma[block]) <= 50 else 3.0
            width = widths[block][edges[block] & (widths[block] > 0)]
            probability = 1 - np.exp(-((width / noticeable) ** CPBD_BETA))
            sharp += int((probability <= CPBD_NOTICED).sum())
            judged += len(probability)
    return sharp / judged if judged else float("nan")


def edge_widths(luma: Floats) -> Floats:
    """Pixels between the extrema left and right of each pixel `[H, W]`; 0 where the gradient is not horizontal."""
    gx, gy = cv2.Sobel(luma, cv2.CV_64F, 1, 0), cv2.Sobel(luma, cv2.CV_64F, 0, 1)
    horizontal = np.abs(gy) < np.tan(np.pi / 8) * np.abs(gx)
    widths = np.zeros_like(luma)
    for sign in (1.0, -1.0):
        climbs = sign * np.diff(luma, axis=1) > 0  # [H, W - 1], from x to x + 1
        before, after = np.zeros(luma.shape, int), np.zeros(luma.shape, int)
        for x in range(1, luma.shape[1]):
            before[:, x] = (before[:, x - 1] + 1) * climbs[:, x - 1]
            after[:, -1 - x] = (after[:, -x] + 1) * climbs[:, -x]
        ours = horizontal & (sign * gx > 0)
        widths[ours] = (before + after)[ours]
    return widths


#: Pixels between the lips from which texture there is judged.
LEAST_INSIDE = 60
#: Height and width of a mouth crop, pixels of a 256-pixel picture: the lips and a little around them, never resampled.
MOUTH_CROP = (48, 64)


def inside_lips(points: Floats, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels between the inner lips of points `[N, 68, 2+]` (pixels), `[N, height, width]`."""
    masks = np.zeros((len(points), height, width), np.uint8)
    for mask, face in zip(masks, points, strict=True):
        cv2.fillPoly(mask, [np.round(face[INNER_LIP, :2] * 16).astype(np.int32)], 1, shift=4)
    return masks > 0


def checkerboard(pictures: Pictures, inside: NDArray[np.bool_]) -> Floats:
    """Energy at both Nyquist frequencies in each picture's mask `[N, H, W]`, `[N]`; NaN in small masks.

    RMS of (a - b - c + d) / 4 over squares of 2 × 2 pixels (a, b over c, d) of pictures in [-1, 1]. A measure of
    texture or sharpness needs it beside: a pattern of period two raises all of them.
    """
    return _squares(pictures, inside, (1, -1, -1, 1))


def horizontal_detail(pictures: Pictures, inside: NDArray[np.bool_]) -> Floats:
    """How much neighbouring columns differ in each picture's mask `[N, H, W]`, as teeth make them, `[N]`.

    RMS of (a - b + c - d) / 4, otherwise as `checkerboard`.
    """
    return _squares(pictures, inside, (1, -1, 1, -1))


def _squares(pictures: Pictures, inside: NDArray[np.bool_], signs: tuple[int, int, int, int]) -> Floats:
    """RMS of the signed sums of 2 × 2 pixels that lie in the mask as a whole, a quarter of each."""
    found = np.full(len(pictures), np.nan)
    corners = [(slice(r, r - 1 or None), slice(c, c - 1 or None)) for r in (0, 1) for c in (0, 1)]
    for n, (picture, mask) in enumerate(zip(pictures, inside, strict=True)):
        if mask.sum() < LEAST_INSIDE:
            continue
        whole = np.logical_and.reduce([mask[corner] for corner in corners])
        parts = [sign * (picture[corner][whole] / 127.5) for sign, corner in zip(signs, corners, strict=True)]
        found[n] = np.sqrt(np.square(np.sum(parts, axis=0) / 4).mean()) if whole.any() else np.nan
    return found


def mouth_crops(pictures: Pictures, points: Floats) -> Pictures:
    """Crops `[N, 48, 64, 3]` about the lips of points `[N, 68, 2+]` (pixels), moved into the picture."""
    height, width = pictures.shape[1:3]
    corners = np.round(points[:, MOUTH, :2].mean(axis=1) - (MOUTH_CROP[1] / 2, MOUTH_CROP[0] / 2)).astype(int)
    left, top = np.clip(corners, 0, (width - MOUTH_CROP[1], height - MOUTH_CROP[0])).T
    crops = [p[y : y + MOUTH_CROP[0], x : x + MOUTH_CROP[1]] for p, y, x in zip(pictures, top, left, strict=True)]
    return np.stack(crops)


def cosine(features: Floats, reference: Floats) -> Floats:
    """Cosine of each feature vector `[N, D]` with `reference` `[D]` or `[N, D]`, `[N]`: CSIM on face embeddings."""
    norms = np.linalg.norm(features, axis=-1) * np.linalg.norm(reference, axis=-1)
    similarity: Floats = (features * reference).sum(axis=-1) / np.maximum(norms, 1e-12)
    return similarity


def frechet(features: Floats, reference: Floats) -> float:
    """Fréchet distance between Gaussians fitted to features `[N, D]` and `[M, D]` (N, M ≥ 2).

    Source: Dowson and Landau 1982. FID is this on Inception features. Few samples bias it upwards: compare equal
    numbers only.
    """
    a, b = features.astype(np.float64), reference.astype(np.float64)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a Fréchet distance of {len(a)} and {len(b)} samples: expected at least 2 of each")
    mean_gap = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    a, b = (a - a.mean(axis=0)) / np.sqrt(len(a) - 1), (b - b.mean(axis=0)) / np.sqrt(len(b) - 1)
    # tr (Σa Σb)^½ is the sum of the singular values of a bᵀ, or of their triangular factors: no matrix root is needed.
    common = np.linalg.svd(np.linalg.qr(a).R @ np.linalg.qr(b).R.T, compute_uv=False).sum()
    return float(max(mean_gap + np.square(a).sum() + np.square(b).sum() - 2 * common, 0.0))


def landmark_distances(points: Floats, target: Floats, chosen: slice | Sequence[int] = slice(None)) -> Floats:
    """LMD of each frame `[N]`: mean distance of points `[N, 68, 2+]` from the target's, % of its interocular."""
    distance = np.linalg.norm(points[:, chosen, :2] - target[:, chosen, :2], axis=-1).mean(axis=-1)
    distances: Floats = 100 * distance / interocular(target[..., :2])
    return distances


def warped_differences(pictures: Pictures) -> Floats:
    """Mean absolute change between consecutive pictures once motion is undone, `[N - 1]`, grey levels: flicker.

    The motion is the pictures' own, by dense inverse search (Kroeger et al. 2016).
    """
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    height, width = pictures.shape[1:3]
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)
    greys = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
    changes = []
    for n in range(1, len(pictures)):
        motion = flow.calc(greys[n], greys[n - 1], None)  # type: ignore[call-overload]  # None: no initial flow
        x, y = cv2.split(grid + motion)
        moved = cv2.remap(pictures[n - 1], x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        changes.append(np.abs(pictures[n].astype(np.float32) - moved).mean())
    return np.array(changes)


def seam_ratio(runs: Sequence[Floats], hop: int) -> float:
    """Change at hop boundaries over change elsewhere; 1 means that boundaries do not show.

    `changes[n]` of each run leads from frame n to the next one; a boundary lies before each frame k · hop.
    """
    changes = np.concatenate(runs)
    at_seam = np.concatenate([np.arange(1, len(run) + 1) % hop == 0 for run in runs])
    if not at_seam.any() or at_seam.all():
        return float("nan")
    elsewhere = changes[~at_seam].mean()
    return float(changes[at_seam].mean() / elsewhere) if elsewhere > 1e-9 else float("nan")
