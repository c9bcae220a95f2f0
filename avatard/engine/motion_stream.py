"""Live motion: push samples as they come, get landmarks by absolute frame (25 fps, 640 samples a frame at 16 kHz)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.engine.idle_motion import Idle
from avatard.frame import Samples, raised_cosine
from avatard.inference.engine_api import EngineError, Timer, untimed
from avatard.models.atom.model import Atom, reference_of
from avatard.models.speech import SpeechEncoder
from avatard.timebase import FRAME_MS, LANDMARKS, SAMPLES_PER_FRAME

#: A stream that begins with the portrait as it is leaves it within so many frames.
LEAVING_FRAMES = 6
#: How much of the step between two hops the first frame of the second one makes up for.
STEP_SHARE = 0.5


class Face(Protocol):
    """What motion needs of an `avatard.engine.identity.Identity`."""

    @property
    def landmarks(self) -> NDArray[np.floating]:
        """The face in the portrait: offsets from the 3DMM's mean `[68, 3]`, interocular distances."""
        ...

    @property
    def neutral(self) -> NDArray[np.floating]:
        """The same without expression."""
        ...


@dataclass(frozen=True)
class Motion:
    """Landmarks of consecutive frames."""

    first: int  # absolute frame number
    landmarks: NDArray[np.float32]  # [k, 68, 3], offsets from the 3DMM's mean, interocular distances


class MotionInputs(NamedTuple):
    """What a hop of motion is made of, on the networks' device."""

    audio: Tensor  # [B, T], the window
    reference: Tensor  # [B, 2, 68, 3], c_lmd
    prefix: Tensor  # [B, P, 68, 3], displacements already made
    noise: Tensor  # [B, H, 68, 3]


@torch.inference_mode()
def make_motion(
    atom: Atom, speech: SpeechEncoder, inputs: MotionInputs, steps: int, lookahead: int, timer: Timer = untimed
) -> Tensor:
    """Displacements `[B, H, 68, 3]` of the next frames of one stream, or of several that share the pass."""
    with timer("speech features"):
        features = speech(inputs.audio)
    with timer("AToM-Net"):
        return atom.sample(features, inputs.reference, inputs.prefix, inputs.noise, steps=steps, lookahead=lookahead)


class MotionPass(Protocol):
    """Makes hops of motion: `make_motion`, or what shares its passes among streams."""

    def __call__(self, inputs: MotionInputs, steps: int, lookahead: int, /, *, timer: Timer = untimed) -> Tensor:
        """See `make_motion`."""
        ...


