"""A signal that shows whether picture and sound are in step: a flash and a tone begin in the same frame."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from avatard.frame import Backdrop, Frame, HeadPose, Rectangle, Sound
from avatard.playout.scheduler import PlayoutFrame

SIDE = 64
PERIOD, LIT = 20, 5  # frames
TONE = (0.5 * np.sin(2 * np.pi * 1000 * np.arange(1920) / 48_000)).astype(np.float32)


def is_lit(index: int) -> bool:
    return index % PERIOD >= PERIOD - LIT


def picture(index: int, side: int = SIDE) -> np.ndarray:
    return np.full((side, side, 3), 220 if is_lit(index) else 20, np.uint8)


def pcm(index: int) -> np.ndarray:
    return np.rint(TONE * is_lit(index) * 32767).astype(np.int16)


def frame_of(pixels: np.ndarray) -> Frame:
    pose = HeadPose((0.0, 0.0, 0.0, 1.0), (0.0, 0.0, 0.0), 1.0)
    backdrop = Backdrop(pixels, Rectangle(0, 0, 2, 2))
    return Frame(pixels, np.zeros((68, 3), np.float32), np.zeros(52, np.float32), pose, backdrop)


def entry(index: int, side: int = SIDE) -> PlayoutFrame:
    sound = Sound(TONE[::3] * is_lit(index), TONE * is_lit(index))
    return PlayoutFrame(index, sound, frame_of(picture(index, side)), False, False, None)


def decoded(path: Path | str, kind: str) -> list[tuple[float, np.ndarray]]:
    """Time in seconds and content of each picture or block of sound that can be decoded."""
    found = []
    with av.open(str(path)) as file:
        try:
            for frame in file.decode(**{kind: 0}):
                assert isinstance(frame, av.VideoFrame | av.AudioFrame) and frame.time is not None
                array = frame.to_ndarray(format="rgb24") if isinstance(frame, av.VideoFrame) else frame.to_ndarray()
                found.append((frame.time, array))
        except av.error.FFmpegError:
            pass  # the end of a file that was cut
    return found


def onsets(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """When flashes begin, and when tones begin, in seconds."""
    pictures, blocks = decoded(path, "video"), decoded(path, "audio")
    times = np.array([time for time, _ in pictures])
    lit = np.array([pixels.mean() > 120 for _, pixels in pictures])
    flashes = times[1:][lit[1:] & ~lit[:-1]]
    rate = 48_000
    sound = np.concatenate([block.reshape(-1) for _, block in blocks]).astype(float)
    sound /= np.abs(sound).max()
    # Loud now, and quiet for the 100 ms before: the silence between two tones is longer.
    loud = np.flatnonzero(np.abs(sound) > 0.3)
    first = loud[np.diff(loud, prepend=-rate) > rate // 10]
    return flashes, blocks[0][0] + first / rate


def offsets_ms(path: Path | str) -> np.ndarray:
    """Sound minus picture of each flash, in ms."""
    flashes, tones = onsets(path)
    both = min(len(flashes), len(tones))
    return np.array([1000 * (tones[np.abs(tones - at).argmin()] - at) for at in flashes[:both]])
