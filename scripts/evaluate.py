"""Measure avatard end to end on unseen people: a portrait and a voice in, video out, beside the real video.

    python scripts/evaluate.py DATA_DIR --json OUT.json [--markdown OUT.md] [--pictures DIR]

DATA_DIR was written by scripts/prepare_data.py; its people who are new to the weights are measured: those kept out of
training and, with the shipped weights, everybody of other sources. Each clip's first frame with open eyes is the
portrait and its sound the voice (self-reenactment); the head moves by itself, so that motion is compared on faces that
were turned to the front. `cross_identity` gives the voices to unseen portraits instead. The JSON has an object per
variant: `real`, `still`, `warp` (the generated landmarks, without a video network), `reconstruction` (the autoencoder
on the real frames), `steps_1`, `steps_2`, `steps_4` and `cross_identity`. What is undefined is null; the same seed
gives the same figures.

    csim, cpbd, frechet                       likeness to the portrait, sharpness, Fréchet distance (FaceRes features)
    lmd_percent_iod, mouth_lmd_percent_iod    distance of the 68, of the 20 mouth points, % interocular
    mouth_lmd_centred                         the same without each clip's mean difference
    mouth_r, mouth_r_best_lag, lag_frames     correlation of the mouth's opening in the pictures
    closure                                   share of the real mouth's closures that are made
    jerk_ratio, flicker_ratio, seam_ratio     jerkiness and flicker over those of real video; steps at hop boundaries
    fid, lse_d, lse_c                         with --inception and --syncnet, else null

FID and LSE need networks that are not shipped. Their published weights are files of torch, which avatard does not read;
turn them into safetensors once, where torch may open them:

    import torch; from safetensors.torch import save_file
    save_file(torch.load("pt_inception-2015-12-05-6726825d.pth", weights_only=True), "inception.safetensors")
    save_file(torch.load("syncnet_v2.model", weights_only=True), "syncnet.safetensors")

(github.com/mseitzer/pytorch-fid, github.com/joonson/syncnet_python). Fréchet distances of few pictures are too large:
compare only those of equally many.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from convert_faceres import DownloadError, load
from evaluate_video import GroundTruth, Reconstruction, to_bytes, to_tensor, write_video
from msgspec import structs
from numpy.typing import NDArray
from torch.nn import functional as F
from tqdm import tqdm

from avatard.commands.render import play_out
from avatard.config import Config, Stream
from avatard.engine.identity import Identity
from avatard.errors import UserError
from avatard.models.evaluation.inception import Inception
from avatard.models.evaluation.judge import Figures, Judge, MotionJudge, Pictures, Real, sheet, side_by_side, unseen
from avatard.models.evaluation.syncnet import SyncNet
from avatard.models.face import warp
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import mouth_opening
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.training.clips import Clip, Entry, read_index, unseen_people
from avatard.portrait import Portrait

VARIANTS = ("real", "still", "warp", "reconstruction", "steps_1", "steps_2", "steps_4", "cross_identity")
KEYS = (
    *("csim", "cpbd", "frechet", "lmd_percent_iod", "mouth_lmd_percent_iod", "mouth_lmd_centred"),
    *("mouth_r", "mouth_r_best_lag", "lag_frames", "closure", "jerk_ratio", "flicker_ratio", "seam_ratio"),
    *("fid", "lse_d", "lse_c"),
)
STEPS = (1, 2, 4)
#: Of the cross-identity runs, and of the landmark warp.
DEFAULT_STEPS = 2
#: Clips of which strips and videos are made.
SHOWN = 12

Floats = NDArray[np.floating]


@dataclass(frozen=True)
class Performance:
    """What the pipeline made of a portrait and a voice."""

    frames: Pictures
    points: Floats  # [N, 68, 3], frontal, interocular distances: what the motion network said


class OfflinePipeline:
    """The pipeline at a number of denoising steps, loaded once; portraits come as pixels."""

    def __init__(self, config: Config, steps: int):
        from avatard.engine.engine import make_engine

        self._config = structs.replace(config, stream=structs.replace(config.stream, video_steps=steps))
        self._engine = make_engine(self._config)

    def perform(self, portrait: NDArray[np.uint8], voice: NDArray[np.int16]) -> Performance:
        """Frames for 16 kHz samples `[T]`. Raises `IdentityError`."""
        self._engine.identify(portrait_of(portrait))
        samples: NDArray[np.float32] = np.divide(voice, 32768, dtype=np.float32)
        played = [entry.picture for entry in play_out(self._engine, [samples], self._config)]
        pictures = [picture for picture in played if picture is not None]
        return Performance(np.stack([p.pixels for p in pictures]), np.stack([p.landmarks for p in pictures]))


def portrait_of(pixels: NDArray[np.uint8]) -> Portrait:
    """Pixels as a lossless file."""
    return Portrait(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1].tobytes())


def warped(portrait: Portrait, points: Floats) -> Pictures:
    """The landmark warp of a portrait to frontal points `[N, 68, 3]`; the head stays where it is."""
    identity = Identity.find(portrait)
    rest = MorphableModel.load().mean_68 + identity.landmarks
    source = torch.from_numpy(identity.pose.project(rest)[None, :, :2]).float()
    target = torch.from_numpy(np.stack([identity.pose.project(frame) for frame in points])[None, :, :, :2]).float()
    flow = Geometry(source, source[:, None].expand_as(target), target).landmark_flow(64)[0]
    positions = warp.absolute(F.interpolate(flow, 256, mode="bilinear")[None])
    return to_bytes(warp.sample(to_tensor(identity.portrait[None]), positions)[0])


@torch.inference_mode()
def evaluate(arguments: argparse.Namespace, config: Config) -> dict[str, Figures]:
    """The figures by variant. Raises `ValueError` where nothing can be measured."""
    entries = unseen_people(read_index(arguments.data), shipped=not (arguments.motion or arguments.video))
    offsets = json.loads(arguments.offsets.read_text())["clips"] if arguments.offsets else {}
    kept = [entry for entry in entries if offsets.get(f"{entry.source}/{entry.clip}", {"kept": True})["kept"]]
    chosen = unseen(arguments.data, kept, arguments.clips)
    if not chosen:
        raise ValueError(f"{arguments.data} has no clips of people that are new to these weights")
    morphable = MorphableModel.load()
    judge = Judge(
        None if arguments.no_identity else load(arguments.faceres),
        config.stream.hop_frames,
        Inception.load(arguments.inception) if arguments.inception else None,
        SyncNet.load(arguments.syncnet) if arguments.syncnet else None,
    )
    motion = MotionJudge(judge, morphable)
    studios = {steps: OfflinePipeline(config, steps) for steps in STEPS}
    reconstruction = Reconstruction(Mcvdm.load(config.video.weights).autoencoder)
    shown: list[tuple[Real, dict[str, Pictures]]] = []
    for entry in tqdm(chosen, unit="clip", disable=None):
        real = Real.read(arguments.data, entry).from_the_start()
        made = {steps: studio.perform(real.portrait, real.clip.audio) for steps, studio in studios.items()}
        pulled = warped(portrait_of(real.portrait), made[DEFAULT_STEPS].points)
        videos = {
            "real": real.frames,
            "still": np.repeat(real.portrait[None], len(real.frames), axis=0),
            "warp": pulled,
            "reconstruction": reconstruction(GroundTruth.of(real, morphable)),
            **{f"steps_{steps}": performance.frames for steps, performance in made.items()},
        }
        offset = offsets.get(f"{entry.source}/{entry.clip}", {"frames": 0})["frames"]
        for name, frames in videos.items():
            judge.judge_alone(name, frames, real.portrait)
            judge.judge_voice(name, frames, real.clip.audio)
            # Pictures of the real video are where its landmarks are, whatever its sound is.
            listens = name not in ("real", "still", "reconstruction")
            motion.compare(name, frames, real.clip, offset if listens else 0)
        if len(shown) < SHOWN:
            shown.append((real, videos))
    portraits = [entry for entry in entries if entry.frames == 1]
    voices = [(entry, offsets.get(f"{entry.source}/{entry.clip}", {"frames": 0})["frames"]) for entry in chosen]
    crossed = cross(arguments, studios[DEFAULT_STEPS], judge, motion, portraits, voices)
    if arguments.pictures is not None:
        draw(arguments.pictures, shown, crossed)
    figures = {name: {**judge.figures(name), **motion.figures(name)} for name in VARIANTS if judge.knows(name)}
    # Another person's face has nothing to equal; only how it moves can be compared.
    for key in ("frechet", "fid", "lmd_percent_iod", "mouth_lmd_percent_iod"):
        figures.get("cross_identity", {}).pop(key, None)
    return figures


def cross(
    arguments: argparse.Namespace,
    studio: OfflinePipeline,
    judge: Judge,
    motion: MotionJudge,
    portraits: Sequence[Entry],
    voices: Sequence[tuple[Entry, int]],
) -> list[tuple[str, NDArray[np.uint8], Pictures]]:
    """Give the voices (clip, offset) to unseen portraits; what is worth looking at: name, portrait, frames."""
    shown = []
    for n, entry in enumerate(tqdm(portraits[: arguments.portraits], unit="portrait", disable=None)):
        voice, offset = voices[n % len(voices)]
        clip = Clip(arguments.data / voice.path)
        portrait = Clip(arguments.data / entry.path).frame(0)
        try:
            frames = studio.perform(portrait, clip.audio).frames
        except UserError as error:
            print(f"{entry.source}/{entry.clip}: {error}", file=sys.stderr)
            continue
        judge.judge_alone("cross_identity", frames, portrait)
        judge.judge_voice("cross_identity", frames, clip.audio)
        motion.compare("cross_identity", frames, clip, offset)
        shown.append((entry.clip[:15], portrait, frames))
    return shown


def draw(
    folder: Path,
    shown: Sequence[tuple[Real, dict[str, Pictures]]],
    crossed: Sequence[tuple[str, NDArray[np.uint8], Pictures]],
) -> None:
    """A contact sheet, strips of frames of every clip shown, side-by-side videos, and a sheet of unseen portraits.

    The contact sheet has a column for each clip: the portrait, and every variant where the real mouth is widest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    overview = {"portrait": [real.portrait for real, _ in shown]}
    for name in shown[0][1]:
        overview[name] = [videos[name][int(np.argmax(mouth_opening(real.points)))] for real, videos in shown]
    sheet(folder / "contact_sheet.png", overview, side=144)
    for real, videos in shown:
        columns = np.linspace(0, len(real.frames) - 1, 8).round().astype(int)
        sheet(folder / f"{real.name}.png", {name: list(frames[columns]) for name, frames in videos.items()}, side=144)
        wide = {name: videos[name] for name in ("real", "warp", f"steps_{DEFAULT_STEPS}")}
        write_video(folder / f"{real.name}.mp4", side_by_side(wide), real.clip.audio)
    if crossed:
        rows = {
            name: [portrait, *frames[np.linspace(0, len(frames) - 1, 7).round().astype(int)]]
            for name, portrait, frames in crossed[:SHOWN]
        }
        sheet(folder / "cross_identity.png", rows, side=144)


