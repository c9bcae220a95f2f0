"""OpenSeeFace's packets: what its `facetracker.py` sends to VSeeFace, VTube Studio and Unity. UDP, port 11573.

Little-endian, 1,785 bytes a face, and packed: nothing is aligned. OpenSeeFace solves the pose with rows and columns of
the picture as x and y, and its solution is the one behind the camera. Hence the odd rotation of a head that faces the
camera, Euler angles (180, 0, 90), and a translation with negative z. Receivers rely on both.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

from avatard.protocols.face_motion import FaceMotion

Array = NDArray[np.floating]

PORT: Final = 11573
POINTS: Final = 68
#: Time, id, picture's width and height, right and left eye open, 3D found, error, quaternion, Euler angles,
#: translation. Confidences, points, 3D points and features follow.
HEAD: Final = struct.Struct("<di2f2fBf4f3f3f")
CONFIDENCES: Final = struct.pack(f"<{POINTS}f", *(1.0,) * POINTS)

#: iBUG's points in OpenSeeFace's order: the lips without their corners, each followed by the right and left one; no
#: inner corners.
IBUG: Final = np.array(
    [*range(48), *range(49, 54), *range(55, 60), 48, 61, 62, 63, 54, 65, 66, 67],
)
#: The interocular distance of OpenSeeFace's own face model, in its unit.
UNIT: Final = 0.516
NOSE_TIP: Final = 30
#: Corners of the eyes.
RIGHT_EYE, LEFT_EYE = (36, 39), (42, 45)
#: Radius of an eyeball in interocular distances: 12 of 63 mm.
EYEBALL: Final = 0.19
#: From a rotation in our axes to OpenSeeFace's: its camera's x is down and its y to the right; its model's axes are
#: ours reversed; and behind the camera x and y are reversed.
TO_CAMERA: Final = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
#: Changes of the geometric features, in the order of `_geometry`, that count as 1: about what ARKit's full shapes do.
RANGES: Final = np.array([12.0, 0.5, 0.3, 12.0, 0.5, 0.3, 0.5, 0.05, 0.5, 0.05, 1.4, 0.08])


class OpenSeeFaceEncoder:
    """The packet of a frame."""

    def __init__(self) -> None:
        self._rest: Array | None = None
        self._rest_geometry: Array = np.zeros(len(RANGES))

    def __call__(self, motion: FaceMotion) -> list[bytes]:
        """The datagram of a frame."""
        width, height = motion.size
        weights = motion.weights
        points = np.concatenate([motion.landmarks[IBUG], *_eyes(motion)])  # [70, 3]
        picture = points[:POINTS] @ motion.rotation.T + motion.head.translation
        picture = picture[:, :2] * motion.head.scale + np.array([width, height]) / 2
        turn = TO_CAMERA @ motion.rotation
        open_right, open_left = (1 - weights[f"eyeBlink{side}"] for side in ("Right", "Left"))
        lifted = [weights[f"eyeWide{side}"] - weights[f"eyeBlink{side}"] for side in ("Left", "Right")]
        head = HEAD.pack(
            *(motion.unix_seconds, 0, width, height, open_right, open_left, 1, 0.0),
            *_quaternion(turn),
            *_euler(turn),
            *self._translation(motion, points[NOSE_TIP]),
        )
        model = (points - points[NOSE_TIP]) * (-UNIT, UNIT, UNIT)
        features = np.concatenate([lifted, self._features(motion)])
        return [head + CONFIDENCES + b"".join(array.astype("<f4").tobytes() for array in (picture, model, features))]

    def _translation(self, motion: FaceMotion, nose: Array) -> Array:
        """Where the camera, whose focal length is the picture's width, sees the model's origin, the tip of the nose."""
        placed = motion.rotation @ nose + motion.head.translation
        placed[2] = motion.size[0] / motion.head.scale
        moved: Array = -UNIT * placed[[1, 0, 2]]
        return moved

    def _features(self, motion: FaceMotion) -> Array:
        """The twelve features beside the eyes', -1 to 1, against the face at rest."""
        if self._rest is not motion.rest:
            self._rest, self._rest_geometry = motion.rest, _geometry(motion.rest)
        change: Array = (_geometry(motion.landmarks) - self._rest_geometry) / RANGES
        return change.clip(-1, 1)


