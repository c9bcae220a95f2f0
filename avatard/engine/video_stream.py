"""Live video: push landmarks and poses frame by frame, get pictures by absolute frame number.

Clip k denoises S frames at once: S - H - X that were shown before, X that are cross-faded, H new ones. The last X
frames of a clip wait for the next one, so what is pushed comes out H + X frames later at most. Clips are blended as
feature volumes, before the upsampler, so that every frame is rendered once.

The work has two stages, which may run on two threads: `VideoStream.generate` denoises clips, and `pictures` or `layers`
render them. All that changes from clip to clip belongs to the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avatard.engine.crossfade import blend
from avatard.inference.engine_api import EngineError, Timer, untimed
from avatard.models.face import warp
from avatard.models.face.pose import Pose
from avatard.models.mcvdm.decoder import CELLS, FACE, FRAME, Layers, Pictures, PortraitFeatures, Window
from avatard.models.mcvdm.landmark_encoder import Geometry, condition_maps
from avatard.models.mcvdm.latent import Planes
from avatard.models.mcvdm.model import IdentityEncoding, Mcvdm
from avatard.models.precision import inference_autocast

#: Frames of a clip must fill the coarsest level of the UNet.
CLIP_UNIT = 4
#: Farthest a landmark may be from the mean face (interocular distances), and a face outside the picture (sides).
REACH, OUTSIDE = 1.0, 1.0
#: Frames rendered at a time: a few stay in the processor's cache, a long hop does not.
CHUNK = 4

Made = TypeVar("Made", Pictures, list[Layers])


class Face(Protocol):
    """What video needs of an `avatard.engine.identity.Identity`."""

    @property
    def portrait(self) -> Pictures:
        """RGB `[256, 256, 3]`."""
        ...

    @property
    def landmarks(self) -> NDArray[np.float32]:
        """Offsets from the 3DMM's mean as photographed `[68, 3]`, interocular distances."""
        ...

    @property
    def pose(self) -> Pose:
        """Of the photographed head, in portrait pixels."""
        ...


@dataclass(frozen=True)
class PreparedPortrait:
    """What video needs of a person, computed once per portrait."""

    mean: NDArray[np.float32]  # [68, 3], the 3DMM's mean face
    face: NDArray[np.float32]  # [68, 3], the face as photographed, frontal
    source: Tensor  # [1, 68, 2], its landmarks in portrait pixels
    photograph: Pictures  # `warp.enlarge` of the portrait
    encoding: IdentityEncoding

    @classmethod
    def of(cls, mcvdm: Mcvdm, identity: Face, mean: NDArray[np.float32]) -> PreparedPortrait:
        """Run the portrait through the encoders of `mcvdm`; `mean` is the 3DMM's mean face."""
        face = identity.landmarks + mean
        with torch.inference_mode(), inference_autocast():
            picture = torch.from_numpy(identity.portrait).permute(2, 0, 1)[None].float() / 127.5 - 1
            encoding = mcvdm.encode_identity(picture)
        source = torch.from_numpy(identity.pose.project(face)[None, :, :2]).float()
        return cls(mean, face, source, warp.enlarge(identity.portrait), encoding)


class Clip(NamedTuple):
    """Consecutive frames that are denoised and blended, and not rendered yet."""

    first: int  # absolute frame number
    volumes: Tensor  # [k, W, 32, 32]
    flow: Tensor  # [k, 2, 32, 32], of the head; neither tensor is changed any more


