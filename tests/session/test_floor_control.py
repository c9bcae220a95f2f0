import numpy as np
import pytest

from avatard.session.floor_control import FLOOR_SECONDS, Floor
from avatard.session.voice_activity import QUIET_FRAMES, VoiceActivity


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("avatard.session.floor_control.monotonic", lambda: now[0])
    return now


def test_a_speaker_holds_the_floor_until_they_stop(clock):
    floor = Floor[str]()
    assert floor.claim("a", pushed=True, waiting=False) and floor.holder == "a"
    assert not floor.claim("b", pushed=True, waiting=False)
    clock[0] += FLOOR_SECONDS + 0.1
    assert not floor.claim("b", pushed=True, waiting=True), "what they said is not said yet"
    assert floor.claim("b", pushed=True, waiting=False) and floor.holder == "b"
    assert not floor.release("a") and floor.release("b") and not floor.release("b")
    assert floor.claim("a", pushed=False, waiting=False)
    floor.interrupt()
    assert floor.holder is None


def test_pushed_speech_takes_the_floor_from_a_microphone(clock):
    floor = Floor[str]()
    floor.claim("microphone", pushed=False, waiting=False)
    assert floor.claim("agent", pushed=True, waiting=True)
    assert not floor.claim("microphone", pushed=False, waiting=True)


def test_an_open_microphone_that_hears_nothing_keeps_nobody_from_speaking(clock):
    floor = Floor[str]()
    floor.claim("silent", pushed=False, waiting=False, loud=False)
    assert not floor.claim("other", pushed=False, waiting=False, loud=False)
    assert floor.silent_seconds > 1000
    assert floor.claim("other", pushed=False, waiting=True)
    assert not floor.claim("silent", pushed=False, waiting=True, loud=False)
    clock[0] += FLOOR_SECONDS + 0.1
    assert not floor.claim("silent", pushed=False, waiting=False, loud=False)
    assert floor.claim("silent", pushed=False, waiting=False)


def test_speech_ends_after_half_a_second_of_quiet():
    activity, loud, quiet = VoiceActivity(), np.full(640, 0.1, np.float32), np.zeros(640, np.float32)
    assert not activity.update(loud, speech=False, more=False) and not activity.speaking
    assert activity.update(loud, speech=True, more=False) and activity.speaking
    assert not any(activity.update(quiet, speech=True, more=False) for _ in range(QUIET_FRAMES - 1))
    assert activity.update(quiet, speech=False, more=False) and not activity.speaking


def test_quiet_before_more_speech_is_a_pause():
    activity, loud, quiet = VoiceActivity(), np.full(640, 0.1, np.float32), np.zeros(640, np.float32)
    activity.update(loud, speech=True, more=True)
    assert not any(activity.update(quiet, speech=True, more=True) for _ in range(5 * QUIET_FRAMES))
    assert activity.update(quiet, speech=True, more=False) and not activity.speaking


def test_an_interrupt_ends_speech_at_once():
    activity, loud = VoiceActivity(), np.full(640, 0.1, np.float32)
    assert not activity.stop()
    activity.update(loud, speech=True, more=True)
    assert activity.stop() and not activity.speaking and not activity.stop()
    assert activity.update(loud, speech=True, more=True)
