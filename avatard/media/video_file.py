"""Read a video file: frames at 25 fps, sound at 16 kHz mono."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.error import FFmpegError
from numpy.typing import NDArray

from avatard.errors import UserError
from avatard.timebase import FPS, SAMPLE_RATE_HZ

#: Ends of the names of video files.
VIDEOS: Final = frozenset({".mp4", ".m4v", ".mkv", ".mov", ".webm", ".avi"})


class MediaError(UserError):
    """A video file that cannot be used."""


def read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Pictures `[H, W, 3]` RGB of the first video stream, at 25 fps.

    At another rate, pictures are repeated or left out; each is at most half a frame early or late.
    Raises `MediaError` if there is no readable video.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} has no video stream")
            stream = container.streams.video[0]
            due = 0
            time = 0.0
            last: NDArray[np.uint8] | None = None
            start: float | None = None
            for frame in container.decode(stream):
                time = float(frame.time or 0.0)
                start = time if start is None else start
                while last is not None and start + (due + 0.5) / FPS <= time:
                    yield last
                    due += 1
                last = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
            if last is not None and start is not None:
                end = time + 1 / float(stream.average_rate or FPS)
                for _ in range(due, max(1, round((end - start) * FPS))):
                    yield last
    except FFmpegError as error:
        raise MediaError(f"{path} cannot be read as a video: {error.strerror}") from error


def read_audio(path: Path) -> NDArray[np.int16]:
    """Samples `[T]` of the first audio stream at 16 kHz mono; empty if the file has none.

    Sample 0 is the moment of the container's first picture. Raises `MediaError` if the file is unreadable.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                return np.zeros(0, np.int16)
            resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE_HZ)
            parts: list[NDArray[np.int16]] = []
            lead: float | None = None
            for frame in container.decode(container.streams.audio[0]):
                lead = float(frame.time or 0.0) if lead is None else lead
                parts += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            parts += [part.to_ndarray()[0] for part in resampler.resample(None)]
            samples = np.concatenate(parts) if parts else np.zeros(0, np.int16)
            video_start = 0.0
            for stream in container.streams.video[:1]:
                if stream.start_time is not None and stream.time_base is not None:
                    video_start = float(stream.start_time * stream.time_base)
            shift = round(((lead or 0.0) - video_start) * SAMPLE_RATE_HZ)
            return np.pad(samples, (shift, 0)) if shift > 0 else samples[-shift:]
    except FFmpegError as error:
        raise MediaError(f"{path} cannot be read as audio: {error.strerror}") from error