def _eyes(motion: FaceMotion) -> tuple[Array, Array]:
    """Both pupils `[2, 3]` and both eyeballs' centres `[2, 3]`, right and left: 68 points do not have them."""
    balls, forward = [], []
    for (outer, inner), side in ((RIGHT_EYE, "Right"), (LEFT_EYE, "Left")):
        # The lids close over the eyeball, so that their corners alone say where it is.
        balls.append((motion.landmarks[outer] + motion.landmarks[inner]) / 2)
        yaw, pitch, _ = motion.gaze(side)
        forward.append((math.sin(yaw), -math.sin(pitch), -math.cos(yaw) * math.cos(pitch)))
    centres = np.array(balls) + (0, 0, EYEBALL)
    return centres + EYEBALL * np.array(forward), centres


def _geometry(points: Array) -> Array:
    """What OpenSeeFace's features measure in 68 points `[68, 3]`, in its order, without the eyes.

    Of each brow, left first: steepness (degrees; positive where its inner end is the higher one), height and quirk; of
    each mouth corner, left first: height (positive is down) and distance from the middle; the mouth's opening and its
    width.
    """
    # The model's axes: to the avatar's right, up. Plain numbers are several times faster here than small arrays.
    x, y = ((-points[:, axis]).tolist() for axis in (0, 1))
    across, along = max((x[0] - x[16] + x[1] - x[15]) / 2, 1e-6), max((y[27] - y[30]) / 3, 1e-6)
    found: list[float] = []
    for inner, *middle, outer in ((22, 23, 24, 25, 26), (21, 20, 19, 18, 17)):
        found.append(math.degrees(math.atan2(y[inner] - y[outer], abs(x[inner] - x[outer]))))
        found.append(((y[inner] + y[outer]) / 2 - y[27]) / along)
        line = [y[inner] + n / 4 * (y[outer] - y[inner]) for n in (1, 2, 3)]
        found.append(max(abs(y[point] - on) for point, on in zip(middle, line, strict=True)) / along)
    upper_lip = (y[50] + y[51] + y[52]) / 3
    centre = sum(x[point] for point in (27, 30, 51, 57, 62, 66)) / 6
    for corner in (54, 48):
        found += [(upper_lip - y[corner]) / along, abs(centre - x[corner]) / across]
    found.append(abs(y[61] + y[62] + y[63] - y[65] - y[66] - y[67]) / 3 / along)
    found.append(abs(x[48] - x[54]) / across)
    return np.array(found)


def _euler(rotation: Array) -> tuple[float, float, float]:
    """Degrees about x, then y, then z, with that about y within ±90: (180, 0, 90) for a head that faces the camera."""
    (xx, _, _), (yx, _, _), (zx, zy, zz) = rotation.tolist()
    x, y, z = math.atan2(zy, zz), math.atan2(-zx, math.hypot(xx, yx)), math.atan2(yx, xx)
    return math.degrees(x), math.degrees(y), math.degrees(z)


def _quaternion(rotation: Array) -> tuple[float, float, float, float]:
    """x, y, z, w as OpenSeeFace computes them: of the transposed matrix."""
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = rotation.tolist()  # named as in the transposed one
    # A head that faces the camera is turned by half a circle about (1, 1, 0): w is small, x is not.
    x = math.sqrt(max(1e-12, 1 + xx - yy - zz)) / 2
    return x, (xy + yx) / (4 * x), (xz + zx) / (4 * x), (zy - yz) / (4 * x)
