"""`avatard inspect`: show what avatard sees in a portrait."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avatard.config import FramingMode, Picture
from avatard.engine.framing import Framing, FramingError, frame_identity
from avatard.engine.identity import Identity
from avatard.engine.portrait_check import warnings_of
from avatard.errors import UserError
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.raster import PARTS, raster
from avatard.models.face.topology import MESH_TO_68, eye_opening, mouth_opening
from avatard.timebase import CROP_SIDE

#: Magnification of the portrait in the overlay.
ZOOM = 3
#: Length of the pose axes in interocular distances, and their colours: to the right, up, towards the viewer.
AXIS, AXIS_COLOURS = 0.8, ((255, 64, 64), (64, 255, 64), (96, 160, 255))
#: Of the frames that the photograph may be shown in.
FRAME_COLOURS: dict[FramingMode, tuple[int, int, int]] = {
    "head": (64, 255, 64),
    "photo": (255, 255, 64),
    "face": (255, 96, 255),
}


class OverlayError(UserError):
    """An overlay that cannot be written."""


def overlay(identity: Identity) -> NDArray[np.uint8]:
    """The portrait with 68 points and pose axes, its raster, and the photograph with its frames: `[768, w, 3]` RGB."""
    side = CROP_SIDE * ZOOM
    portrait = cv2.resize(identity.portrait, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    points = identity.points[MESH_TO_68]

    def pixel(xy: NDArray[np.floating]) -> tuple[int, int]:
        x, y = np.rint((xy[:2] + 0.5) * ZOOM - 0.5)
        return int(x), int(y)

    for part in PARTS:
        for chosen in part.points:
            for point in points[chosen]:
                cv2.circle(portrait, pixel(point), 4, (0, 0, 0), -1, cv2.LINE_AA)
                cv2.circle(portrait, pixel(point), 3, part.colour, -1, cv2.LINE_AA)
    tips = identity.pose.project(np.array([[0, 0, 0], [AXIS, 0, 0], [0, -AXIS, 0], [0, 0, -AXIS]]))
    for tip, colour in zip(tips[1:], AXIS_COLOURS, strict=True):
        cv2.arrowedLine(portrait, pixel(tips[0]), pixel(tip), colour, 3, cv2.LINE_AA, tipLength=0.15)
    return np.concatenate([portrait, raster(points, side, side=CROP_SIDE), _framed(identity, side)], axis=1)


def _framed(identity: Identity, height: int) -> NDArray[np.uint8]:
    """The photograph, `height` pixels high, with what each framing shows of it."""
    factor = height / identity.photograph.shape[0]
    width = max(1, round(identity.photograph.shape[1] * factor))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    shown = np.asarray(cv2.resize(identity.photograph, (width, height), interpolation=method), np.uint8)
    for mode, framing in _framings(identity).items():
        left, top, right, bottom = (round(edge * factor) for edge in framing.box)
        cv2.rectangle(shown, (left, top), (right - 1, bottom - 1), FRAME_COLOURS[mode], 2)
    return shown


def _framings(identity: Identity) -> dict[FramingMode, Framing]:
    """The frames that the photograph has room for, with the default size."""
    found: dict[FramingMode, Framing] = {}
    for mode in FRAME_COLOURS:
        try:
            found[mode] = frame_identity(identity, mode, Picture().size)
        except FramingError:  # the face would be too small in it
            continue
    return found


def table(identity: Identity) -> str:
    """Size, pose and openings of the face, one per line."""
    yaw, pitch, _ = identity.pose.yaw_pitch_roll
    face = MorphableModel.load().mean_68 + identity.landmarks
    right, left = eye_opening(face)
    rows = {
        "face": f"{identity.face_px:.0f} px from forehead to chin",
        "yaw": f"{yaw:+.1f}° (positive: the nose points to the right of the picture)",
        "pitch": f"{pitch:+.1f}° (positive: up)",
        "mouth": f"open by {100 * mouth_opening(face):.1f} % of the distance between the eyes",
        "eyes": f"open by {100 * right:.1f} % (right) and {100 * left:.1f} % (left)",
        "frame": ", ".join(
            f"{mode}: {framing.width}x{framing.height}, the face takes "
            f"{100 * identity.face_px * framing.scale / framing.height:.0f} % of its height"
            for mode, framing in _framings(identity).items()
        ),
        "digest": identity.digest,
    }
    lines = [f"{name:<7} {value}" for name, value in rows.items()]
    return "\n".join([*lines, *(f"note    {warning}" for warning in warnings_of(identity))])


def write_overlay(identity: Identity, path: Path) -> None:
    """Write the overlay; the suffix chooses the format. Raises `OverlayError`."""
    try:
        Image.fromarray(overlay(identity)).save(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OverlayError(f"cannot write {path}: {reason}") from None
