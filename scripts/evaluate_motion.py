"""Evaluate AToM-Net as it serves: streamed, clip by clip, speaker by speaker, beside baselines.

    python scripts/evaluate_motion.py DATA_DIR --json OUT.json --plot OUT.png

DATA_DIR is what scripts/prepare_data.py wrote. Evaluated are its people who are new to the weights (those kept out of
training and, with the shipped weights, everybody of other sources), or everybody where it has none (or with
--everybody); loudness and ridge are fitted on the others. The portrait is each clip's first frame. OUT.json has an
object `overall`, one per source and one per speaker:

    mouth_r, mouth_r_best_lag, lag_frames    correlation of mouth opening over all frames, at lag 0 and at the best lag
    mouth_r_clip                             mean of the clips' own correlations
    lip_error_percent_iod, lip_error_centred mean distance of the mouth points; without each clip's mean difference
    jerk_ratio                               deviation of the mouth's third differences, generated to real
    bilabial_closure, ..._real               share of b/p/m words (--words) or real closures that close
    drift_percent_iod_per_min                trend of the mean face over --drift-minutes of the speaker's speech
    drift_face_percent_iod, drift_rest_...   the mean face and the closed mouth of its last minute against its first
    silence_opening_percent_iod              largest opening from 200 ms after speech on, above the closed mouth
    wrong_audio_mouth_r                      mouth_r with another clip's sound
    ms_per_hop                               CPU time of a hop with its speech features
    baselines                                the same figures of motion made in simpler ways
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from json import dumps, loads
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.commands.script import run_script
from avatard.config import Motion, Stream
from avatard.engine.motion_stream import MotionStream
from avatard.models.atom.model import Atom
from avatard.models.evaluation.motion_evaluation import (
    EvaluationClip,
    Generator,
    Pair,
    figures,
    hold_neutral,
    hold_reference,
    linear_generators,
    regressor,
)
from avatard.models.evaluation.motion_metrics import drift
from avatard.models.evaluation.motion_plot import draw
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import mouth_opening
from avatard.models.speech import HubertFeatures, SpeechEncoder, WhisperFeatures
from avatard.models.training.atom.dataset import clips_with_sound
from avatard.models.training.clips import DataError, Entry, unseen_people
from avatard.timebase import FPS, FRAME_MS, SAMPLES_PER_FRAME

Array = NDArray[np.floating]
SHIPPED = "atom_nano"
#: Of a clip whose sound replaces another's.
OTHER_CLIP = 7
#: Clips on which loudness and ridge are fitted.
FIT_CLIPS = 160
#: Frames of silence after a long stream, and those of them in which the mouth may still be closing.
SILENCE_FRAMES, CLOSING_FRAMES = 50, 5


@dataclass
class Streamer:
    """The network as it serves, with the CPU time it takes."""

    atom: Atom
    speech: SpeechEncoder
    hop: int  # frames
    lookahead_ms: int
    steps: int
    noise: float
    gain: float
    seed: int
    hop_seconds: list[float] = field(default_factory=list)  # CPU time of each hop so far

    @property
    def lookahead(self) -> int:
        """Frames."""
        return -(-self.lookahead_ms // FRAME_MS)

    def run(self, face: EvaluationClip, samples: NDArray[np.float32]) -> Array:
        """Landmarks `[N, 68, 3]` of streamed samples, pushed in hops."""
        stream = MotionStream(
            self.atom, self.speech, face, seed=self.seed, hop_frames=self.hop, lookahead_ms=self.lookahead_ms,
            steps=self.steps, noise=self.noise, gain=self.gain, start_from_portrait=True,
        )  # fmt: skip
        motions, size = [], self.hop * SAMPLES_PER_FRAME
        for start in range(0, len(samples), size):
            begin = time.thread_time()
            made = stream.push(samples[start : start + size])
            if made:
                self.hop_seconds.append((time.thread_time() - begin) / len(made))
            motions += made
        return np.concatenate([motion.landmarks for motion in motions + stream.finish()])

    def __call__(self, face: EvaluationClip, sound: EvaluationClip) -> Array:
        """A `Generator`."""
        return self.run(face, sound.samples)

    def ms_per_hop(self) -> float:
        """The median so far."""
        return 1000 * float(np.median(self.hop_seconds))


def long_stream(streamer: Streamer, clips: Sequence[EvaluationClip], minutes: float) -> dict[str, float]:
    """Drift over a long stream of the speaker's clips, and the mouth in the silence after it."""
    wanted = int(minutes * 60 * FPS)
    once = np.concatenate([clip.samples for clip in clips])
    speech = np.resize(once, wanted * SAMPLES_PER_FRAME)  # repeats
    made = streamer.run(clips[0], np.concatenate([speech, np.zeros(SILENCE_FRAMES * SAMPLES_PER_FRAME, np.float32)]))
    closed = np.quantile(np.concatenate([mouth_opening(clip.video) for clip in clips]), 0.05)
    silent = mouth_opening(made[wanted + CLOSING_FRAMES :]) - closed
    return {**drift(made[:wanted]), "silence_opening_percent_iod": 100 * float(silent.max())}


