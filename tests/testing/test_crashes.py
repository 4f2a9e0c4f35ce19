"""Crashes at a chosen point, and the check that tries them all."""

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Context, NotFoundError, Process, SettingsError, Topology, ValueState, agg, retry, tumbling
from headrace.testing import TopologyTestDriver, assert_survives_crashes, check_crashes
from headrace.testing.interruptions import Interruptions
from tests.runtime import streams

few = settings(max_examples=25, deadline=None)


def doubled() -> Topology:
    topology = Topology("doubled")
    topology.stream("in", value=int).map(lambda n: 2 * n).to("out")
    return topology


def values(driver: TopologyTestDriver, topic: str = "out") -> list[Any]:
    return [record.value for record in driver.read(topic)]


def test_a_crash_comes_after_the_step_that_was_chosen_and_goes_back_to_the_last_checkpoint() -> None:
    driver = TopologyTestDriver(doubled(), batch_records=2)
    driver.send("in", 0)
    driver.checkpoint()
    driver.crash_after(steps=2)
    driver.send_many("in", [1, 2, 3, 4, 5])
    assert values(driver) == [0, 2, 4, 6, 8, 2, 4, 6, 8, 10]
    assert driver.steps == ["in-0"] * 6
    driver.send("in", 6)
    assert values(driver) == [12]


def test_checkpoints_come_every_so_many_steps_until_told_otherwise() -> None:
    driver = TopologyTestDriver(doubled(), batch_records=1)
    driver.checkpoint_every(steps=2)
    driver.send_many("in", [1, 2, 3])
    driver.crash()
    assert values(driver) == [2, 4, 6, 6]
    driver.checkpoint_every(steps=0)
    driver.send_many("in", [4, 5, 6, 7])
    driver.crash()
    assert values(driver) == [8, 10, 12, 14, 8, 10, 12, 14]


def test_only_the_tasks_that_are_named_are_lost() -> None:
    topology = Topology("two")
    topology.stream("a", value=int).to("x")
    topology.stream("b", value=int).to("y")
    driver = TopologyTestDriver(topology)
    driver.crash_after("b-0", steps=2)
    driver.send("a", 1)
    driver.send("b", 2)
    assert (values(driver, "x"), values(driver, "y")) == ([1], [2, 2])
    with pytest.raises(NotFoundError, match="no task 'c-0'"):
        driver.crash_after("c-0", steps=1)


def test_wrong_numbers_of_steps_are_refused() -> None:
    driver = TopologyTestDriver(doubled())
    with pytest.raises(SettingsError, match="at least one step, not after 0"):
        driver.crash_after(steps=0)
    with pytest.raises(SettingsError, match="cannot be -1"):
        driver.checkpoint_every(steps=-1)


def test_what_is_planned_for_one_step_happens_together() -> None:
    planned = Interruptions()
    planned.checkpoint_every(2)
    planned.crash_after(2, ["a"])
    planned.crash_after(2, ["b", "a"])
    assert [planned.stepped("a") for _ in range(4)] == [(False, []), (True, ["a", "b"]), (False, []), (True, [])]
    assert planned.losses == 1


def closing() -> Topology:
    topology = Topology("closing")
    counts = topology.stream("in", keyed_by="k", time="at").key_by("g").window(tumbling("10ms"))
    counts.aggregate(n=agg.count(), name="first").window(tumbling("30ms")).aggregate(n=agg.sum("n")).to("out")
    return topology


def events() -> list[dict[str, Any]]:
    return [{"k": "ab"[n % 2], "g": "xyz"[n % 3], "at": 2 * n} for n in range(40)]


def closed(driver: TopologyTestDriver) -> None:
    driver.send_many("in", events())
    driver.end_input()


@pytest.mark.parametrize("step", range(1, 41, 3))
@pytest.mark.parametrize("lost", [(), ("in-0",), ("in-1",), ("in-by-g-0",)])
def test_a_crash_while_windows_close_at_the_end_changes_nothing(step: int, lost: tuple[str, ...]) -> None:
    def run(*crash: str, steps: int | None = None) -> tuple[set[Any], int]:
        driver = TopologyTestDriver(closing(), partitions=2, batch_records=4)
        if steps is not None:
            driver.crash_after(*crash, steps=steps)
        closed(driver)
        return {(repr(record.value), record.headers) for record in driver.read("out")}, len(driver.steps)

    expected, steps = run()
    assert run(*lost, steps=1 + step % steps)[0] == expected


def clocked(driver: TopologyTestDriver) -> None:
    driver.send_many("in", events()[:20])
    driver.advance_time("2m")
    driver.end_input()


