"""Measure MC-VDM on unseen people whose real landmarks are given: what the picture costs, beside its bounds.

    python scripts/evaluate_video.py DATA_DIR --json OUT.json [--pictures DIR]

DATA_DIR was written by scripts/prepare_data.py; its people who are new to the weights are measured: those kept out of
training and, with the shipped weights, everybody of other sources. Each clip's portrait is, of its frames with open
eyes, the one with the most closed mouth. The JSON has an object per variant: `real` (the video), `still` (the portrait
repeated), `warp` (the portrait moved by its landmarks, no network), `plain_decoder` and `reconstruction` (the
autoencoder with the paper's decoder and with ours, of real frames), `steps_1`, `steps_2` and `steps_4` (streamed
generation). What is undefined, or was not asked for, is null. `checkerboard` and `horizontal_detail` are texture inside
open mouths, `mouth_frechet` compares crops of them: see avatard/models/evaluation/image_metrics.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from convert_faceres import DownloadError, load
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from avatard.config import Stream
from avatard.engine.identity import Identity
from avatard.errors import UserError
from avatard.media.mp4 import Mp4Writer
from avatard.models.evaluation.judge import Figures, Judge, Pictures, Real, sheet, side_by_side, unseen
from avatard.models.face import warp
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import mouth_opening
from avatard.models.mcvdm.autoencoder import Autoencoder, Planes
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.training.clips import read_index, unseen_people
from avatard.models.training.perceptual import Perceptual

VARIANTS = ("real", "still", "warp", "plain_decoder", "reconstruction", "steps_1", "steps_2", "steps_4")
KEYS = (
    *("psnr", "ssim", "mouth_psnr", "csim", "cpbd", "mouth_opening_error_px", "flicker_ratio", "seam_ratio"),
    *("checkerboard", "horizontal_detail", "mouth_frechet"),
    *("latent_shuffled_mouth_psnr", "core_ms_per_frame"),
)
SHIPPED = "mcvdm_nano"
#: Frames that the autoencoder sees at once.
CLIP = 16
#: Clips of which strips and videos are made.
SHOWN = 12


@dataclass(frozen=True)
class GroundTruth:
    """A real clip as the networks take it."""

    real: Real
    identity: Identity
    geometry: Geometry

    @classmethod
    def of(cls, real: Real, morphable: MorphableModel) -> GroundTruth:
        """The portrait is the clip's own reference frame."""
        clip, n = real.clip, real.reference
        landmarks, poses = clip.landmarks, clip.pose
        rest = np.broadcast_to(landmarks[n] + morphable.mean_68, landmarks.shape)
        geometry = Geometry(
            torch.from_numpy(poses[n].project(rest[0])[None, :, :2]).float(),
            torch.from_numpy(poses.project(rest)[None, :, :, :2]).float(),
            torch.from_numpy(poses.project(landmarks + morphable.mean_68)[None, :, :, :2]).float(),
        )
        neutral = morphable.neutral(landmarks[n]).astype(np.float32)
        identity = Identity(
            real.portrait, clip.points[n], landmarks[n], neutral, poses[n], real.name, float("nan")
        )  # fmt: skip
        return cls(real, identity, geometry)

    @property
    def picture(self) -> Tensor:
        """The portrait `[1, 3, 256, 256]` in [-1, 1]."""
        return to_tensor(self.real.portrait[None])


def to_tensor(frames: Pictures) -> Tensor:
    """Bytes `[N, H, W, 3]` → `[N, 3, H, W]` in [-1, 1]."""
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_bytes(frames: Tensor) -> Pictures:
    """The inverse of `to_tensor`, rounded."""
    pictures: Pictures = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return pictures


def warped(scene: GroundTruth) -> Pictures:
    """The closed-form landmark warp of the portrait."""
    flow = F.interpolate(scene.geometry.landmark_flow(64)[0], 256, mode="bilinear")
    return to_bytes(warp.sample(scene.picture, warp.absolute(flow[None]))[0])


def windows(count: int) -> list[tuple[slice, slice]]:
    """Slices of at most `CLIP` of `count` frames, and which of each to keep: together every frame once."""
    starts = [min(first, max(count - CLIP, 0)) for first in range(0, count, CLIP)]
    firsts = range(0, count, CLIP)
    return [
        (slice(start, min(start + CLIP, count)), slice(first - start, None))
        for start, first in zip(starts, firsts, strict=True)
    ]


