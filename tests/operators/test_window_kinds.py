"""Sliding, counting and custom windows, and results before the close, beyond what the properties cover: failures,
cost, what a user's code is given."""

from typing import Any

import pytest

from headrace import (
    Aggregate,
    RecordError,
    Topology,
    TopologyError,
    agg,
    counting,
    every,
    hopping,
    session,
    sliding,
    tumbling,
    when,
)
from headrace.operators.agenda import MARKS, Agenda
from headrace.state.cache import Budget, WriteBehind
from headrace.state.memory import MemoryStore
from headrace.testing.driver import TopologyTestDriver


def driver_of(windows: Any, emit: Any = "close", disorder: str = "1h", **aggregates: Any) -> TopologyTestDriver:
    topology = Topology("t", on_error="skip")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness=disorder)
    stream.window(windows).aggregate(emit=emit, name="w", **aggregates).to("out")
    return TopologyTestDriver(topology)


def values(driver: TopologyTestDriver) -> list[Any]:
    return [record.value for record in driver.read("out")]


def at(*times: int, n: int = 1) -> list[dict[str, Any]]:
    return [{"k": "a", "at": time, "n": n} for time in times]


class Windows:
    """A window assigner that says what it is told to."""

    name = "told"

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def windows(self, timestamp: int) -> Any:
        return self.answer(timestamp)

    def shape(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda t: [(t + 1, t + 2)], "lies outside"),
        (lambda t: [(t - 5, t)], "lies outside"),
        (lambda t: [(t, t + 1), (t, t)], "lies outside"),
        (lambda t: [(float(t), t + 1)], r"whole numbers of milliseconds, not \(float, int\)"),
        (lambda t: [("a", "b")], r"whole numbers of milliseconds, not \(str, str\)"),
        (lambda t: [t], r"sequence of \(start, end\)"),
        (lambda t: [(t, t + 1, "x")], r"sequence of \(start, end\)"),
        (lambda t: None, r"sequence of \(start, end\)"),
        (lambda t: [(0, 1 << 70)], "no span of milliseconds"),
    ],
)
@pytest.mark.parametrize("emit", ["close", "update", every("1s")])
def test_an_assigner_that_says_nonsense_is_named(answer: Any, message: str, emit: Any) -> None:
    driver = driver_of(Windows(answer), emit, n=agg.count())
    with pytest.raises(TopologyError, match=f"window assigner 'told' .*{message}"):
        driver.send("in", at(1000)[0])


@pytest.mark.parametrize("emit", ["close", "update", every("1s"), when(lambda w: True)])
def test_a_record_on_which_an_assigner_fails_is_treated_like_others_that_fail(emit: Any) -> None:
    def answer(timestamp: int) -> list[tuple[int, int]]:
        if timestamp == 2000:
            raise ValueError("no such time")
        return [(0, 10_000)]

    driver = driver_of(Windows(answer), emit, n=agg.count())
    driver.send_many("in", at(1000, 2000, 3000))
    driver.end_input()
    assert values(driver)[-1]["n"] == 2
    assert driver.skipped == {"w": 1}


def test_a_record_in_no_window_is_not_late() -> None:
    driver = driver_of(Windows(lambda t: [(0, 10)] if t < 10 else []), disorder="0s", n=agg.count())
    driver.send_many("in", at(5, 500, 50, 7))
    driver.end_input()
    assert [value["n"] for value in values(driver)] == [1]
    assert driver.late == {"w": 1}


def test_windows_of_an_assigner_may_begin_before_the_epoch() -> None:
    driver = driver_of(Windows(lambda t: [(-100, 50), (-200, 50), (-100, 60)]), n=agg.count())
    driver.send_many("in", at(5))
    driver.restart()
    driver.end_input()
    assert [(v["window_start"], v["window_end"]) for v in values(driver)] == [(-200, 50), (-100, 50), (-100, 60)]


@pytest.mark.parametrize("windows", [tumbling("10s"), hopping("10s", "5s"), session("5s")], ids=lambda w: w.label)
@pytest.mark.parametrize("batched", [True, False])
def test_a_record_on_which_a_predicate_fails_leaves_no_trace(windows: Any, batched: bool) -> None:
    def picky(result: dict[str, Any]) -> bool:
        if 13 in result["all"]:
            raise ValueError("unlucky")
        return bool(result["total"] >= 3)

    aggregates = {"total": agg.sum("n"), "all": agg.collect("n"), "kinds": agg.count_distinct("n")}
    good, bad = at(6000, 7000) + at(8000, n=2), at(6500, n=13)
    expected = driver_of(windows, when(picky), **aggregates)
    expected.send_many("in", good)
    expected.end_input()
    driver = driver_of(windows, when(picky), **aggregates)
    for part in [[good[0], bad[0], *good[1:]]] if batched else [[good[0]], bad, good[1:]]:
        driver.send_many("in", part)
    driver.end_input()
    assert values(driver) == values(expected)
    assert driver.skipped == {"w": 1}


