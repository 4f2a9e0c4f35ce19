"""Every aggregate: alone, one record after the other, in any division into groups, and through the store."""

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import TopologyError, agg
from headrace.operators.aggregates import Aggregate
from headrace.operators.compiled import RowCodec, check_mergeable, compile_aggregates
from headrace.operators.selectors import getter

Row = tuple[Any, int]


def latest(rows: list[Row]) -> Any:
    return max(enumerate(rows), key=lambda item: (item[1][1], item[0]))[1][0]


def earliest(rows: list[Row]) -> Any:
    return min(enumerate(rows), key=lambda item: (item[1][1], item[0]))[1][0]


def by_time(rows: list[Row]) -> list[Any]:
    return [x for x, _ in sorted(rows, key=lambda row: row[1])]


def greatest(n: int) -> Callable[[list[Row]], Any]:
    def model(rows: list[Row]) -> Any:
        order = sorted(enumerate(rows), key=lambda item: (-item[1][0], item[1][1], item[0]))
        return [x for _, (x, _) in order[:n]]

    return model


def greatest_with_ties(n: int) -> Callable[[list[Row]], Any]:
    def model(rows: list[Row]) -> Any:
        found = greatest(len(rows))(rows)
        return [x for x in found if x >= found[:n][-1]]

    return model


def times(rows: list[Row]) -> dict[str, int]:
    return {str(x): [y for y, _ in rows].count(x) for x, _ in rows}


def tally(totals: dict[str, int], x: int) -> dict[str, int]:
    totals[str(x)] = totals.get(str(x), 0) + 1  # in place: it is given a copy
    return totals


def tallies(a: dict[str, int], b: dict[str, int]) -> dict[str, int]:
    a.update({key: a.get(key, 0) + number for key, number in b.items()})
    return a


def positive(value: Any) -> bool:
    return bool((value["x"] if isinstance(value, dict) else value.x) > 0)


def of_positive(model: Callable[[list[Row]], Any], empty: Any = None) -> Callable[[list[Row]], Any]:
    def of(rows: list[Row]) -> Any:
        kept = [row for row in rows if row[0] > 0]
        return model(kept) if kept else empty

    return of


def total(rows: list[Row]) -> Any:
    return sum(x for x, _ in rows)


def sample_variance(rows: list[Row]) -> Any:
    return float(statistics.variance([x for x, _ in rows])) if len(rows) > 1 else None


TOP = agg.combine(lambda total, n, kinds, each: [total / n, kinds, each], total=agg.sum("x"), n=agg.count(),
                  kinds=agg.count_distinct("x"), each=agg.collect("x"))  # fmt: skip


def top_model(rows: list[Row]) -> Any:
    return [total(rows) / len(rows), len({x for x, _ in rows}), by_time(rows)]


CASES: list[tuple[Aggregate, Callable[[list[Row]], Any]]] = [
    (agg.count(), len),
    (agg.sum("x"), total),
    (agg.min("x"), lambda rows: min(x for x, _ in rows)),
    (agg.max("x"), lambda rows: max(x for x, _ in rows)),
    (agg.mean("x"), lambda rows: total(rows) / len(rows)),
    (agg.first("x"), earliest),
    (agg.last("x"), latest),
    (agg.collect("x"), by_time),
    (agg.collect("x", 3), lambda rows: by_time(rows)[:3]),
    (agg.reduce(max, "x"), lambda rows: max(x for x, _ in rows)),
    (agg.fold(dict, tally, tallies, selector="x"), times),
    (agg.fold({}, tally, tallies, selector="x"), times),
    (agg.fold(0, lambda a, x: a + x, lambda a, b: a + b, selector="x"), total),
    (agg.count_distinct("x"), lambda rows: len({x for x, _ in rows})),
    (agg.variance("x"), sample_variance),
    (agg.variance("x", ddof=0), lambda rows: float(statistics.pvariance([x for x, _ in rows]))),
    (agg.stddev("x"), lambda rows: statistics.stdev([x for x, _ in rows]) if len(rows) > 1 else None),
    (agg.top(2, "x"), greatest(2)),
    (agg.top(9, "x", by="x"), greatest(9)),
    (agg.top(1, "x", ties=True), lambda rows: [x for x, _ in rows if x == max(x for x, _ in rows)]),
    (agg.top(3, "x", ties=True), greatest_with_ties(3)),
    (agg.count().where(positive), of_positive(len, 0)),
    (agg.sum("x").where(positive), of_positive(total)),
    (agg.last("x").where(positive), of_positive(latest)),
    (agg.collect("x").where(positive), of_positive(by_time)),
    (agg.count_distinct("x").where(positive), of_positive(lambda rows: len({x for x, _ in rows}), 0)),
    (agg.sum("x").where(positive).where(lambda value: True), of_positive(total)),
    (agg.sum("x").then(abs), lambda rows: abs(total(rows))),
    (agg.sum("x").where(positive).then(lambda found: found or 0), of_positive(total, 0)),
    (agg.count().then(str).where(positive), of_positive(lambda rows: str(len(rows)))),
    (TOP, top_model),
    (TOP.where(positive), of_positive(top_model)),
    (agg.combine(lambda a, b: (a, b), a=agg.count().where(positive), b=agg.sum("x").where(positive)).then(list),
     lambda rows: [len([x for x, _ in rows if x > 0]), of_positive(total)(rows)]),
]  # fmt: skip
each = pytest.mark.parametrize(("aggregate", "expected"), CASES, ids=[item.name for item, _ in CASES])
rows_of = st.lists(st.tuples(st.integers(-9, 9), st.integers(0, 5)), min_size=1, max_size=12)


