"""Whose turn it is, without threads: the earliest deadline's, and nobody's queue stops anybody else."""

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from avatard.frame import Frame, HeadPose
from avatard.inference.pipeline import PIECE_SAMPLES, QUEUE_CLIPS, QUEUE_HOPS, Made, Pipeline, Stage, Turns, earliest

HOP = 4
HOP_SAMPLES = HOP * 640
PICTURE = Frame(
    np.zeros((2, 2, 3), np.uint8),
    np.zeros((68, 3), np.float32),
    np.zeros(52, np.float32),
    HeadPose((0, 0, 0, 1), (0, 0, 0), 1),
)


Log = list[tuple[str, int]]  # rooms, and the first frame of what was made for them


class Piece(NamedTuple):
    first: int
    loudness: float


class HopStream:
    """Hops of 4 frames, pictures two at a time; what is heard goes all the way through."""

    def __init__(self, first: int = 0) -> None:
        self.next = first
        self.heard = np.zeros(0, np.float32)

    def motion(self, samples):
        self.heard = np.concatenate([self.heard, samples])
        while len(self.heard) >= HOP_SAMPLES:
            yield Piece(self.next, float(self.heard[0]))
            self.heard = self.heard[HOP_SAMPLES:]
            self.next += HOP

    def generate(self, motion):
        yield motion

    def render(self, clip):
        for first in (clip.first, clip.first + 2):
            yield first, [PICTURE] * 2


class Room:
    def __init__(self, name: str, log: Log, zero: float, first: int = 0) -> None:
        self.made: list[Made] = []
        self.name, self.zero, self.log = name, zero, log
        self.pipeline = Pipeline(1, HopStream(first), first, HOP, self._made)

    def _made(self, made: Made) -> None:
        self.made.append(made)
        self.log.append((self.name, made.first))

    def hear(self, hops: int) -> None:
        self.pipeline.push(np.zeros(hops * HOP_SAMPLES, np.float32), self.zero)


def run(rooms: list[Room], stage: Stage) -> list[str]:
    """Serve a stage until nothing of it can be done; whose turns it were."""
    by_pipeline = {room.pipeline: room.name for room in rooms}
    turns = []
    while (chosen := earliest(by_pipeline, stage)) is not None:
        turns.append(by_pipeline[chosen])
        chosen.run(stage)
    return turns


def test_the_room_whose_frames_are_due_first_goes_first():
    log: Log = []
    relaxed, urgent = Room("relaxed", log, zero=10.0), Room("urgent", log, zero=9.9)
    rooms = [relaxed, urgent]
    for room in rooms:
        room.hear(2)
    run(rooms, Stage.MOTION)
    assert run(rooms, Stage.GENERATE) == ["urgent", "relaxed", "urgent", "relaxed"], "hop by hop, 0.1 s apart"
    run(rooms, Stage.RENDER)
    # Frames 2, 3 of one are due at 9.98 and 10.02, frames 0, 1 of the other at 10.00 and 10.04.
    order = [(name, first) for name, first in log]
    assert order[:4] == [("urgent", 0), ("urgent", 2), ("relaxed", 0), ("urgent", 4)]
    assert sorted(order) == [(name, first) for name in ("relaxed", "urgent") for first in (0, 2, 4, 6)]


def test_a_room_that_is_far_ahead_waits_for_one_that_is_late():
    log: Log = []
    ahead, late = Room("ahead", log, zero=10.0, first=1000), Room("late", log, zero=10.0, first=0)
    for room in (ahead, late):
        room.hear(2)
    run([ahead, late], Stage.MOTION)
    assert run([ahead, late], Stage.GENERATE) == ["late", "late", "ahead", "ahead"]


def test_a_clock_that_was_moved_moves_the_deadlines():
    log: Log = []
    one, other = Room("one", log, zero=10.0), Room("other", log, zero=11.0)
    for room in (one, other):
        room.hear(1)
    assert earliest([one.pipeline, other.pipeline], Stage.MOTION) is one.pipeline
    one.zero = 20.0
    one.hear(1)
    assert earliest([one.pipeline, other.pipeline], Stage.MOTION) is other.pipeline