@dataclass
class Results:
    """Clips and (real, generated) landmarks by the way of making them, of one speaker or of all."""

    clips: list[EvaluationClip] = field(default_factory=list)
    pairs: dict[str, list[Pair]] = field(default_factory=dict)

    def add(self, generators: dict[str, Generator], clips: Sequence[EvaluationClip]) -> None:
        """Evaluate one speaker's clips. `wrong_audio` is the network with another clip's sound."""
        self.clips += clips
        for n, clip in enumerate(clips):
            for name, generate in generators.items():
                self.pairs.setdefault(name, []).append(clip.pair(generate(clip, clip)))
            other = clips[(n + OTHER_CLIP) % len(clips)]
            self.pairs.setdefault("wrong_audio", []).append(clip.pair(generators["atom"](clip, other)))

    def extend(self, other: Results) -> None:
        """Take over another's."""
        self.clips += other.clips
        for name, pairs in other.pairs.items():
            self.pairs.setdefault(name, []).extend(pairs)

    def report(self, wrong_audio: bool) -> dict[str, Any]:
        """Figures of the network, and the baselines'."""
        by_name = {name: figures(self.clips, pairs) for name, pairs in self.pairs.items()}
        found: dict[str, Any] = by_name.pop("atom")
        wrong = by_name.pop("wrong_audio")
        if wrong_audio:
            found["wrong_audio_mouth_r"] = wrong["mouth_r"]
        return found | {"clips": len(self.clips), "baselines": by_name}


def choose(entries: list[Entry], shipped: bool, everybody: bool) -> tuple[list[Entry], list[Entry]]:
    """Who is evaluated, and the others."""
    chosen = unseen_people(entries, shipped)
    if everybody or not chosen:
        chosen = entries
    return chosen, [entry for entry in entries if entry not in chosen]


