"""Every aggregate: alone, one record after the other, in any division into groups, and through the store."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace import TopologyError, agg
from headrace.operators.aggregates import Aggregate
from headrace.operators.compiled import RowCodec, compile_aggregates

Row = tuple[Any, int]


def latest(rows: list[Row]) -> Any:
    return max(enumerate(rows), key=lambda item: (item[1][1], item[0]))[1][0]


def earliest(rows: list[Row]) -> Any:
    return min(enumerate(rows), key=lambda item: (item[1][1], item[0]))[1][0]


CASES: list[tuple[Aggregate, Callable[[list[Row]], Any]]] = [
    (agg.count(), len),
    (agg.sum("x"), lambda rows: sum(x for x, _ in rows)),
    (agg.min("x"), lambda rows: min(x for x, _ in rows)),
    (agg.max("x"), lambda rows: max(x for x, _ in rows)),
    (agg.mean("x"), lambda rows: sum(x for x, _ in rows) / len(rows)),
    (agg.first("x"), earliest),
    (agg.last("x"), latest),
    (agg.collect("x"), lambda rows: [x for x, _ in sorted(rows, key=lambda row: row[1])]),
    (agg.reduce(max, "x"), lambda rows: max(x for x, _ in rows)),
]
each = pytest.mark.parametrize(("aggregate", "expected"), CASES, ids=[item.name for item, _ in CASES])
rows_of = st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=1, max_size=12)


def result(aggregate: Aggregate, accumulator: Any) -> Any:
    return accumulator if aggregate.result is None else aggregate.result(accumulator)


@each
@given(rows=rows_of)
def test_one_record_after_the_other(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], rows: list[Row]
) -> None:
    accumulator = aggregate.first(*rows[0])
    for x, t in rows[1:]:
        accumulator = aggregate.step(accumulator, x, t)
    assert result(aggregate, accumulator) == expected(rows)


@each
@given(rows=rows_of)
def test_the_generated_loop_does_the_same(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], rows: list[Row]
) -> None:
    for values in ([{"x": x} for x, _ in rows], [Point(x) for x, _ in rows]):
        live: dict[bytes, list[Any]] = {}
        compiled = compile_aggregates({"a": aggregate})
        compiled.update(live, {}, [b"k"] * len(rows), values, [t for _, t in rows])
        (found,) = compiled.results(["k"], [live[b"k"]], 0, 10)
        assert found == {"key": "k", "window_start": 0, "window_end": 10, "a": expected(rows)}


@each
@given(earlier=rows_of, later=rows_of)
def test_two_groups_make_one(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], earlier: list[Row], later: list[Row]
) -> None:
    # As for sessions: the groups do not overlap in time, and the earlier one comes first.
    later = [(x, t + 100) for x, t in later]
    groups = []
    for rows in (earlier, later):
        accumulator = aggregate.first(*rows[0])
        for x, t in rows[1:]:
            accumulator = aggregate.step(accumulator, x, t)
        groups.append(accumulator)
    assert result(aggregate, aggregate.merge(*groups)) == expected(earlier + later)


@each
@given(rows=rows_of)
def test_what_the_store_gives_back_goes_on_like_what_it_got(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], rows: list[Row]
) -> None:
    codec = RowCodec("step", {"a": aggregate})
    accumulator = aggregate.first(*rows[0])
    for x, t in rows[1:]:
        ((accumulator,),) = codec.decode_many(codec.encode_many([[accumulator]]))
        accumulator = aggregate.step(accumulator, x, t)
    assert result(aggregate, accumulator) == expected(rows)


@dataclass
class Point:
    x: Any


class Reading(msgspec.Struct):
    value: float


KINDS = [
    agg.first(kind=Reading), agg.last(kind=Reading), agg.collect(kind=Reading),
    agg.reduce(lambda a, b: Reading(a.value + b.value), kind=Reading),
]  # fmt: skip


@pytest.mark.parametrize("aggregate", KINDS, ids=[item.name for item in KINDS])
def test_a_kind_brings_objects_back_as_what_they_were(aggregate: Aggregate) -> None:
    codec = RowCodec("step", {"n": agg.count(), "a": aggregate})
    accumulator = aggregate.step(aggregate.first(Reading(1.0), 5), Reading(2.0), 6)
    ((_, again),) = codec.decode_many(codec.encode_many([[2, accumulator]]))
    assert result(aggregate, again) == result(aggregate, accumulator)
    assert result(aggregate, aggregate.step(again, Reading(4.0), 7)) == result(
        aggregate, aggregate.step(accumulator, Reading(4.0), 7)
    )


@pytest.mark.parametrize("value", [Reading(1.0), (1, 2), {"a": {1, 2}}, [Reading(1.0)], {1.5: 3, "x": (1,)}])
def test_without_a_kind_what_would_come_back_as_another_is_refused(value: Any) -> None:
    codec = RowCodec("spending", {"kept": agg.first()})
    with pytest.raises(TopologyError, match=r"step spending: aggregate 'kept' keeps values of a type .* kind="):
        codec.encode_many([[[0, value]]])
    with pytest.raises(TopologyError, match="'kept'"):
        RowCodec("spending", {"kept": agg.reduce(lambda a, b: b)}).encode_many([[value]])


@pytest.mark.parametrize("value", [math.nan, math.inf, [math.nan], {"a": [1, {"b": None}]}, b"x", "", -0.0, True])
def test_plain_values_are_stored_whatever_they_are(value: Any) -> None:
    codec = RowCodec("s", {"a": agg.reduce(lambda a, b: b)})
    ((again,),) = codec.decode_many(codec.encode_many([[value]]))
    assert repr(again) == repr(value)


def test_a_sum_of_truths_is_a_number() -> None:
    compiled = compile_aggregates({"a": agg.sum("x")})
    live: dict[bytes, list[Any]] = {}
    compiled.update(live, {}, [b"k"], [{"x": True}], [0])
    assert repr(live[b"k"]) == "[1]"


@pytest.mark.parametrize("wrong", [agg.count, 5, None, "sum"])
def test_what_is_not_an_aggregate_is_refused(wrong: Any) -> None:
    with pytest.raises(TopologyError, match=r"total= must be an aggregate"):
        compile_aggregates({"total": wrong})


def test_none_at_all_is_refused() -> None:
    with pytest.raises(TopologyError, match="at least one aggregate"):
        compile_aggregates({})


@pytest.mark.parametrize("name", ["key", "window_start", "window_end"])
def test_reserved_names_are_refused(name: str) -> None:
    with pytest.raises(TopologyError, match=name):
        compile_aggregates({name: agg.count()})


@pytest.mark.parametrize("selector", [5, ["x"], b"x"])
def test_a_selector_is_a_field_or_a_function(selector: Any) -> None:
    with pytest.raises(TopologyError, match="total= needs a field or a function"):
        compile_aggregates({"total": agg.sum(selector)})


def test_reduce_needs_a_function() -> None:
    with pytest.raises(TopologyError, match="function of two values"):
        agg.reduce("x")  # type: ignore[arg-type]
