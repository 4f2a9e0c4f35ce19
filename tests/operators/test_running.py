"""Running aggregates, and tables that follow from one source: exact for any cut, cache and crash."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Aggregate, Topology, TopologyError, agg
from headrace.operators.running import compile_running, copied
from headrace.testing.driver import TopologyTestDriver
from tests.operators import tables
from tests.runtime import streams
from tests.runtime.streams import AGGREGATES, Event, Output, result_of

few = settings(max_examples=40, deadline=None)


def keyed(topology: Topology) -> Any:
    return topology.stream("in", keyed_by="k", time="at")


def aggregated() -> Topology:
    topology = Topology("aggregated")
    keyed(topology).aggregate(**AGGREGATES).to("out")
    return topology


def reduced() -> Topology:
    topology = Topology("reduced")
    keyed(topology).reduce(larger).to("out")
    return topology


def larger(best: Event, event: Event) -> Event | None:
    """Change what is given, as users will; a small sum of ids deletes the row."""
    best["n"] = max(best["n"], event["n"])
    best["id"] += event["id"]
    return None if best["id"] % 4 == 3 else best


def latest() -> Topology:
    topology = Topology("latest")
    rows = keyed(topology).to_table()
    odd = rows.filter(lambda row: row["n"] % 2 == 1)
    odd.join(rows.filter(lambda row: row["n"] > 4).map_values(lambda row: row["id"]), pair, how="outer").to("out")
    return topology


def aggregates_of_changes() -> Topology:
    topology = Topology("changes")
    stream = keyed(topology)
    totals = stream.filter(lambda event: event["n"] > 2).aggregate(total=agg.sum("n"))
    few = totals.filter(lambda row: row["total"] % 3 > 0)
    few.join(stream.to_table(), pair, how="left").to("out")
    few.changes().filter(lambda row: row is None).map(lambda row: "gone").to_table().to("late")
    return topology


def pair(left: Any, right: Any) -> Any:
    return [left, right]


one_source = pytest.mark.parametrize("make", [aggregated, reduced, latest, aggregates_of_changes])
Make = Callable[[], Topology]


@one_source
@few
@given(made=streams.events, sizes=streams.cuts, batch_records=st.sampled_from([1, 2, 3, 7, 4096]))
def test_changes_and_positions_do_not_depend_on_how_the_input_is_cut(
    make: Make, made: list[Event], sizes: list[int], batch_records: int
) -> None:
    assert result_of(make(), made, sizes, batch_records=batch_records) == result_of(make(), made)


@one_source
@few
@given(made=streams.events, sizes=streams.cuts, cache_bytes=st.sampled_from([0, 500, 3000]))
def test_the_size_of_the_cache_changes_nothing(
    make: Make, made: list[Event], sizes: list[int], cache_bytes: int
) -> None:
    assert result_of(make(), made, sizes, cache_bytes=cache_bytes) == result_of(make(), made, sizes)


def by_id(found: list[Output]) -> dict[tuple[str, bytes], Output]:
    """Return outputs by topic and id; what comes twice with one id must be the same both times."""
    unique: dict[tuple[str, bytes], Output] = {}
    for output in found:
        assert unique.setdefault((output[0], output[-1]), output) == output
    return unique


@one_source
@few
@given(made=streams.events, sizes=streams.cuts, crashes=st.lists(st.integers(0, 8), max_size=4), kept=st.integers(0, 8))
def test_crashes_repeat_changes_with_their_ids_and_change_none(
    make: Make, made: list[Event], sizes: list[int], crashes: list[int], kept: int
) -> None:
    driver = TopologyTestDriver(make(), partitions=2, cache_bytes=1000)
    for place, part in enumerate(streams.pieces(made, sizes)):
        driver.send_many("in", part)
        if place == kept:
            driver.checkpoint()
        if place in crashes:
            driver.crash()
    driver.end_input()
    assert by_id(streams.outputs(driver)) == by_id(result_of(make(), made, partitions=2))


@few
@given(made=streams.events)
def test_a_running_aggregate_is_what_a_plain_model_says(made: list[Event]) -> None:
    found = [output[4] for output in result_of(aggregated(), made)]
    expected = []
    for end, event in enumerate(made, 1):
        members = [other for other in made[:end] if other["k"] == event["k"]]
        in_time = sorted(members, key=lambda other: other["at"])
        numbers = [other["n"] for other in members]
        product = numbers[0]
        for number in numbers[1:]:
            product = product * number % 97
        expected.append({
            "key": event["k"], "n": len(members), "total": sum(numbers), "low": min(numbers), "high": max(numbers),
            "mean": sum(numbers) / len(numbers), "first": in_time[0]["id"], "last": in_time[-1]["id"],
            "all": [other["n"] for other in in_time], "product": product,
        })  # fmt: skip
    assert found == expected


@few
@given(made=streams.events)
def test_a_reduced_table_is_what_a_plain_model_says(made: list[Event]) -> None:
    expected = []
    rows: dict[str, Event] = {}
    for event in deepcopy(made):
        row = larger(deepcopy(rows[event["k"]]), event) if event["k"] in rows else event
        rows.pop(event["k"], None)
        if row is not None:
            rows[event["k"]] = row
        expected.append(row)
    assert [output[4] for output in result_of(reduced(), made)] == expected


def test_a_record_that_fails_leaves_no_trace() -> None:
    topology = Topology("t", on_error="skip")
    rows = topology.stream("in", keyed_by="k").aggregate(
        n=agg.count(), all=agg.collect("v"), half=Aggregate(
            "half", "v", lambda x, t: x, lambda a, x, t: x, lambda a, b: b, lambda a: 1 / (a - 5)
        ),
    )  # fmt: skip
    rows.to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [{"k": "a", "v": v} for v in (4, 5, 6)] + [{"k": "a"}, {"k": "b", "v": 5}])
    driver.send("in", {"k": "b", "v": 7})
    assert [value for _, value in tables.read(driver)] == [
        {"key": "a", "n": 1, "all": [4], "half": -1.0},
        {"key": "a", "n": 2, "all": [4, 6], "half": 1.0},
        {"key": "b", "n": 1, "all": [7], "half": 0.5},
    ]
    assert driver.skipped == {"in-aggregate": 3}


def test_rows_that_left_are_not_changed_by_what_comes_after() -> None:
    def gathered(values: list[int], value: int) -> list[int]:
        values.append(value)
        return values

    topology = Topology("t")
    stream = topology.stream("in", keyed_by=lambda value: "k")
    stream.aggregate(all=agg.reduce(gathered, lambda value: [value])).to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [1, 2, 3])
    assert [len(value["all"]) for _, value in tables.read(driver)] == [1, 2, 3]


class Best(msgspec.Struct):
    k: str
    n: int


def better(a: Best, b: Best) -> Best:
    return b if b.n > a.n else a


def test_reduced_rows_keep_their_type() -> None:
    topology = Topology("t")
    table = topology.stream("in", value=Best, keyed_by="k").reduce(better)
    table.map_values(lambda best: f"{type(best).__name__} {best.n}").to("out")
    driver = TopologyTestDriver(topology, cache_bytes=0)
    for n in (2, 5, 3):
        driver.send("in", Best("a", n))
        driver.restart()
    assert [value for _, value in tables.read(driver)] == ["Best 2", "Best 5", "Best 5"]


def test_a_deletion_cannot_be_combined() -> None:
    topology = Topology("t", on_error="skip")
    topology.table("in").changes().reduce(lambda a, b: a).to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [{"n": 1}, None, {"n": 2}], keys=["a"] * 3)
    assert tables.read(driver) == [("a", {"n": 1})] * 2
    assert driver.skipped.total() == 1


def test_what_cannot_be_aggregated_is_refused() -> None:
    stream: Any = Topology("t").stream("in", keyed_by="k")
    with pytest.raises(TopologyError, match="at least one aggregate"):
        stream.aggregate()
    stream.aggregate(window_start=agg.last("window_start"), final=agg.last("final"))
    with pytest.raises(TopologyError, match="cannot be called 'key'"):
        stream.aggregate(key=agg.count())
    with pytest.raises(TopologyError, match="reduce needs a function, not str"):
        stream.reduce("sum")


def test_the_loops_are_for_objects_and_mappings() -> None:
    class Value:
        n = 3

    for loop, value in zip(compile_running({"n": agg.sum("n")}), (Value(), {"n": 3}), strict=True):
        made: list[Any] = []
        live: dict[bytes, Any] = {}
        loop(live, {b"a": [1]}, ["a"], [b"a"], [value], [0], made.append)
        assert made == [{"key": "a", "n": 4}]
        assert live == {b"a": [4]}


def test_only_what_can_change_is_copied() -> None:
    text, parts = "some text", [["part"]]
    assert copied(text) is text
    again = copied(parts)
    assert again == parts
    assert again[0] is not parts[0]
