"""Measure avatard end to end on unseen people: a portrait and a voice in, video out, beside the real video.

    python scripts/evaluate.py DATA_DIR --json OUT.json [--markdown OUT.md] [--pictures DIR]

DATA_DIR was written by scripts/prepare_data.py. Measured are its people who are new to the weights: those kept out of
training and, with the shipped weights, everybody of other sources. Each clip's first frame with open eyes is the
portrait and its sound the voice (self-reenactment). The head moves by itself, so motion is compared on faces turned to
the front.

The JSON has an object for each variant: `real`, `still`, `warp` (the generated landmarks, without a video network),
`reconstruction` (the autoencoder on the real frames), `steps_1`, `steps_2`, `steps_4` (denoising steps) and
`cross_identity` (the voices with unseen portraits). What is undefined is null; a seed always gives the same figures.

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

from collections.abc import Mapping, Sequence
from json import loads
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from msgspec import structs
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.offline import OfflinePipeline, portrait_of, write_video
from avatard.commands.script import run_script
from avatard.config import Config, Stream
from avatard.engine.identity import Identity
from avatard.errors import UserError
from avatard.models.evaluation.contact_sheet import contact_sheet, side_by_side
from avatard.models.evaluation.fetch_faceres import CACHE, load_or_fetch
from avatard.models.evaluation.inception import Inception
from avatard.models.evaluation.reconstruction import Reconstruction, warp_by_landmarks
from avatard.models.evaluation.reference_clip import GroundTruth, ReferenceClip, choose_clips
from avatard.models.evaluation.report import transposed_table, write_json
from avatard.models.evaluation.syncnet import SyncNet
from avatard.models.evaluation.video_evaluator import Figures, MotionEvaluator, VideoEvaluator
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import mouth_opening
from avatard.models.mcvdm.landmark_encoder import Geometry
from avatard.models.mcvdm.model import Mcvdm
from avatard.models.pixels import Pictures, to_bytes, to_tensor
from avatard.models.training.clips import Clip, DataError, Entry, read_index, unseen_people

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
#: Variants whose motion is the real one's, whatever the sound is.
REAL_MOTION = ("real", "still", "reconstruction")

Floats = NDArray[np.floating]
Shown = list[tuple[ReferenceClip, dict[str, Pictures]]]
#: Name, portrait and frames.
Crossed = list[tuple[str, NDArray[np.uint8], Pictures]]


class Offsets:
    """By how many frames a clip's sound is late, from offsets.json of scripts/prepare_motion.py; 0 without one."""

    def __init__(self, path: Path | None) -> None:
        self._clips: Mapping[str, Any] = loads(path.read_text())["clips"] if path else {}

    def frames(self, entry: Entry) -> int:
        """Landmark frame n belongs to audio frame n + this."""
        return int(self._clips.get(f"{entry.source}/{entry.clip}", {"frames": 0})["frames"])

    def kept(self, entry: Entry) -> bool:
        """Whether picture and sound belong together."""
        return bool(self._clips.get(f"{entry.source}/{entry.clip}", {"kept": True})["kept"])


class Evaluation:
    """The evaluators of pictures and motion, and the pipelines by their number of steps."""

    def __init__(self, config: Config, evaluator: VideoEvaluator) -> None:
        self.morphable = MorphableModel.load()
        self.evaluator, self.motion = evaluator, MotionEvaluator(evaluator, self.morphable)
        self.pipelines = {steps: OfflinePipeline(config, steps) for steps in STEPS}
        self._reconstruction = Reconstruction(Mcvdm.load(config.video.weights).autoencoder)

    def reenact(self, real: ReferenceClip, offset: int) -> dict[str, Pictures]:
        """Give a clip its own voice; measure and return all variants."""
        made = {n: pipeline.generate(real.portrait, real.clip.audio) for n, pipeline in self.pipelines.items()}
        videos = {
            "real": real.frames,
            "still": np.repeat(real.portrait[None], len(real.frames), axis=0),
            "warp": warp_to_frontal(real.portrait, made[DEFAULT_STEPS].landmarks),
            "reconstruction": self._reconstruction(GroundTruth.of(real, self.morphable)),
            **{f"steps_{steps}": clip.frames for steps, clip in made.items()},
        }
        for name, frames in videos.items():
            self.evaluator.measure(name, frames, real.portrait)
            self.evaluator.measure_lip_sync(name, frames, real.clip.audio)
            self.motion.compare(name, frames, real.clip, 0 if name in REAL_MOTION else offset)
        return videos

    def cross(self, portrait: NDArray[np.uint8], voice: Clip, offset: int) -> Pictures:
        """Give a portrait somebody else's voice; measure and return the frames. Raises `UserError`."""
        frames = self.pipelines[DEFAULT_STEPS].generate(portrait, voice.audio).frames
        self.evaluator.measure("cross_identity", frames, portrait)
        self.evaluator.measure_lip_sync("cross_identity", frames, voice.audio)
        self.motion.compare("cross_identity", frames, voice, offset)
        return frames

    def figures(self) -> dict[str, Figures]:
        """By variant."""
        figures = {
            name: {**self.evaluator.figures(name), **self.motion.figures(name)}
            for name in VARIANTS
            if self.evaluator.has(name)
        }
        # Another person's face has nothing to equal; only how it moves can be compared.
        for key in ("frechet", "fid", "lmd_percent_iod", "mouth_lmd_percent_iod"):
            figures.get("cross_identity", {}).pop(key, None)
        return {name: {key: figures.get(name, {}).get(key) for key in KEYS} for name in VARIANTS}