def test_a_full_queue_stops_its_own_room_only():
    log: Log = []
    flooded, other = Room("flooded", log, zero=0.0), Room("other", log, zero=100.0)
    flooded.hear(50)
    other.hear(1)
    turns = run([flooded, other], Stage.MOTION)
    assert turns.count("other") == HOP_SAMPLES / PIECE_SAMPLES, "although the other one is in a hurry"
    assert turns.count("flooded") == QUEUE_HOPS * HOP_SAMPLES / PIECE_SAMPLES
    turns = run([flooded, other], Stage.GENERATE)
    assert turns.count("flooded") == QUEUE_CLIPS and turns.count("other") == 1
    assert run([flooded, other], Stage.MOTION).count("flooded") == QUEUE_CLIPS * HOP_SAMPLES / PIECE_SAMPLES
    assert flooded.pipeline.queued == 1 + QUEUE_HOPS + QUEUE_CLIPS


@pytest.mark.parametrize("message", [160, 777, 1280, 5000, 100_000])
def test_messages_of_any_length_give_the_same_pictures(message):
    room = Room("room", [], zero=0.0, first=100)
    sound = np.zeros(12 * HOP_SAMPLES, np.float32)
    for start in range(0, len(sound), message):
        room.pipeline.push(sound[start : start + message], 0.0)
        for stage in Stage:
            while room.pipeline.due(stage) is not None:
                room.pipeline.run(stage)
    for stage in list(Stage) * 10:
        while room.pipeline.due(stage) is not None:
            room.pipeline.run(stage)
    assert [made.first for made in room.made] == list(range(100, 100 + 12 * HOP, 2))


def test_each_stage_is_accounted_for_once_and_waiting_for_other_rooms_is_its_own_figure(monkeypatch):
    """A step of each stage takes 10, 20 and 30 ms of a core; rooms wait for each other."""
    now = [100.0]
    monkeypatch.setattr("avatard.inference.pipeline.monotonic", lambda: now[0])
    monkeypatch.setattr("avatard.inference.pipeline.thread_cpu", lambda: now[0])

    class Slow(HopStream):
        def motion(self, samples):
            now[0] += 0.01
            yield from super().motion(samples)

        def generate(self, motion):
            now[0] += 0.02
            yield from super().generate(motion)

        def render(self, clip):
            for made in super().render(clip):
                now[0] += 0.03
                yield made

    rooms = [Room("one", [], zero=0.0), Room("other", [], zero=0.001)]
    for room in rooms:
        elsewhere = partial(next, iter([0.005]), 0.0)
        room.pipeline = Pipeline(1, Slow(), 0, HOP, room._made, elsewhere)
        room.hear(1)
    for stage in Stage:
        run(rooms, stage)
    for room in rooms:
        motion, generate, render = zip(*(part.costs for part in room.made), strict=True)
        assert [cost.core_seconds for cost in motion] == pytest.approx([0.02, 0]), "two pieces make a hop"
        assert [cost.core_seconds for cost in generate] == pytest.approx([0.02, 0])
        assert [cost.core_seconds for cost in render] == pytest.approx([0.035, 0.03]), "5 ms on another thread"
        # Generating waited 20 ms while the stage, or here the stage before, was at work for the other room.
        assert [cost.seconds for cost in generate] == pytest.approx([0.04, 0])


def test_samples_of_another_epoch_are_dropped_and_an_ended_room_is_forgotten():
    made: list[Made] = []
    turns = Turns()
    turns.push(7, 1, np.zeros(HOP_SAMPLES, np.float32), 0.0)
    turns.begin(7, Pipeline(2, HopStream(), 0, HOP, made.append))
    turns.push(7, 1, np.zeros(HOP_SAMPLES, np.float32), 0.0)
    assert turns.queued == 0
    turns.push(7, 2, np.zeros(HOP_SAMPLES, np.float32), 0.0)
    assert turns.queued == 1
    began: list[Stage] = []
    for stage in (Stage.MOTION, Stage.MOTION, Stage.GENERATE, Stage.RENDER, Stage.RENDER):
        turns.serve(stage, partial(began.append, stage))
    assert [part.first for part in made] == [0, 2] and len(began) == 5
    turns.push(7, 2, np.zeros(HOP_SAMPLES, np.float32), 0.0)
    turns.end(7)
    turns.push(7, 2, np.zeros(HOP_SAMPLES, np.float32), 0.0)
    assert turns.queued == 0
