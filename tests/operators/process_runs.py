"""What tests of ``process`` run."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace import Topology
from headrace.testing.driver import TopologyTestDriver


class Reading(msgspec.Struct):
    k: str
    n: int
    at: int


def driver_of(process: Any, *, on_error: Any = None, disorder: str = "0s", **arguments: Any) -> TopologyTestDriver:
    topology = Topology("t")
    stream = topology.stream("in", value=Reading, keyed_by="k", time="at", out_of_orderness=disorder)
    results = stream.process(process, on_error=on_error, **arguments)
    results.to("out")
    for name in arguments.get("outputs", ()):
        results.output(name).to(name)
    return TopologyTestDriver(topology)


def sent(driver: TopologyTestDriver, *rows: tuple[str, int, int]) -> list[Any]:
    driver.send_many("in", [Reading(*row) for row in rows])
    return values(driver)


def values(driver: TopologyTestDriver, topic: str = "out") -> list[Any]:
    return [(record.timestamp, record.key, record.value) for record in driver.read(topic)]
