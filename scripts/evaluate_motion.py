"""Evaluate AToM-Net as it serves: streamed, clip by clip, speaker by speaker, beside baselines.

    python scripts/evaluate_motion.py DATA_DIR --json OUT.json --plot OUT.png

DATA_DIR is what scripts/prepare_data.py wrote. Evaluated are its people who are new to the weights (those kept out of
training and, with the shipped weights, everybody of other sources), or everybody where it has none (or with
--everybody); loudness and ridge are fitted on the others. The portrait is each clip's first frame. OUT.json has an
object `overall` and one per speaker:

    mouth_r, mouth_r_best_lag, lag_frames    correlation of mouth opening over all frames, at lag 0 and at the best lag
    mouth_r_clip                             mean of the clips' own correlations
    lip_error_percent_iod, lip_error_centred mean distance of the mouth points; without each clip's mean difference
    jerk_ratio                               deviation of the mouth's third differences, generated to real
    bilabial_closure, ..._real               share of b/p/m words (--words) or real closures that close
    drift_percent_iod_per_min                trend of the mean face over --drift-minutes of the speaker's speech
    drift_face_percent_iod, drift_rest_...   the mean face and the closed mouth of its last minute against its first
    silence_opening_percent_iod              largest opening from 200 ms after speech on, above the closed mouth
    wrong_audio_mouth_r                      mouth_r when another clip is heard
    ms_per_hop                               CPU time of a hop with its speech features
    baselines                                the same figures of motion made in simpler ways
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from avatard.config import Motion
from avatard.engine.motion_stream import MotionStream
from avatard.errors import UserError
from avatard.models.atom.model import Atom, reference_of
from avatard.models.evaluation.motion_baselines import Linear, loudness, streamed_features
from avatard.models.evaluation.motion_metrics import best_lag, closures, correlation, drift, jerk, lip_error
from avatard.models.evaluation.motion_plot import draw
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.topology import mouth_opening
from avatard.models.speech import HubertFeatures, SpeechEncoder, WhisperFeatures
from avatard.models.training.atom.dataset import clips_with_sound
from avatard.models.training.clips import Clip, Entry, unseen_people
from avatard.timebase import SAMPLES_PER_FRAME

Array = NDArray[np.floating]
SHIPPED = "atom_nano"
#: Of a clip that is heard in another's place.
OTHER_CLIP = 7
FIT_CLIPS = 160
SILENCE_FRAMES, CLOSING_FRAMES = 50, 5


@dataclass(frozen=True)
class Take:
    """A clip to evaluate, or to fit a baseline on."""

    entry: Entry
    samples: NDArray[np.float32]  # [T], whole frames
    video: Array  # [N, 68, 3]
    neutral: NDArray[np.float32]  # [68, 3], from the first frame alone
    offset: int  # landmark frame n belongs to audio frame n + offset
    words: list[tuple[str, float, float]]

    @property
    def landmarks(self) -> Array:
        """The portrait's landmarks `[68, 3]`."""
        portrait: Array = self.video[0]
        return portrait

    def pair(self, made: Array) -> tuple[Array, Array]:
        """Real and generated landmarks of the frames that have both; `made` `[M, 68, 3]` starts at audio frame 0."""
        first, stop = max(0, self.offset), min(len(made), len(self.video) + self.offset)
        return self.video[first - self.offset : stop - self.offset], made[first:stop]


Maker = Callable[[Take, Take], Array]  # (whose face, whose sound) → landmarks from audio frame 0 on


def load_take(
    data: Path, entry: Entry, morphable: MorphableModel, offsets: dict[str, Any], words: dict[str, Any]
) -> Take:
    """Read one clip."""
    clip = Clip(data / entry.path)
    whole = clip.audio[: len(clip.audio) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME]
    samples: NDArray[np.float32] = np.divide(whole, 32768, dtype=np.float32)
    neutral = morphable.neutral(clip.landmarks[0]).astype(np.float32)
    offset = offsets.get(f"{entry.source}/{entry.clip}", {"frames": 0})["frames"]
    return Take(entry, samples, clip.landmarks, neutral, offset, words.get(entry.clip, []))


