"""What the tests of faces share: a portrait, the networks, and videos written on the spot."""

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from avatard.media.image_file import load_image
from avatard.models.face.mesh import FaceMesh
from avatard.models.face.morphable import MorphableModel
from tests.support.paths import ROOT

PORTRAIT = ROOT / "avatard" / "media" / "astronaut.jpg"


@cache
def networks() -> FaceMesh:
    return FaceMesh()


@cache
def morphable() -> MorphableModel:
    return MorphableModel.load()


def portrait() -> NDArray[np.uint8]:
    return load_image(PORTRAIT)


@cache
def portrait_mesh() -> NDArray[np.float64]:
    """The portrait's mesh [468, 3] in its pixels."""
    image = portrait()
    points, _ = networks().refine(image, networks().detect(image)[0])
    return points.astype(np.float64)


def on_canvas(height: int, width: int, *faces: tuple[int, int, float]) -> NDArray[np.uint8]:
    """Portraits, each at (left, top) and with a scale, on a grey picture."""
    import cv2

    canvas = np.full((height, width, 3), 128, np.uint8)
    for left, top, scale in faces:
        face = cv2.resize(portrait(), None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        canvas[top : top + len(face), left : left + face.shape[1]] = face[: height - top, : width - left]
    return canvas


def write_video(
    path: Path,
    frames: Sequence[NDArray[np.uint8]],
    fps: int = 25,
    audio: NDArray[np.int16] | None = None,
    rate_hz: int = 16_000,
    audio_start: float = 0.0,
) -> None:
    """A lossless Matroska file of frames [H, W, 3] and mono samples."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("ffv1", rate=fps)
        video.height, video.width = frames[0].shape[:2]
        video.pix_fmt = "bgr0"
        sound = container.add_stream("pcm_s16le", rate=rate_hz, layout="mono") if audio is not None else None
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = number, Fraction(1, fps)
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        if sound is not None and audio is not None:
            block = av.AudioFrame.from_ndarray(audio[None], format="s16", layout="mono")
            block.sample_rate, block.time_base = rate_hz, Fraction(1, rate_hz)
            block.pts = round(audio_start * rate_hz)
            container.mux(sound.encode(block))
            container.mux(sound.encode(None))