def table(report: dict[str, Any]) -> str:
    """The figures as text."""
    lines = [f"{'':24s}  r     lag  r_lag lip%  centred jerk  closed"]
    for name, row in {**report, **report["overall"]["baselines"]}.items():
        lines.append(
            f"{name:24s} {row['mouth_r']:5.2f} {row['lag_frames']:4d}  {row['mouth_r_best_lag']:5.2f}"
            f" {row['lip_error_percent_iod']:5.2f} {row['lip_error_centred']:6.2f} {row['jerk_ratio']:6.2f}"
            f" {row['bilabial_closure']:6.2f}"
        )
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Argument(help="Prepared data.")],
    json: Annotated[Path, typer.Option(help="Where the figures go.")],
    plot: Annotated[Path | None, typer.Option(help="A PNG of openings and faces.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Speakers in the plot.")] = 6,
    weights: Annotated[str, typer.Option(help="A shipped network or a file.")] = SHIPPED,
    hubert: Annotated[str, typer.Option(help="The HuBERT model that the network was trained with.")] = "",
    hop: Annotated[int, typer.Option(min=1, help="Frames.")] = Stream().hop_frames,
    lookahead_ms: Annotated[int, typer.Option(min=0)] = Stream().lookahead_ms,
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler.")] = Stream().motion_steps,
    noise: Annotated[float, typer.Option(help="Scale of the start noise.")] = Motion().noise,
    gain: Annotated[float, typer.Option(help="Of the motion.")] = Motion().gain,
    seed: int = 0,
    offsets: Annotated[Path | None, typer.Option(help="offsets.json of prepare_motion.py: correct by it.")] = None,
    words: Annotated[Path | None, typer.Option(help="JSON: clip → [[word, start, end], ...], seconds.")] = None,
    source: Annotated[str, typer.Option(help="Evaluate one source only.")] = "",
    split: Annotated[str, typer.Option(help="Evaluate validation or test people only.")] = "",
    everybody: Annotated[bool, typer.Option("--everybody", help="People of the training as well.")] = False,
    clips: Annotated[int, typer.Option(min=1, help="Most clips of a speaker.")] = 40,
    drift_minutes: Annotated[float, typer.Option(min=0, help="Length of the long stream; 0 for none.")] = 1.0,
) -> None:
    """Evaluate, write and print."""
    settings = {key: str(value) for key, value in locals().items()}
    torch.set_num_threads(1)  # as it serves
    atom = Atom.load(weights)
    speech = HubertFeatures.load(hubert) if hubert else WhisperFeatures.load()
    streamer = Streamer(atom, speech, hop, lookahead_ms, steps, noise, gain, seed)
    morphable = MorphableModel.load()
    lags = loads(offsets.read_text())["clips"] if offsets else {}
    spoken = loads(words.read_text()) if words else {}
    entries = [e for e in clips_with_sound(data) if lags.get(f"{e.source}/{e.clip}", {"kept": True})["kept"]]
    if source:
        entries = [entry for entry in entries if entry.source == source]
    chosen, others = choose(entries, weights == SHIPPED, everybody)
    if split:
        chosen = [entry for entry in chosen if entry.split == split]
    if not chosen:
        raise DataError(f"{data} has no clips with sound to evaluate")

    def read(some: Sequence[Entry]) -> list[EvaluationClip]:
        return [EvaluationClip.read(data, entry, morphable, lags, spoken) for entry in some]

    fit = read(others[:: max(1, len(others) // FIT_CLIPS)])
    generators: dict[str, Generator] = {
        "atom": streamer,
        "hold_reference": hold_reference,
        "hold_neutral": hold_neutral,
        "regressor": regressor(atom, speech, hop, streamer.lookahead),
        **linear_generators(speech, atom, fit, hop, streamer.lookahead),
    }
    speakers: dict[str, list[Entry]] = {}
    for entry in chosen:
        speakers.setdefault(f"{entry.source}/{entry.speaker}", []).append(entry)
    everything, drawn, report = Results(), [], dict[str, Any]()
    sources: dict[str, Results] = {}
    for name, members in tqdm(speakers.items(), unit="speaker"):
        own = Results()
        own.add(generators, read(members[:clips]))
        report[name] = own.report(wrong_audio=len(own.clips) > 1)
        if drift_minutes > 0:
            report[name] |= long_stream(streamer, own.clips, drift_minutes)
        report[name]["ms_per_hop"] = streamer.ms_per_hop()
        drawn.append((f"{name} {own.clips[0].entry.clip}", *own.pairs["atom"][0]))
        everything.extend(own)
        sources.setdefault(name.partition("/")[0], Results()).extend(own)
    overall = everything.report(wrong_audio=True)
    for key in [key for key in next(iter(report.values())) if key.startswith(("drift", "silence"))]:
        overall[key] = float(np.mean([speaker[key] for speaker in report.values()]))
    overall |= {"ms_per_hop": streamer.ms_per_hop(), "settings": settings}
    if plot:
        draw(plot, drawn[:pictures], morphable.mean_68)
    by_source = {name: results.report(wrong_audio=True) for name, results in sources.items()}
    report = {"overall": overall, **by_source, **report}
    json.write_text(dumps(report, indent=1))
    typer.echo(table(report))


if __name__ == "__main__":
    run_script(main)
