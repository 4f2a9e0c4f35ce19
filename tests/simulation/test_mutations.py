"""The simulation finds what is deliberately broken."""

from __future__ import annotations

import pytest

from headrace.testing import Simulation, Simulator
from tests.simulation.breakages import BREAKAGES
from tests.simulation.topologies import BY_NAME

MOST_SEEDS = 20
"""All of one input, whose reference is made before anything is broken."""


@pytest.mark.parametrize("name", BREAKAGES)
def test_a_breakage_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage = BREAKAGES[name]
    case = BY_NAME[breakage.topology]
    simulation = Simulation(
        faults=breakage.faults, tardy=breakage.tardy, more_schedules=0, settings=dict(breakage.settings)
    )
    simulator = Simulator(case.make, case.inputs, simulation=simulation)
    simulator.prepare(0)
    breakage.apply(monkeypatch)
    found: list[str] = []
    for seed in range(MOST_SEEDS):
        found = [violation.check for violation in simulator.run(seed).violations]
        if found:
            break
    assert found, f"{MOST_SEEDS} seeds did not find it"
    assert not breakage.checks or breakage.checks.intersection(found), found