def test_time_goes_on_after_a_crash() -> None:
    driver = TopologyTestDriver(closing())
    driver.send_many("in", events()[:20])
    driver.crash_after(steps=1)
    driver.advance_time("2m")
    assert sum(record.value["n"] for record in {r.headers: r for r in driver.read("out")}.values()) == 20
    assert_survives_crashes(closing, clocked, partitions=2)


@pytest.mark.parametrize("make", [*streams.ONE_TASK, *streams.REPARTITIONED])
@few
@given(made=streams.events)
def test_what_the_language_makes_survives(make: Callable[[], Topology], made: list[dict[str, Any]]) -> None:
    def scenario(driver: TopologyTestDriver) -> None:
        driver.send_many("in", streams.orderly(made))
        driver.end_input()

    assert_survives_crashes(make(), scenario, most=6, checkpoint_every=len(made) % 4, cache_bytes=0)


def send_ten(driver: TopologyTestDriver) -> None:
    for n in range(10):
        driver.send("in", n)


def numbering() -> Topology:
    """Numbers records by a counter outside of any state."""
    numbers = count()
    topology = Topology("numbering")
    topology.stream("in", value=int).map(lambda n: {"n": n, "number": next(numbers)}).to("out")
    return topology


def test_a_function_that_keeps_something_between_records_is_found_out() -> None:
    found = check_crashes(numbering, send_ten, checkpoint_every=0)
    assert [one.step for one in found] == list(range(1, 11))
    first = found[0]
    assert (first.topic, first.task, first.lost, first.steps, first.weakness) == ("out", "in-0", (), 10, None)
    assert next((d.kind, d.expected.value, d.actual.value) for d in first.found if d.expected and d.actual) == (
        "changed",
        {"n": 0, "number": 0},
        {"n": 0, "number": 1},
    )


def test_the_message_says_which_step_which_topic_and_what_is_wrong() -> None:
    with pytest.raises(AssertionError) as caught:
        assert_survives_crashes(numbering, send_ten, checkpoint_every=0)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "topic 'out' is not what it is without a crash if every task is lost after step 1 of 10, "
        "which task 'in-0' made: 10 changed"
    )
    assert lines[1].startswith("Its edge is deterministic")
    assert lines[2] == "driver.crash_after(steps=1) does it again."
    assert lines[4].split() == ["place", "key", "timestamp", "n", "number"]
    assert "1 (not 0)" in lines[5]
    assert lines[-1] == "10 crashes change something; this is the first"


def dropping() -> Topology:
    """Lets through every other call, whatever it is called with."""
    calls = count()
    topology = Topology("dropping")
    topology.stream("in", value=int).filter(lambda n: next(calls) % 2).to("out")
    return topology


def test_missing_and_unexpected_records_are_told() -> None:
    (first, *_) = check_crashes(dropping, send_ten, checkpoint_every=0)
    assert {difference.kind for difference in first.found} == {"missing", "unexpected"}


def shared() -> Topology:
    topology = Topology("shared")
    calls = count()
    a, b = topology.stream("a", keyed_by="k"), topology.stream("b", keyed_by="k")
    results = a.deduplicate("id", within="1h", name="once").merge(b)
    results.map(lambda value: value | {"call": next(calls)}).to("out")
    results.to("plain")
    return topology


