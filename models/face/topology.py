"""Index tables: which vertex is which part of the face.

The 68 points follow the iBUG 300-W order: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, outer lip 48-59, inner lip
60-67. "Right" and "left" are the subject's; a subject's right side is on the left of a frontal picture.
"""

from typing import TYPE_CHECKING, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

#: Arrays or tensors: this module does not import torch.
Points = TypeVar("Points", NDArray[np.floating], "Tensor")

MESH_VERTICES: Final = 468

#: Vertex of the 468-point mesh for each of the 68 iBUG points. The jaw runs along the mesh's silhouette from ear to ear
#: through the chin (152); brows along their upper edge; the nose bridge from the nasion (168) to the tip (4); the eyes
#: start at the outer corner of the right and at the inner corner of the left eye; lips start at the right mouth corner.
MESH_TO_68: Final[NDArray[np.intp]] = np.array(
    [
        *(127, 234, 93, 132, 172, 136, 149, 176, 152, 400, 378, 365, 397, 361, 323, 454, 356),
        *(70, 63, 105, 66, 107),
        *(336, 296, 334, 293, 300),
        *(168, 6, 195, 4),
        *(98, 97, 2, 326, 327),
        *(33, 160, 158, 133, 153, 144),
        *(362, 385, 387, 263, 373, 380),
        *(61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181),
        *(78, 82, 13, 312, 308, 317, 14, 87),
    ]
)

JAW: Final = slice(0, 17)
RIGHT_BROW: Final = slice(17, 22)
LEFT_BROW: Final = slice(22, 27)
NOSE_BRIDGE: Final = slice(27, 31)
NOSE_BASE: Final = slice(31, 36)
RIGHT_EYE: Final = slice(36, 42)
LEFT_EYE: Final = slice(42, 48)
OUTER_LIP: Final = slice(48, 60)
INNER_LIP: Final = slice(60, 68)
MOUTH: Final = slice(48, 68)
#: The lips without the corners.
UPPER_LIP: Final = [49, 50, 51, 52, 53, 61, 62, 63]
LOWER_LIP: Final = [55, 56, 57, 58, 59, 65, 66, 67]

#: Pairs of the inner lip that lie over each other, without the corners.
UPPER_INNER_LIP: Final = [61, 62, 63]
LOWER_INNER_LIP: Final = [67, 66, 65]

#: Inner lips of the mesh from the right to the left corner; entry i of the upper lip is over entry i of the lower one.
UPPER_INNER: Final[NDArray[np.intp]] = np.array([191, 80, 81, 82, 13, 312, 311, 310, 415])
LOWER_INNER: Final[NDArray[np.intp]] = np.array([95, 88, 178, 87, 14, 317, 402, 318, 324])
MOUTH_CORNERS: Final = (78, 308)
#: Once around the inner lips, from the right corner over the upper lip.
INNER_LIP_RING: Final[NDArray[np.intp]] = np.array(
    [MOUTH_CORNERS[0], *UPPER_INNER, MOUTH_CORNERS[1], *LOWER_INNER[::-1]]
)

#: Points that speech moves: the mouth and the jaw that hangs below the cheeks (the lip stream of AToM-Net).
LIP_68: Final[NDArray[np.intp]] = np.array([*range(4, 13), *range(48, 68)])
#: All others.
REST_68: Final[NDArray[np.intp]] = np.setdiff1d(np.arange(68), LIP_68)

#: Points of the 68 that neither speech nor expression moves much: temples, nose bridge, eye corners.
RIGID_68: Final[NDArray[np.intp]] = np.array([0, 1, 15, 16, 27, 28, 29, 30, 36, 39, 42, 45])

#: The same on the mesh, with the forehead and temples.
RIGID_MESH: Final[NDArray[np.intp]] = np.array(
    [
        *(10, 151, 9, 8, 168, 6, 197, 195, 5, 4),
        *(33, 133, 362, 263),
        *(127, 356, 234, 454, 162, 389, 21, 251, 54, 284, 103, 332, 67, 297, 109, 338),
        *(68, 298, 104, 333, 69, 299, 108, 337),
    ]
)

#: Vertices of the upper and lower lids from the outer to the inner corner, right eye then left.
UPPER_LIDS: Final[NDArray[np.intp]] = np.array(
    [[246, 161, 160, 159, 158, 157, 173], [466, 388, 387, 386, 385, 384, 398]]
)
LOWER_LIDS: Final[NDArray[np.intp]] = np.array([[7, 163, 144, 145, 153, 154, 155], [249, 390, 373, 374, 380, 381, 382]])
#: The crease above each point of the upper lids.
LID_CREASES: Final[NDArray[np.intp]] = np.array([[247, 30, 29, 27, 28, 56, 190], [467, 260, 259, 257, 258, 286, 414]])
EYE_CORNERS: Final[NDArray[np.intp]] = np.array([[33, 133], [263, 362]])

#: The 68 points as they appear in a mirrored picture: `mirrored = points[MIRROR_68]` after flipping x.
MIRROR_68: Final[NDArray[np.intp]] = np.array(
    [
        *range(16, -1, -1),
        *range(26, 16, -1),
        *(27, 28, 29, 30),
        *(35, 34, 33, 32, 31),
        *(45, 44, 43, 42, 47, 46),
        *(39, 38, 37, 36, 41, 40),
        *(54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55),
        *(64, 63, 62, 61, 60, 67, 66, 65),
    ]
)


def inner_lip_heights(points: Points) -> Points:
    """Distances `[..., 3]` between the inner lips of 68 points `[..., 68, 2 or 3]`, in their unit (y down)."""
    return points[..., LOWER_INNER_LIP, 1] - points[..., UPPER_INNER_LIP, 1]


def mouth_opening(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean height of the inner lip `[...]` of 68 points `[..., 68, 2 or 3]`, in their unit (y down)."""
    opening: NDArray[np.floating] = inner_lip_heights(points).mean(axis=-1)
    return opening


def eye_opening(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Mean gap of the lids `[..., 2]` (right, left) of 68 points `[..., 68, 2 or 3]`, in their unit (y down)."""
    right = points[..., [41, 40], 1] - points[..., [37, 38], 1]
    left = points[..., [47, 46], 1] - points[..., [43, 44], 1]
    return np.stack([right.mean(axis=-1), left.mean(axis=-1)], axis=-1)


def interocular(points: NDArray[np.floating]) -> NDArray[np.floating]:
    """Distance `[...]` between the centres of the two eyes of 68 points `[..., 68, 2 or 3]`, in their unit."""
    between = points[..., LEFT_EYE, :].mean(axis=-2) - points[..., RIGHT_EYE, :].mean(axis=-2)
    distance: NDArray[np.floating] = np.linalg.norm(between, axis=-1)
    return distance