def warp_to_frontal(portrait: NDArray[np.uint8], points: Floats) -> Pictures:
    """The landmark warp of a portrait to frontal points `[N, 68, 3]`; the head stays where it is."""
    identity = Identity.find(portrait_of(portrait))
    rest = MorphableModel.load().mean_68 + identity.landmarks
    source = torch.from_numpy(identity.pose.project(rest)[None, :, :2]).float()
    target = torch.from_numpy(np.stack([identity.pose.project(frame) for frame in points])[None, :, :, :2]).float()
    geometry = Geometry(source, source[:, None].expand_as(target), target)
    return to_bytes(warp_by_landmarks(to_tensor(identity.portrait[None]), geometry))


def draw(folder: Path, shown: Shown, crossed: Crossed) -> None:
    """A contact sheet, strips of frames of every clip shown, side-by-side videos, and a sheet of unseen portraits.

    The contact sheet has a column for each clip: the portrait, and every variant where the real mouth is widest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    overview = {"portrait": [real.portrait for real, _ in shown]}
    for name in shown[0][1]:
        overview[name] = [videos[name][int(np.argmax(mouth_opening(real.points)))] for real, videos in shown]
    contact_sheet(folder / "contact_sheet.png", overview, side=144)
    for real, videos in shown:
        columns = np.linspace(0, len(real.frames) - 1, 8).round().astype(int)
        strips = {name: list(frames[columns]) for name, frames in videos.items()}
        contact_sheet(folder / f"{real.name}.png", strips, side=144)
        wide = {name: videos[name] for name in ("real", "warp", f"steps_{DEFAULT_STEPS}")}
        write_video(folder / f"{real.name}.mp4", side_by_side(wide), real.clip.audio)
    if crossed:
        rows = {
            name: [portrait, *frames[np.linspace(0, len(frames) - 1, 7).round().astype(int)]]
            for name, portrait, frames in crossed[:SHOWN]
        }
        contact_sheet(folder / "cross_identity.png", rows, side=144)


def with_weights(config: Config, section: str, weights: str | None) -> Config:
    """The configuration with other weights in a section, if any are given."""
    if weights is None:
        return config
    return structs.replace(config, **{section: structs.replace(getattr(config, section), weights=weights)})


def cross_all(
    evaluation: Evaluation, data: Path, portraits: Sequence[Entry], voices: Sequence[Entry], offsets: Offsets
) -> Crossed:
    """Give the voices in turn to all portraits; those that cannot be used are named and left out."""
    crossed: Crossed = []
    for n, entry in enumerate(tqdm(portraits, unit="portrait", disable=None)):
        voice, portrait = voices[n % len(voices)], Clip(data / entry.path).frame(0)
        try:
            frames = evaluation.cross(portrait, Clip(data / voice.path), offsets.frames(voice))
        except UserError as error:
            typer.echo(f"{entry.source}/{entry.clip}: {error}", err=True)
            continue
        crossed.append((entry.clip[:15], portrait, frames))
    return crossed


@torch.inference_mode()
def main(
    data: Annotated[Path, typer.Argument(help="Prepared data.")],
    json: Annotated[Path, typer.Option(help="Where the figures go.")],
    markdown: Annotated[Path | None, typer.Option(help="The same as a table.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="A folder for sheets and videos to look at.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Most clips to measure.")] = 50,
    portraits: Annotated[int, typer.Option(min=0, help="Most portraits that get another's voice.")] = 24,
    offsets: Annotated[Path | None, typer.Option(help="offsets.json of scripts/prepare_motion.py.")] = None,
    motion: Annotated[str | None, typer.Option(help="Weights of AToM-Net instead of the shipped ones.")] = None,
    video: Annotated[str | None, typer.Option(help="Weights of MC-VDM instead of the shipped ones.")] = None,
    faceres: Annotated[Path, typer.Option(help="FaceRes; fetched if it is not there.")] = CACHE,
    identity: Annotated[bool, typer.Option(help="Measure csim and frechet, which need FaceRes.")] = True,
    inception: Annotated[Path | None, typer.Option(help="Inception v3 as safetensors, for FID.")] = None,
    syncnet: Annotated[Path | None, typer.Option(help="SyncNet as safetensors, for LSE-D and LSE-C.")] = None,
    seed: int = 0,
) -> None:
    """Measure, write and print."""
    torch.set_num_threads(1)
    config = with_weights(with_weights(Config(stream=Stream(seed=seed)), "motion", motion), "video", video)
    entries, lags = unseen_people(read_index(data), shipped=not (motion or video)), Offsets(offsets)
    chosen = choose_clips(data, filter(lags.kept, entries), clips)
    if not chosen:
        raise DataError(f"{data} has no clips of people that are new to these weights")
    evaluator = VideoEvaluator(
        load_or_fetch(faceres) if identity else None,
        config.stream.hop_frames,
        Inception.load(inception) if inception else None,
        SyncNet.load(syncnet) if syncnet else None,
    )
    evaluation, shown = Evaluation(config, evaluator), Shown()
    for entry in tqdm(chosen, unit="clip", disable=None):
        real = ReferenceClip.read(data, entry).from_first_open_eyes()
        videos = evaluation.reenact(real, lags.frames(entry))
        if len(shown) < SHOWN:
            shown.append((real, videos))
    stills = [entry for entry in entries if entry.frames == 1][:portraits]
    crossed = cross_all(evaluation, data, stills, chosen, lags)
    if pictures is not None:
        draw(pictures, shown, crossed)
    figures = evaluation.figures()
    write_json(json, {"clips": clips, "portraits": portraits, "seed": seed}, figures)
    text = transposed_table({name: found for name, found in figures.items() if evaluator.has(name)}, KEYS)
    if markdown is not None:
        markdown.write_text(text + "\n")
    typer.echo(text)


if __name__ == "__main__":
    run_script(main)
