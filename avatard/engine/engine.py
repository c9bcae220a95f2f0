"""The engine of the inference process: AToM-Net and MC-VDM for one portrait."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from avatard.config import Config, Speech
from avatard.engine import affine
from avatard.engine.background import Background
from avatard.engine.compositor import Compositor, Drawn
from avatard.engine.enlarged import EnlargedCompositor
from avatard.engine.eye_motion import EyeMotion, look
from avatard.engine.eyes import REST, Eyes
from avatard.engine.framing import frame_identity
from avatard.engine.head_pose import DrivingPose, IdlePose
from avatard.engine.identity import Identity
from avatard.engine.idle_motion import Idle
from avatard.engine.motion_stream import MotionStream
from avatard.engine.portrait_check import warnings_of
from avatard.engine.teeth import other_picture, teeth_of
from avatard.engine.video_stream import Clip, PreparedPortrait, VideoStream
from avatard.frame import Backdrop, Frame, HeadPose, Samples
from avatard.inference.engine_api import Timer, untimed
from avatard.models.atom.model import Atom
from avatard.models.face.arkit_solver import ArkitSolver, smoothed
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.mcvdm.layers import channels_last
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.mcvdm.mouth_filler import Mouth, MouthFiller
from avatard.models.mcvdm.mouth_painter import MouthPainter
from avatard.models.speech import HubertFeatures, SpeechEncoder, WhisperFeatures
from avatard.portrait import Portrait

logger = logging.getLogger(__name__)

T = TypeVar("T")


class PosedMotion(NamedTuple):
    """Motion of consecutive frames with the head's pose: what the video network needs."""

    first: int  # absolute frame number
    landmarks: NDArray[np.float32]  # [k, 68, 3], offsets from the mean face
    poses: list[Pose]


class Face(NamedTuple):
    """What is known of a frame before its picture."""

    landmarks: NDArray[np.float32]  # [68, 3], offsets from the mean face
    pose: Pose
    weights: NDArray[np.float32]  # [52], ARKit's
    eyes: Eyes = REST


class PosedClip(NamedTuple):
    """A clip to render, with the faces of all its frames, also of those that get no picture of their own."""

    clip: Clip
    first: int  # absolute frame number; a clip numbers only what it renders
    faces: list[Face]


@dataclass
class Person:
    """Whom the engine shows: everything that depends on the portrait alone, computed once."""

    identity: Identity
    prepared: PreparedPortrait
    compositor: Compositor
    idle: Idle
    eye_motion: EyeMotion
    head: DrivingPose | IdlePose
    arkit: ArkitSolver
    mean: NDArray[np.float32]  # [68, 3], the 3DMM's mean face
    make_half: Callable[[], EnlargedCompositor]
    start_from_portrait: bool = True  # the first stream begins with the portrait's own expression

    @cached_property
    def _half(self) -> EnlargedCompositor:
        """Made when it is needed first: 20 ms at 512x512, 200 at 1,024x1,024 where the person is cut out."""
        return self.make_half()

    def compositor_of(self, size_divisor: int) -> Compositor | EnlargedCompositor:
        """What composes frames at a part, 1 or 1/2, of their size."""
        return self._half if size_divisor == 2 else self.compositor

    def pose(self, frame: int) -> Pose:
        """The head's pose in an absolute frame."""
        return self.head(self.identity.pose, frame)

    def mouth(self, landmarks: NDArray[np.float32], pose: Pose) -> Mouth:
        """Where a frame has its mouth, in pixels of the crop."""
        points = pose.project(self.mean + landmarks)
        return Mouth(points, float(pose.scale), float(np.radians(pose.yaw_pitch_roll[2])))

    def frame(
        self,
        pixels: NDArray[np.uint8],
        backdrop: Backdrop,
        face: Face,
    ) -> Frame:
        """Pixels and motion in the coordinates of the wire; the face's pose is in pixels of the crop, upright."""
        pose = face.pose
        to_frame = self.compositor.to_frame
        height, width, _ = pixels.shape
        factor = float(np.hypot(*to_frame[:, 0]))
        scale = factor * float(pose.scale)
        x, y = (affine.apply(to_frame, pose.translation) - np.array([width, height]) / 2) / scale
        upright = np.eye(3)
        upright[:2, :2] = to_frame[:, :2] / factor
        qx, qy, qz, qw = map(float, Rotation.from_matrix(upright @ pose.rotation).as_quat(canonical=True))
        head = HeadPose((qx, qy, qz, qw), (float(x), float(y), 0.0), scale)
        points = (self.mean + face.landmarks).astype(np.float32)
        return Frame(pixels, points, look(face.weights, face.eyes), head, backdrop)