def result(aggregate: Aggregate, accumulator: Any) -> Any:
    found = accumulator if aggregate.result is None else aggregate.result(accumulator)
    return pytest.approx(found) if isinstance(found, float) else found


def accumulated(aggregate: Aggregate, rows: list[Row]) -> Any:
    select = getter(aggregate.selector)
    accumulator = aggregate.first(select({"x": rows[0][0]}), rows[0][1])
    for x, t in rows[1:]:
        accumulator = aggregate.step(accumulator, select({"x": x}), t)
    return accumulator


def merged(aggregate: Aggregate, earlier: Any, later: Any) -> Any:
    assert aggregate.merge is not None
    return aggregate.merge(earlier, later)


@each
@settings(max_examples=30)
@given(rows=rows_of)
def test_one_record_after_the_other(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], rows: list[Row]
) -> None:
    assert result(aggregate, accumulated(aggregate, rows)) == expected(rows)


@each
@settings(max_examples=30)
@given(rows=rows_of)
def test_the_generated_loop_does_the_same(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], rows: list[Row]
) -> None:
    for values in ([{"x": x} for x, _ in rows], [Point(x) for x, _ in rows]):
        live: dict[bytes, list[Any]] = {}
        compiled = compile_aggregates({"a": aggregate})
        compiled.update(live, {}, [b"k"] * len(rows), values, [t for _, t in rows])
        (found,) = compiled.results(["k"], [live[b"k"]], 0, 10)
        wanted = expected(rows)
        wanted = pytest.approx(wanted) if isinstance(wanted, float) else wanted
        assert found == {"key": "k", "window_start": 0, "window_end": 10, "a": wanted}


@each
@settings(max_examples=30)
@given(earlier=rows_of, later=rows_of)
def test_two_groups_make_one(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], earlier: list[Row], later: list[Row]
) -> None:
    # As for sessions: the groups do not overlap in time, and the earlier one comes first.
    later = [(x, t + 100) for x, t in later]
    groups = [accumulated(aggregate, rows) for rows in (earlier, later)]
    assert result(aggregate, merged(aggregate, *groups)) == expected(earlier + later)
    assert [result(aggregate, group) for group in groups] == [expected(earlier), expected(later)], "merge changes none"


ARRIVAL_MATTERS = ("first", "last", "collect")


@pytest.mark.parametrize(
    ("aggregate", "expected"), [case for case in CASES if not any(word in case[0].name for word in ARRIVAL_MATTERS)]
)
@settings(max_examples=30)
@given(rows=rows_of, data=st.data())
def test_any_division_into_groups_makes_the_same_whole(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], rows: list[Row], data: st.DataObject
) -> None:
    numbers = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    groups = [[row for row, number in zip(rows, numbers, strict=True) if number == n] for n in range(4)]
    first, *others = [accumulated(aggregate, group) for group in groups if group]
    for other in others:
        first = merged(aggregate, first, other)
    assert result(aggregate, first) == expected(rows)


@each
@settings(max_examples=30)
@given(rows=rows_of)
def test_what_the_store_gives_back_goes_on_like_what_it_got(
    aggregate: Aggregate, expected: Callable[[list[Row]], Any], rows: list[Row]
) -> None:
    codec = RowCodec("step", {"a": aggregate})
    select = getter(aggregate.selector)
    accumulator = aggregate.first(select({"x": rows[0][0]}), rows[0][1])
    for x, t in rows[1:]:
        ((accumulator,),) = codec.decode_many(codec.encode_many([[accumulator]]))
        accumulator = aggregate.step(accumulator, select({"x": x}), t)
    ((accumulator,),) = codec.decode_many(codec.encode_many([[accumulator]]))
    assert result(aggregate, accumulator) == expected(rows)


