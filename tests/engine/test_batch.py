"""Sessions that share passes: what each gets does not depend on who shares, and nobody pays for others' mistakes."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from avatard.engine.batch import Shared, leaves, signature, together
from avatard.engine.hop import make_hop, make_layers
from avatard.engine.motion_stream import MotionStream, make_motion
from avatard.engine.video_stream import PreparedPortrait, VideoStream
from avatard.models.atom.model import AtomConfig
from avatard.models.device import DeviceError
from avatard.models.face.morphable import MorphableModel
from avatard.models.face.pose import Pose
from avatard.models.speech import WhisperConfig, WhisperFeatures
from avatard.timebase import SAMPLES_PER_FRAME
from tests.support.tiny_atom import awake
from tests.support.tiny_mcvdm import Someone, frontal, someone, tiny

MODEL = tiny()
SIZES: dict[str, Any] = {"clip": 8, "hop": 3, "fade": 2, "steps": 1}


class Given(NamedTuple):
    """A pass's inputs, with something left out."""

    numbers: Tensor
    absent: None = None


def portraits(count: int) -> list[PreparedPortrait]:
    """Of people who look different."""
    mean, first = MorphableModel.load().mean_68, someone()
    return [
        PreparedPortrait.of(MODEL, Someone(np.roll(first.portrait, 40 * n, 1), first.landmarks, first.pose), mean)
        for n in range(count)
    ]


def motion(seed: int, count: int = 9) -> tuple[np.ndarray, list[Pose]]:
    rng = np.random.default_rng(seed)
    landmarks = (0.05 * rng.standard_normal((count, 68, 3))).astype(np.float32)
    rest = frontal()
    return landmarks, [Pose(rest.rotation, rest.scale, rest.translation + rng.normal(0, 2, 2)) for _ in range(count)]


class Recorded:
    """A pass that remembers what it was given and what it made."""

    def __init__(self, run):
        self.run, self.given, self.made = run, [], []

    def __call__(self, inputs, *settings, timer=None):
        self.given.append((inputs, settings))
        self.made.append(self.run(inputs, *settings))
        return self.made[-1]


def close(made, expected, tolerance=2e-5):
    for one, other in zip(leaves(made), leaves(expected), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        if one.dtype == torch.uint8:  # a number on the border between two levels
            assert (one.int() - other.int()).abs().max() <= 1
        else:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_video_is_the_same_whoever_shares_its_passes(count):
    hops, layers = [], []
    for n, portrait in enumerate(portraits(count)):
        hops.append(Recorded(lambda inputs, steps: make_hop(MODEL, inputs, steps)))
        layers.append(Recorded(lambda inputs: make_layers(MODEL, inputs)))
        stream = VideoStream(MODEL, portrait, seed=n, hops=hops[-1], layers=layers[-1], **SIZES)
        alone = VideoStream(MODEL, portrait, seed=n, **SIZES)
        landmarks, poses = motion(n)
        clips, own = (list(one.generate(landmarks, poses)) for one in (stream, alone))
        for clip, other in zip(clips, own, strict=True):
            assert torch.equal(clip.volumes, other.volumes)
            shown, expected = list(stream.layers(clip)), list(alone.layers(other))
            assert [first for first, _ in shown] == [first for first, _ in expected]
            for (_, some), (_, same) in zip(shown, expected, strict=True):
                for layer, another in zip(some, same, strict=True):
                    for part, equal in ((layer.flow, another.flow), (layer.painted, another.painted)):
                        np.testing.assert_array_equal(part, equal)
                    np.testing.assert_array_equal(layer.keep, another.keep)
    for n in range(3):  # the first hop, which has nothing before it, too
        given = [hop.given[n][0] for hop in hops]
        made = together(lambda inputs, steps: make_hop(MODEL, inputs, steps), given, 1)
        for hop_made, hop in zip(made, hops, strict=True):
            close(hop_made, hop.made[n])
    made_layers = together(lambda inputs: make_layers(MODEL, inputs), [one.given[-1][0] for one in layers])
    for one_made, pass_ in zip(made_layers, layers, strict=True):
        close(one_made, pass_.made[-1])


def test_a_clip_without_a_new_frame_has_no_layers():
    stream = VideoStream(
        MODEL, portraits(1)[0], clip=8, hop=3, fade=5, layers=lambda inputs: make_layers(MODEL, inputs)
    )
    clips = list(stream.generate(*motion(0, 6)))
    assert [sum(len(made) for _, made in stream.layers(clip)) for clip in clips] == [0, 1]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_motion_is_the_same_whoever_shares_its_passes(count):
    torch.manual_seed(1)
    speech = WhisperFeatures(WhisperConfig(width=24, heads=2, layers=1)).eval().requires_grad_(False)
    atom = awake(AtomConfig(speech_dim=48, width=24, depth=1, rest_depth=1, heads=2))

    def run(inputs, *settings):
        return make_motion(atom, speech, inputs, *settings)

    passes = []
    for n in range(count):
        passes.append(Recorded(run))
        streams = [
            MotionStream(atom, speech, someone_neutral(n), seed=n, noise=1.0, hops=hops) for hops in (passes[-1], None)
        ]
        said = np.random.default_rng(n).normal(0, 0.1, 14 * SAMPLES_PER_FRAME).astype(np.float32)
        for one, other in zip(*(stream.push(said) for stream in streams), strict=True):
            np.testing.assert_array_equal(one.landmarks, other.landmarks)
    for n in range(3):
        given = [pass_.given[n][0] for pass_ in passes]
        for made, pass_ in zip(together(run, given, *passes[0].given[n][1]), passes, strict=True):
            close(made, pass_.made[n])


class Neutral(Someone):
    @property
    def neutral(self) -> np.ndarray:
        return self.landmarks


def someone_neutral(n: int) -> Neutral:
    landmarks = (0.02 * np.random.default_rng(n).standard_normal((68, 3))).astype(np.float32)
    return Neutral(someone().portrait, landmarks, frontal())


def test_what_is_made_together_is_kept_apart():
    made = together(lambda given: Given(2 * given.numbers), [Given(torch.full((1, 3), float(n))) for n in range(4)])
    assert [one.numbers.tolist() for one in made] == [[[2.0 * n] * 3] for n in range(4)]
    assert len({one.numbers.untyped_storage().data_ptr() for one in made}) == 4, "one keeps no memory of the others"


def test_only_what_has_the_same_shapes_is_made_together():
    one, other = Given(torch.zeros(1, 3)), Given(torch.zeros(2, 3))
    assert signature(one) == signature(other)
    for different in (Given(torch.zeros(1, 4)), Given(torch.zeros(1, 3).half()), (torch.zeros(1, 3), torch.zeros(1))):
        assert signature(different) != signature(one)


class Held:
    """A pass that doubles numbers, and waits in its first call until it may go on."""

    def __init__(self):
        self.sizes: list[tuple[int, tuple[int, ...]]] = []
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, given, *settings):
        self.sizes.append((len(given.numbers), settings))
        self.began.set()
        assert self.go.wait(60)
        if (given.numbers < 0).any():
            raise ValueError("negative")
        return Given(2 * given.numbers)


