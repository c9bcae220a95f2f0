"""What each ARKit blend shape does to the 68 points of a face: the basis that `arkit_solver` solves for.

The shapes are built from the geometry of the face at rest after Apple's description of each location, in interocular
distances (63 mm). Their full strength follows what the mesh network makes of real faces: the inner lips part by 0.5 at
most when people talk, and a lid that is shut in the picture still leaves 40 % of its gap in the mesh.
Axes: x towards the left of the face (right of the picture), y down, z backwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avatard.models.face.topology import LEFT_EYE, LOWER_LIP, MIRROR_68, MOUTH, RIGHT_EYE, UPPER_LIP

Array = NDArray[np.floating]

CORNERS = [48, 54, 60, 64]
LIPS = range(68)[MOUTH]
#: How far each jaw point follows the mandible: the chin's skin lags behind the bone, the ears stay.
JAW_FOLLOWS = (0, 0, 0, 0.05, 0.2, 0.3, 0.45, 0.52, 0.58, 0.52, 0.45, 0.3, 0.2, 0.05, 0, 0, 0)
#: Radians that the jaw turns about its hinge when fully open.
JAW_ANGLE = 0.45
#: The part of the lid gap that a blink closes in the mesh.
BLINK_CLOSES = 0.6


def expression_basis(rest: Array) -> dict[str, Array]:
    """Displacements `[68, 3]` at full strength, by ARKit name, of a face at rest `[68, 3]` (canonical frame).

    Shapes that 68 points do not show are left out: gaze, cheeks and tongue.
    """
    basis = _jaw(rest) | _mouth(rest) | _brows()
    for name, shape in _left_half(rest).items():
        basis |= {f"{name}Left": shape, f"{name}Right": _mirrored(shape)}
    for side, eye in (("Left", LEFT_EYE), ("Right", RIGHT_EYE)):
        basis |= {f"{name}{side}": shape for name, shape in _lids(rest, eye).items()}
    return basis


def _moved(points: Sequence[int], by: tuple[float, float, float], weights: Array | float = 1.0) -> Array:
    """The chosen points moved by a vector, each with its weight."""
    shape = np.zeros((68, 3))
    shape[list(points)] = np.multiply.outer(np.broadcast_to(weights, len(points)), by)
    return shape


def _mirrored(shape: Array) -> Array:
    mirrored: Array = (shape * [-1, 1, 1])[MIRROR_68]
    return mirrored


def _mandible() -> Array:
    """How far each of the 68 points follows the mandible."""
    follows = np.zeros(68)
    follows[:17] = JAW_FOLLOWS
    follows[LOWER_LIP] = 1.0
    follows[CORNERS] = 0.35
    return follows


def _jaw(rest: Array) -> dict[str, Array]:
    """Shapes of the mandible."""
    # The jaw glides forward as it opens, so that it turns about an axis below its joints: at points 2 and 14.
    arm = rest - rest[[2, 14]].mean(axis=0)
    follows = _mandible()
    angle = JAW_ANGLE * follows
    open_ = np.zeros((68, 3))
    open_[:, 1] = arm[:, 1] * (np.cos(angle) - 1) - arm[:, 2] * np.sin(angle)
    open_[:, 2] = arm[:, 1] * np.sin(angle) + arm[:, 2] * (np.cos(angle) - 1)
    return {
        "jawOpen": open_,
        "jawForward": follows[:, None] * np.array([0, 0, -0.15]),
        "jawLeft": follows[:, None] * np.array([0.15, 0, 0]),
        "jawRight": follows[:, None] * np.array([-0.15, 0, 0]),
        # Lips that meet although the jaw is open: undo its parting of them, the upper lip helps.
        "mouthClose": -0.75 * _only(open_, LOWER_LIP)
        - 0.5 * _only(open_, CORNERS)
        + _moved(UPPER_LIP, (0, 0.25 * float(open_[66, 1]), 0.0)),
    }


def _only(shape: Array, points: Sequence[int]) -> Array:
    kept = np.zeros_like(shape)
    kept[points] = shape[points]
    return kept


def _across(rest: Array) -> Array:
    """Place of each lip point across the mouth `[20]`: -1 at the right corner, 0 in the middle, 1 at the left one."""
    lips = rest[LIPS, 0]
    middle, half = (lips.max() + lips.min()) / 2, (lips.max() - lips.min()) / 2
    across: Array = (lips - middle) / half
    return across


def _mouth(rest: Array) -> dict[str, Array]:
    """Shapes of the whole mouth."""
    across = _across(rest)
    half_width = float(np.ptp(rest[LIPS, 0])) / 2
    narrow = np.zeros((68, 3))
    narrow[LIPS, 0] = -across * half_width
    middle = np.zeros((68, 3))
    middle[LIPS, 2] = -(1 - 0.5 * np.abs(across))
    upper, lower = (1 - across[np.array(points) - 48] ** 2 for points in (UPPER_LIP, LOWER_LIP))
    return {
        "mouthFunnel": 0.22 * narrow
        + 0.12 * middle
        + _moved(UPPER_LIP, (0, -0.1, 0), upper)
        + _moved(LOWER_LIP, (0, 0.14, 0), lower),
        "mouthPucker": 0.4 * narrow + 0.12 * middle,
        "mouthLeft": _moved(LIPS, (0.15, 0, 0)),
        "mouthRight": _moved(LIPS, (-0.15, 0, 0)),
        "mouthRollLower": _moved([55, 56, 57, 58, 59], (0, -0.08, 0.06)) + _moved([65, 66, 67], (0, 0, 0.06)),
        "mouthRollUpper": _moved([49, 50, 51, 52, 53], (0, 0.06, 0.06)) + _moved([61, 62, 63], (0, 0, 0.06)),
        "mouthShrugLower": _moved(LOWER_LIP, (0, -0.08, -0.04)) + _moved([7, 8, 9], (0, -0.06, 0)),
        "mouthShrugUpper": _moved(UPPER_LIP, (0, -0.06, -0.04)),
    }


def _brows() -> dict[str, Array]:
    left = _moved([22, 23, 24], (0, -0.14, 0), np.array([1, 0.7, 0.3]))
    return {"browInnerUp": left + _mirrored(left)}


def _left_half(rest: Array) -> dict[str, Array]:
    """Shapes of the face's left half but its eye; the right half does the same mirrored. Names without the side."""
    across = _across(rest)
    to_corner = np.clip(across, 0, None)
    of_half = np.clip(across + 0.15, 0, 0.3) / 0.3  # with a soft edge in the middle

    def half(points: Sequence[int], by: tuple[float, float, float]) -> Array:
        return _moved(points, by, of_half[np.array(points) - 48])

    return {
        "mouthSmile": _moved(LIPS, (0.12, -0.14, 0.08), to_corner),
        "mouthFrown": _moved(LIPS, (0, 0.12, 0), to_corner),
        "mouthDimple": _moved(LIPS, (0.08, 0, 0.1), to_corner),
        "mouthStretch": _moved(LIPS, (0.12, 0.06, 0), to_corner),
        "mouthPress": half([51, 52, 53], (0, 0.045, 0)) + half([55, 56, 57], (0, -0.06, 0)),
        "mouthLowerDown": half(LOWER_LIP, (0, 0.12, 0)),
        "mouthUpperUp": half(UPPER_LIP, (0, -0.1, 0)),
        "browDown": _moved(range(22, 27), (-0.02, 0.1, 0), np.array([1, 1, 0.9, 0.6, 0.3])),
        "browOuterUp": _moved(range(22, 27), (0, -0.14, 0), np.array([0, 0.2, 0.6, 1, 0.9])),
        "noseSneer": _moved([34, 35], (0, -0.06, 0), np.array([0.5, 1])),
    }


def _lids(rest: Array, eye: slice) -> dict[str, Array]:
    """Lids of one eye. Of its six points 1 and 2 are the upper lid, 5 and 4 the lower lid below them."""
    first: int = eye.start
    upper, lower = [first + 1, first + 2], [first + 5, first + 4]
    gap = rest[lower] - rest[upper]

    def lids(of_upper: float, of_lower: float) -> Array:
        shape = np.zeros((68, 3))
        shape[upper], shape[lower] = of_upper * gap, of_lower * gap
        return shape

    return {
        "eyeBlink": lids(0.9 * BLINK_CLOSES, -0.1 * BLINK_CLOSES),
        "eyeSquint": lids(0.0, -0.35),
        "eyeWide": lids(-0.4, 0.0),
    }
