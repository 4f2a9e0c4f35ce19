"""With the outbox, what no replay repeats is counted once all the same; without it, the simulation sees repeats."""

from __future__ import annotations

import pytest

from headrace.testing import Faults, Simulation
from tests.simulation.topologies import simulator_of
from tests.simulation.unsure import UNSURE

SEEDS = 3
MOST_SEEDS = 20


@pytest.mark.parametrize("name", UNSURE)
def test_exactly_once(name: str) -> None:
    simulator = simulator_of(UNSURE[name], Simulation(settings={"guarantee": "exactly-once"}))
    for seed in range(SEEDS):
        result = simulator.run(seed)
        assert result.ok, f"seed {seed}: {result.violations[0]}"


@pytest.mark.parametrize("name", UNSURE)
def test_at_least_once_is_seen_to_be_no_more_than_that(name: str) -> None:
    simulation = Simulation(faults=Faults(crashes=3), tardy=0, more_schedules=0)
    simulator = simulator_of(UNSURE[name], simulation)
    found = (violation.check for seed in range(MOST_SEEDS) for violation in simulator.run(seed).violations)
    assert "your own check" in found