class Streamer:
    """The network as it serves, with the CPU time it takes."""

    def __init__(self, atom: Atom, speech: SpeechEncoder, arguments: argparse.Namespace) -> None:
        self.atom, self.speech, self.arguments, self.hop_seconds = atom, speech, arguments, list[float]()

    def stream(self, face: Take) -> MotionStream:
        """A new stream for a face."""
        a = self.arguments
        return MotionStream(
            self.atom, self.speech, face, seed=a.seed, hop_frames=a.hop, lookahead_ms=a.lookahead_ms,
            steps=a.steps, noise=a.noise, gain=a.gain, start_from_portrait=True,
        )  # fmt: skip

    def run(self, face: Take, samples: NDArray[np.float32]) -> Array:
        """Landmarks `[N, 68, 3]` of streamed samples, pushed in hops."""
        stream, motions = self.stream(face), []
        size = self.arguments.hop * SAMPLES_PER_FRAME
        for start in range(0, len(samples), size):
            begin = time.thread_time()
            made = stream.push(samples[start : start + size])
            if made:
                self.hop_seconds.append((time.thread_time() - begin) / len(made))
            motions += made
        return np.concatenate([motion.landmarks for motion in motions + stream.finish()])

    def __call__(self, face: Take, sound: Take) -> Array:
        """A `Maker`."""
        return self.run(face, sound.samples)


