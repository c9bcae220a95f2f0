"""How many replicas there should be."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avatard.cluster.autoscaling import MARGIN, SPARE, policy, replicas_wanted


@pytest.mark.parametrize(
    ("running", "used", "wanted"),
    [
        (4, 3.0, 4),  # a quarter is free
        (4, 3.1, 5),
        (4, 8.0, 11),  # overloaded
        (4, 2.41, 4),  # with three, less than 40 % would be free
        (4, 1.7, 3),
        (4, 0.0, 1),
        (0, 0.0, 0),
    ],
)
def test_a_quarter_of_the_capacity_is_kept_free(running, used, wanted):
    assert replicas_wanted(running, running * 1600, (running - used) * 1600) == wanted


@given(st.integers(1, 500), st.floats(0, 1000))
def test_what_is_wanted_is_enough_and_stays_as_it_is(running, used):
    wanted = replicas_wanted(running, running, running - used)
    assert wanted >= 1 and used <= wanted * (1 - SPARE) + 1e-6 * wanted
    assert replicas_wanted(wanted, wanted, wanted - used) == wanted, "no second change follows from the first"
    if wanted < running:
        assert used <= wanted * (1 - SPARE - MARGIN) + 1e-6 * wanted


def test_the_policy_counts_those_that_tell():
    known = {"a": 1600.0, "b": 1600.0}
    context = SimpleNamespace(
        running_replicas=["a", "b", "starting"],
        target_num_replicas=3,
        aggregated_metrics={"capacity": known | {"gone": 1600.0}, "headroom": {"a": 0.0, "b": 0.0, "gone": 1600.0}},
    )
    assert policy(context) == (3, {})
    context.aggregated_metrics = None
    assert policy(context) == (3, {})
