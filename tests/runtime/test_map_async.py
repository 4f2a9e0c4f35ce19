"""``map_async`` in a topology: order, overlap, failures, cache, crashes, and what may follow it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Cache, RecordError, SettingsError, Topology, TopologyError, agg, retry, tumbling
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.plan import is_deterministic, plan
from tests.runtime.streams import Event, cuts, events, outputs, pieces


class Service:
    """Answers calls in the order of their ``turn``, if they are there at the same time."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.running: list[Any] = []
        self.most = 0

    async def __call__(self, value: Event) -> Event:
        self.begun.append(value["id"])
        self.running.append(value["k"])
        self.most = max(self.most, len(self.running))
        for _ in range(value.get("turns", 0)):
            await asyncio.sleep(0)
        self.running.remove(value["k"])
        self.ended.append(value["id"])
        if value.get("fails"):
            raise ValueError("the secret")
        return {**value, "answer": value["id"] * 2}


def calling(function: Callable[[Any], Awaitable[Any]], *, keyed: bool = True, **options: Any) -> Topology:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at") if keyed else topology.stream("in", time="at")
    stream.map_async(function, **options).to("out")
    return topology


def rows(*turns: int, keys: str = "abcdefgh", **more: Any) -> list[Event]:
    return [{"id": i, "k": keys[i], "at": i, "turns": n, **more} for i, n in enumerate(turns)]


def ids(driver: TopologyTestDriver) -> list[int]:
    return [record.value["id"] for record in driver.read("out")]


def test_calls_overlap_and_results_keep_the_order_of_the_input() -> None:
    service = Service()
    driver = TopologyTestDriver(calling(service))
    driver.send_many("in", rows(9, 1, 5, 2))
    records = driver.read("out")
    assert [record.value["answer"] for record in records] == [0, 2, 4, 6]
    assert [(record.key, record.timestamp) for record in records] == [("a", 0), ("b", 1), ("c", 2), ("d", 3)]
    assert service.ended == [1, 3, 2, 0]
    assert service.most == 4


def test_calls_for_one_key_are_made_one_after_the_other() -> None:
    service = Service()
    driver = TopologyTestDriver(calling(service))
    driver.send_many("in", rows(9, 0, 0, 5, keys="aabb"))
    assert ids(driver) == [0, 1, 2, 3]
    assert service.most == 2
    assert [i for i in service.ended if i < 2] == [0, 1]
    assert service.begun.index(1) > service.ended.index(0)


def test_without_keys_it_is_one_call_at_a_time_unless_only_the_order_of_the_results_counts() -> None:
    for order, most in (("key", 1), ("input", 4), ("none", 4)):
        service = Service()
        driver = TopologyTestDriver(calling(service, keyed=False, order=order))
        driver.send_many("in", rows(9, 1, 5, 2))
        assert ids(driver) == (service.ended if order == "none" else [0, 1, 2, 3])
        assert service.most == most


def test_of_one_key_calls_overlap_where_only_the_order_of_the_results_counts() -> None:
    service = Service()
    driver = TopologyTestDriver(calling(service, order="input"))
    driver.send_many("in", rows(9, 0, keys="aa"))
    assert (service.ended, ids(driver)) == ([1, 0], [0, 1])


def test_no_more_calls_at_a_time_than_told() -> None:
    service = Service()
    driver = TopologyTestDriver(calling(service, concurrency=3))
    driver.send_many("in", rows(3, 1, 2, 3, 1, 2, 0, 1))
    assert ids(driver) == list(range(8))
    assert service.most == 3


def test_a_call_that_fails_follows_the_policy() -> None:
    made = [{**row, "fails": row["id"] == 1} for row in rows(2, 1, 0)]
    with pytest.raises(RecordError) as failed:
        TopologyTestDriver(calling(Service(), name="ask")).send_many("in", made)
    assert f"step 'ask' failed on the record at partition in/0, offset 1: ValueError at {__file__}" in str(failed.value)
    assert "secret" not in str(failed.value)
    for policy in ("skip", "dead-letter"):
        driver = TopologyTestDriver(calling(Service(), on_error=policy))
        driver.send_many("in", made)
        assert ids(driver) == [0, 2]
    (letter,) = driver.read("t-dead-letter")
    assert msgspec.msgpack.decode(letter.value) == made[1]
    assert b"headrace-tries" not in dict(letter.headers)


