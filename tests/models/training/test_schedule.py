import pytest

from avatard.models.training.schedule import Clock, warmup_cosine


def test_the_rate_warms_up_and_decays_to_its_floor():
    rates = [warmup_cosine(n / 1000, 0.1, 0.1) for n in range(1001)]
    assert rates[:100] == sorted(rates[:100]) and rates[0] == 0
    assert rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[100] == 1
    assert rates[-1] == warmup_cosine(5.0, 0.1, 0.1) == pytest.approx(0.1)
    assert warmup_cosine(0.0, 0.0, 0.1) == 1


def test_a_clock_counts_the_minutes_of_all_calls():
    now = iter([100.0, 130.0, 160.0])
    clock = Clock(lambda: next(now))
    assert clock.minutes == 0.5
    clock.before = 2.0
    assert clock.minutes == 3.0 and clock.runs
    assert not Clock().runs and Clock().minutes == 0
