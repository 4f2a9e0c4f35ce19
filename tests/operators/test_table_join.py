"""Joins of tables by their keys: every change of a pair, and what is left in the end."""

from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Topology, TopologyError
from headrace.testing.driver import TopologyTestDriver
from tests.operators import tables
from tests.operators.tables import Change, Fault

How = Literal["inner", "left", "outer"]
HOWS: tuple[How, ...] = ("inner", "left", "outer")
few = settings(max_examples=60, deadline=None)
both = pytest.mark.parametrize("how", HOWS)

rows = st.integers(0, 9).map(lambda n: {"n": n})
changes = st.lists(tables.changes_of("left", rows) | tables.changes_of("right", rows), max_size=20)


def pair(left: Any, right: Any) -> dict[str, Any]:
    return {"left": left, "right": right}


def joined(how: Any) -> Topology:
    topology = Topology("joined")
    topology.table("left").join(topology.table("right"), pair, how=how).to("out")
    return topology


def exists(how: How, left: Any, right: Any) -> bool:
    needed = {"inner": [left, right], "left": [left], "outer": [left or right]}[how]
    return None not in needed


def expected(how: How, made: list[Change]) -> list[tuple[str, Any]]:
    """Return every change of a pair, by joining again after every change of a table."""
    found: list[tuple[str, Any]] = []
    for end in range(1, len(made) + 1):
        key = made[end - 1][1]
        before, after = (
            [tables.final(part).get(side, {}).get(key) for side in ("left", "right")]
            for part in (made[: end - 1], made[:end])
        )
        if exists(how, *after):
            found.append((key, pair(*after)))
        elif exists(how, *before):
            found.append((key, None))
    return found


@both
@few
@given(made=changes)
def test_every_change_of_a_pair_is_made_as_by_joining_anew(how: How, made: list[Change]) -> None:
    assert tables.run(TopologyTestDriver(joined(how)), made) == expected(how, made)


@both
@few
@given(made=changes, together=st.integers(1, 9), faults=tables.faults, cache_bytes=st.sampled_from([0, 10_000]))
@pytest.mark.parametrize("partitions", [1, 3])
def test_crashes_anywhere_leave_the_same_rows(
    how: How, made: list[Change], together: int, faults: list[Fault], cache_bytes: int, partitions: int
) -> None:
    driver = TopologyTestDriver(joined(how), partitions=partitions, cache_bytes=cache_bytes, batch_records=2)
    found = tables.run(driver, made, together, faults)
    assert tables.rows_of(found) == tables.rows_of(expected(how, made))


def test_a_table_can_be_joined_with_itself() -> None:
    topology = Topology("itself")
    table = topology.table("in")
    table.join(table, lambda a, b: [a["n"], b["n"]]).to("out")
    driver = TopologyTestDriver(topology)
    driver.send("in", {"n": 1}, key="a")
    assert tables.read(driver) == [("a", [1, 1])]
    driver.send("in", None, key="a")
    assert tables.read(driver) == [("a", None)]


def test_results_carry_time_and_headers_of_the_change() -> None:
    driver = TopologyTestDriver(joined("left"))
    driver.send("right", {"n": 1}, key="a", timestamp=5)
    driver.send("left", {"n": 2}, key="a", timestamp=3)
    driver.send("right", {"n": 3}, key="a", timestamp=9)
    assert [record.timestamp for record in driver.read("out")] == [3, 9]


def test_values_that_the_store_would_give_back_as_others_are_refused() -> None:
    topology = Topology("t")
    strange = topology.table("left").map_values(lambda row: {1, 2})
    strange.join(topology.table("right"), lambda a, b: 1).to("out")
    with pytest.raises(TopologyError, match="'left-join-right' keeps set objects in its state"):
        TopologyTestDriver(topology).send("left", {}, key="a")


def test_what_cannot_be_joined_is_refused_at_the_line_that_does() -> None:
    topology = Topology("t")
    table: Any = topology.table("a")
    here = r"\(.*test_table_join.py:\d+\)"
    with pytest.raises(TopologyError, match=f"not with a Stream {here}.*to_table"):
        table.join(topology.stream("b"), pair)
    with pytest.raises(TopologyError, match=f"with a global table {here}.*on="):
        table.join(topology.global_table("c"), pair)
    with pytest.raises(TopologyError, match=f"same topology {here}"):
        table.join(Topology("u").table("a"), pair)
    with pytest.raises(TopologyError, match=f'"inner", "left" or "outer", not \'right\' {here}'):
        table.join(topology.table("d"), pair, how="right")
    with pytest.raises(TopologyError, match=f"join needs a function, not str {here}"):
        table.join(topology.table("e"), "pair")
