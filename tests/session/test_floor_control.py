import numpy as np
import pytest

from avatard.session.floor_control import FLOOR_SECONDS, Floor, FloorError
from avatard.session.voice_activity import QUIET_FRAMES, Activity


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("avatard.session.floor_control.monotonic", lambda: now[0])
    return now


def test_who_speaks_has_the_floor_until_they_stop(clock):
    floor = Floor()
    assert not floor.claim("a", pushed=True, waiting=False)
    with pytest.raises(FloorError, match="another speaker has the floor"):
        floor.claim("b", pushed=True, waiting=False)
    clock[0] += FLOOR_SECONDS + 0.1
    with pytest.raises(FloorError):
        floor.claim("b", pushed=True, waiting=True)  # what they said is not said yet
    assert floor.claim("b", pushed=True, waiting=False)
    assert not floor.release("a") and floor.release("b") and not floor.release("b")
    assert not floor.claim("a", pushed=False, waiting=False)


def test_pushed_speech_takes_the_floor_from_a_microphone(clock):
    floor = Floor()
    floor.claim("microphone", pushed=False, waiting=False)
    assert floor.claim("agent", pushed=True, waiting=True)
    with pytest.raises(FloorError):
        floor.claim("microphone", pushed=False, waiting=True)


def test_an_open_microphone_that_hears_nothing_keeps_nobody_from_speaking(clock):
    floor = Floor()
    floor.claim("silent", pushed=False, waiting=False, loud=False)
    with pytest.raises(FloorError):
        floor.claim("other", pushed=False, waiting=False, loud=False)
    assert floor.silent_seconds > 1000
    assert floor.claim("other", pushed=False, waiting=True)
    with pytest.raises(FloorError):
        floor.claim("silent", pushed=False, waiting=True, loud=False)
    clock[0] += FLOOR_SECONDS + 0.1
    with pytest.raises(FloorError):
        floor.claim("silent", pushed=False, waiting=False, loud=False)
    assert floor.claim("silent", pushed=False, waiting=False)


def test_after_an_interrupt_the_rest_is_not_wanted_until_a_pause(clock):
    floor = Floor()
    floor.claim("agent", pushed=True, waiting=False)
    floor.interrupt()
    assert floor.is_cut_off("agent") and not floor.is_cut_off("other")
    clock[0] += FLOOR_SECONDS - 0.1
    assert floor.is_cut_off("agent"), "it goes on without a pause"
    clock[0] += FLOOR_SECONDS + 0.1
    assert not floor.is_cut_off("agent")
    floor.claim("agent", pushed=True, waiting=False)
    floor.interrupt()
    assert not floor.release("agent") and not floor.is_cut_off("agent"), "what follows its end is new"


def test_a_microphone_is_not_cut_off(clock):
    floor = Floor()
    floor.claim("microphone", pushed=False, waiting=False)
    floor.interrupt()
    assert not floor.is_cut_off("microphone")


def test_speech_ends_after_half_a_second_of_quiet():
    activity, loud, quiet = Activity(), np.full(640, 0.1, np.float32), np.zeros(640, np.float32)
    assert not activity.hear(loud, speech=False, more=False) and not activity.speaking
    assert activity.hear(loud, speech=True, more=False) and activity.speaking
    assert not any(activity.hear(quiet, speech=True, more=False) for _ in range(QUIET_FRAMES - 1))
    assert activity.hear(quiet, speech=False, more=False) and not activity.speaking


def test_quiet_before_more_speech_is_a_pause():
    activity, loud, quiet = Activity(), np.full(640, 0.1, np.float32), np.zeros(640, np.float32)
    activity.hear(loud, speech=True, more=True)
    assert not any(activity.hear(quiet, speech=True, more=True) for _ in range(5 * QUIET_FRAMES))
    assert activity.hear(quiet, speech=True, more=False) and not activity.speaking
