"""Measure how portraits are framed and composed, without the video network.

    python scripts/measure_picture.py FOLDER [FOLDER ...]

Every portrait is framed and moved by smooth flows like those of the network, up to 9 pixels of its crop, with a blink.
Prints one JSON object:

    portraits, refused   how many, and why some were not used
    outside              portraits of which a pixel of a frame would come from outside the file
    face_share           of the frame's height: smallest, median, largest
    sharpness            CPBD of the face in moved frames, as a share of the still photograph's: median, lowest tenth
    tracked_gap          height of the eyes' opening that the tracker sees in the blink, of the open eyes': median
    ms                   of one thread a frame: median
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, get_args

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.script import run_script
from avatard.config import FramingMode
from avatard.engine import affine
from avatard.engine.compositor import Compositor
from avatard.engine.eyes import Eyes
from avatard.engine.framing import frame_identity
from avatard.engine.identity import Identity
from avatard.errors import UserError
from avatard.models.evaluation.image_metrics import cpbd
from avatard.models.face.mesh import FaceMesh
from avatard.models.face.topology import MESH_TO_68, eye_opening
from avatard.models.mcvdm.decoder import FACE, FINE_CELLS, Layers
from avatard.timebase import CROP_SIDE

#: Largest motion in pixels of the crop; frames measured of each portrait.
LARGEST, FRAMES = 9.0, 6


def flow(rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth flow `[2, 64, 64]` in normalised units."""
    field = cv2.GaussianBlur(rng.normal(size=(FINE_CELLS, FINE_CELLS, 2)), (0, 0), 12.0)
    field += rng.normal(size=2) * np.abs(field).max()
    scaled = field * (LARGEST / np.abs(field).max() * 2 / CROP_SIDE)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)


def measure(path: Path, mesh: FaceMesh, mode: FramingMode, size: int, rng: np.random.Generator) -> dict[str, float]:
    """Figures of one portrait. Raises `UserError` where it cannot be used."""
    identity = Identity.load(path, mesh=mesh)
    framing = frame_identity(identity, mode, size)
    one = Compositor(identity, framing)
    rows, columns = FACE.pixels
    side = (rows.stop - rows.start, columns.stop - columns.start)
    shown = [
        Layers(flow(rng), np.zeros((*side, 3), np.uint8), np.full(side, 255, np.uint8), FACE.pixels)
        for _ in range(FRAMES)
    ]
    height, width = identity.photograph.shape[:2]
    back = affine.inverse(framing.matrix)
    outside = False
    for layers in shown:
        x, y = np.moveaxis(affine.apply(back, one.positions(layers.flow)), -1, 0)
        outside |= bool(x.min() < -0.5 or y.min() < -0.5 or x.max() > width - 0.5 or y.max() > height - 0.5)
    face = affine.apply(one.to_frame, identity.points[:, :2])
    (x0, y0), (x1, y1) = np.clip(face.min(0), 0, None).astype(int), face.max(0).astype(int)
    since = time.process_time()
    frames = [one.frame(layers) for layers in shown]
    spent = (time.process_time() - since) / FRAMES
    sharp = cpbd(np.stack([f[y0:y1, x0:x1] for f in (one.still, *frames)]))

    def gap(closure: float) -> float:
        still = Layers(np.zeros_like(shown[0].flow), *shown[0][1:])
        frame = one.frame(still, Eyes((closure, closure)))
        points, _ = mesh.refine(frame, mesh.detect(frame)[0])
        return float(eye_opening(points[MESH_TO_68]).mean())

    return {
        "outside": outside,
        "face_share": identity.face_px * framing.scale / framing.height,
        "sharpness": float(np.nanmean(sharp[1:]) / sharp[0]),
        "tracked_gap": gap(1.0) / gap(0.0),
        "ms": 1000 * spent,
    }


def main(
    folders: Annotated[list[Path], typer.Argument(help="folders of portraits", exists=True, file_okay=False)],
    size: Annotated[int, typer.Option(help="longer side of the frames")] = 512,
    framing: Annotated[str, typer.Option(help=" | ".join(get_args(FramingMode)))] = "head",
    limit: Annotated[int, typer.Option(help="portraits of each folder; 0: all")] = 0,
) -> None:
    """Measure and print."""
    cv2.setNumThreads(1)
    mode: FramingMode = next((known for known in get_args(FramingMode) if known == framing), "head")
    mesh, rng = FaceMesh(), np.random.default_rng(0)
    paths = [p for folder in folders for p in sorted(folder.iterdir())[: limit or None] if p.suffix != ".csv"]
    found: list[dict[str, float]] = []
    refused: list[str] = []
    for path in tqdm(paths, disable=None):
        try:
            found.append(measure(path, mesh, mode, size, rng))
        except UserError as error:
            refused.append(str(error))
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: no portrait that can be used")
    values = {key: np.array([figures[key] for figures in found], float) for key in found[0]}
    figures = {
        "portraits": len(found),
        "refused": refused,
        "outside": int(values["outside"].sum()),
        "face_share": [round(float(np.quantile(values["face_share"], q)), 3) for q in (0, 0.5, 1)],
        "sharpness": [round(float(np.nanquantile(values["sharpness"], q)), 3) for q in (0.5, 0.1)],
        "tracked_gap": round(float(np.median(values["tracked_gap"])), 3),
        "ms": round(float(np.median(values["ms"])), 2),
    }
    typer.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    run_script(main)
