"""Windows beyond what the property tests cover: failures, large windows, odd sizes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import Topology, TopologyError, agg, hopping, session, tumbling
from headrace.operators.windows import AlignedWindows
from headrace.testing.driver import TopologyTestDriver


@given(st.integers(0, 10_000), st.integers(1, 200), st.integers(1, 200))
def test_a_record_is_in_the_windows_that_cover_it(at: int, size: int, every: int) -> None:
    every = min(size, every)
    windows = AlignedWindows(size, every)
    ends = list(range(windows.first_end(at), windows.last_end(at) + 1, every))
    assert ends == [s + size for s in range(-(size // every + 1) * every, at + 1, every) if s <= at < s + size]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tumbling("0s"), "at least 1ms"),
        (lambda: hopping("1s", "0s"), "at least 1ms"),
        (lambda: hopping("1s", "2s"), "no window"),
        (lambda: session("0s"), "at least 1ms"),
    ],
)
def test_impossible_windows_are_refused(make: Any, message: str) -> None:
    with pytest.raises(TopologyError, match=message):
        make()


def test_labels_say_what_a_window_is() -> None:
    labels = [tumbling("1m").label, hopping("1m", "10s").label, session("5s").label]
    assert labels == ["tumbling-60000ms", "hopping-60000ms-10000ms", "session-5000ms"]


def windowed(windows: Any, **aggregates: Any) -> Topology:
    topology = Topology("t", on_error="skip")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="1h")
    stream.window(windows).aggregate(**aggregates).to("out")
    return topology


WINDOWS = [tumbling("10s"), hopping("10s", "3s"), session("5s")]


@pytest.mark.parametrize("windows", WINDOWS, ids=lambda w: w.label)
@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_record_that_fails_counts_once_and_leaves_no_trace(windows: Any, one_by_one: bool) -> None:
    good = [{"k": "a", "at": at, "n": 1} for at in (1000, 2000, 9000)]
    bad = [{"k": "a", "at": 1500, "n": "text"}, {"k": "b", "at": 3000}]
    expected = TopologyTestDriver(windowed(windows, total=agg.sum("n"), all=agg.collect("n")))
    expected.send_many("in", good)
    expected.end_input()
    driver = TopologyTestDriver(windowed(windows, total=agg.sum("n"), all=agg.collect("n")))
    mixed = [bad[0], good[0], good[1], bad[1], good[2]]
    for part in [[v] for v in mixed] if one_by_one else [mixed]:
        driver.send_many("in", part)
    driver.end_input()
    assert [r.value for r in driver.read("out")] == [r.value for r in expected.read("out")]
    assert sum(driver.skipped.values()) == 2


@pytest.mark.parametrize("windows", WINDOWS, ids=lambda w: w.label)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_dicts_and_objects_may_be_mixed(windows: Any, size: int) -> None:
    class Thing:
        n = 5

    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="1h")
    stream.map(lambda v: Thing() if v["n"] == 5 else v).window(windows).aggregate(total=agg.sum("n")).to("out")
    driver = TopologyTestDriver(topology)
    values = [{"k": "a", "at": 1000, "n": n} for n in (1, 5, 2, 5)]
    for start in range(0, 4, size):
        driver.send_many("in", values[start : start + size])
    driver.end_input()
    assert {record.value["total"] for record in driver.read("out")} == {13}


def test_a_window_with_many_keys_leaves_in_order_and_whole() -> None:
    driver = TopologyTestDriver(windowed(tumbling("10s"), n=agg.count()))
    driver.send_many("in", [{"k": f"{i:05d}", "at": 1} for i in range(20_000)])
    driver.end_input()
    assert [record.key for record in driver.read("out")] == [f"{i:05d}" for i in range(20_000)]


@pytest.mark.parametrize("windows", WINDOWS, ids=lambda w: w.label)
def test_records_centuries_apart(windows: Any) -> None:
    driver = TopologyTestDriver(windowed(windows, n=agg.count()))
    driver.send_many("in", [{"k": "a", "at": 0}, {"k": "a", "at": 7_258_118_399_999}])
    driver.end_input()
    results = [record.value for record in driver.read("out")]
    assert min(r["window_start"] for r in results) <= 0
    assert max(r["window_end"] for r in results) > 7_258_118_399_999


def test_results_of_windows_are_keyed_and_stamped_for_the_next_step() -> None:
    driver = TopologyTestDriver(windowed(hopping("10s", "5s"), n=agg.count()))
    driver.send("in", {"k": "a", "at": 7_000})
    driver.end_input()
    assert [(r.key, r.timestamp, r.value) for r in driver.read("out")] == [
        ("a", 9_999, {"key": "a", "window_start": 0, "window_end": 10_000, "n": 1}),
        ("a", 14_999, {"key": "a", "window_start": 5_000, "window_end": 15_000, "n": 1}),
    ]