def test_a_call_that_takes_too_long_has_failed_and_is_cancelled() -> None:
    cancelled = []

    async def hangs(value: Event) -> Event:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(value["id"])
            raise
        return value

    with pytest.raises(RecordError, match="TimeoutError: the call took longer than 5 ms"):
        TopologyTestDriver(calling(hangs, timeout="5ms")).send_many("in", rows(0))
    assert cancelled == [0]


def test_a_call_that_does_not_let_itself_be_cancelled_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headrace.runtime.workers.calls._GRACE_S", 0.01)
    release: list[asyncio.Event] = []

    async def stubborn(value: Event) -> Event:
        release.append(asyncio.Event())
        while not release[0].is_set():
            try:
                await release[0].wait()
            except asyncio.CancelledError:
                continue
        return value

    driver = TopologyTestDriver(calling(stubborn, timeout="5ms", on_error="skip"))
    driver.send_many("in", rows(0))
    assert driver.skipped.total() == 1
    release[0]._loop.call_soon_threadsafe(release[0].set)  # type: ignore[attr-defined]


class Flaky(Service):
    async def __call__(self, value: Event) -> Event:
        answer = await super().__call__(value)
        if self.begun.count(value["id"]) <= value["n"]:
            raise ConnectionError
        return answer


def test_failed_calls_are_made_again_and_waits_between_them_pass_at_once() -> None:
    made = [{**row, "n": n} for row, n in zip(rows(0, 0, 0, 0), [0, 2, 5, 1], strict=True)]
    service = Flaky()
    driver = TopologyTestDriver(calling(service, retry=retry(4, backoff="1s", then="dead-letter")))
    driver.send_many("in", made)
    assert ids(driver) == [0, 1, 3]
    assert [service.begun.count(i) for i in range(4)] == [1, 3, 4, 2]
    (letter,) = driver.read("t-dead-letter")
    assert dict(letter.headers)["headrace-tries"] == b"4"
    assert driver.waited_ms == 1000 * ((1 + 2) + (1 + 2 + 4) + 1)


def test_where_the_retry_may_stand() -> None:
    made = [{**row, "n": 1} for row in rows(0, 0)]
    for options in ({"retry": retry(2)}, {"on_error": retry(2)}, {"retry": retry(2), "on_error": "skip"}):
        driver = TopologyTestDriver(calling(Flaky(), **options))
        driver.send_many("in", made)
        assert ids(driver) == [0, 1]
    topology = Topology("t", on_error=retry(2))
    topology.stream("in").map_async(Flaky()).to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", made)
    assert ids(driver) == [0, 1]
    driver = TopologyTestDriver(calling(Flaky(), retry=retry(2, then="stop"), on_error="skip"))
    driver.send_many("in", [{**made[0], "n": 2}])
    assert driver.skipped.total() == 1


def test_results_are_remembered_by_value_or_by_a_field_for_a_time() -> None:
    service = Service()
    driver = TopologyTestDriver(calling(service, order="input", cache=Cache(ttl="10s", by="k")))
    driver.send_many("in", rows(3, 0, 0, keys="aab"))
    assert [record.value["answer"] for record in driver.read("out")] == [0, 0, 4]
    assert service.begun == [0, 2]
    driver.advance_time("9s")
    driver.send("in", rows(0)[0])
    assert len(service.begun) == 2
    driver.advance_time("1s")
    driver.send("in", rows(0)[0])
    assert len(service.begun) == 3
    by_value = Service()
    driver = TopologyTestDriver(calling(by_value, cache=Cache()))
    driver.send_many("in", [rows(0)[0], {**rows(0)[0], "at": 1}, rows(0)[0]])
    assert len(by_value.begun) == 2