class MotionStream:
    """Speech encoder and AToM-Net on a sliding window.

    Every hop depends on absolute frame numbers alone, so the same samples give the same landmarks bit for bit however
    they are cut into pushes. Before the first frame the world is silent and the face at rest.

    Args:
        atom: the network.
        speech: the encoder it was trained with.
        identity: whose face.
        seed: of the noise.
        first_frame: absolute number of the frame that the first sample belongs to.
        hop_frames: frames made at a time.
        lookahead_ms: sound that is waited for after the last new frame; rounded up to frames.
        steps: denoising steps; may be changed between pushes.
        noise: scale of the start noise; 0 is the calmest, 1 what the diffusion was trained with.
        gain: size of the motion; 1 is the network's own, which is a mean of what the sound allows and therefore small.
        idle: blinks and brows on top of what the network makes; none without it.
        start_from_portrait: begin with the portrait's own expression instead of a face at rest.
        timer: entered around each network.
        hops: makes the hops; without it this stream has passes of its own.

    Raises:
        EngineError: the sizes do not fit the network, or the encoder is another one.
    """

    def __init__(
        self,
        atom: Atom,
        speech: SpeechEncoder,
        identity: Face,
        *,
        seed: int = 0,
        first_frame: int = 0,
        hop_frames: int = 4,
        lookahead_ms: int = 80,
        steps: int = 4,
        noise: float = 0.0,
        gain: float = 1.0,
        idle: Idle | None = None,
        start_from_portrait: bool = False,
        timer: Timer = untimed,
        hops: MotionPass | None = None,
    ) -> None:
        config = atom.config
        if speech.dim != config.speech_dim:
            raise EngineError(
                f"got speech features of {speech.dim} numbers, expected {config.speech_dim}: wrong encoder"
            )
        if not 1 <= hop_frames < config.frames:
            raise EngineError(f"got a hop of {hop_frames} frames, expected 1 to {config.frames - 1}")
        self._lookahead = -(-lookahead_ms // FRAME_MS)
        if not 0 <= self._lookahead <= config.max_lookahead:
            raise EngineError(f"got a look-ahead of {lookahead_ms} ms, expected 0 to {config.max_lookahead * FRAME_MS}")
        self._atom, self._seed = atom, seed
        self._make_hop = partial(make_motion, atom, speech) if hops is None else hops
        self._noise, self._gain = noise, gain
        self._hop, self.steps = hop_frames, steps
        neutral = np.asarray(identity.neutral, np.float32)
        self._portrait = torch.from_numpy(np.asarray(identity.landmarks, np.float32))
        self._reference = reference_of(self._portrait, torch.from_numpy(neutral))[None].to(atom.device)
        self._resting = atom.resting(self._reference)[0].cpu()
        self._start_from_portrait = start_from_portrait
        self._timer = timer
        self._idle = idle
        self._prefix = torch.zeros(1, config.frames - hop_frames, LANDMARKS, 3, device=atom.device)
        self._before: Tensor | None = None  # the last hop as it was given out, without `idle`
        self._received = 0  # samples
        self._first = self._next = first_frame
        # The window of the next hop begins here; silence stands for what was before the stream.
        self._audio = np.zeros((config.audio_frames - hop_frames - self._lookahead) * SAMPLES_PER_FRAME, np.float32)
        self._finished = False

    @property
    def window_samples(self) -> int:
        """Samples that one hop listens to."""
        return self._atom.config.audio_frames * SAMPLES_PER_FRAME

    def push(self, samples: Samples) -> list[Motion]:
        """Take samples `[T]` and give the motion that they complete.

        Samples are in [-1, 1]: what is not finite counts as silence, what is louder is clipped. Raises `ValueError`
        unless `samples` is mono.
        """
        if self._finished:
            raise RuntimeError("push after finish")
        if samples.ndim != 1:
            raise ValueError(f"got samples {list(samples.shape)}, expected mono [T]")
        clean = np.nan_to_num(samples.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0).clip(-1, 1)
        self._received += len(clean)
        self._audio = np.concatenate([self._audio, clean])
        made = []
        while len(self._audio) >= self.window_samples:
            made.append(self._make())
        return made

    def finish(self) -> list[Motion]:
        """The motion of the frames whose sound has begun, with silence after it. The stream takes no more."""
        last = self._first - (-self._received // SAMPLES_PER_FRAME)  # one after the last frame
        hops = max(0, -(-(last - self._next) // self._hop))
        missing = (
            max(0, self.window_samples + (hops - 1) * self._hop * SAMPLES_PER_FRAME - len(self._audio)) if hops else 0
        )
        received = self._received
        made = self.push(np.zeros(missing, np.float32))
        self._received, self._finished = received, True
        if made and made[-1].first + self._hop > last:
            made[-1] = Motion(made[-1].first, made[-1].landmarks[: last - made[-1].first])
        return made

    @torch.inference_mode()
    def _make(self) -> Motion:
        """One hop from the samples at the front of the buffer."""
        window = torch.from_numpy(self._audio[: self.window_samples])[None]
        noise = torch.from_numpy(start_noise(self._seed, range(self._next, self._next + self._hop), self._noise))[None]
        device = self._atom.device
        inputs = MotionInputs(window.to(device), self._reference, self._prefix, noise.to(device))
        new = self._make_hop(inputs, self.steps, self._lookahead, timer=self._timer)
        self._prefix = torch.cat([self._prefix, new], dim=1)[:, self._hop :]
        self._audio = self._audio[self._hop * SAMPLES_PER_FRAME :]
        face = self._gain * new[0].cpu() + self._resting  # from here on a few numbers, which the head's pose needs, too
        if self._before is not None:
            face = without_step(self._before, face)
        self._before = face
        shown = self._next - self._first
        if self._start_from_portrait and shown < LEAVING_FRAMES:
            left = raised_cosine(np.arange(shown, shown + self._hop) / LEAVING_FRAMES)
            face = torch.lerp(self._portrait, face, torch.from_numpy(left).float()[:, None, None])
        landmarks = face.numpy()
        if self._idle is not None:
            landmarks = landmarks + self._idle.face(self._next, self._hop)
        self._next += self._hop
        return Motion(self._next - self._hop, landmarks)


def without_step(before: Tensor, after: Tensor) -> Tensor:
    """The hop `after` `[k, 68, 3]`, its first frame moved towards where the hop `before` leads.

    The network corrects at once what it did not know a hop ago: a jump before every first frame, 1.75 times the mean
    change of the lips. Where the hops meet, the face is expected to move at the mean of the speeds before and after.
    """
    if min(len(before), len(after)) < 2:
        return after
    speed = (before[-1] - before[-2] + after[1] - after[0]) / 2
    first = torch.lerp(after[0], before[-1] + speed, STEP_SHARE)
    return torch.cat([first[None], after[1:]])


def start_noise(seed: int, frames: range, scale: float) -> NDArray[np.float32]:
    """Noise `[len(frames), 68, 3]` by counter (Philox): a frame's depends on the seed and its number alone."""
    if not scale:
        return np.zeros((len(frames), LANDMARKS, 3), np.float32)
    drawn = [np.random.Generator(np.random.Philox(key=(seed, n))).standard_normal((LANDMARKS, 3)) for n in frames]
    return (scale * np.stack(drawn)).astype(np.float32)
