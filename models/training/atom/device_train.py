"""The training of AToM-Net on one device within a budget of minutes, from a bundle.

Everything that a step needs is on the device (`DeviceData`); the schedule follows the clock, so that the training ends
when its minutes do, however fast the device is.
"""

from __future__ import annotations

import copy
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avatard.models import checkpoint
from avatard.models.atom.model import Atom, AtomConfig, reference_of
from avatard.models.evaluation.motion_metrics import correlation, jerk, lip_error
from avatard.models.evaluation.streamed import roll_out
from avatard.models.face.topology import mouth_opening
from avatard.models.speech import WhisperFeatures, power_spectrum
from avatard.models.training.atom.bundle import Bundle
from avatard.models.training.atom.dataset import set_statistics
from avatard.models.training.atom.device_data import Augmentation, DeviceData
from avatard.models.training.atom.loss import AtomObjective, Corruption, LossWeights
from avatard.timebase import SAMPLES_PER_FRAME

#: Share of the budget after which the weights so far are saved besides the best ones.
EARLY = 0.8


@dataclass(frozen=True)
class Budget:
    """How long and how fast."""

    minutes: float
    batch: int = 512
    rate: float = 1.2e-3
    warmup: float = 0.03  # share of the budget
    floor: float = 0.02  # of the rate, at the end
    decay: float = 0.999  # of the averaged weights
    weight_decay: float = 0.02
    validate_seconds: float = 30.0
    log_steps: int = 100
    most_steps: int = 10**9


