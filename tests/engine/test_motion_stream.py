import tracemalloc
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soxr
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from avatard.config import PROFILES, Motion, Speech, Stream
from avatard.engine.motion_stream import LEAVING_FRAMES, MotionStream, start_noise, without_step
from avatard.inference.engine_api import EngineError
from avatard.models.atom.model import Atom, AtomConfig, reference_of
from avatard.models.face.topology import mouth_opening
from avatard.models.speech import WhisperConfig, WhisperFeatures
from avatard.models.training.atom.audio_augmentation import no_speech
from tests.support.tiny_atom import awake

FRAME = 640
CONFIG = AtomConfig(speech_dim=32, audio_frames=12, frames=8, width=24, depth=1, rest_depth=1, heads=2)
FACE = SimpleNamespace(landmarks=np.full((68, 3), 0.01, np.float32), neutral=np.zeros((68, 3), np.float32))


@pytest.fixture(scope="module")
def networks():
    atom = awake(CONFIG, 0.3)
    atom.to_rest[0] = 0.1
    return atom, WhisperFeatures(WhisperConfig(width=16, heads=2, layers=1)).eval().requires_grad_(False)


def joined(motions):
    """Landmarks of motions that must follow one another without gaps."""
    for before, after in zip(motions, motions[1:], strict=False):
        assert after.first == before.first + len(before.landmarks)
    return np.concatenate([motion.landmarks for motion in motions])


def stream_of(networks, **options):
    atom, speech = networks
    return MotionStream(atom, speech, FACE, **options)


def run(networks, pieces, **options):
    stream = stream_of(networks, **{"seed": 3, "noise": 0.5, **options})
    motions = [motion for piece in pieces for motion in stream.push(piece)]
    return motions + stream.finish()


def sound(frames, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(frames * FRAME) * np.sin(np.arange(frames * FRAME) / 2000) * 0.2).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 19 * FRAME + 100), max_size=8))
def test_any_chunking_gives_the_same_bits(networks, cuts):
    samples = sound(19)[: 19 * FRAME - 77]
    whole = joined(run(networks, [samples]))
    cut = joined(run(networks, np.split(samples, sorted(cuts))))
    assert np.array_equal(whole, cut) and len(whole) == 19


def test_a_hop_comes_when_its_look_ahead_is_there(networks):
    stream = stream_of(networks, hop_frames=4, lookahead_ms=80, first_frame=100)
    assert stream.push(sound(6)[:-1]) == []
    (motion,) = stream.push(sound(1)[:1])
    assert motion.first == 100 and motion.landmarks.shape == (4, 68, 3) and motion.landmarks.dtype == np.float32


def test_streaming_is_the_network_on_the_same_windows(networks):
    """Hop by hop by hand: windows, prefix and reference as in training."""
    atom, speech = networks
    samples = sound(14)
    streamed = joined(run(networks, [samples], noise=0.0, gain=2.0, lookahead_ms=80))
    padded = np.concatenate([np.zeros(6 * FRAME, np.float32), samples, np.zeros(8 * FRAME, np.float32)])
    emitted = torch.zeros(1, 4, 68, 3)
    reference = reference_of(torch.full((1, 68, 3), 0.01), torch.zeros(1, 68, 3))
    with torch.inference_mode():
        for first in range(0, 16, 4):
            features = speech(torch.from_numpy(padded[first * FRAME : (first + 12) * FRAME])[None])
            new = atom.sample(features, reference, emitted[:, -4:], torch.zeros(1, 4, 68, 3), steps=4, lookahead=2)
            emitted = torch.cat([emitted, new], dim=1)
    resting = atom.resting(reference)[0]
    assert (resting - 0.11).abs().max() < 1e-6
    hops = [*(2 * emitted[0, 4:] + resting).split(4)]
    for before, after in pairwise(range(len(hops))):
        hops[after] = without_step(hops[before], hops[after])
    assert np.array_equal(streamed, torch.cat(hops)[:14].numpy())


def test_a_hop_goes_on_from_the_one_before():
    """A face that moves evenly and jumps between two hops: the jump is spread over two frames."""
    steady = torch.arange(8.0)[:, None, None].expand(8, 68, 3)
    assert torch.equal(without_step(steady[:4], steady[4:]), steady[4:])
    moved = without_step(steady[:4], steady[4:] + 1)
    assert (moved[:, 0, 0] - steady[4:, 0, 0]).tolist() == [0.5, 1.0, 1.0, 1.0]
    assert torch.equal(without_step(steady[:1], steady[4:]), steady[4:]), "one frame has no speed"


def test_a_stream_may_begin_with_the_portrait_and_soon_leaves_it(networks):
    made = joined(run(networks, [sound(8)], first_frame=50, start_from_portrait=True))
    rested = joined(run(networks, [sound(8)], first_frame=50))
    assert np.array_equal(made[0], FACE.landmarks) and not np.allclose(made[1], made[0])
    assert np.array_equal(made[LEAVING_FRAMES:], rested[LEAVING_FRAMES:])
    assert np.abs(made[1] - made[0]).max() < np.abs(made[7] - made[0]).max() / 4