class VideoStream:
    """MC-VDM on overlapping clips.

    A picture depends on the landmarks, the seed and its absolute frame number, not on how frames are cut into pushes.

    Args:
        mcvdm: the networks.
        portrait: of the person to show.
        seed: of the noise.
        first_frame: absolute number of the first frame that is pushed.
        clip: S, frames denoised together, a multiple of 4.
        hop: H, new frames of each clip.
        fade: X, frames cross-faded with the clip before.
        steps: denoising steps; may be changed between pushes.
        timer: entered around each network.

    Raises:
        EngineError: the sizes do not fit.
    """

    def __init__(
        self,
        mcvdm: Mcvdm,
        portrait: PreparedPortrait,
        *,
        seed: int = 0,
        first_frame: int = 0,
        clip: int = 16,
        hop: int = 8,
        fade: int = 2,
        steps: int = 2,
        timer: Timer = untimed,
    ) -> None:
        if clip % CLIP_UNIT or clip < CLIP_UNIT:
            raise EngineError(f"got a clip of {clip} frames, expected a multiple of {CLIP_UNIT}")
        if hop < 1 or fade < 0 or hop + fade > clip:
            raise EngineError(f"got a hop of {hop} and a fade of {fade} frames, expected at most {clip} together")
        self._mcvdm, self._seed, self.steps = mcvdm, seed, steps
        self._clip, self._hop, self._fade = clip, hop, fade
        self._portrait, self._timer = portrait, timer
        self._start_noise = self._noise_of(0, (1, mcvdm.config.unet.latent, CELLS, CELLS))
        self._last = (portrait.source[0], portrait.source[0])
        self._points: list[tuple[Tensor, Tensor]] = []  # rigid and target points of the frames waiting for a hop
        # Of the last clip's frames: the head's flow [1, S, 2, 32, 32], and what the landmark encoder makes of each.
        self._flow: Tensor | None = None
        self._features: Tensor | None = None
        self._next = first_frame  # the first frame that was not pushed yet
        self._shown = first_frame  # the first frame that was not given out yet
        self._previous: Planes | None = None
        self._held: Tensor | None = None  # volumes of the last clip's X last frames
        self._finished = False

    def push(self, landmarks: NDArray[np.floating], poses: Sequence[Pose]) -> list[tuple[int, Pictures]]:
        """Take the motion of the next k frames; give the pictures it completes.

        Args:
            landmarks: `[k, 68, 3]` offsets from the mean face. What is not finite, or far from any face, is replaced by
                the frame before.
            poses: k poses in portrait pixels.

        Returns:
            Runs of consecutive frames: absolute number of the first, pictures `[h, 256, 256, 3]` RGB.
        """
        return [run for clip in self.generate(landmarks, poses) for run in self.pictures(clip)]

    def generate(self, landmarks: NDArray[np.floating], poses: Sequence[Pose]) -> Iterator[Clip]:
        """As `push`, but the frames it completes are left to be rendered, on any thread.

        The iterator must be used up before anything else is pushed.
        """
        if self._finished:
            raise RuntimeError("push after finish")
        if landmarks.ndim != 3 or landmarks.shape[1:] != (68, 3) or len(landmarks) != len(poses):
            raise ValueError(f"got landmarks {list(landmarks.shape)} and {len(poses)} poses, expected [k, 68, 3] and k")
        for offsets, pose in zip(landmarks, poses, strict=True):
            self._points.append(self._place(offsets, pose))
            self._next += 1
            if len(self._points) == self._hop:
                yield self._clip_until(self._next - self._fade)

    def finish(self) -> list[tuple[int, Pictures]]:
        """The frames that were pushed and not given out, holding the last one still. The stream takes no more."""
        last, made = self._next, list[tuple[int, Pictures]]()
        while self._shown < last:
            missing = self._hop - len(self._points)
            self._points += [self._last] * missing
            self._next += missing
            made += self.pictures(self._clip_until(min(last, self._next - self._fade)))
        self._finished = True
        return made

    def pictures(self, clip: Clip) -> Iterator[tuple[int, Pictures]]:
        """Render a clip: runs of its frames as of `push`, as soon as they are there."""
        return self._render(clip, self._mcvdm.autoencoder.render_uint8)

    def layers(self, clip: Clip, painted_in: Window = FACE) -> Iterator[tuple[int, list[Layers]]]:
        """As `pictures`, but what each picture is made of, for a compositor that uses paint in this window."""
        return self._render(clip, partial(self._mcvdm.autoencoder.layers, painted_in=painted_in))

    def _place(self, offsets: NDArray[np.floating], pose: Pose) -> tuple[Tensor, Tensor]:
        """Rigid and target points `[68, 2]` of a frame; those of the frame before where they cannot be a face."""
        with np.errstate(all="ignore"):
            clipped = np.clip(offsets, -REACH, REACH)
            both = pose.project(np.stack([self._portrait.face, clipped + self._portrait.mean]))[..., :2]
            middle = np.abs(both - FRAME / 2).mean((1, 2))
        if np.isfinite(both).all() and (middle < (0.5 + OUTSIDE) * FRAME).all():
            self._last = (torch.from_numpy(both[0]).float(), torch.from_numpy(both[1]).float())
        return self._last

    def _clip_until(self, until: int) -> Clip:
        """Denoise the clip that ends with the last pushed frame; what of it is new, up to frame `until`."""
        volumes, flow = self._denoise()
        until = max(until, self._shown)  # a fade longer than a hop leaves nothing of the first clips
        first = self._next - len(volumes)
        new = slice(self._shown - first, until - first)
        clip = Clip(self._shown, volumes[new], flow[new])
        self._shown = until
        return clip

    @torch.inference_mode()
    def _denoise(self) -> tuple[Tensor, Tensor]:
        """The next clip's volumes `[X + H, W, 32, 32]`, blended with those held, and the head's flow for them."""
        rigid, target = (torch.stack(points)[None] for points in zip(*self._points, strict=True))
        geometry = Geometry(self._portrait.source, rigid, target)
        self._points = []
        flow = geometry.rigid_flow()
        with inference_autocast():
            with self._timer("landmark encoder"):
                features = self._mcvdm.landmarks.features(condition_maps(geometry, self._portrait.encoding.small, flow))
                self._flow, self._features = self._roll(self._flow, flow), self._roll(self._features, features)
                zl = self._mcvdm.landmarks.pool(self._features)
            with self._timer("diffusion UNet"):
                noise = self._noise(self._next - self._clip)
                latent = self._mcvdm.generate(zl, self._portrait.encoding.latent, self._previous, noise, self.steps)
            new = self._hop + self._fade
            with self._timer("decoder trunk"):
                clean = self._mcvdm.denormalise(latent)
                volume = self._mcvdm.autoencoder.volume(clean, slice(self._clip - new, None))[0]
            if self._held is not None and self._fade:
                volume = torch.cat([blend(self._held, volume[: self._fade]), volume[self._fade :]])
        self._previous = latent
        self._held = volume[self._hop :].clone()
        return volume, self._flow[0, -new:]

    def _roll(self, old: Tensor | None, new: Tensor) -> Tensor:
        """The last S frames `[1, S, …]`; before the first one the face rests where the first one has it."""
        if old is None:
            old = new[:, :1].expand(-1, self._clip, *new.shape[2:])
        return torch.cat([old, new], 1)[:, -self._clip :]

    def _render(
        self, clip: Clip, render: Callable[[Tensor, PortraitFeatures, Tensor, Pictures], Made]
    ) -> Iterator[tuple[int, Made]]:
        """Render a clip, a few frames at a time."""
        portrait = self._portrait
        for start in range(0, len(clip.volumes), CHUNK):
            chosen = slice(start, start + CHUNK)
            # No context of torch may span a `yield`: leaving inference mode there would switch autocast off for good.
            with torch.inference_mode(), inference_autocast(), self._timer("decoder"):
                made = render(
                    clip.volumes[None, chosen], portrait.encoding.portrait, clip.flow[None, chosen], portrait.photograph
                )
            yield clip.first + start, made

    def _noise(self, first: int) -> Planes:
        """Start noise: xy is the session's, rows of xt and yt belong to absolute frames."""
        channels = self._mcvdm.config.unet.latent
        rows = [self._noise_of(n + 1, (2, channels, CELLS)) for n in range(first, first + self._clip)]
        xt, yt = torch.stack(rows, 2)[:, None]
        return Planes(self._start_noise, xt, yt)

    def _noise_of(self, counter: int, shape: tuple[int, ...]) -> Tensor:
        """Noise by counter: the same for the same seed, whatever was drawn before."""
        key = np.array([self._seed, counter % 2**64], np.uint64)  # a tuple of them would become floats
        return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32))