def both(driver: TopologyTestDriver) -> None:
    for n in range(6):
        driver.send("ab"[n % 2], {"k": "x", "id": n // 4}, timestamp=n)


def test_what_is_written_at_least_once_is_compared_by_rows_and_told_so() -> None:
    found = check_crashes(shared, both, checkpoint_every=0)
    assert {one.topic for one in found} == {"out"}
    assert {one.weakness for one in found} == {"'a' and 'b' meet behind the state of step 'once'"}
    assert "It is written at least once, because 'a' and 'b' meet behind" in str(found[0])
    found = check_crashes(shared, both, checkpoint_every=0, latest=["out"])
    assert all(len(one.found) == 1 for one in found)


def chancy() -> Topology:
    """Answers that are others each time, and calls that fail at first."""
    calls = count()

    async def ask(value: dict[str, Any]) -> dict[str, Any]:
        return {**value, "call": next(calls) % 7}

    def fail(value: dict[str, Any]) -> dict[str, Any]:
        if next(calls) % 5 < 2:
            raise ConnectionError
        return value

    topology = Topology("chancy")
    asked = topology.stream("in", keyed_by="k", time="at").map_async(ask, order="input", name="ask")
    asked.map(lambda value: value["id"], name="ids").to("ids")
    asked.map(fail, name="fail", on_error=retry(2, backoff="1ms", then="dead-letter")).to("rest")
    return topology


def test_with_exactly_once_repeats_are_known_by_their_ids_in_every_topic() -> None:
    def scenario(driver: TopologyTestDriver) -> None:
        driver.send_many("in", [{"id": n, "k": "ab"[n % 2], "at": n} for n in range(12)])

    weak = check_crashes(chancy, scenario)
    assert {one.topic for one in weak} >= {"rest"}
    found = check_crashes(chancy, scenario, guarantee="exactly-once")
    # What chance decides is another thing in another run; but every record is there once, whatever becomes of it.
    assert {one.topic for one in found} <= {"rest", "chancy-dead-letter"}
    assert not any(other.kind == "changed" for one in found for other in one.found if one.topic == "ids")
    assert all("written through an outbox" in str(one) for one in found)


def test_with_exactly_once_a_repeat_that_counts_is_found() -> None:
    """The check is strict: of rows that are alike each counts."""

    def alike() -> Topology:
        topology = Topology("alike")

        async def same(value: dict[str, Any]) -> str:
            return "same"

        topology.stream("in", keyed_by="k", time="at").map_async(same).to("out")
        return topology

    assert check_crashes(alike, closed, guarantee="exactly-once", partitions=2) == []
    assert check_crashes(shared, both, checkpoint_every=0, guarantee="exactly-once", latest=["out"])


def test_of_a_topic_that_holds_the_latest_value_only_that_counts() -> None:
    def latest() -> Topology:
        calls = count()
        topology = Topology("latest")
        topology.stream("in", value=int).map(lambda n: {"n": n, "odd": next(calls) % 3 == 0 and n < 9}).to("out")
        return topology

    assert check_crashes(latest, send_ten, checkpoint_every=0)
    assert check_crashes(latest, send_ten, checkpoint_every=0, latest=["out"]) == []


def test_crashes_are_spread_over_all_steps_and_over_the_tasks() -> None:
    seen: list[tuple[str, ...]] = []

    def scenario(driver: TopologyTestDriver) -> None:
        closed(driver)
        seen.append(tuple(driver.steps))

    assert_survives_crashes(closing, scenario, partitions=2, most=7)
    assert len(seen) == 1 + 7
    assert set(seen[0]) == {"in-0", "in-1", "in-by-g-0", "in-by-g-1"}


class Sums(Process[dict[str, Any], dict[str, Any]]):
    """Adds up numbers and tells the sum a while after the first of them."""

    total = ValueState(int, default=0)

    def on_record(self, value: dict[str, Any], context: Context) -> None:
        if not self.total.value:
            context.set_timer("tell", at=context.timestamp + 10)
        self.total.value += 12 // value["n"]

    def on_timer(self, name: str, context: Context) -> list[dict[str, Any]]:
        told, self.total.value = self.total.value, 0
        return [{"k": context.key, "total": told}]


async def tripled(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "n": 3 * value["n"]}


def shop() -> Topology:
    """State of every kind, calls, and records that fail; timers have a task with one input for themselves.

    What a timer finds would otherwise depend on how far the other inputs hold event time back.
    """
    topology = Topology("shop", on_error="dead-letter")
    a = topology.stream("a", keyed_by="k", time="at", out_of_orderness="5ms")
    b = topology.stream("b", keyed_by="k", time="at", out_of_orderness="5ms")
    rows = topology.table("rows", time="at")
    topology.stream("c", keyed_by="k", time="at", out_of_orderness="5ms").process(Sums, name="sums").to("sums")
    a.map_async(tripled, name="tripled").to("tripled")
    a.join(b, lambda x, y: {"x": x["n"], "y": y["n"]}, within="6ms", how="outer", name="ab").to("joined")
    a.join(rows, lambda x, row: {"x": x["n"], "row": row["n"]}, name="ar").to("with-rows")
    a.aggregate(n=agg.sum("n"), name="running").to("running")
    return topology


rounds = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "rows"]), st.sampled_from("xy"), st.integers(0, 3), st.integers(0, 4)),
    min_size=1,
    max_size=20,
)


@few
@given(rounds, st.sampled_from(["at-least-once", "exactly-once"]))
def test_joins_tables_timers_calls_and_dead_letters_survive(
    rounds: list[tuple[str, str, int, int]], guarantee: str
) -> None:
    def scenario(driver: TopologyTestDriver) -> None:
        for moment, (topic, key, number, back) in enumerate(rounds):
            at = max(0, 3 * moment - back)
            driver.send(topic, {"k": key, "n": number, "at": at}, key=key)
        driver.end_input()

    assert_survives_crashes(shop, scenario, most=6, latest=["running"], guarantee=guarantee)