@dataclass(frozen=True)
class Variant:
    """What one training tries."""

    network: AtomConfig = field(default_factory=AtomConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    loss: LossWeights = field(default_factory=LossWeights)
    corruption: Corruption = field(default_factory=Corruption)
    seed: int = 0


class Streams:
    """Clips of one split as serving streams them, side by side: silence, the clip, silence.

    The sound is moved to the sample, so that frame n of the picture belongs to frame n of the motion.
    """

    def __init__(self, data: DeviceData, hop: int = 4, lookahead: int = 2) -> None:
        self.data, self.hop, self.lookahead = data, hop, lookahead
        hops = -(-max(clip.frames for clip in data.clips) // hop)
        window = data.window_frames * SAMPLES_PER_FRAME
        before = window - (hop + lookahead) * SAMPLES_PER_FRAME
        count = before + (hops * hop + hop + lookahead) * SAMPLES_PER_FRAME
        place = torch.arange(count, device=data.device) - before
        shift = (data.offset * SAMPLES_PER_FRAME).round().long()
        index = place + shift[:, None]
        own = data.frames[:, None] * SAMPLES_PER_FRAME
        there = (index >= 0) & (index < own) & (place >= 0)
        start = data.start[:, None] * SAMPLES_PER_FRAME
        sound = data.audio[torch.where(there, start + index, 0)].float() / 32768 * there
        self.windows = [
            sound[:, n * hop * SAMPLES_PER_FRAME : n * hop * SAMPLES_PER_FRAME + window] for n in range(hops)
        ]
        first = data.start
        self.reference = reference_of(data.landmarks[first], data.neutrals[first])

    @torch.no_grad()
    def motions(self, atom: Atom, steps: int = 2) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """Real and generated landmarks of each clip."""

        def features() -> Iterator[Tensor]:
            for window in self.windows:
                yield self.data.speech.encode(power_spectrum(window, self.data.window)).float()

        moved = roll_out(atom, features(), self.reference, steps=steps, lookahead=self.lookahead, hop=self.hop)
        made = (moved + atom.resting(self.reference)[:, None]).float().cpu().numpy()
        return [(face.landmarks, made[n, : len(face.landmarks)]) for n, face in enumerate(self.data.faces)]

    def figures(self, atom: Atom) -> dict[str, float]:
        """Of all clips, and r by clip of each source.

        `score`, by which the best weights are kept, is r by clip less the lip error's share of a held portrait's, with
        sources weighted by the square root of their clips.
        """
        pairs = self.motions(atom)
        r = np.array([correlation(mouth_opening(real), mouth_opening(made)) for real, made in pairs])
        ratio = np.array([lip_error(real, made) / lip_error(real, real[:1]) for real, made in pairs])
        groups = defaultdict(list)
        for n, clip in enumerate(self.data.clips):
            groups[clip.source].append(n)
        weights = np.sqrt([len(members) for members in groups.values()])
        scores = [r[members].mean() - ratio[members].mean() for members in groups.values()]
        real, made = (np.concatenate([mouth_opening(pair[side]) for pair in pairs]) for side in (0, 1))
        jerks = [np.sqrt(np.mean(np.concatenate([jerk(pair[side]).ravel() for pair in pairs]) ** 2)) for side in (0, 1)]
        return {
            "score": float(scores @ weights / weights.sum()),
            "mouth_r_clip": float(r.mean()),
            "lip_error_to_hold": float(ratio.mean()),
            "opening_ratio": float(made.std() / real.std()),
            "jerk_ratio": float(jerks[1] / jerks[0]),
            **{f"r_{source}": float(r[members].mean()) for source, members in groups.items()},
        }


def train(
    bundle: Bundle, variant: Variant, budget: Budget, run: Path, device: torch.device, seconds: Callable[[], float]
) -> None:
    """Train until the clock `seconds` shows `budget.minutes`.

    `run` receives `log.csv`, `validation.csv`, `best.safetensors` (averaged weights with the best score on validation
    people), `early.safetensors` at four fifths of the time and `last.safetensors`.
    """
    from avatard.models.training.loop import CsvLog, warmup_cosine

    torch.manual_seed(variant.seed)
    run.mkdir(parents=True, exist_ok=True)
    on_gpu = device.type == "cuda"
    speech = WhisperFeatures.load().to(device)
    data = DeviceData(bundle, "train", device, speech, variant.network.audio_frames)
    streams = Streams(DeviceData(bundle, "validation", device, speech, variant.network.audio_frames, tracks=1))
    atom = Atom(variant.network)
    set_statistics(atom, data.faces)
    atom = atom.to(device)
    atom.lip, atom.rest = atom.lip.to(device), atom.rest.to(device)
    averaged = copy.deepcopy(atom).eval().requires_grad_(False)
    kept: list[Tensor] = list(averaged.parameters())
    current: list[Tensor] = list(atom.parameters())
    objective = AtomObjective(atom, variant.corruption, variant.loss)
    optimizer = torch.optim.AdamW(
        atom.parameters(), lr=budget.rate, betas=(0.9, 0.98), weight_decay=budget.weight_decay, fused=on_gpu
    )
    rng = torch.Generator(device).manual_seed(variant.seed)
    log, scores = CsvLog(run / "log.csv"), CsvLog(run / "validation.csv")
    end = 60 * budget.minutes
    start = last_validation = seconds()
    best, step, early, losses = -math.inf, 0, False, torch.zeros((), device=device)

    def save(name: str, figures: dict[str, float]) -> None:
        described = {"config": variant.network.to_json(), "metrics": json.dumps(figures), "step": str(step)}
        weights = averaged.state_dict()
        checkpoint.save(run / f"{name}.safetensors", {key: value.half() for key, value in weights.items()}, described)

    def validate() -> dict[str, float]:
        nonlocal best
        figures = streams.figures(averaged)
        scores.write({"step": step, "seconds": seconds() - start, **figures})
        print(run.name, step, {key: round(value, 3) for key, value in figures.items()}, flush=True)
        if figures["score"] > best:
            best = figures["score"]
            save("best", figures)
        return figures

    atom.train()
    while True:
        now = seconds()
        progress = (now - start) / max(end - start, 1e-3)
        if progress >= 1 or step >= budget.most_steps:
            break
        rate = budget.rate * warmup_cosine(
            int(progress * 10_000), 10_000, max(1, int(budget.warmup * 10_000)), budget.floor
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        lookahead = 1 + step % variant.network.max_lookahead
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            batch = data.batch(budget.batch, variant.network.frames, lookahead, variant.augmentation, rng)
            total = objective(batch, lookahead, rng)["total"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        nn.utils.clip_grad_norm_(atom.parameters(), 1.0)
        optimizer.step()
        # As `averaged_model`, in one kernel and without waiting for the device.
        with torch.no_grad():
            torch._foreach_lerp_(kept, current, 1 - min(budget.decay, (1 + step) / (10 + step)))
        step += 1
        losses = losses + total.detach()
        if step % budget.log_steps == 0:
            log.write({"step": step, "seconds": now - start, "loss": float(losses) / budget.log_steps, "rate": rate})
            losses = torch.zeros((), device=device)
        if now - last_validation > budget.validate_seconds:
            last_validation = now
            validate()
        if not early and progress > EARLY:
            early = True
            save("early", {})
    save("last", validate())


def variants(seed: int) -> dict[str, Variant]:
    """Ways to train that `scripts/train_atom_bundle.py` knows by name."""
    network = AtomConfig(dropout=0.3)
    plain = Variant(network, seed=seed)
    longer = LossWeights(windows=((0, 4), (0, 8), (0, 12), (1, 3), (2, 2)))
    mild = Augmentation(tempo=0.3, formants=0.3, filtered=0.2, room=0.1, noisy=0.2)
    return {
        "nano": plain,
        "lively": replace(plain, loss=longer),
        "lively_dropout": replace(plain, network=AtomConfig(dropout=0.45), loss=longer),
        "mild": replace(plain, augmentation=mild),
        "wide": replace(plain, network=AtomConfig(width=288, dropout=0.45), loss=longer),
    }
