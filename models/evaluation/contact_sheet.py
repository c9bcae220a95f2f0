"""Pictures to look at: labels, contact sheets, and videos side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def labelled(picture: Picture, text: str) -> Picture:
    """The picture with a line of text in its upper left corner."""
    marked = picture.copy()
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(marked, text, (5, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, width, cv2.LINE_AA)
    return marked


def contact_sheet(path: Path, rows: Mapping[str, Sequence[Picture]], side: int = 160) -> None:
    """Write a PNG of labelled rows of square pictures, all rows of one length."""
    strips = []
    for name, pictures in rows.items():
        small = [np.asarray(cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA), np.uint8) for p in pictures]
        strips.append(np.concatenate([labelled(small[0], name), *small[1:]], axis=1))
    cv2.imwrite(str(path), cv2.cvtColor(np.concatenate(strips), cv2.COLOR_RGB2BGR))


def side_by_side(videos: Mapping[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Videos of one length beside each other, each with its name: `[N, 256, 256 · K, 3]`."""
    columns = [np.stack([labelled(frame, name) for frame in frames]) for name, frames in videos.items()]
    return np.concatenate(columns, axis=2)