def test_the_least_recently_used_result_is_forgotten_first() -> None:
    service = Service()
    driver = TopologyTestDriver(calling(service, cache=Cache(size=2, by="k")))
    for key in "abacab":
        driver.send("in", rows(0, keys=key)[0])
    assert len(service.begun) == 4  # a, b, c and b again


def test_failed_calls_are_not_remembered_and_each_that_waited_for_one_makes_its_own() -> None:
    service = Service()
    driver = TopologyTestDriver(calling(service, order="input", cache=Cache(by="k"), on_error="skip"))
    driver.send_many("in", rows(2, 0, keys="aa", fails=True))
    assert service.begun == [0, 1]
    assert driver.skipped.total() == 2


def test_a_value_that_nothing_can_be_remembered_by_fails_alone() -> None:
    driver = TopologyTestDriver(calling(Service(), cache=Cache(by="turns"), on_error="skip"))
    driver.send_many("in", [rows(1)[0], {"id": 1, "k": "b", "at": 1}])
    assert ids(driver) == [0]


def test_a_restart_forgets_what_was_remembered() -> None:
    service = Service()
    driver = TopologyTestDriver(calling(service, cache=Cache(by="k")))
    driver.send("in", rows(0)[0])
    driver.restart()
    driver.send("in", rows(0)[0])
    assert len(service.begun) == 2


def test_a_call_that_wants_to_end_the_process_or_cancels_itself_has_failed() -> None:
    async def leave(value: Event) -> Event:
        raise SystemExit(3)

    async def cancel(value: Event) -> Event:
        raise asyncio.CancelledError

    for function in (leave, cancel):
        driver = TopologyTestDriver(calling(function, on_error="skip"))
        driver.send_many("in", rows(0, 0))
        assert driver.skipped.total() == 2


class Answer(msgspec.Struct):
    k: str
    size: int


async def answer_of(value: Event) -> Answer:
    return Answer(value["k"], value["id"])


def test_a_keyed_stream_stays_keyed_and_the_type_of_the_result_is_known() -> None:
    topology = Topology("t")
    answers = topology.stream("in", keyed_by="k", time="at").map_async(answer_of)
    answers.window(tumbling("10ms")).aggregate(n=agg.sum("size")).to("out")
    answers.key_by("size", key=int).map(lambda a: a.size).to("sizes")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", rows(0, 0, 0, keys="aab"))
    driver.end_input()
    assert [(record.key, record.value["n"]) for record in driver.read("out")] == [("a", 1), ("b", 2)]
    assert [record.value for record in driver.read("sizes")] == [0, 1, 2]


async def nothing(value: Any) -> None: ...


def test_options_that_make_no_sense() -> None:
    stream = Topology("t").stream("in")
    here = rf"\({__file__}:\d+\)"
    with pytest.raises(TopologyError, match=rf"map_async was given a plain function {here}.* Define it with async def"):
        stream.map_async(lambda value: value)
    with pytest.raises(TopologyError, match=rf"needs an async function, not int {here}"):
        stream.map_async(3)  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match=rf"map was given an async function {here}.* or use map_async"):
        stream.map(nothing)
    with pytest.raises(TopologyError, match="filter was given an async function"):
        stream.filter(Service())
    with pytest.raises(TopologyError, match="concurrency of map_async must be a whole number of at least 1"):
        stream.map_async(nothing, concurrency=0)
    with pytest.raises(TopologyError, match='order of map_async must be "key", "input" or "none", not \'keys\''):
        stream.map_async(nothing, order="keys")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"timeout of map_async .* is not a duration"):
        stream.map_async(nothing, timeout="soon")
    with pytest.raises(TopologyError, match="a timeout of 0"):
        stream.map_async(nothing, timeout="0s")
    with pytest.raises(TopologyError, match=r"retry= of map_async needs retry\(\.\.\.\), not 3"):
        stream.map_async(nothing, retry=3)  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="Give one of them"):
        stream.map_async(nothing, retry=retry(3), on_error=retry(3))
    with pytest.raises(TopologyError, match=r"cache= of map_async needs Cache\(\.\.\.\)"):
        stream.map_async(nothing, cache="5m")  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="by= of Cache needs a function"):
        stream.map_async(nothing, cache=Cache(by=3))  # type: ignore[arg-type]
    with pytest.raises(TopologyError, match="size of Cache must be at least 1"):
        Cache(size=0)
    with pytest.raises(SettingsError, match="ttl of Cache"):
        Cache(ttl="soon")
    for function in (Service(), functools.partial(nothing)):
        assert stream.map_async(function) is not None


