"""Recorded passes, with a recorder that needs no GPU: what it replays is what ran while it recorded."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from avatard.engine.graph import Graphed


class Given(NamedTuple):
    numbers: Tensor
    absent: Tensor | None = None


class Recorder:
    """As CUDA's: a replay reads and writes the memory of the recording, in which Python no longer runs."""

    def __init__(self, error: Exception | None = None) -> None:
        self.recorded, self.replayed, self.error = 0, 0, error

    def __call__(self, run):
        if self.error is not None:
            raise self.error
        self.recorded += 1
        made = run()

        def launch():
            self.replayed += 1
            for place, tensor in zip(made, run(), strict=True):
                place.copy_(tensor)

        return made, launch


def triple(given, factor=3):
    return (factor * given.numbers, given.numbers.sum(1))


def of(*numbers: float) -> Given:
    return Given(torch.tensor([[number, 1.0] for number in numbers]))


def test_the_second_time_is_recorded_and_the_rest_are_replayed():
    recorder = Recorder()
    run: Graphed[Given, tuple[Tensor, Tensor]] = Graphed(triple, recorder)
    for n in range(4):
        made, sums = run(of(n))
        assert made.tolist() == [[3 * n, 3]] and sums.tolist() == [n + 1]
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_what_was_made_stays_when_the_next_is_replayed():
    run: Graphed[Given, tuple[Tensor, Tensor]] = Graphed(triple, Recorder())
    kept = [run(of(n))[0] for n in range(4)]
    assert [one[0, 0].item() for one in kept] == [0, 3, 6, 9]


def test_numbers_of_sessions_are_rounded_up():
    recorder = Recorder()
    run: Graphed[Given, tuple[Tensor, Tensor]] = Graphed(triple, recorder)
    for numbers in ([1], [1], [1, 2], [1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3, 4], [5, 6, 7], [8, 9, 10, 11]):
        made, sums = run(of(*numbers))
        assert made[:, 0].tolist() == [3 * n for n in numbers] and sums.tolist() == [n + 1 for n in numbers]
    assert recorder.recorded == 3


def test_settings_and_what_is_left_out_are_recorded_apart():
    recorder = Recorder()
    run: Graphed[Given, tuple[Tensor, Tensor]] = Graphed(triple, recorder)
    for _ in range(3):
        assert run(of(2), 3)[0][0, 0] == 6
        assert run(of(2), 5)[0][0, 0] == 10
        assert run(Given(*of(2)[:1], torch.zeros(1)), 5)[0][0, 0] == 10
    assert recorder.recorded == 3


def test_what_cannot_be_recorded_runs_as_it_is(caplog):
    run: Graphed[Given, tuple[Tensor, Tensor]] = Graphed(triple, Recorder(RuntimeError("not permitted\nand more")))
    for n in range(4):
        assert run(of(n))[0][0, 0] == 3 * n
    assert [record.message for record in caplog.records] == ["networks not recorded"]


def test_a_full_memory_is_no_reason_not_to_record():
    run: Graphed[Given, tuple[Tensor, Tensor]] = Graphed(triple, Recorder(torch.OutOfMemoryError("full")))
    run(of(1))
    with pytest.raises(torch.OutOfMemoryError):
        run(of(1))
