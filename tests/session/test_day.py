"""An hour of scripts/simulate_day.py, in which little goes on; the whole day takes minutes."""

import pytest

from tests.support.day import BrokenInvariant, WatchedSession, run_day


def test_an_hour_of_speech_faults_and_viewers_keeps_everything_in_step():
    report = run_day(hours=1, seed=3, busy=(0.02,))
    counts = report.counts
    assert counts["in step"] > 0.8 * counts["frames"] and report.skew_ms == 0
    assert counts["utterances"] and counts["interrupts"] and counts["viewers"]
    assert counts["death"] and counts["step"] and counts["suspended"]


def test_a_lost_sample_would_be_seen(monkeypatch):
    push = WatchedSession._note_push

    def losing(self, sound, utterance):
        return push(self, sound.part(1), utterance) + 1 if len(sound) > 1 else push(self, sound, utterance)

    monkeypatch.setattr(WatchedSession, "_note_push", losing)
    with pytest.raises(BrokenInvariant, match="sample"):
        run_day(hours=1, seed=1)
