"""``process``: the ways to write it, what it refuses, and what its states take and give back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pytest

from headrace import (
    Context,
    ListState,
    MapState,
    Process,
    SettingsError,
    Topology,
    TopologyError,
    ValueState,
)
from headrace.serde.msgpack import Msgpack
from headrace.testing.driver import TopologyTestDriver
from tests.operators.process_runs import Reading, driver_of, sent


class Peak(msgspec.Struct):
    k: str
    n: int


class Peaks(Process[Reading, Peak]):
    highest = ValueState(int, default=0)

    def __init__(self, least: int = 0) -> None:
        self.least = least

    def on_record(self, record: Reading, context: Context) -> Iterator[Peak]:
        if record.n > max(self.highest.value, self.least):
            self.highest.value = record.n
            yield Peak(context.key, record.n)


def peaks(record: Reading, context: Context, highest: ValueState[int]) -> list[Peak] | None:
    if record.n <= highest.value:
        return None
    highest.value = record.n
    return [Peak(context.key, record.n)]


ROWS = [("a", 1, 10), ("b", 7, 11), ("a", 1, 12), ("a", 3, 13)]


@pytest.mark.parametrize(
    ("process", "states"),
    [(Peaks, {}), (Peaks(), {}), (peaks, {"highest": ValueState(int, default=0)})],
    ids=["class", "object", "function"],
)
def test_the_ways_to_write_it(process: Any, states: dict[str, Any]) -> None:
    found = sent(driver_of(process, **states), *ROWS)
    assert found == [(10, "a", {"k": "a", "n": 1}), (11, "b", {"k": "b", "n": 7}), (13, "a", {"k": "a", "n": 3})]


def test_an_object_has_arguments_and_its_state_is_that_of_the_task() -> None:
    process = Peaks(least=2)
    assert [value["n"] for _, _, value in sent(driver_of(process), *ROWS)] == [7, 3]
    assert [value["n"] for _, _, value in sent(driver_of(process), *ROWS)] == [7, 3]


def test_states_may_depend_on_arguments() -> None:
    class Recent(Process[Reading, int]):
        def __init__(self, ttl: str) -> None:
            self.items = ListState(int, ttl=ttl)

        def on_record(self, record: Reading, context: Context) -> Iterator[int]:
            self.items.append(record.n)
            yield sum(self.items)

    found = sent(driver_of(Recent("5ms")), ("a", 1, 10), ("a", 2, 14), ("a", 4, 15), ("a", 8, 19))
    assert [value for _, _, value in found] == [1, 3, 6, 12]


def test_results_are_typed_behind_a_repartition() -> None:
    topology = Topology("t")
    stream = topology.stream("in", value=Reading, keyed_by="k", time="at")
    by_class = stream.process(Peaks(), outputs={"seen": Peak}, name="by-class")
    by_class.key_by(lambda peak: peak.n, key=int, name="n").map(lambda peak: {"type": type(peak).__name__}).to("class")
    by_function = stream.process(peaks, highest=ValueState(int, default=0))
    by_function.key_by("n", key=int, name="m").map(lambda peak: {"type": type(peak).__name__}).to("function")
    assert isinstance(by_class.output("seen")._value, Msgpack)
    assert by_class.output("seen")._value.kind is Peak
    driver = TopologyTestDriver(topology)
    driver.send("in", Reading("a", 1, 1))
    assert [record.value for topic in ("class", "function") for record in driver.read(topic)] == [{"type": "Peak"}] * 2


def test_so_are_those_of_timers_if_records_give_none() -> None:
    def later(record: Reading, context: Context) -> None:
        context.set_timer("later", after="1s")

    def peak(name: str, context: Context) -> Iterator[Peak]:
        yield Peak(context.key, context.timestamp)

    def other(name: str, context: Context) -> Iterator[int]:
        yield 5

    stream = Topology("t").stream("in", value=Reading, keyed_by="k")
    assert getattr(stream.process(later, on_timer=peak)._value, "kind", None) is Peak
    assert getattr(stream.process(later, on_timer=peak, on_clock_timer=other, name="a")._value, "kind", None) is Any
    assert getattr(stream.process(later, name="b")._value, "kind", None) is Any
    assert getattr(stream.process(lambda r, context: [], on_timer=peak, name="c")._value, "kind", None) is Any


def test_results_of_records_keep_their_headers_and_filters_keep_the_outputs() -> None:
    topology = Topology("t")
    results = topology.stream("in", value=Reading, keyed_by="k").process(Peaks, outputs=("seen",))
    assert results.filter(lambda peak: True).output("seen") is results.output("seen")
    with pytest.raises(TopologyError, match=r"no output 'sene' .*test_process.py.*'seen'"):
        results.output("sene")


def test_a_step_is_called_after_its_code() -> None:
    topology = Topology("t")
    stream = topology.stream("in", value=Reading, keyed_by="k")
    assert stream.process(Peaks)._port.node == "in-process-Peaks"
    assert stream.process(peaks, highest=ValueState(int, default=0))._port.node == "in-process-peaks"
    assert stream.process(lambda record, context: [], name="named")._port.node == "named"


async def awaiting(record: Reading, context: Context) -> None: ...


async def awaiting_yield(record: Reading, context: Context) -> Any:
    yield 1


class Awaiting(Process[Reading, int]):
    async def on_record(self, record: Reading, context: Context) -> None: ...  # type: ignore[override]


class WithArguments(Process[Reading, int]):
    def __init__(self, limit: int) -> None: ...

    def on_record(self, record: Reading, context: Context) -> None: ...


class NoRecord(Process[Reading, int]):
    def on_timer(self, name: str, context: Context) -> None: ...


def handler(record: Reading, context: Context, total: ValueState[int]) -> None: ...


def plain(record: Reading, context: Context) -> None: ...


def narrow(record: Reading) -> None: ...


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (awaiting, {}, "async function .*map_async"),
    (awaiting_yield, {}, "async function .*map_async"),
    (Awaiting, {}, "Awaiting.on_record is an async function .*map_async"),
    (lambda record, context: [], {}, r"a function that has none .*name="),
    (WithArguments, {}, r"WithArguments without arguments .*process\(WithArguments\(\.\.\.\)\)"),
    (NoRecord, {}, "NoRecord without arguments .*on_record"),
    ("peaks", {}, "not str"),
    (handler, {}, "takes 'total', which is no state"),
    (handler, {"total": 3}, "total=, and a int is no state"),
    (plain, {"total": ValueState(int)}, "total=, which no function takes"),
    (narrow, {}, "too few arguments"),
    (Peaks, {"total": ValueState(int)}, "given a class and total="),
    (Peaks, {"on_timer": plain}, "given a class and on_timer="),
    (Peaks, {"outputs": "audit"}, r"outputs=\(\"audit\",\)"),
    (Peaks, {"outputs": ("",)}, "needs a name"),
    (Peaks, {"drop": ("highest",)}, "declared and dropped"),
    (handler, {"total": ValueState(complex)}, "state 'total' of step 'in-process-handler' .*complex"),
    (handler, {"total": ValueState(object)}, "state 'total' .*object"),
    (handler, {"total": ValueState(int, default="no")}, "the default of state 'total' .*str"),
    (handler, {"total": ValueState(int, ttl="0s")}, "the ttl of state 'total' .*is 0"),
    (handler, {"total": ValueState(int, version=0)}, "version from 1"),
    (handler, {"total": ValueState(int, version=3, migrations={1: int})}, "no migration from version 2"),
    (handler, {"total": ValueState(int, version=3, migrations={3: int})}, "no migration from 3"),
    (handler, {"total": ListState(int, version=2, migrations={1: 7})}, "not a function"),  # type: ignore[dict-item]
    (handler, {"total": MapState(complex, int)}, "the key of state 'total' .*complex"),
]


@pytest.mark.parametrize(("process", "arguments", "message"), REFUSED)
def test_what_cannot_work_is_refused_where_it_is_written(process: Any, arguments: dict[str, Any], message: str) -> None:
    stream = Topology("t").stream("in", value=Reading, keyed_by="k")
    with pytest.raises(TopologyError, match=message) as caught:
        stream.process(process, **arguments)
    assert "test_process.py:" in str(caught.value)


def test_a_duration_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="ttl of a state"):
        ValueState(int, ttl="soon")


def failing(process: Any, message: str, *, kind: type[Exception] = TopologyError, **arguments: Any) -> None:
    driver = driver_of(process, **arguments)
    with pytest.raises(kind, match=message):
        sent(driver, ("a", 1, 10), ("a", 2, 20))


def test_code_that_cannot_be_right_stops_the_step_whatever_its_policy() -> None:
    def emits(record: Reading, context: Context) -> None:
        context.emit("nowhere", record.n)

    def returns_a_dict(record: Reading, context: Context) -> Any:
        return {"n": record.n}

    def returns_one(record: Reading, context: Context) -> Any:
        return Peak("a", 1)

    def times(record: Reading, context: Context) -> None:
        context.set_timer("t", after="1s")

    def asks(record: Reading, context: Context) -> list[int]:
        return [context.now_ms]

    def waits(record: Reading, context: Context) -> None:
        context.set_clock_timer("t", after="1s")

    failing(emits, "no output 'nowhere'.*'audit'", outputs=("audit",), on_error="skip")
    failing(returns_a_dict, "was returned a dict", on_error="skip")
    failing(returns_one, "was returned a Peak", on_error="skip")
    failing(times, "no on_timer", on_error="skip")
    failing(asks, "uses_clock=True", on_error="skip")
    failing(waits, "no on_clock_timer", on_error="skip")


def keeping(state: Any, value: Any) -> tuple[Callable[..., None], dict[str, Any]]:
    def keep(record: Reading, context: Context, kept: Any) -> None:
        if isinstance(kept, ValueState):
            kept.value = value
        elif isinstance(kept, ListState):
            kept.append(value)
        else:
            kept["x"] = value

    return keep, {"kept": state}


class Cart(msgspec.Struct):
    items: list[str]


class Note(TypedDict):
    text: str


@dataclass
class Point:
    x: int


STRANGE = [
    (ValueState(int), "text", "int, and was given str"),
    (ValueState(int), True, "int, and was given bool"),
    (ValueState(Cart), {"items": []}, "Cart, and was given dict"),
    (ValueState(dict), Cart([]), "dict, and was given Cart"),
    (ValueState(list[Cart]), [{"items": []}], "with dict in it"),
    (ValueState(dict[str, int]), {"a": "b"}, "with str in it"),
    (ListState(Cart), Point(1), "Cart, and was given Point"),
    (MapState(str, Point), Cart([]), "Point, and was given Cart"),
    (MapState(int, int), 1, "int, and was given str"),
]


@pytest.mark.parametrize(("state", "value", "message"), STRANGE)
def test_a_value_that_would_come_back_as_another_type_is_refused(state: Any, value: Any, message: str) -> None:
    keep, states = keeping(state, value)
    failing(keep, f"state 'kept' of step 'in-process-keep' holds .*{message}", **states, on_error="skip")


KEPT = [
    (ValueState(float), 3, 3.0),
    (ValueState(Cart), Cart(["a"]), Cart(["a"])),
    (ValueState(Cart | None), Cart(["a"]), Cart(["a"])),
    (ValueState(list[Cart]), [Cart(["a"])], [Cart(["a"])]),
    (ValueState(dict[str, Point]), {"a": Point(1)}, {"a": Point(1)}),
    (ValueState(Note), {"text": "t"}, {"text": "t"}),
    (ValueState(tuple[int, str]), (1, "a"), (1, "a")),
    (ValueState(set[int]), {1, 2}, {1, 2}),
    (ValueState(bytes), b"\xc0", b"\xc0"),
    (ValueState(Any), {"a": [1, None]}, {"a": [1, None]}),
]


@pytest.mark.parametrize(("state", "value", "expected"), KEPT)
def test_values_come_back_as_their_type(state: Any, value: Any, expected: Any) -> None:
    found: list[Any] = []

    def keep(record: Reading, context: Context, kept: Any) -> None:
        found.append(kept.value)
        kept.value = value

    driver = driver_of(keep, kept=state)
    sent(driver, ("a", 1, 10))
    driver.restart()
    sent(driver, ("a", 1, 11))
    assert found == [None, expected]
    assert type(found[1]) is type(expected)


def test_a_default_that_can_be_changed_is_new_each_time() -> None:
    def add(record: Reading, context: Context, cart: ValueState[Cart]) -> list[int]:
        kept = cart.value
        kept.items.append("x")
        if record.n:
            cart.value = kept
        return [len(kept.items)]

    found = sent(driver_of(add, cart=ValueState(Cart, default=Cart([]))), ("a", 0, 1), ("a", 1, 2), ("b", 0, 3))
    assert [value for _, _, value in found] == [1, 1, 1]


def test_state_cannot_be_used_outside() -> None:
    with pytest.raises(TopologyError, match="outside of on_record"):
        assert Peaks().highest.value


def test_maps_have_the_methods_of_dicts() -> None:
    def use(record: Reading, context: Context, counts: MapState[str, int]) -> list[Any]:
        counts["x"] = counts.get("x", 0) + 1
        counts.setdefault("y", 5)
        counts.update({"z": 7})
        del counts["z"]
        with pytest.raises(KeyError):
            del counts["z"]
        with pytest.raises(KeyError):
            assert counts["z"]
        inside = ["x" in counts, "z" in counts, len(counts), sorted(counts.keys()), sorted(counts.values())]
        return [inside, list(counts.items()), counts.pop("y")]

    found = sent(driver_of(use, counts=MapState(str, int)), ("a", 1, 1), ("a", 1, 2))
    assert [value for _, _, value in found] == [
        [True, False, 2, ["x", "y"], [1, 5]], [["x", 1], ["y", 5]], 5,
        [True, False, 2, ["x", "y"], [2, 5]], [["x", 2], ["y", 5]], 5,
    ]  # fmt: skip
