"""Deduplication beyond the property tests: kinds of ids, keys with any bytes, and wild times."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Topology, TopologyError
from headrace.operators.deduplicate import seen_rows
from headrace.testing.driver import TopologyTestDriver

ids = st.one_of(
    st.text(max_size=4), st.integers(-5, 5), st.binary(max_size=4), st.booleans(), st.floats(-2, 2),
    st.tuples(st.integers(0, 3), st.text(max_size=2)),
)  # fmt: skip
keys = st.binary(max_size=4).map(lambda key: key.replace(b"a", b"\0"))


@given(st.lists(st.tuples(keys, ids), min_size=1, max_size=8))
def test_rows_are_equal_exactly_if_key_and_id_are(pairs: list[tuple[bytes, Any]]) -> None:
    rows = seen_rows([key for key, _ in pairs], [id_ for _, id_ in pairs])
    for i, (key, id_) in enumerate(pairs):
        assert seen_rows([key], [id_]) == [rows[i]]
        for j, (other_key, other) in enumerate(pairs):
            same = key == other_key and repr(id_) == repr(other)
            assert (rows[i] == rows[j]) == same


@pytest.mark.parametrize("id_", [None, ["list"], {"a": 1}, object()])
def test_what_cannot_be_an_id_is_refused(id_: Any) -> None:
    with pytest.raises(TypeError, match="id to deduplicate by"):
        seen_rows([b"k"], [id_])


def deduplicating(**options: Any) -> Topology:
    topology = Topology("t", **options)
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="1d")
    stream.deduplicate("id", within="1s").to("out")
    return topology


def test_one_wild_time_costs_nothing() -> None:
    driver = TopologyTestDriver(deduplicating())
    times = [7_000_000_000_000, 0, 1_700_000_000_000, 0, 7_000_000_000_000]
    driver.send_many("in", [{"k": "a", "id": 1, "at": at} for at in times])
    assert [record.timestamp for record in driver.read("out")] == [7_000_000_000_000, 0, 1_700_000_000_000, 0]


@pytest.mark.parametrize("bad", [{}, {"id": None}, {"id": [1]}])
def test_a_record_without_a_usable_id_is_left_out_alone(bad: dict[str, Any]) -> None:
    driver = TopologyTestDriver(deduplicating(on_error="skip"))
    driver.send_many("in", [{"k": "a", "at": 1, "id": 1}, {"k": "a", "at": 1, **bad}, {"k": "a", "at": 1, "id": 2}])
    assert [record.value["id"] for record in driver.read("out")] == [1, 2]
    assert driver.skipped == {"in-deduplicate-id": 1}


def test_an_unkeyed_stream_is_keyed_by_the_id_first() -> None:
    topology = Topology("t")
    topology.stream("in", time="at").deduplicate("id", within="1m").to("out")
    driver = TopologyTestDriver(topology, partitions=3)
    driver.send_many("in", [{"id": f"i{i % 5}", "at": 100 + i} for i in range(50)])
    found = driver.read("out")
    assert sorted(record.key for record in found) == [f"i{i}" for i in range(5)]
    assert all(record.value["id"] == record.key for record in found)


def test_within_nothing_is_refused() -> None:
    with pytest.raises(TopologyError, match="would drop nothing"):
        Topology("t").stream("in", keyed_by="k").deduplicate("id", within="0s")
