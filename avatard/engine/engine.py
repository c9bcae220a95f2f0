"""The engine of the inference process: AToM-Net and MC-VDM for one portrait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from avatard.config import Config, Speech
from avatard.engine.head_pose import DrivingPose, IdlePose, PoseVideoError, quaternion
from avatard.engine.identity import Identity, IdentityError
from avatard.engine.motion_stream import MotionStream
from avatard.engine.video_stream import VideoStream
from avatard.inference.engine_api import EngineError, Picture
from avatard.media.video_file import MediaError
from avatard.models.atom import Atom
from avatard.models.checkpoint import CheckpointError
from avatard.models.face.arkit import ArkitSolver
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.speech import HubertFeatures, SpeechEncoder, SpeechError, WhisperFeatures
from avatard.playout.ring import Samples


class Frames(NamedTuple):
    """Motion of consecutive frames, as the video network wants it."""

    first: int
    landmarks: NDArray[np.float32]  # [k, 68, 3], offsets from the mean face
    poses: list[Pose]


class NeuralTake:
    """One unbroken run of both networks; see `interfaces.Take`.

    With a stride of 2 the video network sees and draws every second frame; the face in between is known all the same.
    """

    def __init__(self, motion: MotionStream, video: VideoStream, faces: _Faces, first: int, stride: int) -> None:
        self._motion = motion
        self._video = video
        self._faces = faces
        self._first = first
        self._stride = stride
        self._waiting: dict[int, tuple[NDArray[np.float32], Pose]] = {}

    def move(self, samples: Samples) -> Iterator[Frames]:
        """Motion thread."""
        for motion in self._motion.push(samples):
            poses = [self._faces.pose(motion.first + k) for k in range(len(motion.landmarks))]
            yield Frames(motion.first, motion.landmarks, poses)

    def draw(self, motion: Frames) -> Iterator[tuple[int, list[Picture]]]:
        """Video thread."""
        for k, (landmarks, pose) in enumerate(zip(motion.landmarks, motion.poses, strict=True)):
            self._waiting[motion.first + k] = landmarks, pose
        chosen = slice(-(motion.first - self._first) % self._stride, None, self._stride)
        for drawn, frames in self._video.stream(motion.landmarks[chosen], motion.poses[chosen]):
            first = self._first + (drawn - self._first) * self._stride
            pixels = np.repeat(frames, self._stride, axis=0)
            yield first, [self._faces.picture(f, *self._waiting.pop(first + k)) for k, f in enumerate(pixels)]


class _Faces:
    """What is known of one person besides the networks: pose over time, ARKit coefficients, wire coordinates."""

    def __init__(self, identity: Identity, config: Config, driving: DrivingPose | None) -> None:
        self._mean = MorphableModel.load().mean_68
        self._arkit = ArkitSolver(self._mean, identity.neutral)
        self._base = identity.pose
        self._pose = driving if driving is not None else IdlePose(identity, config.stream.seed, config.idle.motion)

    def pose(self, frame: int) -> Pose:
        return self._pose(self._base, frame)

    def picture(self, pixels: NDArray[np.uint8], landmarks: NDArray[np.float32], pose: Pose) -> Picture:
        height, width, _ = pixels.shape
        scale = float(pose.scale)
        shift = (pose.translation - np.array([width, height]) / 2) / scale
        head = np.concatenate([quaternion(pose.rotation), shift, [0.0], [scale]]).astype(np.float32)
        points = (self._mean + landmarks).astype(np.float32)
        return Picture(pixels, points, self._arkit(landmarks), head)


@dataclass
class _Person:
    """Whom the engine shows."""

    identity: Identity
    faces: _Faces
    still: bool = True  # the portrait has not moved yet


class NeuralEngine:
    """Both networks and a portrait; see `interfaces.Engine`.

    Raises:
        EngineError: weights are missing or do not fit, or the driving video cannot be used.
    """

    delay_frames = 0

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        self._config = config
        pose_video = config.idle.pose_video
        with _said_of(CheckpointError, SpeechError, MediaError, PoseVideoError):
            self._speech = _speech(config.speech)
            self._atom = Atom.load(config.motion.weights)
            self._mcvdm = Mcvdm.load(config.video.weights).narrow()
            self._driving = DrivingPose(Path(pose_video)) if pose_video else None
        self._effort = (config.stream.motion_steps, config.stream.video_steps, 1)
        self._person: _Person | None = None
        self._streams: tuple[MotionStream, VideoStream] | None = None

    def identify(self, portrait: Path, face: int = 0) -> tuple[str, Picture]:
        """See `interfaces.Engine`."""
        with _said_of(IdentityError):
            identity = Identity.load(portrait, face or None)
        faces = _Faces(identity, self._config, self._driving)
        self._person = _Person(identity, faces)
        return identity.digest, faces.picture(identity.portrait, identity.neutral, identity.pose)

    def begin(self, first_frame: int, rehearsal: bool = False) -> NeuralTake:
        """See `interfaces.Engine`."""
        person = self._person
        assert person is not None
        stream = self._config.stream
        motion_steps, video_steps, stride = self._effort
        # What the two refuse are hops, fades and look-aheads of the configuration.
        with _said_of(ValueError):
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
                from_portrait=person.still,
            )
            video = VideoStream(
                self._mcvdm,
                person.identity,
                seed=stream.seed,
                first_frame=first_frame,
                clip=stream.clip_frames,
                hop=stream.hop_frames // stride,
                fade=stream.fade_frames // stride,
                steps=video_steps,
            )
        # After an interrupt the mouth is to be closed, not to smile as in the portrait.
        person.still = person.still and rehearsal
        self._streams = (motion, video)
        return NeuralTake(motion, video, person.faces, first_frame, stride)

    def effort(self, motion_steps: int, video_steps: int, stride: int) -> None:
        """See `interfaces.Engine`; a stride must divide the hop."""
        self._effort = (motion_steps, video_steps, stride)
        if self._streams is not None:
            motion, video = self._streams
            motion.steps, video.steps = motion_steps, video_steps


@contextmanager
def _said_of(*mistakes: type[ValueError]) -> Iterator[None]:
    """Turn what is the user's mistake into an `EngineError` with the same text."""
    try:
        yield
    except mistakes as mistake:
        raise EngineError(str(mistake)) from mistake


def _speech(config: Speech) -> SpeechEncoder:
    return HubertFeatures.load(config.weights) if config.encoder == "hubert" else WhisperFeatures.load(config.weights)


def make_engine(config: Config) -> NeuralEngine:
    """The engine of `avatard serve`."""
    return NeuralEngine(config)