@dataclass
class Point:
    x: Any


class Reading(msgspec.Struct):
    value: float


def heaviest(kept: Reading, value: Reading) -> Reading:
    kept.value = max(kept.value, value.value)
    return kept


KINDS = [
    agg.fold(Reading(0.0), heaviest, heaviest, kind=Reading), agg.collect(limit=2, kind=Reading),
    agg.first(kind=Reading).where(lambda value: value.value > 1.5),
    agg.first(kind=Reading), agg.last(kind=Reading), agg.collect(kind=Reading),
    agg.reduce(lambda a, b: Reading(a.value + b.value), kind=Reading),
]  # fmt: skip


@pytest.mark.parametrize("aggregate", KINDS, ids=[item.name for item in KINDS])
def test_a_kind_brings_objects_back_as_what_they_were(aggregate: Aggregate) -> None:
    codec = RowCodec("step", {"n": agg.count(), "a": aggregate})
    select = getter(aggregate.selector)
    accumulator = aggregate.step(aggregate.first(select(Reading(1.0)), 5), select(Reading(2.0)), 6)
    ((_, again),) = codec.decode_many(codec.encode_many([[2, accumulator]]))
    assert result(aggregate, again) == result(aggregate, accumulator)
    assert result(aggregate, aggregate.step(again, select(Reading(4.0)), 7)) == result(
        aggregate, aggregate.step(accumulator, select(Reading(4.0)), 7)
    )


def test_kinds_of_those_that_measure_and_those_with_parts() -> None:
    largest = agg.top(2, by="value", kind=Reading)
    both = agg.combine(lambda a, n, b: (a, n, b), a=agg.last(kind=Reading), n=agg.count(), b=largest)
    codec = RowCodec("step", {"largest": largest, "both": both, "some": both.where(lambda value: value.value > 9)})
    compiled = compile_aggregates({"largest": largest, "both": both, "some": both.where(lambda value: value.value > 9)})
    live: dict[bytes, list[Any]] = {}
    for value in (1.0, 3.0, 2.0):
        compiled.update(live, {}, [b"k"], [Reading(value)], [0])
        live = {b"k": codec.decode_many(codec.encode_many([live[b"k"]]))[0]}
    (found,) = compiled.results(["k"], [live[b"k"]], 0, 1)
    best = [Reading(3.0), Reading(2.0)]
    assert (found["largest"], found["both"], found["some"]) == (best, (Reading(2.0), 3, best), None)


def test_a_part_without_a_kind_beside_one_with_one_is_refused_too() -> None:
    both = agg.combine(lambda a, b: a, a=agg.last(kind=Reading), b=agg.first())
    row = [accumulated(both.where(lambda value: True), [(1, 0)])]
    RowCodec("spending", {"kept": both}).encode_many([[[[0, Reading(1.0)], row[0][1]]], [None]])
    with pytest.raises(TopologyError, match="'kept'"):
        RowCodec("spending", {"kept": both}).encode_many([[[[0, Reading(1.0)], [0, Reading(1.0)]]]])


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


DISTINCT = [
    ([1, 1.0, True], 1), ([0.0, -0.0, 0, False], 1), (["a", b"a", "a"], 2), ([math.nan, -math.nan, b"n"], 2),
    ([None, 0, ""], 3), ([1.5, 1.5, "1.5"], 2), ([(1, 2), [1, 2], (1, 3)], 2), ([2**63, -(2**63), 2.0**63], 2),
    ([{"a": 1}, {"a": 2}, {"a": 1}], 2), ([Reading(1.0), Reading(1.0), Reading(2.0)], 2),
]  # fmt: skip


@pytest.mark.parametrize(("values", "number"), DISTINCT)
def test_what_is_distinct_is_so_from_the_store_too(values: list[Any], number: int) -> None:
    item = agg.count_distinct("x")
    codec = RowCodec("step", {"n": item})
    compiled = compile_aggregates({"n": item})
    live: dict[bytes, list[Any]] = {}
    for value in values * 2:
        compiled.update(live, {}, [b"k"], [{"x": value}], [0])
        live = {b"k": codec.decode_many(codec.encode_many([live[b"k"]]))[0]}
    assert compiled.results(["k"], [live[b"k"]], 0, 1)[0]["n"] == number