class Reconstruction:
    """The autoencoder on real frames; remembers what it saw, to decode with the latent of another clip."""

    def __init__(self, autoencoder: Autoencoder):
        self._autoencoder = autoencoder
        self._before: list[Planes] = []
        self._latents: list[Planes] = []

    def __call__(self, scene: GroundTruth) -> Pictures:
        """Frames decoded from their own latents."""
        frames, motion = to_tensor(scene.real.frames)[None], scene.geometry.motion()
        self._before = self._latents
        with torch.autocast("cpu", torch.bfloat16):
            cuts = windows(frames.shape[1])
            self._latents = [self._autoencoder.encode(frames[:, seen], motion[:, seen]) for seen, _ in cuts]
        return self._decode(scene, self._latents)

    def shuffled(self, scene: GroundTruth) -> Pictures | None:
        """The same frames decoded from the latents of the clip before, if that was as long."""
        same = [planes.xt.shape for planes in self._before] == [planes.xt.shape for planes in self._latents]
        return self._decode(scene, self._before) if same else None

    def _decode(self, scene: GroundTruth, latents: list[Planes]) -> Pictures:
        rigid = scene.geometry.rigid_flow()
        cuts = windows(rigid.shape[1])
        with torch.autocast("cpu", torch.bfloat16):
            portrait = self._autoencoder.portrait(scene.picture)
            parts = [
                self._autoencoder.decode(planes, portrait, rigid[:, seen])[:, kept]
                for planes, (seen, kept) in zip(latents, cuts, strict=True)
            ]
        return to_bytes(torch.cat(parts, dim=1)[0])


def generated(model: Mcvdm, scene: GroundTruth, steps: int, stream: Stream) -> Pictures:
    """The streamed generation from real landmarks and poses."""
    from avatard.engine.video_stream import PreparedPortrait, VideoStream

    clip = scene.real.clip
    video = VideoStream(
        model,
        PreparedPortrait.of(model, scene.identity, MorphableModel.load().mean_68),
        seed=stream.seed,
        clip=stream.clip_frames,
        hop=stream.hop_frames,
        fade=stream.fade_frames,
        steps=steps,
    )
    poses = [clip.pose[n] for n in range(len(clip))]
    parts = [*video.push(clip.landmarks, poses), *video.finish()]
    return np.concatenate([frames for _, frames in parts])[: len(clip)]


def makers(arguments: argparse.Namespace, stream: Stream) -> dict[str, Callable[[GroundTruth], Pictures]]:
    """What makes each variant that can be had. Raises `CheckpointError`."""
    found: dict[str, Callable[[GroundTruth], Pictures]] = {
        "real": lambda scene: scene.real.frames,
        "still": lambda scene: np.repeat(scene.real.portrait[None], len(scene.real.frames), axis=0),
        "warp": warped,
    }
    if arguments.plain is not None:
        found["plain_decoder"] = Reconstruction(Autoencoder.load(arguments.plain))
    if arguments.autoencoder is not None:
        found["reconstruction"] = Reconstruction(Autoencoder.load(arguments.autoencoder))
        return found
    model = Mcvdm.load(arguments.weights)
    found["reconstruction"] = Reconstruction(model.autoencoder)
    for steps in (1, 2, 4):
        found[f"steps_{steps}"] = lambda scene, steps=steps: generated(model, scene, steps, stream)  # type: ignore[misc]
    return found


