"""The simulation finds what is deliberately broken."""

from __future__ import annotations

import pytest

from headrace.testing import Simulation
from tests.simulation.breakages import BREAKAGES
from tests.simulation.outbox_breakages import OUTBOX_BREAKAGES
from tests.simulation.topologies import BY_NAME, simulator_of
from tests.simulation.unsure import UNSURE

MOST_SEEDS = 20
"""All of one input, whose reference is made before anything is broken."""
ALL = BREAKAGES | OUTBOX_BREAKAGES
TOPOLOGIES = BY_NAME | UNSURE


@pytest.mark.parametrize("name", ALL)
def test_a_breakage_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breakage = ALL[name]
    simulation = Simulation(
        faults=breakage.faults, tardy=breakage.tardy, more_schedules=0, settings=dict(breakage.settings)
    )
    simulator = simulator_of(TOPOLOGIES[breakage.topology], simulation)
    simulator.prepare(0)
    breakage.apply(monkeypatch)
    found: list[str] = []
    for seed in range(MOST_SEEDS):
        found = [violation.check for violation in simulator.run(seed).violations]
        if found:
            break
    assert found, f"{MOST_SEEDS} seeds did not find it"
    assert not breakage.checks or breakage.checks.intersection(found), found
