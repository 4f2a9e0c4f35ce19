"""What tests of topologies use: a driver, differences, crashes, a simulation of whole runs, strategies for Hypothesis.

::

    from headrace.testing import TopologyTestDriver, assert_records, assert_survives_crashes, assert_simulates
    from headrace.testing import strategies  # needs the extra "testing"

The suites in ``headrace.testing.conformance`` hold for every implementation of a log, a store or a checkpoint store.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.testing.crashes import CrashDifference, assert_survives_crashes, check_crashes
    from headrace.testing.differences import assert_records
    from headrace.testing.driver import TopologyTestDriver
    from headrace.testing.events import Event
    from headrace.testing.simulation.api import Simulator, assert_simulates, simulate
    from headrace.testing.simulation.faults import Faults
    from headrace.testing.simulation.result import SimulationResult
    from headrace.testing.simulation.runs import Simulation

__all__ = [
    "CrashDifference",
    "Event",
    "Faults",
    "Simulation",
    "SimulationResult",
    "Simulator",
    "TopologyTestDriver",
    "assert_records",
    "assert_simulates",
    "assert_survives_crashes",
    "check_crashes",
    "simulate",
]

_MODULES = {
    "CrashDifference": "crashes",
    "Event": "events",
    "Faults": "simulation.faults",
    "Simulation": "simulation.runs",
    "SimulationResult": "simulation.result",
    "Simulator": "simulation.api",
    "TopologyTestDriver": "driver",
    "assert_records": "differences",
    "assert_simulates": "simulation.api",
    "assert_survives_crashes": "crashes",
    "check_crashes": "crashes",
    "simulate": "simulation.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is first used: the suites for logs and stores need no runtime."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"headrace.testing.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'headrace.testing' has no attribute {name!r}")
