"""Values as rows of the store, and the times at which something is due."""

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Json, Msgpack, TopologyError
from headrace.operators.stored import StoredValues, stored_shape
from headrace.operators.timelines import MARKS, NEVER, DueTimes, Timeline
from headrace.serde.primitives import Bytes, Int, Str
from headrace.state.api import WriteBatch
from headrace.state.cache import Budget, WriteBehind
from headrace.state.memory import MemoryStore


class Order(msgspec.Struct):
    number: int


@dataclass
class Person:
    name: str


CASES: list[tuple[Any, list[Any]]] = [
    (Msgpack(), [{"n": 1}, None, [1, "\xc1"], 5, "", b"\xc1", True]),
    (Msgpack(Order), [Order(1), None, Order(2)]),
    (Json(Person), [Person("\xc1"), None]),
    (Json(), [{"n": [1]}, None, "x"]),
    (Bytes(), [b"", b"\xc1", b"\xc1\xc1", None, b"\xc1x", b"x\xc1"]),
    (Str(), ["", "\xc1", None, "\0"]),
    (Int(), [193, -1, None, 0, -(0x3F << 56)]),
]


@pytest.mark.parametrize(("serde", "values"), CASES)
def test_what_is_kept_comes_back(serde: Any, values: list[Any]) -> None:
    stored = StoredValues(serde, "step")
    rows = stored.encode_many(values)
    assert stored.decode_many(rows) == values
    assert [stored.decode_many([row])[0] for row in rows] == values
    assert len(set(rows)) == len({repr(value) for value in values})


@given(st.lists(st.one_of(st.none(), st.binary(max_size=3), st.just(b"\xc1"))))
def test_no_value_looks_like_a_missing_one(values: list[bytes | None]) -> None:
    stored = StoredValues(Bytes(), "step")
    assert stored.decode_many(stored.encode_many(values)) == values


@pytest.mark.parametrize(
    ("serde", "value", "others"),
    [
        (Msgpack(), Order(1), "dicts"),
        (Msgpack(), (1, 2), "dicts"),
        (Json(), Person("x"), "dicts"),
        (Msgpack(Order), {"number": 1}, "Order"),
    ],
)
def test_what_would_come_back_as_something_else_is_refused(serde: Any, value: Any, others: str) -> None:
    stored = StoredValues(serde, "joining")
    for attempt in (stored.check, stored.encode_many):
        with pytest.raises(TopologyError) as failed:
            attempt([value])
        assert f"step 'joining' keeps {type(value).__name__} objects" in str(failed.value)
        assert f"come back as {others}" in str(failed.value)


def test_so_is_what_cannot_be_encoded_without_saying_what_it_is() -> None:
    with pytest.raises(TopologyError, match="'joining' cannot keep a value in its state: it does not encode as int"):
        StoredValues(Int(), "joining").encode_many(["secret"])


def test_the_shape_tells_formats_and_types_apart() -> None:
    shapes = [stored_shape(serde) for serde in (Msgpack(), Json(), Msgpack(Order), Json(Order), Str())]
    assert all(shape not in shapes[:i] for i, shape in enumerate(shapes))


@given(rows=st.lists(st.integers(0, 9)), low=st.integers(-1, 10), width=st.integers(0, 10))
def test_a_timeline_is_in_the_order_of_time_and_then_of_arrival(rows: list[int], low: int, width: int) -> None:
    line = Timeline()
    for number, time in enumerate(rows):
        line.add(time, number, number % 2)
    expected = sorted(range(len(rows)), key=lambda number: rows[number])
    assert line.values == expected
    assert line.times == [rows[number] for number in expected]
    assert list(line.marks) == [number % 2 for number in expected]
    if rows:
        inside = [number for number in expected if low <= rows[number] <= low + width]
        assert [line.values[place] for place in line.between(low, low + width)] == inside


steps = st.lists(
    st.one_of(
        st.tuples(st.just("note"), st.integers(0, 60), st.sampled_from([b"a", b"b", b""])),
        st.tuples(st.just("pass"), st.integers(1, 25), st.sampled_from(["keep", "flush", "evict", "restore"])),
        st.tuples(st.just("first"), st.just(0), st.just(b"")),
    ),
    max_size=30,
)


class DueRun:
    """``DueTimes`` over a store that may be lost and found."""

    def __init__(self) -> None:
        self.store = MemoryStore({})
        self.restore(0)

    def restore(self, done: int) -> None:
        self.budget = Budget(0)
        self.cache = WriteBehind(self.store, b"due", MARKS, budget=self.budget)
        self.times = DueTimes(self.cache, 10, done)

    def settle(self, how: str, watermark: int) -> None:
        if how == "keep":
            return
        batch = WriteBatch()
        self.budget.flush(batch)
        self.store.write(batch)
        if how == "evict":
            self.budget.evict()
        if how == "restore":
            self.restore(watermark)


@settings(max_examples=300, deadline=None)
@given(steps=steps)
def test_everything_comes_up_once_when_its_time_has_passed(steps: list[tuple[str, int, Any]]) -> None:
    run = DueRun()
    waiting: set[tuple[int, bytes]] = set()
    watermark = 0
    for kind, number, what in steps:
        times = run.times
        if kind == "note":
            times.note(watermark + number, what)
            waiting.add((watermark + number, what))
        elif kind == "first":
            assert times.first() == min(waiting, default=None)
            assert list(times.last_first()) == sorted(waiting, reverse=True)
        else:
            watermark += number
            due = sorted(entry for entry in waiting if entry[0] < watermark)
            assert sorted(set(times.coming(watermark))) == due
            assert times.due(watermark) == due
            times.drop(watermark)
            waiting.difference_update(due)
            run.settle(what, watermark)
        assert run.times.soonest <= min(waiting, default=(NEVER, b""))[0]
