"""Which part of a photograph is shown, and how large: inside the photograph, and at most twice its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.config import FramingMode
from avatard.engine import affine
from avatard.engine.identity import Identity
from avatard.errors import UserError

#: Share of the frame's height that the face takes, forehead to chin: what is aimed at, least and most.
HEAD_SHARES: Final = (0.46, 0.40, 0.55)
FACE_SHARES: Final = (0.68, 0.62, 0.75)
#: From the top of the frame to the middle of the face, as a share of its height: hair needs more room than the neck.
FACE_LEVEL: Final = 0.48
#: Width over height, least and most, of frames around a head.
ASPECTS: Final = (0.75, 1.0)
#: The middle of a face, below the point midway between its eyes (interocular distances).
FACE_MIDDLE: Final = 0.47
#: A square is left for less width where the face would be farther from its middle than this (1: never off).
CENTRED: Final = 1.15
#: A frame that is nearly as large as wanted takes the photograph's own pixels, one for one.
NEARLY: Final = 0.08
#: Most pixels of the frame to one of the photograph.
MAX_ENLARGEMENT: Final = 2.0
#: Forehead to chin in pixels of the frame: below, nobody sees it speak.
MIN_FACE: Final = 48.0


class FramingError(UserError):
    """A photograph that cannot be framed as wished."""

    CODE = "framing"


@dataclass(frozen=True)
class Framing:
    """A rectangle of the photograph and the frame that shows it: `frame = scale * photograph + shift`, in pixels."""

    left: float  # pixels of the photograph
    top: float
    scale: float  # pixels of the frame per pixel of the photograph
    width: int  # pixels of the frame, even
    height: int

    @property
    def matrix(self) -> NDArray[np.float64]:
        """Affine map `[2, 3]` from pixel centres of the photograph to pixel centres of the frame."""
        # Pixel i covers [i, i + 1): its centre lies half a pixel further.
        shift = [self.scale * (0.5 - edge) - 0.5 for edge in (self.left, self.top)]
        return np.array([[self.scale, 0.0, shift[0]], [0.0, self.scale, shift[1]]])

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom edge in pixels of the photograph."""
        return (
            self.left,
            self.top,
            self.left + self.width / self.scale,
            self.top + self.height / self.scale,
        )


def frame_identity(identity: Identity, mode: FramingMode, longest: int, size: tuple[int, int] | None = None) -> Framing:
    """The frame of a person's photograph; see `frame_photograph`.

    With a `size`, width and height, it is the frame of that size which shows the same part as nearly as it can: who is
    shown instead of somebody else has the frame that viewers have already, enlarged more than twice if need be.
    """
    origin = identity.pose.project(np.array([[0.0, FACE_MIDDLE, 0.0]]))[0, :2]
    x, y = affine.apply(affine.inverse(identity.crop.matrix), origin)
    shape, middle = identity.photograph.shape, (float(x), float(y))
    framing = frame_photograph(shape, middle, identity.face_px, mode, longest)
    return framing if size is None else _resized(framing, shape, middle, size)


def _resized(framing: Framing, shape: tuple[int, ...], middle: tuple[float, float], size: tuple[int, int]) -> Framing:
    """A frame of another width and height, of about the same part of a photograph and still inside it."""
    aspect = size[0] / size[1]
    wanted = framing.height / framing.scale
    tall = min(wanted, shape[0], shape[1] / aspect)
    wide = tall * aspect
    level = (middle[1] - framing.top) / wanted
    left = min(max(middle[0] - wide / 2, 0.0), shape[1] - wide)
    top = min(max(middle[1] - level * tall, 0.0), shape[0] - tall)
    return Framing(left, top, size[1] / tall, size[0], size[1])


