"""What rooms cost, and which fits: as measured, estimated for what was not, and a fifth stays free."""

from typing import Any

import numpy as np
import pytest

from avatard.config import PROFILES, Config, Picture, Stream
from avatard.session.capacity import FIRST_SHARES, Capacity, Kind
from tests.support.serving import config


def kind(size: int = 256, **stream: Any) -> Kind:
    return Kind.of(config(stream=Stream(**stream), picture=Picture(size=size)))


HOP_SECONDS = 0.16  # of 8 frames, 4 of which are rendered


@pytest.fixture
def capacity():
    found = Capacity(cores=2, quiet_share=0.25)
    found.warmed_up(kind(), HOP_SECONDS)
    return found


def test_a_fifth_of_the_machine_stays_free():
    assert Capacity(2, 0.25).total == 1600


def test_a_kind_that_nobody_knows_costs_nothing_yet():
    assert Capacity(2, 0.25).cost(kind()) == 0


def test_the_warm_up_tells_the_first_cost_and_frames_a_better_one(capacity):
    shown = FIRST_SHARES @ [1, 1, 0.5]
    assert capacity.cost(kind()) == pytest.approx(1000 * 25 / 8 * HOP_SECONDS / shown)
    capacity.measured(kind(), (0.1, 0.2, 0.3))
    assert capacity.cost(kind()) == pytest.approx(600)
    capacity.warmed_up(kind(), 9.0)
    assert capacity.cost(kind()) == pytest.approx(600), "frames know better"


def test_less_is_believed_sooner_than_more(capacity):
    """Where rooms wait for a core, their frames seem to take longer than they do."""
    capacity.measured(kind(), (0.1, 0.2, 0.3))
    capacity.measured(kind(), (0.2, 0.4, 0.6))
    assert capacity.cost(kind()) == pytest.approx(630)
    capacity.measured(kind(), (0.1, 0.1, 0.2))
    assert capacity.cost(kind()) == pytest.approx(515)
    for _ in range(100):
        capacity.measured(kind(), (0.2, 0.4, 0.6))
    assert capacity.cost(kind()) > 1150, "but it is believed"


def test_other_kinds_are_estimated(capacity):
    capacity.measured(kind(), (0.1, 0.2, 0.3))
    assert capacity.cost(kind(512)) == pytest.approx(100 + 200 + 600)
    assert capacity.cost(kind(video_steps=2)) == pytest.approx(100 + 400 + 300)
    assert capacity.cost(kind(motion_steps=4)) == pytest.approx(400 + 200 + 300)
    assert capacity.cost(kind(hop_frames=4)) == pytest.approx(100 + 400 + 300), "twice as many clips"
    capacity.measured(kind(512), (0.1, 0.2, 0.4))
    assert capacity.cost(kind(512)) == pytest.approx(700), "it is known now"
    assert capacity.cost(kind(1024)) == pytest.approx(100 + 200 + 800), "like the one that is most like it"


def test_quiet_rooms_count_for_a_part(capacity):
    capacity.measured(kind(), (0.1, 0.2, 0.4))
    assert capacity.demand([(kind(), True), (kind(), False), (kind(), False)]) == pytest.approx(700 + 350)


def test_what_would_fit_is_the_best_that_does():
    capacity = Capacity(2, 0.25)
    capacity.measured(kind(512), (0.1, 0.2, 0.6))
    assert capacity.alternative(kind(512), 601) == ("balanced", 256)
    assert capacity.alternative(kind(512), 10) is None
    for headroom in np.arange(100.0, 3000.0, 100):
        found = capacity.alternative(kind(512), headroom)
        if found is not None:
            assert capacity.cost(kind(512).changed(*found)) <= headroom and found.size <= 512


@pytest.mark.parametrize("profile", PROFILES)
def test_a_changed_kind_is_that_of_the_changed_configuration(profile):
    stream = Stream(profile=profile, **PROFILES[profile])
    wanted = Kind.of(Config(stream=stream, picture=Picture(size=384)))
    assert Kind.of(Config()).changed(profile, 384) == wanted