class NeuralStream:
    """One unbroken run of both networks; see `engine_api.Stream`.

    Frames are composed on the thread that renders, while another one decodes the next few: both are about as much work.
    With a frame stride of 2 the video network renders every second frame; the face in between is known all the same.
    """

    def __init__(
        self,
        motion: MotionStream,
        video: VideoStream,
        person: Person,
        compositor: Compositor | EnlargedCompositor,
        first: int,
        stride: int,
        decoding: Executor,
        timer: Timer,
    ) -> None:
        self._motion = motion
        self._video = video
        self._person = person
        self._compositor = compositor
        self._first = first
        self._stride = stride
        self._decoding = decoding
        self._timer = timer
        self._waiting: deque[Face] = deque()  # of the frames that are in no clip yet
        self._weights_before: NDArray[np.float32] | None = None

    def motion(self, samples: Samples) -> Iterator[PosedMotion]:
        """See `engine_api.Stream`."""
        for motion in self._motion.push(samples):
            poses = [self._person.pose(motion.first + k) for k in range(len(motion.landmarks))]
            yield PosedMotion(motion.first, motion.landmarks, poses)

    def generate(self, motion: PosedMotion) -> Iterator[PosedClip]:
        """See `engine_api.Stream`."""
        opened, closures = self._person.eye_motion.open_lids(motion.first, motion.landmarks)
        solved = self._person.arkit(motion.landmarks)
        weights, self._weights_before = smoothed(solved, self._weights_before), solved[-1]
        for k, (landmarks, pose) in enumerate(zip(motion.landmarks, motion.poses, strict=True)):
            eyes = self._person.eye_motion.eyes(motion.first + k, pose, closures[k])
            self._waiting.append(Face(landmarks, pose, weights[k], eyes))
        chosen = slice(-(motion.first - self._first) % self._stride, None, self._stride)
        for clip in self._video.generate(opened[chosen], motion.poses[chosen]):
            first = self._first + (clip.first - self._first) * self._stride
            faces = [self._waiting.popleft() for _ in range(len(clip.volumes) * self._stride)]
            yield PosedClip(clip, first, faces)

    def render(self, posed: PosedClip) -> Iterator[tuple[int, list[Frame]]]:
        """See `engine_api.Stream`."""
        for rendered, layers in ahead(self._video.layers(posed.clip, self._compositor.painted_in), self._decoding):
            start = (rendered - posed.clip.first) * self._stride
            faces = [posed.faces[start + k * self._stride :][: self._stride] for k in range(len(layers))]
            with self._timer("compositor"):
                pictures = self._compositor.frames(
                    [
                        Drawn(one, shown.eyes, self._person.mouth(shown.landmarks, shown.pose))
                        for one, (shown, *_) in zip(layers, faces, strict=True)
                    ]
                )
            frames = [
                self._person.frame(pixels, self._compositor.backdrop, face)
                for pixels, some in zip(pictures, faces, strict=True)
                for face in some
            ]
            yield posed.first + start, frames