def frame_photograph(
    shape: tuple[int, ...], middle: tuple[float, float], face: float, mode: FramingMode, longest: int
) -> Framing:
    """The frame of a photograph with a face.

    Args:
        shape: of the photograph, height first.
        middle: of the face, in pixels of the photograph.
        face: forehead to chin, in pixels of the photograph.
        mode: "head": head and shoulders; "face": little more than the face; "photo": all of it.
        longest: the frame's longer side in pixels, where the photograph has enough of them.

    Raises:
        FramingError: the face would be too small in the frame.
    """
    room = (shape[1], shape[0])
    if mode == "photo":
        framing = _shown((0.0, 0.0, float(room[0]), float(room[1])), room, longest)
    else:
        shares = HEAD_SHARES if mode == "head" else FACE_SHARES
        framing = _shown(_around(room, middle, face, shares, longest), room, longest)
    if face * framing.scale < MIN_FACE:
        raise FramingError(
            f"the face would be {face * framing.scale:.0f} pixels high in a frame of {framing.width}x{framing.height}, "
            f'expected at least {MIN_FACE:.0f}: set picture.framing to "head"'
        )
    return framing


def _around(
    room: tuple[int, int], middle: tuple[float, float], face: float, shares: tuple[float, float, float], longest: int
) -> tuple[float, float, float, float]:
    """Left, top, width and height of the frame around a face, in pixels of the photograph."""
    width, height = room
    wanted, least, most = shares
    tall = min(face / wanted, height)
    if abs(tall - longest) < NEARLY * longest and face / most <= longest <= min(face / least, height):
        tall = float(longest)
    x = min(max(middle[0], 0.0), float(width))
    narrow, square = ASPECTS[0] * tall, ASPECTS[1] * tall
    # As wide as it may be with the face in its middle; a face at the side gets the narrowest frame.
    wide = min(max(2 * CENTRED * min(x, width - x), narrow), square)
    if wide > width:
        wide, tall = float(width), min(tall, width / ASPECTS[0])
    left = min(max(x - wide / 2, 0.0), width - wide)
    top = min(max(middle[1] - FACE_LEVEL * tall, 0.0), height - tall)
    return left, top, wide, tall


def _shown(part: tuple[float, float, float, float], room: tuple[int, int], longest: int) -> Framing:
    """A part of the photograph, at most `longest` pixels long, with even sides; what is cut off for that is centred."""
    left, top, wide, tall = part
    scale = min(longest / max(wide, tall), MAX_ENLARGEMENT)
    # Whole pixels of the photograph where they are shown one for one.
    width, height = (max(2, 2 * int((side * scale + 1e-6) // 2)) for side in (wide, tall))
    left += (wide - width / scale) / 2
    top += (tall - height / scale) / 2
    if scale == 1:
        left, top = float(round(left)), float(round(top))
    left = min(max(left, 0.0), room[0] - width / scale)
    top = min(max(top, 0.0), room[1] - height / scale)
    return Framing(left, top, scale, width, height)


def resample(picture: NDArray[np.uint8], matrix: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture `[H, W, C]` under a similarity `[2, 3]` (its pixels → the result's), `size` wide and high.

    Beyond the picture its edge is repeated.
    """
    factor = float(np.hypot(matrix[0, 0], matrix[0, 1]))
    # Only what is shown, and a little more for the interpolation.
    corners = np.array([(x, y) for x in (0, size[0]) for y in (0, size[1])])
    seen, near = affine.apply(affine.inverse(matrix), corners), 4 + 2 / factor
    end = np.array(picture.shape[1::-1])
    left, top = (int(edge) for edge in np.clip(np.floor(seen.min(0) - near), 0, end - 1))
    right, bottom = (int(edge) for edge in np.clip(np.ceil(seen.max(0) + near), (left + 1, top + 1), end))
    part = picture[top:bottom, left:right]
    matrix = affine.compose(matrix, np.array([[1, 0, left], [0, 1, top]]))
    if factor < 1:  # shrink by area first: sampling alone would alias
        height, width = part.shape[:2]
        w, h = max(1, round(width * factor)), max(1, round(height * factor))
        part = np.asarray(cv2.resize(part, (w, h), interpolation=cv2.INTER_AREA), np.uint8)
        shrink = np.array([[width / w, 0, (width / w - 1) / 2], [0, height / h, (height / h - 1) / 2], [0, 0, 1]])
        matrix = matrix @ shrink
    done = cv2.warpAffine(part, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(done, np.uint8)
