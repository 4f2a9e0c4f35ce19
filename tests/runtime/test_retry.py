"""Calls that failed and are made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import KeyedStream, RecordError, SettingsError, Stream, Topology, TopologyError, agg, retry, tumbling
from headrace.testing.driver import TopologyTestDriver
from tests.runtime.streams import Event, cuts, events, outputs, pieces

Define = Callable[[Stream[Any], Callable[[Any], Any], Any], Stream[Any]]


class Flaky:
    """Fails on each value so many times, by its ``n``, and then gives it back."""

    def __init__(self, kind: type[Exception] = OSError) -> None:
        self.calls: list[Any] = []
        self._kind = kind
        self._seen: Counter[Any] = Counter()

    def __call__(self, value: Any) -> Any:
        self.calls.append(value["n"])
        self._seen[value["id"]] += 1
        if self._seen[value["id"]] <= value["n"]:
            raise self._kind("the secret")
        return value


STEPS: dict[str, Define] = {
    "map": lambda stream, function, policy: stream.map(function, on_error=policy),
    "filter": lambda stream, function, policy: stream.filter(function, on_error=policy),
    "flat_map": lambda stream, function, policy: stream.flat_map(lambda v: [function(v)], on_error=policy),
    "tap": lambda stream, function, policy: stream.tap(function, on_error=policy),
    "branch": lambda stream, function, policy: stream.branch(
        a=lambda v: False, b=function, on_error=policy
    )["b"],
}  # fmt: skip

steps = pytest.mark.parametrize("define", STEPS.values(), ids=STEPS)
ROWS = [{"id": i, "n": n, "at": i} for i, n in enumerate([0, 2, 0, 1])]


def topology_of(define: Define, function: Callable[[Any], Any], policy: Any, **options: Any) -> Topology:
    topology = Topology("t", **options)
    define(topology.stream("in", time="at"), function, policy).to("out")
    return topology


@steps
def test_a_call_that_fails_is_made_again_and_no_other_is(define: Define) -> None:
    flaky = Flaky()
    driver = TopologyTestDriver(topology_of(define, flaky, retry(3, backoff="1s")))
    driver.send_many("in", ROWS)
    assert [record.value["id"] for record in driver.read("out")] == [0, 1, 2, 3]
    assert flaky.calls == [0, 2, 2, 2, 0, 1, 1]
    assert driver.waited_ms == 1000 + 2000 + 1000
    assert driver.now_ms == 0


@steps
def test_attempts_counts_all_calls_and_then_says_what_follows(define: Define) -> None:
    flaky = Flaky()
    driver = TopologyTestDriver(topology_of(define, flaky, retry(2, then="skip")))
    driver.send_many("in", ROWS)
    assert [record.value["id"] for record in driver.read("out")] == [0, 2, 3]
    assert flaky.calls.count(2) == 2
    assert driver.skipped.total() == 1
    with pytest.raises(RecordError, match=r"failed 2 times on the record at partition in/0, offset 1: OSError at"):
        TopologyTestDriver(topology_of(define, Flaky(), retry(2))).send_many("in", ROWS)


def test_a_dead_letter_tells_the_tries() -> None:
    driver = TopologyTestDriver(topology_of(STEPS["map"], Flaky(), retry(2, then="dead-letter")))
    driver.send_many("in", ROWS)
    (letter,) = driver.read("t-dead-letter")
    headers = dict(letter.headers)
    assert (headers["headrace-tries"], headers["headrace-attempt"]) == (b"2", b"1")


def test_only_what_is_named_is_tried_again() -> None:
    flaky = Flaky(KeyError)
    policy = retry(3, on=(OSError, ValueError), then="skip")
    driver = TopologyTestDriver(topology_of(STEPS["map"], flaky, policy))
    driver.send_many("in", ROWS)
    assert flaky.calls == [0, 2, 0, 1]
    assert driver.skipped.total() == 2


def test_the_backoff_doubles_up_to_its_maximum() -> None:
    driver = TopologyTestDriver(topology_of(STEPS["map"], Flaky(), retry(6, backoff="1s", max_backoff="5s")))
    driver.send("in", {"id": 0, "n": 5, "at": 0})
    assert driver.waited_ms == 1000 + 2000 + 4000 + 5000 + 5000


def test_then_is_the_policy_of_the_topology_if_nothing_is_said() -> None:
    driver = TopologyTestDriver(topology_of(STEPS["map"], Flaky(), retry(2), on_error="skip"))
    driver.send_many("in", ROWS)
    assert driver.skipped.total() == 1


def test_a_whole_topology_may_retry_where_it_can_and_does_what_then_says_elsewhere() -> None:
    topology = Topology("t", on_error=retry(3, then="skip"))
    stream = topology.stream("in", time="at")
    stream.map(Flaky()).merge(stream.filter(lambda v: False)).key_by("key").to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [{**row, "key": "k"} for row in ROWS] + [{"id": 9, "n": 1, "at": 1}])
    assert [record.value["id"] for record in driver.read("out")] == [0, 1, 2, 3]
    assert driver.skipped.total() == 1


REFUSED: dict[str, Callable[[Topology, KeyedStream[Any]], Any]] = {
    "source": lambda topology, stream: topology.stream("other", on_error=retry(3)),
    "key_by": lambda topology, stream: stream.key_by("n", on_error=retry(3)),
    "sink": lambda topology, stream: stream.to("out", on_error=retry(3)),
    "window": lambda topology, stream: stream.window(tumbling("1s")).aggregate(n=agg.count(), on_error=retry(3)),
    "deduplicate": lambda topology, stream: stream.deduplicate("n", within="1s", on_error=retry(3)),
}


@pytest.mark.parametrize("define", REFUSED.values(), ids=REFUSED)
def test_steps_that_cannot_retry_refuse_it_at_the_users_line(define: Any) -> None:
    topology = Topology("t")
    with pytest.raises(TopologyError, match=rf"cannot make its calls again \({__file__}:\d+\)"):
        define(topology, topology.stream("in", keyed_by="k"))


def test_arguments_that_make_no_sense() -> None:
    for attempts in (0, -1, True, 2.0, "3"):
        with pytest.raises(TopologyError, match=rf"attempts of retry .*{__file__}"):
            retry(attempts)  # type: ignore[arg-type]
    for kinds in ((), "OSError", BaseException, (OSError, 3)):
        with pytest.raises(TopologyError, match="on= of retry needs exception classes"):
            retry(3, on=kinds)  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match='then= of retry must be "stop", "skip" or "dead-letter"'):
        retry(3, then="retry")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="backoff of retry"):
        retry(3, backoff="soon")
    with pytest.raises(TopologyError, match="backoff of retry is longer than its max_backoff"):
        retry(3, backoff="1m")
    with pytest.raises(TopologyError, match=r'"stop", "skip", "dead-letter" or retry\(\.\.\.\), not .*call it: retry'):
        Topology("t", on_error=retry)  # type: ignore[arg-type]


def mixed(flaky: Callable[[Any], Any]) -> Topology:
    """Steps that wait at several places of one task, before and behind windows, with ways that meet again."""
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="20ms")
    policy = retry(10)
    slow = stream.map(flaky, on_error=policy)
    both = slow.merge(stream.filter(lambda v: v["n"] > 3)).merge(stream.map(lambda v: {**v, "n": -1}))
    both.to("late")
    counts = stream.map(flaky, on_error=policy, name="again").window(tumbling("20ms")).aggregate(n=agg.sum("n"))
    counts.map(lambda r: flaky({**r, "id": (r["key"], r["window_end"])}), on_error=policy).to("out")
    return topology


def with_unique_ids(made: list[Event]) -> list[Event]:
    return [{**event, "id": place, "n": event["n"] % 5} for place, event in enumerate(made)]


def result(function: Callable[[Any], Any], made: list[Event], sizes: list[int], crashes: set[int]) -> list[Any]:
    driver = TopologyTestDriver(mixed(function))
    for place, piece in enumerate(pieces(made, sizes)):
        driver.send_many("in", piece)
        if place in crashes:
            driver.crash()
    driver.end_input()
    return outputs(driver)


class FlakyModulo(Flaky):
    """Fails fewer than ten times on anything."""

    def __call__(self, value: Any) -> Any:
        super().__call__({"id": str(value["id"]), "n": value["n"] % 5})
        return value


@settings(max_examples=40, deadline=None)
@given(made=events, sizes=cuts)
def test_results_and_positions_are_those_of_a_function_that_never_fails(made: list[Event], sizes: list[int]) -> None:
    made = with_unique_ids(made)
    assert result(FlakyModulo(), made, sizes, set()) == result(lambda v: v, made, [1] * len(made), set())


@settings(max_examples=40, deadline=None)
@given(made=events, sizes=cuts, crashes=st.sets(st.integers(0, 6), max_size=3))
def test_a_crash_between_tries_repeats_outputs_with_their_ids(
    made: list[Event], sizes: list[int], crashes: set[int]
) -> None:
    made = with_unique_ids(made)
    repeated = result(FlakyModulo(), made, sizes, crashes)
    once = result(lambda v: v, made, sizes, set())
    assert {(row[0], row[-1]): row[1:5] for row in repeated} == {(row[0], row[-1]): row[1:5] for row in once}


def test_what_combines_the_sides_of_a_join_can_be_tried_again() -> None:
    flaky = Flaky()
    topology = Topology("t", on_error="skip")
    left = topology.stream("in", keyed_by="k", time="at")
    right = topology.stream("right", keyed_by="k", time="at")
    joined = left.join(right, within="1s", combine=lambda a, b: flaky(a), on_error=retry(2))
    joined.to("out")
    driver = TopologyTestDriver(topology)
    driver.send("right", {"k": "a", "at": 1})
    driver.send_many("in", [{"k": "a", **row} for row in ROWS])
    driver.end_input()
    assert sorted(record.value["id"] for record in driver.read("out")) == [0, 2, 3]
    assert flaky.calls.count(2) == 2
    assert driver.skipped.total() == 1