@given(st.lists(st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()))
def test_distinct_values_are_counted_as_python_does(values: list[Any]) -> None:
    item = agg.count_distinct()
    live: dict[bytes, list[Any]] = {}
    compile_aggregates({"n": item}).update(live, {}, [b"k"] * len(values), values, [0] * len(values))
    assert not values or result(item, live[b"k"][0]) == len(set(values))


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 9)), min_size=1))
def test_the_greatest_of_equal_ones_are_the_earlier(rows: list[tuple[int, int, int]]) -> None:
    values = [{"by": by, "name": f"{name}-{i}"} for i, (by, _, name) in enumerate(rows)]
    live: dict[bytes, list[Any]] = {}
    item = agg.top(3, "name", by="by")
    compile_aggregates({"a": item}).update(live, {}, [b"k"] * len(rows), values, [t for _, t, _ in rows])
    order = sorted(range(len(rows)), key=lambda i: (-rows[i][0], rows[i][1], i))
    assert result(item, live[b"k"][0]) == [values[i]["name"] for i in order[:3]]


@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1), n=st.integers(1, 4))
def test_ties_with_the_last_are_kept_by_time_too(rows: list[tuple[int, int]], n: int) -> None:
    values = [{"by": by, "place": i} for i, (by, _) in enumerate(rows)]
    live: dict[bytes, list[Any]] = {}
    item = agg.top(n, "place", by="by", ties=True)
    compile_aggregates({"a": item}).update(live, {}, [b"k"] * len(rows), values, [t for _, t in rows])
    order = sorted(range(len(rows)), key=lambda i: (-rows[i][0], rows[i][1], i))
    least = rows[order[:n][-1]][0]
    assert result(item, live[b"k"][0]) == [i for i in order if rows[i][0] >= least]


@pytest.mark.parametrize("wrong", [math.nan, None, {"a": 1}, [1], Reading(1.0)])
def test_what_has_no_order_is_not_ranked(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"agg\.top compares"):
        getter(agg.top(3, "x").selector)({"x": wrong})


def test_large_numbers_lose_no_precision() -> None:
    item = agg.variance("x")
    rows = [(1e9 + x, 0) for x in (4, 7, 13, 16)]
    assert result(item, accumulated(item, rows)) == 30.0


def test_the_field_of_each_is_known() -> None:
    assert agg.sum("a").fields == agg.sum("a").where(positive).fields == ("a",)
    assert agg.top(2, "a", by="b").fields == ("a", "b")
    assert agg.count_distinct("a").fields == agg.count_distinct("a").then(str).fields == ("a",)
    assert agg.combine(lambda **parts: 0, x=agg.sum("a"), y=agg.count(), z=agg.top(1, "c")).fields == ("a", "c")
    assert agg.count().fields == agg.sum(lambda value: value).fields == ()


def test_a_merge_is_asked_for_where_groups_join() -> None:
    alone = agg.fold(0, lambda a, x: a + x)
    check_mergeable({"a": agg.fold(0, max, max), "b": agg.count(), "c": TOP}, "session windows")
    for item in (alone, alone.where(positive), alone.then(str), agg.combine(str, a=agg.count(), b=alone)):
        with pytest.raises(TopologyError, match=r"total= cannot be used in session windows.*fold.*merge="):
            check_mergeable({"total": item}, "session windows")


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: agg.fold(0, "x"), "agg.fold needs a step"),  # type: ignore[arg-type]
    (lambda: agg.fold(0, max, 5), "merge of agg.fold"),  # type: ignore[arg-type]
    (lambda: agg.collect("x", 0), "limit of agg.collect must be a whole number above 0"),
    (lambda: agg.top(0, "x"), "n of agg.top must be a whole number above 0"),
    (lambda: agg.top("x"), "n of agg.top"),  # type: ignore[arg-type]
    (lambda: agg.variance("x", ddof=3), "ddof of agg.variance must be 0 or 1"),
    (lambda: agg.count().where("x"), "where needs a function"),  # type: ignore[arg-type]
    (lambda: agg.count().then(5), "then needs a function"),  # type: ignore[arg-type]
    (lambda: agg.combine("x", a=agg.count()), "agg.combine needs a function"),  # type: ignore[arg-type]
    (lambda: agg.combine(max), "agg.combine needs at least one"),
    (lambda: agg.combine(max, a=agg.count), "a= of agg.combine must be an aggregate"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("make", "said"), REFUSED)
def test_what_makes_no_aggregate_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        make()
