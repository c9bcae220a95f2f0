"""Draw the axes and signs of a head's rotation: protocols/axes.png.

python scripts/draw_axes.py protocols/axes.png
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import rotation_matrix

SIDE, TEXT = 300, 130  # pixels of a face, and of what stands below it
SCALE = 2  # drawn larger and made smaller, for smooth lines
IOD = 82 * SCALE  # pixels
INK, GREY, RED, GREEN, BLUE = "#222222", "#8a8a8a", "#c62828", "#2e7d32", "#1565c0"
#: The lines of a face: first and last point, and whether they are closed.
LINES = [(0, 16, False), (17, 21, False), (22, 26, False), (27, 30, False), (31, 35, False)]
LINES += [(36, 41, True), (42, 47, True), (48, 59, True), (60, 67, True)]
#: Yaw, pitch and roll in degrees as of `Pose`, and what it is called on each wire.
POSES = [
    ((0, 0, 0), "faces the viewer", ["x: to the avatar's left (red)", "y: down (green)", "z: away (blue)", ""]),
    ((28, 0, 0), "turns to its left", ["ZeroMQ, VMC  q.y < 0", "Live Link  HeadYaw < 0", "OpenSeeFace  Euler y > 0"]),
    (
        (0, 24, 0),
        "looks up",
        ["ZeroMQ, VMC  q.x < 0", "Live Link  HeadPitch < 0", "OpenSeeFace  Euler x from 180 down"],
    ),
    (
        (0, 0, 22),
        "leans to its left",
        ["ZeroMQ, VMC  q.z > 0", "Live Link  HeadRoll > 0", "OpenSeeFace  Euler z below 90"],
    ),
]


def main(output: Annotated[Path, typer.Argument(help="The PNG file to write.")]) -> None:
    """Draw the mean face in four poses, and their signs on each wire."""
    points = MorphableModel.load().mean_68
    picture = Image.new("RGB", (SCALE * SIDE * len(POSES), SCALE * (SIDE + TEXT)), "white")
    draw = ImageDraw.Draw(picture)
    for column, (angles, title, lines) in enumerate(POSES):
        centre = SCALE * np.array([(column + 0.5) * SIDE, 0.42 * SIDE])
        turn = rotation_matrix(*angles)
        draw_face(draw, centre, points @ turn.T)
        for axis, colour in zip(np.eye(3), (RED, GREEN, BLUE), strict=True):
            draw_arrow(
                draw, centre, centre + 1.2 * IOD * (turn @ axis + 0.18 * axis[2] * np.array([-1, -1, 0]))[:2], colour
            )
        for row, text in enumerate([title, *lines]):
            font = ImageFont.load_default(SCALE * (19 if row == 0 else 15))
            place = (SCALE * (column + 0.5) * SIDE, SCALE * (SIDE + 4 + 26 * row))
            draw.text(place, text, INK if row == 0 else GREY, font, anchor="mt")
    picture.resize((picture.width // SCALE, picture.height // SCALE), Image.Resampling.LANCZOS).quantize(64).save(
        output, optimize=True
    )


def draw_face(draw: ImageDraw.ImageDraw, centre: NDArray[np.float64], points: NDArray[np.floating]) -> None:
    """The lines of 68 points `[68, 3]`, in interocular distances about a centre."""
    places = [tuple(place) for place in (centre + IOD * points[:, :2]).tolist()]
    for first, last, closed in LINES:
        line = places[first : last + 1] + places[first : first + 1] * closed
        draw.line(line, GREY, 2 * SCALE, joint="curve")


def draw_arrow(draw: ImageDraw.ImageDraw, start: NDArray[np.float64], end: NDArray[np.float64], colour: str) -> None:
    """A line with a head."""
    along = (end - start) / max(np.hypot(*(end - start)), 1e-6)
    across = np.array([-along[1], along[0]])
    draw.line([*start, *end], colour, 3 * SCALE)
    head = [end + 9 * SCALE * along, end + 6 * SCALE * across, end - 6 * SCALE * across]
    draw.polygon([tuple(corner) for corner in head], colour)


if __name__ == "__main__":
    typer.run(main)