def regressor(atom: Atom, speech: SpeechEncoder, arguments: argparse.Namespace) -> Maker:
    """The same network used as a plain regressor: one evaluation, nothing of what was emitted before."""
    lookahead = -(-arguments.lookahead_ms // 40)

    @torch.inference_mode()
    def make(face: Take, sound: Take) -> Array:
        config, made = atom.config, []
        before = np.zeros((config.audio_frames - arguments.hop - lookahead) * SAMPLES_PER_FRAME, np.float32)
        after = np.zeros((arguments.hop + lookahead) * SAMPLES_PER_FRAME, np.float32)
        padded = np.concatenate([before, sound.samples, after])
        portrait = torch.from_numpy(face.landmarks.astype(np.float32))
        reference, none = reference_of(portrait, torch.from_numpy(face.neutral))[None], torch.zeros(1, 0, 68, 3)
        resting: Array = atom.resting(reference)[0].numpy()
        for start in range(0, len(sound.samples), arguments.hop * SAMPLES_PER_FRAME):
            heard = speech(torch.from_numpy(padded[start : start + config.audio_frames * SAMPLES_PER_FRAME])[None])
            zeros = torch.zeros(1, config.frames, 68, 3)
            made.append(atom.sample(heard, reference, none, zeros, steps=1, lookahead=lookahead)[0, -arguments.hop :])
        frames: Array = torch.cat(made)[: len(sound.samples) // SAMPLES_PER_FRAME].numpy() + resting
        return frames

    return make


def linear_makers(
    speech: SpeechEncoder, atom: Atom, fit: Sequence[Take], arguments: argparse.Namespace
) -> dict[str, Maker]:
    """Loudness and ridge, fitted on other people's clips; none where there are no others."""
    if not fit:
        return {}
    lookahead = -(-arguments.lookahead_ms // 40)

    def heard(take: Take) -> Array:
        return streamed_features(speech, take.samples, atom.config.audio_frames, arguments.hop, lookahead)

    def maker(features: Callable[[Take], Array], penalty: float) -> Maker:
        pairs = []
        for take in fit:
            x = features(take)
            first, stop = max(0, take.offset), min(len(x), len(take.video) + take.offset)
            pairs.append((x[first:stop], take.video[first - take.offset : stop - take.offset] - take.neutral))
        model = Linear.fit([x for x, _ in pairs], [y for _, y in pairs], penalty)
        return lambda face, sound: model(features(sound)) + face.neutral

    return {"loudness": maker(lambda take: loudness(take.samples), 1e-3), "ridge": maker(heard, 3000.0)}


def hold_reference(face: Take, sound: Take) -> Array:
    """The portrait, unmoved."""
    return np.repeat(face.landmarks[None], len(sound.samples) // SAMPLES_PER_FRAME, axis=0)


def hold_neutral(face: Take, sound: Take) -> Array:
    """The portrait's neutral face, unmoved."""
    return np.repeat(face.neutral[None], len(sound.samples) // SAMPLES_PER_FRAME, axis=0)


def figures(takes: Sequence[Take], pairs: Sequence[tuple[Array, Array]]) -> dict[str, float]:
    """What can be said of (real, generated) landmarks of one speaker's clips."""
    real, made = zip(*[(mouth_opening(r), mouth_opening(m)) for r, m in pairs], strict=True)
    lagged, lag = best_lag(list(real), list(made))
    jerks = [float(np.sqrt(np.mean(np.concatenate([jerk(p[side]).ravel() for p in pairs]) ** 2))) for side in (0, 1)]
    closed = closures(list(real), list(made), [take.words for take in takes], [max(0, take.offset) for take in takes])
    return {
        "mouth_r": correlation(np.concatenate(real), np.concatenate(made)),
        "mouth_r_best_lag": lagged,
        "lag_frames": lag,
        "mouth_r_clip": float(np.mean([correlation(r, m) for r, m in zip(real, made, strict=True)])),
        "lip_error_percent_iod": float(np.mean([lip_error(r, m) for r, m in pairs])),
        "lip_error_centred": float(np.mean([lip_error(r, m, centred=True) for r, m in pairs])),
        "jerk_ratio": jerks[1] / jerks[0],
        "opening_ratio": float(np.concatenate(made).std() / np.concatenate(real).std()),
        **closed,
    }


def long_take(streamer: Streamer, takes: Sequence[Take], minutes: float) -> dict[str, float]:
    """Drift over a long stream of the speaker's clips, and the mouth in the silence after it."""
    wanted = int(minutes * 60 * 25)
    once = np.concatenate([take.samples for take in takes])
    speech = np.resize(once, wanted * SAMPLES_PER_FRAME)  # repeats
    made = streamer.run(takes[0], np.concatenate([speech, np.zeros(SILENCE_FRAMES * SAMPLES_PER_FRAME, np.float32)]))
    closed = np.quantile(np.concatenate([mouth_opening(take.video) for take in takes]), 0.05)
    silent = mouth_opening(made[wanted + CLOSING_FRAMES :]) - closed
    return {**drift(made[:wanted]), "silence_opening_percent_iod": 100 * float(silent.max())}


def evaluate(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures. Raises `ValueError` or `FileNotFoundError` for unusable arguments."""
    atom = Atom.load(arguments.weights)
    speech = HubertFeatures.load(arguments.hubert) if arguments.hubert else WhisperFeatures.load()
    morphable = MorphableModel.load()
    offsets = json.loads(arguments.offsets.read_text())["clips"] if arguments.offsets else {}
    words = json.loads(arguments.words.read_text()) if arguments.words else {}
    entries = clips_with_sound(arguments.data)
    entries = [entry for entry in entries if offsets.get(f"{entry.source}/{entry.clip}", {"kept": True})["kept"]]
    if arguments.source:
        entries = [entry for entry in entries if entry.source == arguments.source]
    chosen = unseen_people(entries, shipped=arguments.weights == SHIPPED)
    if arguments.everybody or not chosen:
        chosen = entries
    others = [entry for entry in entries if entry not in chosen]
    if not chosen:
        raise ValueError(f"{arguments.data} has no clips with sound to evaluate")

    def read(some: Sequence[Entry]) -> list[Take]:
        return [load_take(arguments.data, entry, morphable, offsets, words) for entry in some]

    fit = read(others[:: max(1, len(others) // FIT_CLIPS)])
    streamer = Streamer(atom, speech, arguments)
    makers: dict[str, Maker] = {"hold_reference": hold_reference, "hold_neutral": hold_neutral}
    makers |= {"regressor": regressor(atom, speech, arguments), **linear_makers(speech, atom, fit, arguments)}
    speakers: dict[str, list[Entry]] = {}
    for entry in chosen:
        speakers.setdefault(f"{entry.source}/{entry.speaker}", []).append(entry)
    report: dict[str, Any] = {}
    everything: dict[str, tuple[list[Take], list[tuple[Array, Array]]]] = {}
    pictures = []
    for name, members in tqdm(speakers.items(), unit="speaker"):
        takes = read(members[: arguments.clips])
        found: dict[str, list[tuple[Array, Array]]] = {"atom": [], "wrong_audio": [], **{key: [] for key in makers}}
        for n, take in enumerate(takes):
            found["atom"].append(take.pair(streamer(take, take)))
            found["wrong_audio"].append(take.pair(streamer(take, takes[(n + OTHER_CLIP) % len(takes)])))
            for key, maker in makers.items():
                found[key].append(take.pair(maker(take, take)))
        report[name] = figures(takes, found["atom"])
        if len(takes) > 1:
            report[name]["wrong_audio_mouth_r"] = figures(takes, found["wrong_audio"])["mouth_r"]
        if arguments.drift_minutes > 0:
            report[name] |= long_take(streamer, takes, arguments.drift_minutes)
        report[name]["ms_per_hop"] = 1000 * float(np.median(streamer.hop_seconds))
        report[name]["clips"] = len(takes)
        report[name]["baselines"] = {key: figures(takes, found[key]) for key in makers}
        pictures.append((f"{name} {takes[0].entry.clip}", *found["atom"][0]))
        for key, pairs in found.items():
            everything.setdefault(key, ([], []))[0].extend(takes)
            everything[key][1].extend(pairs)
    overall = figures(*everything["atom"])
    overall["wrong_audio_mouth_r"] = figures(*everything["wrong_audio"])["mouth_r"]
    for key in [key for key in next(iter(report.values())) if key.startswith(("drift", "silence"))]:
        overall[key] = float(np.mean([speaker[key] for speaker in report.values()]))
    overall["ms_per_hop"] = 1000 * float(np.median(streamer.hop_seconds))
    overall["clips"] = len(everything["atom"][0])
    settings = {key: str(value) for key, value in vars(arguments).items()}
    baselines = {key: figures(*everything[key]) for key in makers}
    if arguments.plot:
        draw(arguments.plot, pictures[: arguments.pictures], morphable.mean_68)
    return {"overall": {**overall, "baselines": baselines, "settings": settings}, **report}


def main(command_line: list[str] | None = None) -> int:
    """Evaluate and print a table; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="a PNG of openings and faces")
    parser.add_argument("--pictures", type=int, default=6, help="speakers in the plot")
    parser.add_argument("--weights", default=SHIPPED, help="a shipped network or the path of one")
    parser.add_argument("--hubert", default="", help="the HuBERT model that the network was trained with")
    parser.add_argument("--hop", type=int, default=4, help="frames")
    parser.add_argument("--lookahead-ms", type=int, default=80)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--noise", type=float, default=Motion().noise, help="scale of the start noise")
    parser.add_argument("--gain", type=float, default=Motion().gain, help="of the motion")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--offsets", type=Path, help="offsets.json of scripts/prepare_motion.py: correct by it")
    parser.add_argument("--words", type=Path, help="JSON: clip → [[word, start, end], ...], seconds")
    parser.add_argument("--source", default="", help="evaluate one source only")
    parser.add_argument("--everybody", action="store_true", help="also people of the training")
    parser.add_argument("--clips", type=int, default=40, help="at most so many of a speaker")
    parser.add_argument("--drift-minutes", type=float, default=1.0)
    arguments = parser.parse_args(command_line)
    try:
        report = evaluate(arguments)
    except (UserError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    arguments.json.write_text(json.dumps(report, indent=1))
    rows = {**{name: figures for name, figures in report.items()}, **report["overall"]["baselines"]}
    print(f"{'':24s}  r     lag  r_lag lip%  centred jerk  closed")
    for name, row in rows.items():
        print(
            f"{name:24s} {row['mouth_r']:5.2f} {row['lag_frames']:4d}  {row['mouth_r_best_lag']:5.2f}"
            f" {row['lip_error_percent_iod']:5.2f} {row['lip_error_centred']:6.2f} {row['jerk_ratio']:6.2f}"
            f" {row['bilabial_closure']:6.2f}"
        )
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)  # as it serves
    sys.exit(main())