@torch.inference_mode()
def evaluate(arguments: argparse.Namespace, stream: Stream) -> tuple[dict[str, Figures | None], int]:
    """The figures by variant, and the number of clips. Raises `ValueError` where nothing can be measured."""
    shipped = arguments.weights == SHIPPED and arguments.autoencoder is None
    chosen = unseen(arguments.data, unseen_people(read_index(arguments.data), shipped), arguments.clips)
    if not chosen:
        raise ValueError(f"{arguments.data} has no clips of people that are new to these weights")
    morphable = MorphableModel.load()
    judge = Judge(
        None if arguments.no_identity else load(arguments.faceres),
        stream.hop_frames,
        perceptual=None if arguments.perceptual is None else Perceptual(arguments.perceptual),
    )
    made = makers(arguments, stream)
    shown: list[tuple[Real, dict[str, Pictures]]] = []
    for entry in tqdm(chosen, unit="clip", disable=None):
        scene = GroundTruth.of(Real.read(arguments.data, entry), morphable)
        videos: dict[str, Pictures] = {}
        for name, make in made.items():
            began = time.process_time()
            videos[name] = make(scene)
            more: dict[str, float] = {}
            if name not in ("real", "still"):
                more["core_ms_per_frame"] = 1000 * (time.process_time() - began) / len(videos[name])
            if isinstance(make, Reconstruction) and (shuffled := make.shuffled(scene)) is not None:
                more["latent_shuffled_mouth_psnr"] = judge.mouth_psnr(shuffled, scene.real)
            judge.judge(name, videos[name], scene.real, **more)
        if len(shown) < SHOWN:
            shown.append((scene.real, videos))
    if arguments.pictures is not None:
        draw(arguments.pictures, shown)
    return {name: judge.figures(name) if name in made else None for name in VARIANTS}, len(chosen)


def draw(folder: Path, shown: list[tuple[Real, dict[str, Pictures]]]) -> None:
    """An overview of the widest mouths; of each clip a strip of frames and its variants side by side as a video."""
    folder.mkdir(parents=True, exist_ok=True)
    names = list(shown[0][1])
    widest = [int(np.argmax(mouth_opening(real.points))) for real, _ in shown]
    overview = {"portrait": [real.portrait for real, _ in shown]}
    overview |= {
        name: [videos[name][n] for (_, videos), n in zip(shown, widest, strict=True)]
        for name in names
        if name != "still"
    }
    sheet(folder / "overview.png", overview)
    for real, videos in shown:
        columns = np.linspace(0, len(real.frames) - 1, 8).round().astype(int)
        sheet(folder / f"{real.name}.png", {name: list(videos[name][columns]) for name in names}, side=144)
        wide = [name for name in ("real", "warp", "reconstruction", "steps_2") if name in videos]
        write_video(folder / f"{real.name}.mp4", side_by_side({name: videos[name] for name in wide}), real.clip.audio)


def write_video(path: Path, frames: Pictures, audio: NDArray[np.int16]) -> None:
    """An MP4 with the clip's own sound."""
    with TemporaryDirectory() as folder:
        sound = Path(folder) / "sound.wav"
        with wave.open(str(sound), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(audio.astype("<i2").tobytes())
        with Mp4Writer(path, (frames.shape[1], frames.shape[2]), sound, {"comment": "real and synthetic video"}) as out:
            for frame in frames:
                out.write(frame)


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared data")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--pictures", type=Path, help="a folder for sheets and videos to look at")
    parser.add_argument("--clips", type=int, default=26, help="most clips to measure")
    parser.add_argument("--weights", default=SHIPPED, help="of MC-VDM: a shipped name or a file")
    parser.add_argument("--autoencoder", type=Path, help="the state of an autoencoder's training instead of --weights")
    parser.add_argument("--plain", type=Path, help="the state of a plain decoder's training")
    parser.add_argument("--faceres", type=Path, help="file of scripts/convert_faceres.py; fetched by default")
    parser.add_argument("--no-identity", action="store_true", help="do without FaceRes: csim is null")
    parser.add_argument("--perceptual", type=Path, help="file of scripts/fetch_perceptual.py, for mouth_frechet")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stream = Stream(seed=arguments.seed)
    try:
        figures, clips = evaluate(arguments, stream)
    except (UserError, ValueError, FileNotFoundError, DownloadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    complete = {
        name: None if found is None else {key: found.get(key) for key in (*KEYS, *(k for k in found if k not in KEYS))}
        for name, found in figures.items()
    }
    setting = {"clips": clips, "hop_frames": stream.hop_frames, "clip_frames": stream.clip_frames, "seed": stream.seed}
    arguments.json.write_text(json.dumps({"settings": setting, **complete}, indent=2) + "\n")
    print(table(figures))
    return 0


def table(figures: dict[str, Figures | None]) -> str:
    """The figures as Markdown."""
    lines = ["| variant | " + " | ".join(KEYS) + " |", "|---" * (len(KEYS) + 1) + "|"]
    for name, found in figures.items():
        cells = [("–" if (value := (found or {}).get(key)) is None else f"{value:.4g}") for key in KEYS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
