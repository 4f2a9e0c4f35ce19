"""Timers of ``process``, of event time and of processing time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from headrace import Context, ListState, Process, RecordError, Topology, TopologyError, ValueState, agg, tumbling
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.graph import Step
from tests.operators.process_runs import Reading, driver_of, sent, values

DAY = 86_400_000


class Waiting(Process[Reading, str]):
    """A record sets a timer ``n`` ms off, if n is not 0; a timer says so."""

    def on_record(self, record: Reading, context: Context) -> None:
        if record.n:
            context.set_timer("t", at=context.timestamp + record.n)
        else:
            context.cancel_timer("t")

    def on_timer(self, name: str, context: Context) -> list[str]:
        return [f"{name} {context.key} {context.watermark} {len(context.timers)}"]


def test_a_timer_runs_when_the_watermark_has_passed_it() -> None:
    driver = driver_of(Waiting)
    assert sent(driver, ("a", 10, 10), ("b", 0, 20)) == []
    assert sent(driver, ("b", 0, 21)) == [(20, "a", "t a 21 0")]
    assert sent(driver, ("a", 10, 30), ("a", 100, 31), ("b", 0, 100)) == []
    assert sent(driver, ("a", 0, 101), ("b", 0, 500)) == []
    driver.end_input()
    assert values(driver) == []


def test_a_timer_for_the_past_runs_at_once_at_the_time_that_has_come() -> None:
    driver = driver_of(Waiting, disorder="5ms")
    found = sent(driver, ("b", 0, 100), ("a", 10, 10), ("b", 0, 100))
    assert found == [(95, "a", "t a 95 0")]


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
def test_timers_far_ahead_and_near_run_in_the_order_of_time_key_and_name(cache_bytes: int) -> None:
    topology = Topology("t")
    topology.stream("in", value=Reading, keyed_by="k", time="at").process(Waiting).to("out")
    driver = TopologyTestDriver(topology, cache_bytes=cache_bytes)
    distances = [1, 1023, 1024, 70_000, 70_001, 5 * DAY, 5 * DAY + 1, 300 * DAY, 300 * DAY, 4_000 * DAY]
    keys = [f"k{i:02}" for i in range(len(distances))]
    for key, distance in reversed(list(zip(keys, distances, strict=True))):
        driver.send("in", Reading(key, distance, 1_000))
        driver.restart()
    for at in (1_100, 60_000, 100_000, 6 * DAY, 299 * DAY, 301 * DAY):
        driver.send("in", Reading("other", 0, at))
        driver.restart()
    driver.end_input()
    assert [(r.timestamp, r.key) for r in driver.read("out")] == [
        (1_000 + distance, key) for key, distance in zip(keys, distances, strict=True)
    ]


def test_many_timers_of_one_moment() -> None:
    driver = driver_of(Waiting)
    keys = [f"{i * 7919 % 5000:04}" for i in range(5000)]
    sent(driver, *[(key, 1_000 - i % 7, 10 + i % 7) for i, key in enumerate(keys)])
    driver.end_input()
    found = values(driver)
    assert [key for _, key, _ in found] == sorted(keys)
    assert {at for at, _, _ in found} == {1_010}


def test_what_a_timer_must_not_be() -> None:
    class Wrong(Process[Reading, str]):
        def on_record(self, record: Reading, context: Context) -> None:
            match record.n:
                case 1:
                    context.set_timer("t", at=-1)
                case 2:
                    context.set_timer("t", at=1.5)  # type: ignore[call-overload]
                case 3:
                    context.set_timer("t")  # type: ignore[call-overload]
                case 4:
                    context.set_timer("again", at=5)

        def on_timer(self, name: str, context: Context) -> None:
            context.set_timer("again", at=context.timestamp)

    for n, kind, message in [
        (1, RecordError, "ValueError at .*test_process_timers.py"),
        (2, RecordError, "TypeError at .*test_process_timers.py"),
        (3, TopologyError, "at= and after="),
        (4, TopologyError, "not later than its own time"),
    ]:
        with pytest.raises(kind, match=message):
            sent(driver_of(Wrong), ("a", n, 10), ("a", 0, 11))


class Beating(Process[Reading, int]):
    """Once begun, it beats every 10 ms for ever."""

    def on_record(self, record: Reading, context: Context) -> None:
        if not context.timers:
            context.set_timer("beat", after="10ms")

    def on_timer(self, name: str, context: Context) -> Iterator[int]:
        context.set_timer("beat", after="10ms")
        yield context.timestamp


@pytest.mark.parametrize("restarted", [False, True])
def test_a_chain_of_timers_ends_with_the_input_and_goes_on_with_the_next_run(restarted: bool) -> None:
    driver = driver_of(Beating)
    beats = sent(driver, ("a", 1, 0), ("b", 1, 33))
    driver.end_input()
    beats += values(driver)
    assert [(at, key) for at, key, _ in beats] == [(10, "a"), (20, "a"), (30, "a"), (40, "a"), (43, "b")]
    if restarted:
        driver.restart()
    assert values(driver) == []
    assert [(at, key) for at, key, _ in sent(driver, ("c", 1, 61))] == [(50, "a"), (53, "b"), (60, "a")]


def test_beating_steps_behind_each_other_end_too() -> None:
    topology = Topology("t")
    stream = topology.stream("in", value=Reading, keyed_by="k", time="at")
    first = stream.process(Beating, name="first")
    second = first.map(lambda at: Reading("x", at, at)).process(Beating, name="second")
    second.map(lambda at: Reading("x", at, at)).process(Waiting, name="third").to("out")
    driver = TopologyTestDriver(topology)
    driver.send("in", Reading("a", 1, 0))
    driver.end_input()
    assert len(driver.read("out")) < 100


class Careless(Process[Reading, str]):
    count = ValueState(int, default=0)

    def on_record(self, record: Reading, context: Context) -> None:
        self.count.value += 1
        context.set_timer("good", after="5ms")
        context.set_timer("bad", after="3ms")

    def on_timer(self, name: str, context: Context) -> Iterator[str]:
        self.count.value += 10
        yield f"{name} {self.count.value}"
        context.emit("said", name)
        if name == "bad":
            raise ValueError("as told")


def test_a_timer_that_fails_leaves_no_trace_and_is_used_up() -> None:
    driver = driver_of(Careless, outputs=("said",), on_error="skip")
    assert sent(driver, ("a", 1, 10), ("b", 1, 100)) == [(15, "a", "good 11")]
    driver.end_input()
    assert values(driver) == [(105, "b", "good 11")]
    assert values(driver, "said") == [(15, "a", "good"), (105, "b", "good")]
    assert driver.skipped == {"in-process-Careless": 2}


def test_a_timer_that_fails_stops_the_worker_if_it_is_to() -> None:
    driver = driver_of(Careless, outputs=("said",))
    sent(driver, ("a", 1, 10))
    with pytest.raises(RecordError, match=r"in-process-Careless.*ValueError at .*test_process_timers\.py"):
        sent(driver, ("b", 1, 100))


class Flushing(Process[Reading, Any]):
    """Gathers readings and lets them go some processing time after the first."""

    items = ListState(int)

    def on_record(self, record: Reading, context: Context) -> None:
        if not self.items:
            context.set_clock_timer("flush", after="10s")
        self.items.append(record.n)
        if record.n < 0:
            context.cancel_clock_timer("flush")

    def on_clock_timer(self, name: str, context: Context) -> Iterator[Any]:
        yield [name, list(self.items), context.now_ms]
        self.items.clear()


def test_clock_timers_run_as_processing_time_passes() -> None:
    for fault in ("restart", "checkpoint"):
        driver = driver_of(Flushing)
        driver.advance_time("1s")
        sent(driver, ("a", 1, 10), ("b", 2, 20), ("c", -1, 20))
        getattr(driver, fault)()
        driver.advance_time("9s")
        assert sent(driver, ("a", 3, 30)) == []
        driver.advance_time("2s")
        assert values(driver) == [(30, "a", ["flush", [1, 3], 11_000]), (30, "b", ["flush", [2], 11_000])]
        driver.advance_time("20s")
        assert values(driver) == []


def test_a_clock_timer_that_is_set_before_the_time_is_known_waits_from_then_on() -> None:
    driver = driver_of(Flushing)
    driver.now_ms = 1_000_000
    sent(driver, ("a", 1, 10))  # tasks are told the time only after the first records
    driver.advance_time("9s")
    assert values(driver) == []
    driver.advance_time("1s")
    assert values(driver) == [(10, "a", ["flush", [1], 1_010_000])]


def test_the_clock_makes_a_step_unrepeatable_and_is_declared_by_its_use() -> None:
    topology = Topology("t")
    stream = topology.stream("in", value=Reading, keyed_by="k")
    for process, arguments in [(Flushing, {}), (Waiting, {}), (Waiting, {"name": "x", "uses_clock": True})]:
        stream.process(process, **arguments)  # type: ignore[type-var]
    assert [node.spec.uses_clock for node in topology.graph().nodes if isinstance(node, Step)] == [True, False, True]


def test_functions_have_timers_too() -> None:
    def count(record: Reading, context: Context, n: ValueState[int]) -> None:
        n.value += record.n
        context.set_timer("done", after="1s")

    def report(name: str, context: Context, n: ValueState[int]) -> Iterable[int]:
        yield n.value
        n.clear()

    driver = driver_of(count, on_timer=report, n=ValueState(int, default=0))
    sent(driver, ("a", 1, 10), ("a", 2, 20))
    driver.end_input()
    assert values(driver) == [(1_020, "a", 3)]


def test_nothing_is_left_of_a_key_that_keeps_nothing() -> None:
    driver = driver_of(Careless, outputs=("said",), on_error="skip")
    clear = driver_of(Waiting)
    for made in (driver, clear):
        sent(made, *[(f"k{i}", 5, i) for i in range(50)])
        made.end_input()
        made.checkpoint()
    (kept,), (rows,) = driver._checkpoints.values(), clear._checkpoints.values()
    assert sum(b"k" in key[2:] and len(row) > 0 for key, row in kept.items()) >= 50
    assert [key for key in rows if b"k1" in key[2:4]] == []


class Counting(Waiting):
    """The same; and every record says so too."""

    def on_record(self, record: Reading, context: Context) -> list[str]:
        super().on_record(record, context)
        return [record.k]


def test_what_a_timer_for_the_past_makes_is_not_late() -> None:
    topology = Topology("t")
    stream = topology.stream("in", value=Reading, keyed_by="k", time="at", out_of_orderness="5ms")
    stream.process(Waiting).window(tumbling("5ms")).aggregate(n=agg.count()).to("out")
    driver = TopologyTestDriver(topology, batch_records=1)
    driver.send_many("in", [Reading("b", 0, 100), Reading("a", 10, 10)])
    driver.end_input()
    assert [record.value["window_start"] for record in driver.read("out")] == [95]
    assert not driver.late


@pytest.mark.parametrize("cut", [1, 4096])
def test_a_timer_between_records_that_waited_is_not_late(cut: int) -> None:
    topology = Topology("t")
    stream = topology.stream("in", value=Reading, keyed_by="k", time="at", out_of_orderness="20ms")
    known = stream.as_of(stream, lambda left, right: left)
    known.process(Waiting).window(tumbling("10ms")).aggregate(n=agg.count()).to("out")
    driver = TopologyTestDriver(topology, batch_records=cut)
    driver.send_many("in", [Reading("a", 4, at) for at in (232, 263, 290, 295)])
    driver.end_input()
    assert [record.value["window_start"] for record in driver.read("out")] == [230, 260, 290]
    assert not driver.late


@pytest.mark.parametrize("cut", [1, 4096])
def test_timers_stay_behind_what_was_before_them_where_streams_come_together(cut: int) -> None:
    topology = Topology("t")
    stream = topology.stream("in", value=Reading, keyed_by="k", time="at")
    twice = stream.process(Counting)
    again = twice.merge(twice)
    again.merge(again).to("out")
    driver = TopologyTestDriver(topology, batch_records=cut)
    driver.send_many("in", [Reading("a", 2, 10), Reading("b", 0, 20), Reading("b", 0, 30)])
    found = [record.timestamp for record in driver.read("out")]
    assert found == [10] * 4 + [20] * 4 + [12] * 4 + [30] * 4
