"""How many sessions a device keeps up with, measured with tiny networks on the processor."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from avatard.commands.bench_device import Load, loads, summary
from avatard.config import Stream
from avatard.engine.networks import Networks, shared_passes
from avatard.models.atom.model import AtomConfig
from avatard.models.face.morphable import MorphableModel
from avatard.models.speech import WhisperConfig, WhisperFeatures
from tests.support.tiny_atom import awake
from tests.support.tiny_mcvdm import Someone, someone, tiny

STREAM = Stream(clip_frames=8, hop_frames=4, fade_frames=1, lookahead_ms=80)
VOICE = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


@dataclasses.dataclass
class Neutral(Someone):
    neutral: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((68, 3), np.float32))


def networks() -> Networks:
    """Tiny ones whose sessions share passes, as on a GPU."""
    torch.manual_seed(0)
    speech = WhisperFeatures(WhisperConfig(width=24, heads=2, layers=1)).eval().requires_grad_(False)
    atom, mcvdm = awake(AtomConfig(speech_dim=48, width=24, depth=1, rest_depth=1, heads=2)), tiny()
    return Networks(
        torch.device("cpu"), speech, atom, mcvdm, None, shared_passes(atom, speech, mcvdm, None), ThreadPoolExecutor(1)
    )


def test_sessions_are_doubled_and_share_passes():
    shared = networks()
    assert shared.passes.hops is not None
    sizes: list[int] = []
    run = shared.passes.hops._run

    def counted(inputs, *settings):
        sizes.append(len(inputs.small))
        return run(inputs, *settings)

    shared.passes.hops._run = counted
    who: Any = Neutral(**vars(someone()))
    measured = list(loads(shared, who, MorphableModel.load().mean_68, STREAM, VOICE, most=4, hops=2))
    assert [load.sessions for load in measured] == [1, 2, 4]
    assert all(load.hop_ms > 0 and load.bytes_each is None for load in measured)
    assert sum(sizes) >= 7 * 2 and set(sizes) <= {1, 2, 3, 4}


def test_a_full_memory_ends_the_measurement():
    shared = networks()
    passes = shared.passes.hops
    assert passes is not None
    run, alone = passes._run, iter(range(100))

    def small(inputs, *settings):
        if next(alone) > 20:
            raise torch.OutOfMemoryError
        return run(inputs, *settings)

    passes._run = small
    who: Any = Neutral(**vars(someone()))
    measured = list(loads(shared, who, MorphableModel.load().mean_68, STREAM, VOICE, most=8, hops=2))
    assert [load.sessions for load in measured] == [1, 2][: len(measured)] and len(measured) < 4


def test_the_summary_ends_where_speech_is_faster():
    def measured():
        yield Load(1, 6.0, 10_000_000)
        yield Load(2, 100.0, 9_000_000)
        yield Load(4, 161.0, 8_000_000)
        raise AssertionError("nobody asks for more")

    made = summary(measured(), STREAM)
    assert made["networks"] == 2 and made["memory_mb_each"] == 9.0
    assert made["measured"][0] == {"sessions": 1, "hop_ms": 6.0} and len(made["measured"]) == 3
    assert summary(iter([Load(1, 200.0, None)]), STREAM)["networks"] == 0