class NeuralEngine:
    """Both networks and a portrait; see `engine_api.Engine`.

    Raises:
        UserError: weights are missing or do not fit, or the driving video cannot be used.
    """

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self.timer: Timer = untimed
        self._config = config
        self._background = Background.of(config.picture.background)  # before what takes longer to load
        self._more = [(name, other_picture(name)) for name in config.portrait.more]
        self._speech = _speech(config.speech)
        self._atom = Atom.load(config.motion.weights)
        self._mcvdm = Mcvdm.load(config.video.weights).for_inference()
        self._painter = _painter(config.video.mouth)
        self._driving = DrivingPose(Path(config.idle.pose_video)) if config.idle.pose_video else None
        self._size: tuple[int, int] | None = None  # width and height of frames: viewers keep those of the first person
        self._quality = (config.stream.motion_steps, config.stream.video_steps, 1, 1)
        self._person: Person | None = None
        self._decoding = ThreadPoolExecutor(1, "decode")
        self._streams: tuple[MotionStream, VideoStream] | None = None

    def identify(self, portrait: Portrait) -> tuple[str, Frame]:
        """See `engine_api.Engine`."""
        identity = Identity.find(portrait)
        for warning in warnings_of(identity):
            logger.warning("portrait", extra={"note": warning})
        picture = self._config.picture
        framing = frame_identity(identity, picture.framing, picture.size, self._size)
        self._size = (framing.width, framing.height)
        filler = None
        if self._painter is not None:
            filler = MouthFiller(self._painter, reference=teeth_of(identity, self._more))
        compositor = Compositor(identity, framing, self._background, filler)
        mean = MorphableModel.load().mean_68
        idle = Idle(mean + identity.neutral, self._config.stream.seed)
        self._person = person = Person(
            identity,
            PreparedPortrait.of(self._mcvdm, identity, mean),
            compositor,
            idle,
            EyeMotion(identity.pose, idle, self._config.idle.motion),
            self._driving or IdlePose(idle, self._config.idle.motion),
            ArkitSolver(mean, identity.neutral, self._config.arkit.gain),
            mean,
            partial(EnlargedCompositor, identity, framing, self._background, divisor=2),
        )
        rest = Face(identity.neutral, identity.pose, person.arkit(identity.neutral))
        return identity.digest, person.frame(compositor.still, compositor.backdrop, rest)

    def begin(self, first_frame: int, warm_up: bool = False) -> NeuralStream:
        """See `engine_api.Engine`."""
        person = self._person
        assert person is not None
        stream = self._config.stream
        motion_steps, video_steps, stride, size_divisor = self._quality
        motion = MotionStream(
            self._atom,
            self._speech,
            person.identity,
            seed=stream.seed,
            first_frame=first_frame,
            hop_frames=stream.hop_frames,
            lookahead_ms=stream.lookahead_ms,
            steps=motion_steps,
            gain=self._config.motion.gain,
            noise=self._config.motion.noise,
            idle=person.idle,
            start_from_portrait=person.start_from_portrait,
            timer=self.timer,
        )
        video = VideoStream(
            self._mcvdm,
            person.prepared,
            seed=stream.seed,
            first_frame=first_frame,
            clip=stream.clip_frames,
            hop=stream.hop_frames // stride,
            fade=stream.fade_frames // stride,
            steps=video_steps,
            timer=self.timer,
        )
        # After an interrupt the mouth is to be closed, not to smile as in the portrait.
        person.start_from_portrait = person.start_from_portrait and warm_up
        self._streams = (motion, video)
        compositor = person.compositor_of(size_divisor)
        return NeuralStream(motion, video, person, compositor, first_frame, stride, self._decoding, self.timer)

    def set_quality(self, motion_steps: int, video_steps: int, frame_stride: int, size_divisor: int = 1) -> None:
        """See `engine_api.Engine`; a stride must divide the hop."""
        self._quality = (motion_steps, video_steps, frame_stride, size_divisor)
        if self._streams is not None:
            motion, video = self._streams
            motion.steps, video.steps = motion_steps, video_steps


def ahead(items: Iterator[T], executor: Executor) -> Iterator[T]:
    """Items, none of which is None; while one is used the executor makes the next."""
    following = executor.submit(next, items, None)
    while (item := following.result()) is not None:
        following = executor.submit(next, items, None)
        yield item


def _speech(config: Speech) -> SpeechEncoder:
    return HubertFeatures.load(config.weights) if config.encoder == "hubert" else WhisperFeatures.load(config.weights)


def _painter(weights: str) -> MouthPainter | None:
    if not weights:
        return None
    painter = MouthPainter.load(weights)
    channels_last(painter)
    return painter


def make_engine(config: Config) -> NeuralEngine:
    """Make the engine of `avatard serve`."""
    return NeuralEngine(config)