def test_a_failing_predicate_stops_the_worker_under_the_default_policy() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.window(tumbling("1s")).aggregate(n=agg.count(), emit=when(lambda w: w["m"] > 1)).to("out")
    with pytest.raises(RecordError, match="KeyError"):
        TopologyTestDriver(topology).send("in", at(1)[0])


def growing() -> Aggregate:
    """Return an aggregate whose accumulator is a list that grows in place."""

    def grow(accumulator: list[Any], value: Any, time: int) -> list[Any]:
        accumulator.append(value)
        return accumulator

    return Aggregate("grow", "n", lambda x, t: [x], grow, None, in_place=True)


EMITTED = [
    ("update", [1, 2, 3, 4, 5, 6, 7, 8]),
    (every("2s"), [2, 4, 6, 8, 8]),
    (when(lambda w: len(w["all"]) == 2), [2, 8]),
]


@pytest.mark.parametrize(("emit", "sizes"), EMITTED, ids=["update", "every", "when"])
def test_results_that_left_do_not_change_with_what_comes_later(emit: Any, sizes: list[int]) -> None:
    driver = driver_of(tumbling("10s"), emit, disorder="0s", all=growing())
    driver.send_many("in", [{"k": "a", "at": 1000 * i, "n": i} for i in range(1, 9)])
    driver.end_input()
    assert [len(value["all"]) for value in values(driver)] == sizes


@pytest.mark.parametrize("windows", [hopping("10s", "5s"), session("5s")], ids=lambda w: w.label)
def test_in_place_aggregates_of_several_windows_keep_apart(windows: Any) -> None:
    sizes = []
    for emit in ("close", every("1d"), when(lambda w: True)):
        driver = driver_of(windows, emit, all=agg.collect("n"), kinds=agg.count_distinct("n"))
        driver.send_many("in", [{"k": "a", "at": time, "n": time} for time in (1000, 6000, 7000, 12_000)])
        driver.end_input()
        finals = [value for value in values(driver) if value.pop("final", True)]
        sizes.append(finals)
    assert sizes[0] == sizes[1] == sizes[2]


def test_what_fails_as_a_window_closes_leaves_the_others() -> None:
    def result(numbers: Any) -> int:
        if 13 in numbers:
            raise ValueError("unlucky")
        return len(numbers)

    for windows in (tumbling("10s"), sliding("1ms"), session("1s"), counting(1)):
        driver = driver_of(windows, n=agg.collect("n").then(result))
        driver.send_many("in", [{"k": key, "at": 5, "n": n} for key, n in [("a", 1), ("b", 13), ("c", 2)]])
        driver.end_input()
        assert [value["key"] for value in values(driver)] == ["a", "c"]
        assert driver.skipped == {"w": 1}


@pytest.mark.parametrize("windows", [sliding("5s"), counting(2)], ids=lambda w: w.label)
def test_a_merge_that_fails_costs_one_result_or_record(windows: Any) -> None:
    def add(a: int, b: int) -> int:
        if b == 13 or a == 13:
            raise ValueError("unlucky")
        return a + b

    driver = driver_of(windows, total=agg.reduce(add, "n"))
    driver.send_many("in", at(1000) + at(1100, n=13) + at(2000) + at(9000) + at(9500))
    driver.end_input()
    totals = [(value["window_end"], value["total"]) for value in values(driver)]
    assert totals == ([(1001, 1), (9001, 1), (9501, 2)] if windows.label[0] == "s" else [(2001, 2), (9501, 2)])
    assert sum(driver.skipped.values()) == (2 if windows.label[0] == "s" else 1)


@pytest.mark.parametrize("batch_records", [1, 100, 4096])
def test_sliding_windows_of_a_busy_key_cost_a_few_merges_a_record(batch_records: int) -> None:
    merges = 0

    def add(a: int, b: int) -> int:
        nonlocal merges
        merges += 1
        return a + b

    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.window(sliding("1s")).aggregate(total=agg.reduce(add, "n")).to("out")
    driver = TopologyTestDriver(topology, batch_records=batch_records)
    driver.send_many("in", at(*range(3000)))
    driver.end_input()
    assert [value["total"] for value in values(driver)] == [min(i + 1, 1000) for i in range(3000)]
    assert merges < 4 * 3000


def test_sliding_windows_forget_what_no_window_needs() -> None:
    driver = driver_of(sliding("10s"), disorder="0s", n=agg.count())
    driver.send_many("in", [{"k": f"{i}", "at": 1000 + i} for i in range(100)])
    driver.send("in", {"k": "z", "at": 60_000})
    driver.checkpoint()
    (image,) = driver._checkpoints.values()
    assert len([key for key in image if b"z" not in key]) == 1  # the task's own row


