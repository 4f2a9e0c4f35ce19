"""Streams that merely meet in one task must not change each other's ids: one moves the event time of the other."""

import pytest

from headrace import Topology, agg, tumbling
from headrace.testing.driver import TopologyTestDriver


def sums_beside_another_stream() -> Topology:
    topology = Topology("sums")
    first = topology.stream("a", keyed_by="k", time="at")
    second = topology.stream("b", keyed_by="k", time="at")
    sums = first.window(tumbling("10ms")).aggregate(n=agg.count(), name="sums")
    everything = sums.key_by(lambda v: "all", name="all").window(tumbling("100ms"))
    everything.aggregate(total=agg.sum("n"), name="total").to("totals")
    first.merge(second).to("both")
    return topology


@pytest.mark.parametrize("crash", [False, True])
def test_a_window_closed_by_another_stream_after_a_crash_counts_once(crash: bool) -> None:
    driver = TopologyTestDriver(sums_beside_another_stream())
    driver.send("a", {"k": "x", "at": 1})
    driver.checkpoint()
    driver.send("a", {"k": "x", "at": 50})
    driver.send("b", {"k": "x", "at": 20})  # moves the time that both share, and closes the first window of "a"
    if crash:
        driver.crash()
    driver.end_input()
    assert [record.value["total"] for record in driver.read("totals")] == [2]
