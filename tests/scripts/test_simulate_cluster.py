"""scripts/simulate_cluster.py: the same seed gives the same day, and what makes a cluster worse makes its day worse."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.scripts import run_script, script_names

script = script_names("simulate_cluster")
Cluster, Scenario, summary = script["Cluster"], script["Scenario"], script["summary"]
MACHINE = script["cpu_machine"](cores=8, core_ms=48, quiet_share=0.25, price=1.0)
SMALL = Scenario(rooms=120, hours=14, minutes=5)


def day(**changes: Any) -> dict[str, float]:
    scenario = replace(SMALL, **changes)
    found: dict[str, float] = summary(MACHINE, scenario, Cluster(MACHINE, scenario).run())
    return found


def test_sizes_of_machines_follow_from_what_was_measured():
    assert MACHINE.capacity / MACHINE.speaking == pytest.approx(8000 / (48 * 25))
    gpu = script["gpu_machine"](hop_ms=49, batch=128, hop_frames=8, quiet_share=0.25, price=4)
    assert int(gpu.capacity / gpu.speaking) == 835  # speaking rooms on paper
    bound = script["gpu_machine_with_cores"](gpu, cores=16, core_ms=14.6)
    assert int(bound.capacity / bound.speaking) == 43 and bound.price == 4
    assert script["gpu_machine_with_cores"](gpu, cores=4000, core_ms=14.6).capacity == gpu.capacity


def test_the_number_of_rooms_at_once_is_the_wanted_one():
    found = day()
    assert 0.8 * 120 < found["most_rooms"] < 1.2 * 120
    assert found["refused"] == 0 and found["lost"] == 0
    assert found["rooms_per_node"] == pytest.approx(0.8 * 8000 / (48 * 25 * 0.55), abs=0.1)


def test_the_same_seed_gives_the_same_day():
    assert day(hours=3) == day(hours=3) != day(hours=3, seed=1)


def test_failures_lose_rooms_which_come_back():
    found = day(failure_days=0.2)
    assert found["failures"] > 3 and found["lost"] > 10
    assert found["most_rooms"] > 0.8 * 120


def test_slow_machines_without_spare_refuse_rooms():
    slow = day(start_seconds=1800, spare=0.0, burst=4.0)
    fast = day(start_seconds=10, spare=0.4, burst=4.0)
    assert slow["refused"] > 10 * max(1, fast["refused"])
    assert fast["cost_per_hour"] > slow["cost_per_hour"]


def test_a_machine_that_may_not_drain_long_cuts_rooms():
    assert day(hours=24, drain_seconds=30)["cut"] > day(hours=24, drain_seconds=7200)["cut"]


def test_how_many_speak_is_a_distribution():
    for chance in (0.0, 0.4, 1.0):
        for number, found in enumerate(script["_binomials"](60, chance)):
            assert found.sum() == pytest.approx(1)
            assert (found * np.arange(number + 1)).sum() == pytest.approx(number * chance, abs=1e-9)


def test_a_report_is_written_and_mistakes_are_one_line(tmp_path, capsys):
    path = tmp_path / "out.json"
    assert run_script("simulate_cluster", "--rooms", 20, "--hours", 2, "--table", "--json", path) == 0
    report = json.loads(path.read_text())
    assert [machine["name"] for machine in report["machines"]] == [
        "cpu, 16 cores",
        "gpu, networks only",
        "gpu, 16 cores",
    ]
    assert len(report["machines"][0]["hours"]) == 2
    assert "1.28 an hour (an assumption)" in capsys.readouterr().out
    assert run_script("simulate_cluster", "--speaking", 3) == 2
    assert run_script("simulate_cluster", "--rooms", 0) == 2
