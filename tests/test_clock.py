import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard import clock
from avatard.clock import MediaClock


class Hand:
    """A clock that moves when told to."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.seconds = seconds

    def __call__(self) -> float:
        return self.seconds


@given(st.integers(0, 10**7), st.integers(0, 10**7), st.floats(0, 10**6))
def test_a_frame_is_due_at_its_due_time_and_not_before(first, later, seconds):
    hand = Hand(seconds)
    media = MediaClock(hand)
    media.start(first)
    assert media.frame() == first
    hand.seconds = media.due(first + later)
    assert media.frame() == first + later
    hand.seconds += 0.039
    assert media.frame() == first + later
    hand.seconds += 0.002
    assert media.frame() == first + later + 1


def test_before_frame_zero_no_frame_is_due():
    hand = Hand()
    media = MediaClock(hand)
    media.start()
    hand.seconds -= 0.001
    assert media.frame() == -1


def test_a_restart_moves_due_times_and_keeps_numbers():
    hand = Hand()
    media = MediaClock(hand)
    media.start()
    hand.seconds += 60
    media.start(100)
    assert media.frame() == 100
    assert media.due(101) - media.due(100) == pytest.approx(0.04)


def test_an_unstarted_clock_says_so():
    media = MediaClock()
    assert not media.running
    with pytest.raises(RuntimeError, match="before it was started"):
        media.due(0)


async def test_until_sleeps_to_the_due_time_and_reports_lateness(monkeypatch):
    hand = Hand()
    media = MediaClock(hand)
    media.start()
    slept = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        hand.seconds += seconds * 0.75  # a timer that fires early must not let a frame out early

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await media.until(1) == pytest.approx(0, abs=1e-6)
    assert slept[0] == pytest.approx(0.04)
    count = len(slept)
    hand.seconds += 1
    assert await media.until(2) == pytest.approx(0.96, abs=1e-6)
    assert len(slept) == count


def test_the_real_clocks_run():
    assert clock.monotonic() <= clock.monotonic()
    assert abs(clock.wall_us() - clock.wall_us()) < 10**7
