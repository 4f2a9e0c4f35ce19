"""Every topology of ``topologies/`` comes through simulated failures, with input of which something is made."""

from __future__ import annotations

import pytest

from headrace.cli.simulate import Wanted, make_simulator
from tests.topologies.test_all_run import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_it_comes_through_simulated_failures(name: str) -> None:
    simulator = make_simulator(Wanted(f"topologies.{name}", (), 100, 2, 2, None, "at-least-once"))
    results = [simulator.run(seed) for seed in range(3)]
    assert all(result.ok for result in results), [result.violations for result in results]
    assert all(result.statistics.outputs for result in results)
