"""Tasks whose input has run dry: time moves on with the clock, in a way that a crash repeats."""

from __future__ import annotations

from typing import Any

import pytest

from headrace import Topology, agg, tumbling
from headrace.dsl.keyed import KeyedStream
from headrace.testing.driver import TopologyTestDriver

Stream = KeyedStream[dict[str, Any]]


def source(topology: Topology, topic: str) -> Stream:
    return topology.stream(topic, keyed_by="k", time="at", idle_after="1s")


def count(stream: KeyedStream[Any]) -> None:
    stream.window(tumbling("10s")).aggregate(n=agg.count()).to("out")


def wait(driver: TopologyTestDriver, seconds: int) -> None:
    for _ in range(10 * seconds):
        driver.advance_time("100ms")


def counts(driver: TopologyTestDriver) -> list[int]:
    return [record.value["n"] for record in driver.read("out")]


def test_a_window_over_two_sources_closes_when_both_are_idle() -> None:
    topology = Topology("t")
    count(source(topology, "a").merge(source(topology, "b")))
    driver = TopologyTestDriver(topology)
    driver.send("a", {"k": "x", "at": 5_000})
    driver.send("b", {"k": "x", "at": 6_000})
    wait(driver, 4)
    assert counts(driver) == []
    wait(driver, 2)
    assert counts(driver) == [2]


def test_joins_let_their_last_records_go_when_all_sources_are_idle() -> None:
    topology = Topology("t")
    left, right = source(topology, "a"), source(topology, "b")
    left.as_of(right, lambda a, b: b["at"]).to("as-of")
    left.join(topology.table("c"), lambda a, row: row, how="left").to("rows")
    left.join(right, lambda a, b: b, within="3s", how="left").to("pairs")
    driver = TopologyTestDriver(topology)
    driver.send("b", {"k": "x", "at": 5_000})
    driver.send("a", {"k": "x", "at": 9_000})
    wait(driver, 2)
    assert [[record.value for record in driver.read(topic)] for topic in ("as-of", "rows", "pairs")] == [
        [5_000], [None], []
    ]  # fmt: skip
    wait(driver, 3)
    assert [record.value for record in driver.read("pairs")] == [None]


@pytest.mark.parametrize("before", ["deduplicate", "window"])
def test_time_that_passes_reaches_through_steps_with_state(before: str) -> None:
    topology = Topology("t")
    stream: KeyedStream[Any] = source(topology, "in")
    if before == "deduplicate":
        stream = stream.deduplicate("at", within="1d")
    else:
        stream = stream.window(tumbling("1s")).aggregate(n=agg.count())
    count(stream.map(lambda value: "y").key_by(lambda value: value))
    driver = TopologyTestDriver(topology)
    driver.send("in", {"k": "x", "at": 5_000})
    wait(driver, 30)
    assert counts(driver) == [1]


@pytest.mark.parametrize("with_table", [False, True])
def test_what_the_clock_closes_is_repeated_as_it_was(with_table: bool) -> None:
    topology = Topology("t")
    stream = source(topology, "in")
    if with_table:
        stream.join(topology.global_table("names"), lambda value, row: value, on="k", how="left").to("named")
    count(stream)
    driver = TopologyTestDriver(topology, partitions={"in": 1, "names": 2})
    driver.checkpoint()
    driver.send("in", {"k": "x", "at": 5_000})
    wait(driver, 10)
    (first,) = driver.read("out")
    driver.crash()
    driver.send("in", {"k": "x", "at": 6_000})
    driver.end_input()
    assert driver.late.total() == 1
    again = driver.read("out")
    assert {(record.headers, record.value["n"]) for record in again} == {(first.headers, 1)}


@pytest.mark.parametrize("with_table", [False, True])
def test_what_is_late_because_time_went_on_is_so_after_a_crash(with_table: bool) -> None:
    """The clock closes nothing here, but what it makes late must not change positions in an internal topic."""
    topology = Topology("t")
    stream = source(topology, "in")
    if with_table:
        stream.join(topology.global_table("names"), lambda value, row: value, on="k", how="left").to("named")
    kept = stream.window(tumbling("1s"))
    count(kept.aggregate(n=agg.count()).key_by("key"))
    driver = TopologyTestDriver(topology, partitions={"in": 1, "names": 2})
    driver.checkpoint()
    driver.send("in", {"k": "x", "at": 5_000})
    wait(driver, 40)
    for at in (1_000, 2_000, 60_000, 61_000, 62_000):
        driver.send("in", {"k": "x", "at": at})
    driver.crash("in-0")
    driver.end_input()
    by_id = {record.headers: record.value for record in driver.read("out")}
    assert sorted((row["window_start"], row["n"]) for row in by_id.values()) == [(0, 1), (60_000, 3)]