def test_noise_belongs_to_the_frame():
    """A stream that starts later draws the same noise for the same frame number."""
    early, late = start_noise(9, range(0, 8), 1.0), start_noise(9, range(4, 8), 1.0)
    assert np.array_equal(early[4:], late)
    assert not np.array_equal(start_noise(8, range(4, 8), 1.0), late)
    assert not start_noise(9, range(4, 8), 0.0).any()


def test_nothing_in_nothing_out(networks):
    assert run(networks, []) == []
    assert run(networks, [np.zeros(0, np.float32)]) == []
    assert [len(m.landmarks) for m in run(networks, [np.zeros(1, np.float32)])] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop_frames": 8}, "got a hop of 8 frames, expected 1 to 7"),
        ({"lookahead_ms": 200}, "got a look-ahead of 200 ms, expected 0 to 160"),
    ],
)
def test_impossible_settings_are_refused(networks, options, message):
    with pytest.raises(EngineError, match=message):
        stream_of(networks, **options)


def test_another_encoder_is_refused(networks):
    with pytest.raises(EngineError, match="speech features of 768 numbers, expected 32"):
        MotionStream(networks[0], SimpleNamespace(dim=768), FACE)


def test_stereo_is_refused_and_a_finished_stream_takes_no_more(networks):
    stream = stream_of(networks)
    with pytest.raises(ValueError, match="expected mono"):
        stream.push(np.zeros((2, 640), np.float32))
    stream.finish()
    with pytest.raises(RuntimeError, match="push after finish"):
        stream.push(np.zeros(640, np.float32))


def bad_sounds():
    speech = sound(20)
    holes = speech.copy()
    holes[1000:1100], holes[5000], holes[6000] = np.nan, np.inf, -np.inf
    yield "holes", holes
    yield "all not a number", np.full(20 * FRAME, np.nan, np.float32)
    yield "clipped", np.clip(speech * 1000, -1, 1)
    yield "far too loud", speech * 1e30
    yield "offset", speech + 0.8
    yield "float64", speech.astype(np.float64)
    yield "from 8 kHz", soxr.resample(speech[::2], 8_000, 16_000)
    yield "from 96 kHz", soxr.resample(np.repeat(speech, 6), 96_000, 16_000)
    yield "mixed stereo", np.stack([speech, -speech], axis=1).mean(axis=1)
    for kind in range(5):
        yield f"no speech {kind}", no_speech(20, np.random.default_rng(kind)).samples


@pytest.mark.parametrize("sound", [pytest.param(samples, id=name) for name, samples in bad_sounds()])
def test_bad_sound_gives_bounded_motion(networks, sound):
    made = joined(run(networks, [sound]))
    assert np.isfinite(made).all() and np.abs(made).max() < 1.5


def test_an_hour_of_silence_needs_no_memory(networks):
    stream = stream_of(networks, steps=1)
    tracemalloc.start()
    held = []
    for _ in range(60):
        stream.push(np.zeros(8 * FRAME, np.float32))
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[-1] - held[20] < 8 * FRAME * 4, "less than one push"


@pytest.fixture(scope="module")
def shipped():
    """The weights that ship. What they reach is in the model card; the tests here are of what must never break."""
    return Atom.load(), WhisperFeatures.load()


def test_silence_keeps_the_mouth_shut(shipped):
    made = joined(run(shipped, [np.zeros(75 * FRAME, np.float32)], steps=2, noise=0.0))
    opening = mouth_opening(made)
    assert np.abs(opening - np.median(opening)).max() < 0.015


def test_it_opens_for_speech_and_closes_after_it(shipped):
    time = np.arange(50 * FRAME) / 16_000
    vowel = sum(np.sin(2 * np.pi * 130 * k * time) * np.exp(-((130 * k - 700) ** 2) / 3e5) for k in range(1, 30))
    vowel = (0.1 * vowel * (1 + np.sin(2 * np.pi * 3 * time)) / 2).astype(np.float32)
    made = joined(run(shipped, [vowel, np.zeros(50 * FRAME, np.float32)], steps=2, noise=0.0))
    opening = mouth_opening(made)
    rest = opening[-1]
    assert opening[:50].max() > rest + 0.02
    assert opening[56:].max() < rest + 0.015


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_every_profile_fits_the_shipped_networks(profile):
    keys: dict[str, Any] = {**PROFILES[profile]}
    stream_keys = Stream(**keys)
    atom, speech = Atom.load(Motion().weights), WhisperFeatures.load(Speech().weights)
    stream = MotionStream(atom, speech, FACE, hop_frames=stream_keys.hop_frames, lookahead_ms=stream_keys.lookahead_ms)
    assert stream.window_samples % FRAME == 0