def shared(run, numbers, settings=None, most=32):
    """What `Shared` gives sessions of which all but the first come while its pass runs: results, or errors."""
    passes: Shared[Given, Given] = Shared(run, most)

    def ask(n):
        try:
            return passes(Given(torch.tensor([[float(numbers[n])]])), *(settings[n] if settings else ())).numbers.item()
        except (ValueError, DeviceError) as error:
            return error

    with ThreadPoolExecutor(len(numbers)) as threads:
        first = threads.submit(ask, 0)
        assert run.began.wait(60)
        others = [threads.submit(ask, n) for n in range(1, len(numbers))]
        while len(passes._waiting) < len(others):
            time.sleep(0.002)
        run.go.set()
        return [answer.result(60) for answer in (first, *others)]


def test_who_comes_during_a_pass_shares_the_next_one():
    run = Held()
    assert shared(run, range(6)) == [0, 2, 4, 6, 8, 10]
    assert run.sizes == [(1, ()), (5, ())]


def test_a_pass_has_room_for_so_many():
    run = Held()
    assert shared(run, range(6), most=2) == [0, 2, 4, 6, 8, 10]
    assert sorted(run.sizes) == [(1, ()), (1, ()), (2, ()), (2, ())]


def test_other_settings_are_another_pass():
    run = Held()
    assert shared(run, range(5), settings=[(1,), (1,), (2,), (1,), (2,)]) == [0, 2, 4, 6, 8]
    assert sorted(run.sizes) == [(1, (1,)), (2, (1,)), (2, (2,))]


def test_a_mistake_is_only_who_makes_its():
    answers = shared(Held(), [0, 1, 2, -3, 4])
    assert [type(one) for one in answers] == [float, float, float, ValueError, float]
    assert answers[4] == 8


def test_a_memory_that_holds_few_serves_all_in_smaller_passes():
    run = Held()
    passed = run.__call__

    class Small(Held):
        def __call__(self, given, *settings):
            if len(given.numbers) > 2:
                raise torch.OutOfMemoryError
            return passed(given, *settings)

    small = Small()
    small.began, small.go = run.began, run.go
    assert shared(small, range(9)) == [2 * n for n in range(9)]
    assert max(size for size, _ in run.sizes) == 2


def test_a_memory_that_does_not_hold_one_refuses_in_one_line():
    def full(given):
        raise torch.OutOfMemoryError

    passes: Shared[Given, Given] = Shared(full)
    with pytest.raises(DeviceError, match="the GPU's memory is full"):
        passes(Given(torch.zeros(1, 1)))