def table(figures: dict[str, Figures]) -> str:
    """The figures as Markdown, a column per variant."""
    lines = ["| | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
    for key in KEYS:
        values = [found.get(key) for found in figures.values()]
        lines.append(f"| {key} | " + " | ".join("–" if value is None else f"{value:.3g}" for value in values) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="prepared data")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--markdown", type=Path, help="the same as a table")
    parser.add_argument("--pictures", type=Path, help="a folder for sheets and videos to look at")
    parser.add_argument("--clips", type=int, default=50, help="most clips to measure")
    parser.add_argument("--portraits", type=int, default=24, help="most portraits that get another's voice")
    parser.add_argument("--offsets", type=Path, help="offsets.json of scripts/prepare_motion.py: sound against picture")
    parser.add_argument("--motion", help="weights of AToM-Net; the shipped ones by default")
    parser.add_argument("--video", help="weights of MC-VDM; the shipped ones by default")
    parser.add_argument("--faceres", type=Path, help="file of scripts/convert_faceres.py; fetched by default")
    parser.add_argument("--inception", type=Path, help="safetensors file of Inception v3, for FID")
    parser.add_argument("--syncnet", type=Path, help="safetensors file of SyncNet, for LSE-D and LSE-C")
    parser.add_argument("--no-identity", action="store_true", help="do without FaceRes: csim and frechet are null")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = Config(stream=Stream(seed=arguments.seed))
    if arguments.motion:
        config = replace_weights(config, "motion", arguments.motion)
    if arguments.video:
        config = replace_weights(config, "video", arguments.video)
    try:
        figures = evaluate(arguments, config)
    except (UserError, ValueError, FileNotFoundError, DownloadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    complete = {name: {key: figures.get(name, {}).get(key) for key in KEYS} for name in VARIANTS}
    setting = {"clips": arguments.clips, "portraits": arguments.portraits, "seed": arguments.seed}
    arguments.json.write_text(json.dumps({"settings": setting, **complete}, indent=2) + "\n")
    if arguments.markdown is not None:
        arguments.markdown.write_text(table(figures) + "\n")
    print(table(figures))
    return 0


def replace_weights(config: Config, section: str, weights: str) -> Config:
    """The configuration with other weights in a section."""
    return structs.replace(config, **{section: structs.replace(getattr(config, section), weights=weights)})


if __name__ == "__main__":
    sys.exit(main())
