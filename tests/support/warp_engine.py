"""An engine for tests: the portrait with a mouth that opens as far as the sound is loud. No networks, no torch."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from avatard.config import Config
from avatard.frame import Backdrop, Frame, HeadPose, Rectangle, Samples
from avatard.inference.engine_api import EngineError, Timer, untimed
from avatard.portrait import Portrait
from avatard.timebase import SAMPLES_PER_FRAME, SAMPLES_PER_MS

SIZE = 256
#: Where anything moves.
MOUTH = Rectangle(92, 154, 72, 76)

#: Of portraits without a background: nothing on the left, half of it on the right.
ALPHA = np.repeat(np.array([[0, 255, 255, 128]], np.uint8), SIZE // 4, axis=1).repeat(SIZE, axis=0)


class Motion(NamedTuple):
    first: int
    opening: NDArray[np.float32]  # [k], 0 closed, 1 open


class WarpStream:
    def __init__(self, engine: "WarpEngine", first: int) -> None:
        self.engine, self.next = engine, first
        self.sound = np.zeros(0, np.float32)
        self.held: list[Frame] = []
        self.rendered = first

    def motion(self, samples: Samples) -> Iterable[Motion]:
        stream = self.engine.config.stream
        self.sound = np.concatenate([self.sound, samples])
        hop = stream.hop_frames * SAMPLES_PER_FRAME
        while len(self.sound) >= hop + stream.lookahead_ms * SAMPLES_PER_MS:
            frames = self.sound[:hop].reshape(-1, SAMPLES_PER_FRAME)
            loud = np.sqrt((frames**2).mean(axis=1))
            self.sound = self.sound[hop:]
            yield Motion(self.next, np.minimum(1, loud * 4).astype(np.float32))
            self.next += stream.hop_frames

    def generate(self, motion: Motion) -> Iterable[Motion]:
        yield motion

    def render(self, motion: Motion) -> Iterable[tuple[int, list[Frame]]]:
        if self.engine.trap == "hang":
            time.sleep(3600)
        time.sleep(self.engine.seconds_per_frame * len(motion.opening))
        self.held += [self.engine.picture(float(opening)) for opening in motion.opening]
        ready = len(self.held) - self.engine.config.stream.fade_frames
        if ready > 0:
            pictures, self.held = self.held[:ready], self.held[ready:]
            yield self.rendered, pictures
            self.rendered += ready


class WarpEngine:
    trap = ""
    seconds_per_frame = 0.002

    def __init__(self, config: Config) -> None:
        self.config = config
        self.timer: Timer = untimed
        self.portrait = np.zeros((SIZE, SIZE, 3), np.uint8)
        self.backdrop = Backdrop(self.portrait, MOUTH)

    def identify(self, portrait: Portrait) -> tuple[str, Frame]:
        face, name = portrait.face, portrait.name
        image = cv2.imdecode(np.frombuffer(portrait.data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise EngineError(f"{name} is not a picture that can be read")
        faces = max(1, image.shape[1] // image.shape[0])  # side by side
        if face > faces:
            raise EngineError(f"{name} has 1 face, got face {face}")
        if faces > 1 and not face:
            boxes = [[n / faces, 0, 1 / faces, 1] for n in range(faces)]
            raise EngineError(
                f"{name} has {faces} faces: choose with --face 1 or {faces}, counted from the left",
                code="several-faces",
                faces=faces,
                boxes=boxes,
            )
        image = np.array_split(image, faces, axis=1)[max(face, 1) - 1]
        self.portrait = np.asarray(cv2.resize(image, (SIZE, SIZE))[..., ::-1], np.uint8)
        if self.config.picture.background == "transparent":
            self.portrait = np.dstack([self.portrait, ALPHA])
        self.backdrop = Backdrop(self.portrait, MOUTH)
        return f"{int(self.portrait.sum()):x}", self.picture(0)

    def begin(self, first_frame: int, warm_up: bool = False) -> WarpStream:
        return WarpStream(self, first_frame)

    def set_quality(self, motion_steps: int, video_steps: int, frame_stride: int, size_divisor: int = 1) -> None:
        self.steps = (motion_steps, video_steps)

    def picture(self, opening: float) -> Frame:
        pixels = self.portrait.copy()
        if opening > 0.02:
            axes = (SIZE // 9, max(1, round(opening * SIZE / 8)))
            cv2.ellipse(pixels, (SIZE // 2, SIZE * 3 // 4), axes, 0, 0, 360, (40, 10, 10, 255), -1, cv2.LINE_AA)
        landmarks = np.zeros((68, 3), np.float32)
        landmarks[57, 1] = opening
        blendshapes = np.zeros(52, np.float32)
        blendshapes[17] = opening
        head = HeadPose((0, 0, 0, 1), (0, 0, 0), SIZE / 4)
        return Frame(pixels, landmarks, blendshapes, head, self.backdrop)


def make(config: Config) -> WarpEngine:
    return WarpEngine(config)


def make_hanging(config: Config) -> WarpEngine:
    """Hangs in its first clip after the warm-up."""
    engine = WarpEngine(config)
    begin, begun = engine.begin, []

    def counting(first_frame: int, warm_up: bool = False) -> WarpStream:
        begun.append(first_frame)
        engine.trap = "hang" if len(begun) > 1 else ""
        return begin(first_frame, warm_up)

    engine.begin = counting  # type: ignore[method-assign]
    return engine


def make_slow_eyed(config: Config) -> WarpEngine:
    """Looks at a portrait for as long as the file named by `LOOK_WHILE` is there."""
    engine = WarpEngine(config)
    identify = engine.identify
    held = Path(os.environ["LOOK_WHILE"])

    def slowly(portrait: Portrait) -> tuple[str, Frame]:
        while held.exists():
            time.sleep(0.05)
        return identify(portrait)

    engine.identify = slowly  # type: ignore[method-assign]
    return engine


class Lingering(Motion):
    """Motion that takes its time to go away."""

    def __del__(self) -> None:
        time.sleep(0.4)


def make_lingering(config: Config) -> WarpEngine:
    """Warms up for seconds, and is not done at once when it has made the last pictures."""
    engine = WarpEngine(config)
    begin = engine.begin

    def lingering(first_frame: int, warm_up: bool = False) -> WarpStream:
        stream = begin(first_frame, warm_up)
        if warm_up:
            stream.generate = lambda motion: iter([Lingering(*motion)])  # type: ignore[method-assign]
        return stream

    engine.begin = lingering  # type: ignore[method-assign]
    return engine


def make_slow(config: Config) -> WarpEngine:
    """As slow as real time, once it is warm."""
    engine = WarpEngine(config)
    engine.seconds_per_frame = 0.02
    return engine


def make_broken(config: Config) -> WarpEngine:
    raise EngineError("weights are missing: run the trainer")


def make_buggy(config: Config) -> WarpEngine:
    raise ValueError("shapes do not match")
