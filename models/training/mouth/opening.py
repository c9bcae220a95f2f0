"""Portraits with closed lips, opened by MC-VDM with the motion of others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from avatard.models.face.crop import Crop
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.face.topology import MESH_TO_68, mouth_opening
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.mcvdm.mouth_window import WINDOW_SCALE, MouthWindow, inner_lips
from avatard.models.training.mouth.dataset import Mouth
from avatard.models.training.mouth.regenerate import CLIP, regenerate

Floats = NDArray[np.floating]
Picture = NDArray[np.uint8]

#: Mouths that are kept of a clip, of its widest three quarters.
KEPT = 6
#: How far the motion of one person is taken by another.
STRENGTHS = (0.7, 1.4)


def motion_of(faces: Floats) -> Floats | None:
    """How a clip's 68 points `[N, 68, 3]`, canonical, move from its most closed frame; None of too short a clip."""
    moves: Floats = faces - faces[np.argmin(mouth_opening(faces))]
    return moves if len(moves) >= CLIP else None


def open_mouths(
    model: Mcvdm,
    morphable: MorphableModel,
    image: Picture,
    mesh: Floats,
    person: str,
    moves: Sequence[Floats],
    seed: int,
) -> list[Mouth]:
    """A portrait's mouth as MC-VDM opens it, a few times for each of the motions.

    Args:
        model: the networks.
        morphable: of meshes.
        image: the portrait, `[H, W, 3]`.
        mesh: `[468, 3]`, pixels of it.
        person: who it is.
        moves: see `motion_of`.
        seed: of part, strength and noise.

    Returns:
        Mouths whose picture is what the networks make.
    """
    rng = np.random.default_rng(seed)
    crop = Crop.of(morphable.pose(mesh[None]))
    canonical, pose = morphable.frontal(crop.points(mesh[None]))
    still, portrait = canonical[0, MESH_TO_68], crop.image(image)
    poses = Pose(*(np.repeat(part, CLIP, axis=0) for part in (pose.rotation, pose.scale, pose.translation)))
    scale, yaw, roll = float(pose.scale[0]), float(pose.yaw_pitch_roll[0, 0]), float(pose.yaw_pitch_roll[0, 2])
    found = []
    for move in moves:
        # Around a wide moment: there are enough small ones on the way to it.
        middle = int(rng.choice(np.argsort(mouth_opening(still + move))[len(move) // 2 :]))
        first = int(np.clip(middle - CLIP // 2, 0, len(move) - CLIP))
        moved = still + rng.uniform(*STRENGTHS) * move[first : first + CLIP]
        moved[0] = still  # the reference
        made = regenerate(model, portrait, moved, poses, 0, int(rng.integers(1 << 30)))
        opening = mouth_opening(moved)
        wide = np.argsort(opening)[CLIP // 4 :]
        for n in wide[np.linspace(0, len(wide) - 1, KEPT).round().astype(int)]:
            lips = inner_lips(pose[0].project(moved[n])[:, :2])
            window = MouthWindow.around(lips, scale, float(np.radians(roll)), *Mouth.STORED)
            sharpness = scale / crop.factor / WINDOW_SCALE
            picture = window.cut(made[n])
            found.append(Mouth(picture, window.points(lips), person, float(opening[n]), yaw, sharpness))
    return found
