"""`avatard render`: the streaming pipeline offline, from a portrait and a sound file to a video file.

Scheduler and engine are those of `serve`, without a clock: a frame waits for its picture.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from avatard.commands.inputs import check_pictures
from avatard.config import PICTURE_SIZES, Config
from avatard.errors import UserError
from avatard.frame import Frame, Samples, Sound
from avatard.inference.engine_api import Engine, MakeEngine, Stream
from avatard.media.audio_file import open_audio, read_speech
from avatard.media.synthetic import metadata, with_badge
from avatard.media.video_file import VIDEOS, read_frames
from avatard.media.video_writer import FORMATS, VideoWriter
from avatard.playout.audio_timeline import Timing
from avatard.playout.scheduler import PlayoutFrame, Scheduler, StartEpoch
from avatard.playout.utterance import Utterance
from avatard.portrait import Portrait
from avatard.timebase import FPS, SAMPLES_PER_FRAME

SIZES: Final = (64, 2048)
WAIT_SECONDS: Final = 1.0


class RenderError(UserError):
    """A video that cannot be rendered."""


class _Stages:
    """The stages of a stream, each on a thread of its own, as in the inference process."""

    def __init__(self, stream: Stream[Any, Any]) -> None:
        self._stream = stream
        # No bound is needed: the scheduler hands out work only shortly ahead of the play position.
        self._made: SimpleQueue[tuple[int, list[Frame]] | BaseException] = SimpleQueue()
        self._motion, self._generate, self._render = (
            ThreadPoolExecutor(1, name) for name in ("motion", "generate", "render")
        )
        self._jobs: deque[Future[None]] = deque()
        self._closed = False

    def push_audio(self, samples: Samples) -> None:
        """Give the stream its next samples."""
        while self._jobs and self._jobs[0].done():
            self._jobs.popleft()
        self._jobs.append(self._motion.submit(self._run_motion, samples))

    def frames(self) -> tuple[int, list[Frame]]:
        """Wait for the next frames; raises what a stage raised."""
        while True:
            # A job puts its frames before it is done: once all are done, nothing more will come.
            idle = all(job.done() for job in list(self._jobs))
            try:
                made = self._made.get_nowait() if idle else self._made.get(timeout=WAIT_SECONDS)
            except Empty:
                if idle:
                    raise RuntimeError("the networks made fewer frames than the speech has") from None
                continue
            if isinstance(made, BaseException):
                raise made
            return made

    def close(self) -> None:
        """Drop queued jobs and wait for the running ones."""
        self._closed = True
        for pool in (self._motion, self._generate, self._render):
            pool.shutdown(cancel_futures=True)

    def _run_motion(self, samples: Samples) -> None:
        self._run(self._stream.motion, samples, partial(self._submit, self._generate, self._run_generate))

    def _run_generate(self, motion: Any) -> None:
        self._run(self._stream.generate, motion, partial(self._submit, self._render, self._run_render))

    def _run_render(self, clip: Any) -> None:
        self._run(self._stream.render, clip, self._made.put)

    def _run(self, stage: Callable[[Any], Iterable[Any]], given: Any, hand_on: Callable[[Any], None]) -> None:
        """Hand on what a stage makes of what it is given, until all are closed."""
        try:
            for made in stage(given):
                if self._closed:
                    return
                hand_on(made)
        except BaseException as error:  # the waiting thread raises it
            self._made.put(error)

    def _submit(self, pool: ThreadPoolExecutor, job: Callable[[Any], None], given: Any) -> None:
        self._jobs.append(pool.submit(job, given))


def play_out(engine: Engine, chunks: Iterable[Samples], config: Config) -> Iterator[PlayoutFrame]:
    """Yield the frames that `serve` would send for speech in `chunks` (float32, 16 kHz), each with picture and sound.

    The speech begins with frame 0. The last frame is the one that contains its last sample.
    """
    scheduler = Scheduler(replace(Timing.of(config.stream, compute_frames=0), margin_samples=0))
    timing = scheduler.timing
    lead = round(timing.delay_frames + timing.ahead_frames + 1) * SAMPLES_PER_FRAME
    sound = iter(chunks)
    speech = Utterance("")
    waiting: Samples = np.zeros(0, np.float32)
    total: int | None = None  # samples, known once all are pushed
    # Speech that is pushed now is played from frame 0 on.
    now = -timing.delay_frames
    stages: _Stages | None = None
    try:
        while total is None or scheduler.next_frame * SAMPLES_PER_FRAME < total:
            while total is None and scheduler.buffered_samples < lead:
                chunk = waiting if len(waiting) else next(sound, None)
                if chunk is None:
                    scheduler.end_of_utterance(now, speech)
                    total = speech.pushed
                    break
                accepted = scheduler.push(Sound.of_speech(chunk), now, speech)
                speech.pushed, waiting = speech.pushed + accepted, chunk[accepted:]
            for command in scheduler.poll(now):
                if isinstance(command, StartEpoch):
                    stages = _Stages(engine.begin(command.first_frame))
                elif stages is not None:
                    stages.push_audio(command.samples)
            if now < 0 or stages is None:
                now = 0.0
                continue
            while not scheduler.ahead_frames:
                scheduler.add(scheduler.epoch, *stages.frames())
            yield scheduler.play(now)
            now = float(scheduler.next_frame)
    finally:
        if stages is not None:
            stages.close()


def render(
    config: Config,
    make_engine: MakeEngine,
    identity: Path,
    audio: Path,
    output: Path,
    *,
    size: int | None = None,
    badge: bool = False,
    progress: bool = True,
) -> int:
    """Write the video; return its number of frames.

    Args:
        config: as for `serve`; the same configuration gives the same file.
        make_engine: loads the networks.
        identity: a portrait; or a video, whose first picture is the portrait and whose head pose drives the avatar's.
        audio: any file with sound in it.
        output: an .mp4, .webm or .mov file; it appears complete or not at all.
        size: longer side of the pictures; `picture.size` of the configuration without one.
        badge: write "AI-generated" into the corner of each frame.
        progress: show a bar on standard error, where that is a terminal.

    Raises:
        UserError: an input or the output cannot be used.
    """
    transparent = config.picture.background == "transparent"
    _check(output, size, (identity, audio), transparent)
    check_pictures(config)
    total = _frames_of(audio)
    with tempfile.TemporaryDirectory(prefix="avatard-") as folder:
        if identity.suffix.lower() in VIDEOS:
            config = msgspec.structs.replace(
                config, idle=msgspec.structs.replace(config.idle, pose_video=str(identity))
            )
            identity = _first_picture(identity, Path(folder))
        if size is not None:
            shown = min(max(size, PICTURE_SIZES[0]), PICTURE_SIZES[1])
            config = msgspec.structs.replace(config, picture=msgspec.structs.replace(config.picture, size=shown))
        given = Portrait.read(identity, config.portrait.face)
        engine = make_engine(config)
        _, portrait = engine.identify(given)
    height, width = _scaled(portrait.pixels.shape, size)
    from tqdm import tqdm

    frames = 0
    with (
        VideoWriter(output, (height, width), audio, metadata("recorded"), transparent=transparent) as writer,
        tqdm(total=total, unit="frame", disable=None if progress else True) as bar,
    ):
        for played in play_out(engine, read_speech(audio), config):
            assert played.picture is not None
            writer.write(_finish(played.picture.pixels, (height, width), badge))
            frames += 1
            bar.update()
        if not frames:
            raise RenderError(f"{audio} has no sound in it")
    return frames


def _check(output: Path, size: int | None, sources: Sequence[Path], transparent: bool) -> None:
    """Refuse at once an output that would fail at the end. Raises `RenderError`."""
    made = FORMATS.get(output.suffix.lower())
    if made is None:
        raise RenderError(f"{output}: expected a name that ends in .mp4, .webm or .mov")
    if transparent and not made.transparent:
        raise RenderError(
            f"{output}: MP4 cannot be transparent: choose a name that ends in .webm or .mov, or another "
            "picture.background"
        )
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise RenderError(
            f"{output} cannot be written: {'it' if output.is_dir() else output.parent} is not a "
            f"{'file' if output.is_dir() else 'folder'}"
        )
    if any(output.absolute() == source.absolute() for source in sources):
        raise RenderError(f"{output} would be overwritten: give another name")
    low, high = SIZES
    if size is not None and (size % 2 or not low <= size <= high):
        raise RenderError(f"a size of {size} pixels: expected an even number from {low} to {high}")


def _frames_of(audio: Path) -> int | None:
    """The number of frames, for the progress bar, if the file knows its length. Raises `AudioFileError`."""
    from av import time_base

    with open_audio(audio) as container:
        return round(container.duration / time_base * FPS) if container.duration else None


def _first_picture(video: Path, folder: Path) -> Path:
    """The video's first picture as a file. Raises `MediaError`."""
    picture = next(read_frames(video), None)
    if picture is None:
        raise RenderError(f"{video} has no pictures in it")
    path = folder / "portrait.png"
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return path


def _scaled(shape: tuple[int, ...], longest: int | None) -> tuple[int, int]:
    """Height and width, even, of pictures `shape` whose longer side is to be `longest` pixels."""
    height, width = shape[:2]
    factor = longest / max(height, width) if longest else 1
    return 2 * max(1, round(height * factor / 2)), 2 * max(1, round(width * factor / 2))


def _finish(pixels: NDArray[np.uint8], size: tuple[int, int], badge: bool) -> NDArray[np.uint8]:
    """A frame `[H, W, 3 or 4]` at its final height and width, with the badge if one is asked for."""
    height, width = size
    if size != pixels.shape[:2]:
        method = cv2.INTER_AREA if height < pixels.shape[0] else cv2.INTER_LANCZOS4
        pixels = np.asarray(cv2.resize(pixels, (width, height), interpolation=method), np.uint8)
    return with_badge(pixels) if badge else pixels
