"""What may look worse with a portrait that is accepted all the same."""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np

from avatard.engine.identity import Identity
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import eye_opening, mouth_opening

#: A face that takes more of the photograph's height has no room for hair and shoulders.
TIGHT: Final = 0.62
#: Width of the mouth beside that of the resting face, and its opening in interocular distances, from which a smile
#: stays visible while the avatar speaks.
SMILE_WIDTH, SMILE_OPENING = 1.10, 0.12
#: Opening in interocular distances below which an eye counts as closed.
CLOSED_EYE: Final = 0.04
#: Share of the face without any change from pixel to pixel. Of 50 photographs the flattest had .14, of eight pictures
#: reduced to areas of one colour the least flat had .33.
FLAT: Final = 0.25
#: The face in the networks' crop: rows and columns.
FACE: Final = (slice(90, 220), slice(70, 190))


def warnings_of(identity: Identity) -> list[str]:
    """One line for each thing that a user may want to change about a portrait."""
    mean = MorphableModel.load().mean_68
    face, rest = mean + identity.landmarks, mean + identity.neutral
    found = []
    if identity.face_px > TIGHT * identity.photograph.shape[0]:
        share = identity.face_px / identity.photograph.shape[0]
        cure = "one with hair and shoulders looks better"
        found.append(f"the photograph is tight: the face takes {share:.0%} of its height; {cure}")
    width = np.linalg.norm(face[54] - face[48]) / np.linalg.norm(rest[54] - rest[48])
    if width > SMILE_WIDTH and mouth_opening(face) > SMILE_OPENING:
        found.append("the face smiles widely: rounded vowels will stay wide; a closed mouth works best")
    if min(eye_opening(face)) < CLOSED_EYE:
        found.append("an eye is closed: it will not open; use a picture with both eyes open")
    grey = cv2.cvtColor(identity.portrait[FACE], cv2.COLOR_RGB2GRAY).astype(np.float64)
    if np.mean(np.abs(cv2.Laplacian(grey, cv2.CV_64F)) < 1) > FLAT:
        found.append("this looks like a drawing: the networks know photographs, and the mouth may open little")
    return found
