"""Which picture shows the person's own teeth: the portrait, or another one that the user gave."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.engine import affine
from avatard.engine.identity import Identity, IdentityError
from avatard.media.image_file import ImageError
from avatard.media.video_file import VIDEOS, read_frames
from avatard.models.face.mesh import FaceMesh
from avatard.models.face.topology import MESH_TO_68, interocular
from avatard.models.mcvdm.mouth_filler import REFERENCE_OPENING, Mouth
from avatard.portrait import Portrait

logger = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]

#: Of two pictures of one person: a usual difference of the 3DMM's neutral face (mean distance of 68 points, in
#: interocular distances) and of the cheeks' colour (CIELAB as OpenCV scales it), and the most that the sum of both
#: squares may be in these units. Of 78 pairs of frames of one person 97 % are within, of 325 pairs of strangers 16 %.
FACE: Final = 0.08
COLOUR: Final = 20.0
SAME: Final = 1.5
#: Degrees; teeth seen from further aside are of no use from the front.
MOST_YAW: Final = 30.0
#: Rows and columns of a portrait that are cheeks and nose.
CHEEKS: Final = (slice(140, 170), slice(80, 176))


#: Of a video, one frame in so many is looked at, up to so many: 20 s.
VIDEO_STEP: Final = 10
VIDEO_FRAMES: Final = 50


def other_picture(path: str | Path) -> Identity:
    """A picture of the person; of a video the frame, seen from the front, with the widest open mouth.

    Raises:
        ImageError, IdentityError, MediaError: there is none.
    """
    if Path(path).suffix.lower() not in VIDEOS:
        return Identity.load(path)
    faces = list(_faces_of(Path(path)))
    if not faces:
        raise IdentityError(f"{path}: no frame of its first 20 s shows one face that can be used")
    return max(faces, key=lambda one: (not _turned(one), _mouth(one).opening))


def _faces_of(video: Path) -> Iterator[Identity]:
    mesh = FaceMesh()
    for pixels in islice(read_frames(video), 0, VIDEO_FRAMES * VIDEO_STEP, VIDEO_STEP):
        data = cv2.imencode(".bmp", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes()
        try:
            yield Identity.find(Portrait(data, name=str(video)), mesh=mesh)
        except (ImageError, IdentityError):
            continue


def teeth_of(identity: Identity, others: Sequence[tuple[str, Identity]]) -> tuple[Pixels, Mouth] | None:
    """The picture with the widest open mouth, and where that is; None if no mouth is open.

    Args:
        identity: the person.
        others: more pictures and their names. One that cannot be used is ignored, with a line in the log.
    """
    usable = [identity]
    for name, other in others:
        reason = _unusable(identity, other)
        if reason is None:
            usable.append(other)
        else:
            logger.warning("portrait", extra={"note": f"{name} is ignored: {reason}"})
    best = max(usable, key=lambda one: _mouth(one).opening)
    if _mouth(best).opening < REFERENCE_OPENING:
        return None
    return best.photograph, _mouth(best).after(affine.inverse(best.crop.matrix))


def _unusable(identity: Identity, other: Identity) -> str | None:
    """Why a picture cannot show this person's teeth."""
    if _turned(other):
        return f"the head is turned by more than {MOST_YAW:.0f} degrees"
    if _mouth(other).opening < REFERENCE_OPENING:
        return "its mouth is closed; give a picture that shows teeth"
    face = float(np.linalg.norm(identity.neutral - other.neutral, axis=-1).mean())
    colour = float(np.linalg.norm(_colour(identity) - _colour(other)))
    if (face / FACE) ** 2 + (colour / COLOUR) ** 2 > SAME:
        return "it shows another face, or this one in another light"
    return None


def _turned(identity: Identity) -> bool:
    return abs(float(identity.pose.yaw_pitch_roll[0])) > MOST_YAW


def _mouth(identity: Identity) -> Mouth:
    """In pixels of the crop, which is upright."""
    points = identity.points[MESH_TO_68]
    return Mouth(points, float(interocular(points)), 0.0)


def _colour(identity: Identity) -> NDArray[np.float64]:
    """Mean colour of the cheeks."""
    lab = cv2.cvtColor(identity.portrait, cv2.COLOR_RGB2LAB)[CHEEKS]
    mean: NDArray[np.float64] = lab.reshape(-1, 3).mean(axis=0)
    return mean
