"""One frame of a face as trackers send it: what VMC, Live Link Face and OpenSeeFace are made from.

Axes are those of `README.md`: x to the right of the picture (the avatar's left), y down, z away from the viewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avatard.frame import HeadPose

Array = NDArray[np.floating]
Quaternion = tuple[float, float, float, float]  # x, y, z, w

#: Degrees that an eye turns at coefficient 1 of ARKit's `eyeLook…`.
FULL_LOOK: Final = 30.0
#: Points of the inner lips that lie over each other, and the outer corners, in iBUG's order.
UPPER_INNER_LIP: Final = [61, 62, 63]
LOWER_INNER_LIP: Final = [67, 66, 65]
RIGHT_CORNER, LEFT_CORNER = 48, 54
#: The scales of vowels follow what the motion network makes of speech: in 18 s of it the inner lips part by 0.21
#: interocular distances at most (99 %), and the mouth has 0.91 to 1.06 of its width at rest (1 and 99 %).
FULL_OPENING: Final = 0.25
#: Changes of the mouth's width, as a share of it, from which on it is round or wide, and those that count as 1.
ROUND, FULL_ROUND = 0.04, 0.12
WIDE, FULL_WIDE = 0.02, 0.08
#: Opening at which lips count as parted: a smile with closed lips is no "I".
PARTED: Final = 0.15


class Angles(NamedTuple):
    """Radians; all 0 for a head that faces the viewer."""

    yaw: float  # to the avatar's left
    pitch: float  # up
    roll: float  # the top of the head towards the avatar's left shoulder


class Visemes(NamedTuple):
    """The five vowels' mouths, 0 to 1; together at most 1."""

    a: float
    i: float
    u: float
    e: float
    o: float


@dataclass(frozen=True)
class FaceMotion:
    """One frame.

    Attributes:
        index: absolute number of the frame.
        seconds: media time.
        unix_seconds: wall clock.
        landmarks: iBUG points `[68, 3]` of the frontal face, interocular distances.
        rest: the same of the face at rest.
        weights: ARKit's 52 coefficients by name, in Apple's order.
        head: where the head is.
        size: width and height of the picture in pixels.
    """

    index: int
    seconds: float
    unix_seconds: float
    landmarks: Array
    rest: Array
    weights: Mapping[str, float]
    head: HeadPose
    size: tuple[int, int]

    @cached_property
    def rotation(self) -> Array:
        """The head's rotation `[3, 3]`."""
        return rotation_of(self.head.quaternion)

    @cached_property
    def angles(self) -> Angles:
        """The head's rotation as pitch first, then yaw, then roll."""
        r = self.rotation
        yaw = math.atan2(r[2, 0], math.hypot(r[0, 0], r[1, 0]))
        return Angles(yaw, math.atan2(-r[2, 1], r[2, 2]), math.atan2(r[1, 0], r[0, 0]))

    def gaze(self, side: str) -> Angles:
        """How far an eye, `Left` or `Right`, is turned in the head."""
        w = self.weights
        outwards = w[f"eyeLookOut{side}"] - w[f"eyeLookIn{side}"]
        full = math.radians(FULL_LOOK)
        yaw = full * (outwards if side == "Left" else -outwards)
        return Angles(yaw, full * (w[f"eyeLookUp{side}"] - w[f"eyeLookDown{side}"]), 0.0)

    @cached_property
    def visemes(self) -> Visemes:
        """The vowels that the mouth's shape looks like.

        With the opening o, roundness n and width s of the mouth, each 0 to 1 and against the face at rest: A is open,
        O open and round, U round and closed, E open and wide, I wide and hardly open.
        """
        opening = _clip((_opening(self.landmarks) - _opening(self.rest)) / FULL_OPENING)
        ratio = _width(self.landmarks) / max(_width(self.rest), 1e-6)
        narrow = _clip((1 - ratio - ROUND) / (FULL_ROUND - ROUND))
        wide = _clip((ratio - 1 - WIDE) / (FULL_WIDE - WIDE))
        parted = _clip(opening / PARTED)
        return Visemes(
            a=opening * (1 - narrow) * (1 - wide),
            i=(1 - opening) * wide * parted,
            u=(1 - opening) * narrow,
            e=opening * wide,
            o=opening * narrow,
        )


def rotation_of(quaternion: Quaternion) -> Array:
    """The rotation `[3, 3]` of a unit quaternion."""
    x, y, z, w = quaternion
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def part_of(quaternion: Quaternion, share: float) -> Quaternion:
    """A share of a rotation, about the same axis."""
    x, y, z, w = quaternion if quaternion[3] >= 0 else tuple(-value for value in quaternion)
    half = math.atan2(math.sqrt(x * x + y * y + z * z), w)
    factor = math.sin(share * half) / math.sin(half) if half > 1e-9 else share
    return factor * x, factor * y, factor * z, math.cos(share * half)


def _opening(points: Array) -> float:
    return float((points[LOWER_INNER_LIP, 1] - points[UPPER_INNER_LIP, 1]).mean())


def _width(points: Array) -> float:
    return float(points[LEFT_CORNER, 0] - points[RIGHT_CORNER, 0])


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)
