"""``in_order``: records leave in the order of event time, however they came."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Context, Topology, ValueState
from headrace.record import ID_HEADER
from headrace.testing.driver import TopologyTestDriver

DISORDER_MS = 5

Event = tuple[str, int]
EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=25)


def sorted_only() -> Topology:
    topology = Topology("sorted")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=f"{DISORDER_MS}ms")
    stream.in_order().to("out")
    return topology


def sent(driver: TopologyTestDriver, events: list[Event], first: int = 0) -> None:
    driver.send_many("in", [{"k": key, "at": at, "n": first + n} for n, (key, at) in enumerate(events)])


def read(driver: TopologyTestDriver) -> list[Any]:
    return [(r.timestamp, r.value["n"], dict(r.headers)[ID_HEADER]) for r in driver.read("out")]


def model(events: list[Event]) -> list[tuple[int, int]]:
    """Sort by effective time and arrival."""
    highest, rows = -1, []
    for number, (_, at) in enumerate(events):
        watermark = max(highest - DISORDER_MS, -1)
        rows.append((max(at, watermark), number))
        highest = max(highest, at)
    return sorted(rows)


@given(EVENTS, st.sampled_from([1, 2, 3, 7, 4096]), st.sampled_from([0, 1 << 20]))
def test_records_leave_by_time_however_they_were_cut_and_cached(events: list[Event], cut: int, cache: int) -> None:
    driver = TopologyTestDriver(sorted_only(), batch_records=cut, cache_bytes=cache)
    sent(driver, events)
    driver.end_input()
    assert [row[:2] for row in read(driver)] == model(events)


@given(EVENTS, st.integers(0, 25), st.integers(0, 25))
def test_a_crash_repeats_records_under_their_ids(events: list[Event], kept: int, crashed: int) -> None:
    def run(crash: bool) -> list[Any]:
        driver = TopologyTestDriver(sorted_only(), batch_records=3)
        sent(driver, events[:kept])
        driver.checkpoint()
        sent(driver, events[kept : kept + crashed], kept)
        if crash:
            driver.crash()
        sent(driver, events[kept + crashed :], len(events[:kept]) + len(events[kept : kept + crashed]))
        driver.end_input()
        return read(driver)

    assert list(dict.fromkeys(run(crash=True))) == run(crash=False)


def silence(record: dict[str, Any], context: Context, since: ValueState[int]) -> Iterator[dict[str, Any]]:
    if since.value is None:
        since.value = context.timestamp
    context.set_timer("silent", after="4ms")
    yield {"k": context.key, "seen": context.timestamp}


def silent(name: str, context: Context, since: ValueState[int]) -> Iterator[dict[str, Any]]:
    yield {"k": context.key, "from": since.value, "until": context.timestamp}
    since.clear()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, DISORDER_MS)), max_size=25))
def test_timers_behind_a_repartition_stand_where_time_puts_them(steps: list[Event]) -> None:
    def run(cut: int) -> list[Any]:
        topology = Topology("silences")
        stream = topology.stream("in", time="at", out_of_orderness=f"{DISORDER_MS}ms").key_by("k").in_order()
        stream.process(silence, on_timer=silent, since=ValueState(int)).to("out")
        driver = TopologyTestDriver(topology, batch_records=cut)
        events = [(key, 3 * number + jump) for number, (key, jump) in enumerate(steps)]
        sent(driver, events)
        driver.end_input()
        return [(record.timestamp, record.value) for record in driver.read("out")]

    assert run(1) == run(4096)


@pytest.mark.parametrize("cut", [1, 4096])
def test_headers_and_keys_stay_with_their_records(cut: int) -> None:
    driver = TopologyTestDriver(sorted_only(), batch_records=cut)
    sent(driver, [("b", 3), ("a", 1)])
    driver.end_input()
    assert [(record.key, record.value["n"]) for record in driver.read("out")] == [("a", 1), ("b", 0)]
