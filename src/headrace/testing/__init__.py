"""What tests of topologies use: a driver, readable differences, crashes at every point, strategies for Hypothesis.

::

    from headrace.testing import TopologyTestDriver, assert_records, assert_survives_crashes
    from headrace.testing import strategies  # needs the extra "testing"

The suites in ``headrace.testing.conformance`` hold for every implementation of a log, a store or a checkpoint store.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace.testing.crashes import CrashDifference, assert_survives_crashes, check_crashes
    from headrace.testing.differences import assert_records
    from headrace.testing.driver import TopologyTestDriver
    from headrace.testing.events import Event

__all__ = [
    "CrashDifference",
    "Event",
    "TopologyTestDriver",
    "assert_records",
    "assert_survives_crashes",
    "check_crashes",
]

_MODULES = {
    "CrashDifference": "crashes",
    "Event": "events",
    "TopologyTestDriver": "driver",
    "assert_records": "differences",
    "assert_survives_crashes": "crashes",
    "check_crashes": "crashes",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is first used: the suites for logs and stores need no runtime."""
    if name in _MODULES:
        from importlib import import_module

        return getattr(import_module(f"headrace.testing.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'headrace.testing' has no attribute {name!r}")
