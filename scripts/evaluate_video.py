"""Measure MC-VDM from real landmarks on unseen people: what the video network adds, beside its bounds.

    python scripts/evaluate_video.py DATA_DIR --json OUT.json [--pictures DIR]

DATA_DIR was written by scripts/prepare_data.py. Measured are its people who are new to the weights: those kept out of
training and, with the shipped weights, everybody of other sources. The portrait of a clip is, of its frames with open
eyes, the one with the most closed mouth.

The JSON has an object for each variant; what is undefined, or was not asked for, is null:

    real            the video itself
    still           the portrait, repeated
    warp            the portrait moved by its landmarks, without a network
    plain_decoder   the autoencoder with the paper's decoder, on real frames (with --plain)
    reconstruction  the autoencoder with the reference-guided decoder, on real frames
    steps_1, 2, 4   streamed generation with that many denoising steps

`checkerboard` and `horizontal_detail` are texture between the lips of open mouths, `mouth_frechet` is the distance of
crops of them: see avatard/models/evaluation/image_metrics.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tqdm import tqdm

from avatard.commands.offline import render_landmarks, write_video
from avatard.commands.script import run_script
from avatard.config import Stream
from avatard.models.evaluation.contact_sheet import contact_sheet, side_by_side
from avatard.models.evaluation.fetch_faceres import CACHE, load_or_fetch
from avatard.models.evaluation.reconstruction import Reconstruction, warp_by_landmarks
from avatard.models.evaluation.reference_clip import GroundTruth, ReferenceClip, choose_clips
from avatard.models.evaluation.report import complete, table, write_json
from avatard.models.evaluation.video_evaluator import VideoEvaluator
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import mouth_opening
from avatard.models.mcvdm.autoencoder import Autoencoder
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.pixels import Pictures, to_bytes
from avatard.models.training.clips import DataError, read_index, unseen_people
from avatard.models.training.perceptual import Perceptual

VARIANTS = ("real", "still", "warp", "plain_decoder", "reconstruction", "steps_1", "steps_2", "steps_4")
KEYS = (
    *("psnr", "ssim", "mouth_psnr", "csim", "cpbd", "mouth_opening_error_px", "flicker_ratio", "seam_ratio"),
    *("checkerboard", "horizontal_detail", "mouth_frechet"),
    *("latent_shuffled_mouth_psnr", "core_ms_per_frame"),
)
SHIPPED = "mcvdm_nano"
#: Clips of which strips and videos are made.
SHOWN = 12

Generator = Callable[[GroundTruth], Pictures]
Shown = list[tuple[ReferenceClip, dict[str, Pictures]]]


def generators(weights: str, autoencoder: Path | None, plain: Path | None, stream: Stream) -> dict[str, Generator]:
    """What makes each variant; with `autoencoder` there is no network that generates. Raises `CheckpointError`."""
    found: dict[str, Generator] = {
        "real": lambda truth: truth.real.frames,
        "still": lambda truth: np.repeat(truth.portrait[None], len(truth.real.frames), axis=0),
        "warp": lambda truth: to_bytes(warp_by_landmarks(truth.picture, truth.geometry)),
    }
    if plain is not None:
        found["plain_decoder"] = Reconstruction(Autoencoder.load(plain))
    if autoencoder is not None:
        found["reconstruction"] = Reconstruction(Autoencoder.load(autoencoder))
        return found
    model = Mcvdm.load(weights)
    found["reconstruction"] = Reconstruction(model.autoencoder)

    def generator(steps: int) -> Generator:
        def generate(truth: GroundTruth) -> Pictures:
            clip = truth.real.clip
            poses = [clip.pose[n] for n in range(len(clip))]
            return render_landmarks(model, truth, clip.landmarks, poses, stream, steps)

        return generate

    return found | {f"steps_{steps}": generator(steps) for steps in (1, 2, 4)}


def measure(evaluator: VideoEvaluator, variants: dict[str, Generator], truth: GroundTruth) -> dict[str, Pictures]:
    """Generate and measure every variant of one clip; the frames by variant."""
    videos: dict[str, Pictures] = {}
    for name, generate in variants.items():
        began = time.process_time()
        videos[name] = generate(truth)
        more: dict[str, float] = {}
        if name not in ("real", "still"):
            more["core_ms_per_frame"] = 1000 * (time.process_time() - began) / len(videos[name])
        if isinstance(generate, Reconstruction) and (shuffled := generate.shuffled(truth)) is not None:
            more["latent_shuffled_mouth_psnr"] = evaluator.mouth_psnr(shuffled, truth.real)
        evaluator.compare(name, videos[name], truth.real, **more)
    return videos


def draw(folder: Path, shown: Shown) -> None:
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
    contact_sheet(folder / "overview.png", overview)
    for real, videos in shown:
        columns = np.linspace(0, len(real.frames) - 1, 8).round().astype(int)
        contact_sheet(folder / f"{real.name}.png", {name: list(videos[name][columns]) for name in names}, side=144)
        wide = [name for name in ("real", "warp", "reconstruction", "steps_2") if name in videos]
        write_video(folder / f"{real.name}.mp4", side_by_side({name: videos[name] for name in wide}), real.clip.audio)


@torch.inference_mode()
def main(
    data: Annotated[Path, typer.Argument(help="Prepared data.")],
    json: Annotated[Path, typer.Option(help="Where the figures go.")],
    pictures: Annotated[Path | None, typer.Option(help="A folder for sheets and videos to look at.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Most clips to measure.")] = 26,
    weights: Annotated[str, typer.Option(help="MC-VDM: a shipped name or a file.")] = SHIPPED,
    autoencoder: Annotated[Path | None, typer.Option(help="State of its training, instead of --weights.")] = None,
    plain: Annotated[Path | None, typer.Option(help="State of a plain decoder's training.")] = None,
    faceres: Annotated[Path, typer.Option(help="FaceRes; fetched if it is not there.")] = CACHE,
    identity: Annotated[bool, typer.Option(help="Measure csim, which needs FaceRes.")] = True,
    perceptual: Annotated[Path | None, typer.Option(help="Its trunk, for mouth_frechet.")] = None,
    seed: int = 0,
) -> None:
    """Measure, write and print."""
    torch.set_num_threads(1)
    stream = Stream(seed=seed)
    shipped = weights == SHIPPED and autoencoder is None
    chosen = choose_clips(data, unseen_people(read_index(data), shipped), clips)
    if not chosen:
        raise DataError(f"{data} has no clips of people that are new to these weights")
    evaluator = VideoEvaluator(
        load_or_fetch(faceres) if identity else None,
        stream.hop_frames,
        perceptual=None if perceptual is None else Perceptual(perceptual),
    )
    variants, morphable, shown = generators(weights, autoencoder, plain, stream), MorphableModel.load(), Shown()
    for entry in tqdm(chosen, unit="clip", disable=None):
        truth = GroundTruth.of(ReferenceClip.read(data, entry), morphable)
        videos = measure(evaluator, variants, truth)
        if len(shown) < SHOWN:
            shown.append((truth.real, videos))
    if pictures is not None:
        draw(pictures, shown)
    figures = {name: complete(evaluator.figures(name), KEYS) if name in variants else None for name in VARIANTS}
    settings = {"clips": len(chosen), "hop_frames": stream.hop_frames, "clip_frames": stream.clip_frames, "seed": seed}
    write_json(json, settings, figures)
    typer.echo(table(figures, KEYS))


if __name__ == "__main__":
    run_script(main)