def test_what_is_behind_asynchronous_calls_counts_as_at_least_once() -> None:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k")
    stream.map_async(nothing).key_by("k", name="behind").to("out")
    stream.map(lambda v: v, on_error=retry(3, then="skip")).key_by("k", name="left-out").to("out", name="a")
    stream.map(lambda v: v, on_error=retry(3)).key_by("n", name="beside").to("out", name="b")
    planned = plan(topology.graph(), {"in": 1})
    found = {
        name: is_deterministic(planned.graph, planned.subtopologies[0], planned.graph.by_name[name])  # type: ignore[arg-type]
        for name in ("behind", "left-out", "beside")
    }
    assert found == {"behind": False, "left-out": False, "beside": True}


def mixed(function: Callable[[Any], Awaitable[Any]]) -> Topology:
    """Calls at several places of one task, before and behind windows, with ways that meet again."""
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at", out_of_orderness="20ms")
    slow = stream.map_async(function, concurrency=3)
    slow.merge(stream.filter(lambda v: v["n"] > 6)).merge(stream.map_async(function, order="input")).to("late")
    counts = stream.map_async(function).window(tumbling("20ms")).aggregate(n=agg.sum("n"), turns=agg.count())
    counts.map_async(function).to("out")
    return topology


async def turning(value: Event) -> Event:
    for _ in range(value["n"] % 7):
        await asyncio.sleep(0)
    return value


async def at_once(value: Event) -> Event:
    return value


def result(function: Callable[[Any], Awaitable[Any]], made: list[Event], sizes: list[int], crashes: set[int]) -> Any:
    driver = TopologyTestDriver(mixed(function))
    for place, piece in enumerate(pieces(made, sizes)):
        driver.send_many("in", piece)
        if place in crashes:
            driver.crash()
    driver.end_input()
    return outputs(driver)


@settings(max_examples=25, deadline=None)
@given(made=events, sizes=cuts)
def test_results_and_positions_are_those_of_a_plain_function(made: list[Event], sizes: list[int]) -> None:
    assert result(turning, made, sizes, set()) == result(at_once, made, [1] * len(made), set())


@settings(max_examples=25, deadline=None)
@given(made=events, sizes=cuts, crashes=st.sets(st.integers(0, 6), max_size=3))
def test_a_crash_repeats_calls_and_loses_none(made: list[Event], sizes: list[int], crashes: set[int]) -> None:
    repeated = result(turning, made, sizes, crashes)
    once = result(at_once, made, sizes, set())
    assert {(row[0], row[-1]): row[1:5] for row in repeated} == {(row[0], row[-1]): row[1:5] for row in once}


def test_calls_overlap_behind_a_step_that_leaves_a_record_out() -> None:
    begun: list[int] = []
    together = asyncio.Event()

    async def meet(value: int) -> int:
        begun.append(value)
        if len(begun) == 3:
            together.set()
        await together.wait()
        return value

    topology = Topology("t", on_error="skip")
    topology.stream("in", value=int).map(lambda n: 6 // n, name="divide").map_async(meet, order="input").to("out")
    driver = TopologyTestDriver(topology)
    driver.send_many("in", [1, 0, 2, 3])
    assert [record.value for record in driver.read("out")] == [6, 3, 2]
    assert driver.skipped == {"divide": 1}
