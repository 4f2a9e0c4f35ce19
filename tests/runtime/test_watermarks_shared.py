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


def test_the_last_window_behind_a_step_with_state_and_a_repartition_closes_by_itself() -> None:
    topology = Topology("idle")
    once = topology.stream("a", keyed_by="k", time="at").deduplicate(by="id", within="1h")
    once.key_by("group").window(tumbling("10s")).aggregate(n=agg.count()).to("counts")
    driver = TopologyTestDriver(topology, partitions=2)
    driver.send("a", {"k": "x", "group": "y", "id": 1, "at": 1_000})
    driver.advance_time("38s")
    assert driver.read("counts") == []
    driver.advance_time("2s")  # idle after 30 s, and 9 s more are missing
    assert [record.value["n"] for record in driver.read("counts")] == [1]


def test_a_stream_beside_another_closes_its_windows_by_its_own_time() -> None:
    topology = Topology("beside")
    fast = topology.stream("fast", keyed_by="k", time="at")
    slow = topology.stream("slow", keyed_by="k", time="at")
    fast.window(tumbling("10ms")).aggregate(n=agg.count()).to("counts")
    fast.merge(slow).to("both")
    driver = TopologyTestDriver(topology)
    driver.send("slow", {"k": "x", "at": 0})
    driver.send("fast", {"k": "x", "at": 5})
    driver.send("fast", {"k": "x", "at": 10})
    assert [record.value["n"] for record in driver.read("counts")] == [1]


def test_streams_that_meet_wait_for_each_other_unless_one_is_idle() -> None:
    topology = Topology("meeting")
    left = topology.stream("left", keyed_by="k", time="at")
    right = topology.stream("right", keyed_by="k", time="at", idle_after="1s")
    left.merge(right).window(tumbling("10ms")).aggregate(n=agg.count()).to("counts")
    driver = TopologyTestDriver(topology)
    driver.send("right", {"k": "x", "at": 1})
    driver.send("left", {"k": "x", "at": 5})
    driver.send("left", {"k": "x", "at": 50})
    assert driver.read("counts") == []
    driver.advance_time("2s")
    assert [record.value["n"] for record in driver.read("counts")] == [2]
