"""The streaming pipeline offline, for scripts that measure it: from a voice or from landmarks to arrays of frames."""

from __future__ import annotations

import tempfile
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from avatard.commands.render import play_out
from avatard.config import Config, Stream
from avatard.engine.video_stream import Face, PreparedPortrait, VideoStream
from avatard.media.video_writer import VideoWriter
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.mcvdm.model import Mcvdm
from avatard.portrait import Portrait
from avatard.timebase import CROP_SIDE, SAMPLE_RATE_HZ

Pictures = NDArray[np.uint8]  # [N, 256, 256, 3] RGB


@dataclass(frozen=True)
class GeneratedClip:
    """What the pipeline made of a portrait and a voice."""

    frames: Pictures
    landmarks: NDArray[np.float32]  # [N, 68, 3], frontal, interocular distances: the motion network's


class OfflinePipeline:
    """The pipeline at a number of denoising steps. The networks are loaded once; portraits come as pixels.

    Frames are the networks' crop: what is compared with them is a crop, too.
    """

    def __init__(self, config: Config, steps: int):
        from avatard.engine.engine import make_engine

        stream = structs.replace(config.stream, video_steps=steps)
        picture = structs.replace(config.picture, framing="photo", size=CROP_SIDE)
        self._config = structs.replace(config, stream=stream, picture=picture)
        self._engine = make_engine(self._config)

    def generate(self, portrait: NDArray[np.uint8], voice: NDArray[np.int16]) -> GeneratedClip:
        """Frames for a portrait `[H, W, 3]` and a voice `[T]` at 16 kHz.

        Raises:
            UserError: the portrait does not show one face.
        """
        self._engine.identify(portrait_of(portrait))
        samples: NDArray[np.float32] = np.divide(voice, 32768, dtype=np.float32)
        played = [entry.picture for entry in play_out(self._engine, [samples], self._config)]
        frames = [frame for frame in played if frame is not None]
        return GeneratedClip(np.stack([f.rgb for f in frames]), np.stack([f.landmarks for f in frames]))


def portrait_of(pixels: NDArray[np.uint8]) -> Portrait:
    """Pixels `[H, W, 3]` RGB as a lossless file."""
    return Portrait(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())


def render_landmarks(
    model: Mcvdm, face: Face, landmarks: NDArray[np.floating], poses: Sequence[Pose], stream: Stream, steps: int
) -> Pictures:
    """The frames that a live stream would show of landmarks `[N, 68, 3]` (offsets from the mean face) and N poses."""
    video = VideoStream(
        model,
        PreparedPortrait.of(model, face, MorphableModel.load().mean_68),
        seed=stream.seed,
        clip=stream.clip_frames,
        hop=stream.hop_frames,
        fade=stream.fade_frames,
        steps=steps,
    )
    parts = [*video.push(landmarks, poses), *video.finish()]
    return np.concatenate([frames for _, frames in parts])[: len(landmarks)]


def write_video(path: Path, frames: Pictures, audio: NDArray[np.int16]) -> None:
    """Write an MP4 of frames `[N, H, W, 3]` at 25 fps with sound `[T]` at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder) / "sound.wav"
        with wave.open(str(sound), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE_HZ, 0, "NONE", ""))
            file.writeframes(audio.astype("<i2").tobytes())
        size = (frames.shape[1], frames.shape[2])
        with VideoWriter(path, size, sound, {"comment": "real and synthetic video"}) as out:
            for frame in frames:
                out.write(frame)