def test_a_late_record_counts_in_no_sliding_window() -> None:
    driver = driver_of(sliding("10s"), disorder="0s", n=agg.count())
    driver.send_many("in", at(1000, 3000, 2000, 4000))
    driver.end_input()
    assert [(value["window_end"], value["n"]) for value in values(driver)] == [(1001, 1), (3001, 2), (4001, 3)]
    assert driver.late == {"w": 1}


def test_counting_goes_by_event_time_and_takes_late_records_as_of_now() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="2s")
    results = stream.window(counting(3)).aggregate(all=agg.collect("n"))
    results.to("out")
    results.late.to("late")
    driver = TopologyTestDriver(topology)
    for n, time in enumerate([5000, 4000, 9000, 1000, 20_000, 21_000]):
        driver.send("in", {"k": "a", "at": time, "n": n})
    (first,) = driver.read("out")
    assert first.value == {"key": "a", "window_start": 4000, "window_end": 7001, "all": [1, 0, 3]}
    assert first.timestamp == 7000
    driver.end_input()
    assert [value["all"] for value in values(driver)] == [[2, 4, 5]]
    assert driver.read("late") == []


def test_a_counting_window_goes_on_after_the_end_of_the_input() -> None:
    driver = driver_of(counting(2), disorder="0s", n=agg.count())
    driver.send_many("in", at(1, 2, 3))
    driver.end_input()
    assert len(values(driver)) == 1
    driver.restart()
    driver.send_many("in", at(4))
    driver.end_input()
    assert [(value["window_start"], value["window_end"]) for value in values(driver)] == [(3, 5)]


def test_the_clock_closes_and_reports_where_no_record_comes() -> None:
    driver = driver_of(tumbling("1m"), every("10s"), disorder="0s", n=agg.count())
    driver.send_many("in", at(1000, 12_000))
    assert [value["n"] for value in values(driver)] == [2]  # the first was to be told of at 10 s
    driver.advance_time("30s")
    driver.advance_time("48s")
    assert [(record.timestamp, record.value["final"]) for record in driver.read("out")] == [(59_999, True)]


def test_a_change_of_emission_keeps_what_is_open() -> None:
    def topology(emit: Any) -> Topology:
        made = Topology("t")
        stream = made.stream("in", keyed_by="k", time="at")
        stream.window(hopping("10s", "5s")).aggregate(n=agg.count(), emit=emit, name="w").to("out")
        return made

    driver = TopologyTestDriver(topology("close"))
    driver.send_many("in", at(6000, 7000))
    driver.checkpoint()
    for emit in ("update", every("1s"), "close"):
        again = TopologyTestDriver(topology(emit))
        again._checkpoints = driver._checkpoints
        again._sent = driver._sent
        again.crash()
        again.send_many("in", at(8000))
        again.end_input()
        assert {value["n"] for value in values(again)} == {3}
        driver._sent["in", 0].values.pop()  # type: ignore[index]
        for column in ("timestamps", "keys", "headers"):
            getattr(driver._sent["in", 0], column).pop()  # type: ignore[index]


@pytest.mark.parametrize("windows", [tumbling("10s"), session("10s")], ids=lambda w: w.label)
def test_a_mark_in_the_rows_is_part_of_the_shape(windows: Any) -> None:
    def shape(emit: Any) -> dict[str, Any]:
        topology = Topology("t")
        topology.stream("in", keyed_by="k").window(windows).aggregate(n=agg.count(), emit=emit)
        node: Any = topology.graph().nodes[-1]
        found: dict[str, Any] = node.spec.shape()
        return found

    assert shape("close") == shape("update")
    assert shape(when(bool)) == {**shape("close"), "mark": "fired"}
    reported = {"mark": "reported-at"} if "session" in windows.label else {}
    assert shape(every("1s")) == {**shape("close"), **reported}


def test_an_agenda_gives_keys_in_the_order_of_their_times() -> None:
    due: dict[bytes, list[int]] = {}
    store = MemoryStore()

    def agenda() -> Agenda:
        cache = WriteBehind(store, b"\0\1", MARKS, budget=budget)
        return Agenda(cache, 10, lambda keys: [(time, key) for key in keys for time in due.get(key, [])])

    budget = Budget(0)
    noted = agenda()
    for key, time in [(b"c", 25), (b"a", 7), (b"b", 7), (b"d", 31), (b"a", 25)]:
        due.setdefault(key, []).append(time)
        noted.note(time, key)
    assert noted.next_due() == 7
    assert noted.take(6) == []
    assert noted.take(7) == [(7, b"a"), (7, b"b")]
    due[b"a"].remove(7)
    due[b"b"].remove(7)
    due[b"c"] = [38]  # moved on without a note
    assert noted.next_due() == 25
    budget.relieve(store)
    budget = Budget(0)
    again = agenda()
    assert again.take(30) == [(25, b"a")]
    assert again.take(100) == [(31, b"d"), (38, b"c")]
    assert again.next_due() is None
