"""A person to animate: one portrait, checked, upright, cropped and aligned, with landmarks and pose."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from avatard.errors import UserError
from avatard.media.image_file import read_bytes, read_cutout
from avatard.models.face.crop import FACE_HEIGHT, Crop
from avatard.models.face.mesh import FaceMesh
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.face.search import find_faces, smallest_face
from avatard.models.face.topology import MESH_TO_68
from avatard.portrait import Portrait

#: Forehead to chin in pixels of the given picture; the crop shows it 154 pixels high.
MIN_FACE: Final = 96.0
#: Degrees of yaw or pitch: further round, half of the face is a guess.
MAX_TURN: Final = 45.0


class IdentityError(UserError):
    """A portrait that cannot be used, and why."""

    CODE = "portrait"


#: Of the 68 points: tip of the chin, the first of all that are no jaw, and the middle of the lower lip's edge.
CHIN, FIRST_BROW, LOWER_LIP = 8, 17, 57


@dataclass(frozen=True)
class Identity:
    """One person's portrait and what is known of the face in it."""

    photograph: NDArray[np.uint8]  # [H, W, 3], RGB, upright: all of the picture
    alpha: NDArray[np.uint8] | None  # [H, W], how opaque it is, if it has transparent parts
    crop: Crop  # photograph → portrait
    portrait: NDArray[np.uint8]  # [256, 256, 3], RGB: what the networks see
    points: NDArray[np.float32]  # [468, 3], mesh in portrait pixels (z: relative depth)
    landmarks: NDArray[np.float32]  # [68, 3], frontal offsets from the mean face, in its interocular distances
    neutral: NDArray[np.float32]  # [68, 3], the same without expression
    pose: Pose  # in portrait pixels
    digest: str  # sha256 of the portrait's pixels, hexadecimal
    face_px: float  # forehead to chin in pixels of the picture it came from

    @classmethod
    def load(cls, path: str | Path, face: int | None = None, *, mesh: FaceMesh | None = None) -> Identity:
        """Read a picture file and find the person in it; see `find`.

        Args:
            path: a picture file.
            face: which face, counted from the left and from 1; needed where there are several.
            mesh: networks to use; loaded for this call (20 ms) where not given.

        Raises:
            ImageError, IdentityError: the picture cannot be used.
        """
        return cls.find(Portrait(read_bytes(path), face or 0, str(path)), mesh=mesh)

    @classmethod
    def find(cls, portrait: Portrait, *, mesh: FaceMesh | None = None) -> Identity:
        """Find the person in a portrait.

        Raises:
            ImageError: no usable picture.
            IdentityError: no face, several faces and none chosen, a face too small, turned away or cut off.
        """
        image, alpha = read_cutout(portrait.data, portrait.name)
        faces = find_faces(mesh or FaceMesh(), image)
        return cls._of(
            portrait.name,
            image,
            alpha,
            faces[_choose(portrait, _boxes(faces, image), max(MIN_FACE, smallest_face(image)))],
        )

    @classmethod
    def _of(
        cls, name: str, image: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, mesh: NDArray[np.float32]
    ) -> Identity:
        """From the mesh of the chosen face, in image pixels."""
        morphable = MorphableModel.load()
        rough = morphable.pose(mesh.astype(np.float64))
        height = FACE_HEIGHT * float(rough.scale)
        if height < MIN_FACE:
            raise IdentityError(
                f"{name}: the face is {height:.0f} pixels high, expected at least {MIN_FACE:.0f}: use a larger picture"
            )
        yaw, pitch, _ = rough.yaw_pitch_roll
        if max(abs(yaw), abs(pitch)) > MAX_TURN:
            where = f"{abs(yaw):.0f}° to the side" if abs(yaw) >= abs(pitch) else f"{abs(pitch):.0f}° up or down"
            raise IdentityError(
                f"{name}: the head is turned {where}, expected at most {MAX_TURN:.0f}°: use one that faces the camera"
            )
        if (edge := _cut_by(mesh[MESH_TO_68, :2].astype(np.float64), image.shape)) is not None:
            raise IdentityError(
                f"{name}: the face is cut by the {edge} edge of the picture: use one that shows brows, eyes, mouth and "
                "at least half of the chin"
            )
        crop = Crop.of(rough)
        portrait = crop.image(image)
        points = crop.points(mesh.astype(np.float64))
        canonical, poses = morphable.frontal(points[None])
        landmarks = morphable.landmarks(canonical)[0]
        return cls(
            photograph=image,
            alpha=alpha,
            crop=crop,
            portrait=portrait,
            points=points.astype(np.float32),
            landmarks=landmarks.astype(np.float32),
            neutral=morphable.neutral(landmarks).astype(np.float32),
            pose=poses[0],
            digest=hashlib.sha256(portrait.tobytes()).hexdigest(),
            face_px=height,
        )


def _cut_by(landmarks: NDArray[np.float64], shape: tuple[int, ...]) -> str | None:
    """The edge of a picture beyond which something of the landmarks `[68, 2]` lies that must be seen, if any does.

    The mesh goes on where the picture ends. What of cheeks, forehead and chin is cut off is not missed: frames end
    there too. Eyes and mouth must be moved, and the lower lip needs skin below it to stretch.
    """
    half_chin = (landmarks[LOWER_LIP] + landmarks[CHIN]) / 2
    needed = np.vstack([landmarks[FIRST_BROW:], half_chin])
    (left, top), (right, bottom) = needed.min(0) + 0.5, np.array(shape[1::-1]) - needed.max(0) - 0.5
    room = {"lower": bottom, "upper": top, "left": left, "right": right}
    edge = min(room, key=lambda name: room[name])
    return edge if room[edge] < 0 else None


def _boxes(faces: list[NDArray[np.float32]], image: NDArray[np.uint8]) -> list[list[float]]:
    """Left, top, width and height of each mesh, as fractions of the upright image."""
    size = np.array(image.shape[1::-1], np.float64)
    corners = [(face[:, :2].min(axis=0) / size, face[:, :2].max(axis=0) / size) for face in faces]
    return [np.concatenate([low, high - low]).round(4).tolist() for low, high in corners]


def _choose(portrait: Portrait, boxes: list[list[float]], smallest: float) -> int:
    """Index of the chosen face among those with these boxes. Raises `IdentityError`, with the `smallest` height."""
    name, face, count = portrait.name, portrait.face, len(boxes)
    if count == 0:
        raise IdentityError(
            f"{name}: no face found; expected an upright head, seen from the front, its face at least {smallest:.0f} "
            "pixels high",
            code="no-face",
        )
    if not face and count > 1:
        ways = f"{', '.join(map(str, range(1, count)))} or {count}" if count < 5 else f"1 to {count}"
        raise IdentityError(
            f"{name} has {count} faces: choose with --face {ways}, counted from the left",
            code="several-faces",
            faces=count,
            boxes=boxes,
        )
    if face > count:
        faces = "1 face" if count == 1 else f"{count} faces"
        raise IdentityError(f"{name} has {faces}, got face {face}", code="no-such-face", faces=count)
    return max(face, 1) - 1
