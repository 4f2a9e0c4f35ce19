"""The generated loop: what it reads, what it moves, and what a row that fails leaves behind."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest

from headrace import agg
from headrace.operators.compiled import Accumulators, RowFailedError, compile_aggregates

Live = dict[bytes, Accumulators]

ALL = {
    "n": agg.count(), "total": agg.sum("x"), "low": agg.min("x"), "high": agg.max("x"), "mean": agg.mean("x"),
    "first": agg.first("x"), "last": agg.last("x"), "all": agg.collect("x"), "every": agg.collect("x"),
    "most": agg.reduce(max, "x"), "kinds": agg.count_distinct("x"), "some": agg.collect("x", 2),
    "spread": agg.variance("x"), "top": agg.top(2, "x"), "folded": agg.fold(0, lambda a, x: a + x, selector="x"),
    "odd": agg.sum("x").where(lambda value: value["x"] % 2),
    "both": agg.combine(lambda each, n: n, each=agg.collect("x"), n=agg.sum("x")),
}  # fmt: skip


def run(aggregates: dict[str, Any], values: list[Any], live: Live | None = None, clean: Live | None = None) -> Live:
    live = {} if live is None else live
    compile_aggregates(aggregates).update(
        live, {} if clean is None else clean, [b"k"] * len(values), values, range(len(values))
    )
    return live


@pytest.mark.parametrize("field", ["x", "class", "from", "with space", "a.b", "ünïcode", "'quoted'", "{braces}", "1st"])
def test_any_field_of_mappings_and_objects(field: str) -> None:
    assert run({"t": agg.sum(field)}, [{field: 1}, {field: 2}]) == {b"k": [3]}
    objects = [SimpleNamespace(**{field: 1}), SimpleNamespace(**{field: 2})]
    assert run({"t": agg.sum(field)}, objects) == {b"k": [3]}


def test_a_function_reads_what_it_wants() -> None:
    assert run({"t": agg.sum(lambda v: v["a"] * v["b"]), "n": agg.count()}, [{"a": 2, "b": 3}] * 2) == {b"k": [12, 2]}


def test_keys_keep_apart_and_clean_rows_move_to_live() -> None:
    live: Live = {b"a": [1]}
    clean: Live = {b"b": [10], b"c": [20]}
    compile_aggregates({"n": agg.count()}).update(live, clean, [b"a", b"b", b"d"], [1, 1, 1], [0, 0, 0])
    assert live == {b"a": [2], b"b": [11], b"d": [1]}
    assert clean == {b"c": [20]}


@pytest.mark.parametrize("bad", [{}, {"x": "text"}, {"x": None}, None])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_row_that_fails_leaves_no_trace(bad: Any, place: int) -> None:
    good = [{"x": 3}, {"x": 5}]
    expected = run(ALL, good[:place])
    live: Live = {}
    with pytest.raises(RowFailedError) as failed:
        run(ALL, [*good[:place], bad, *good[place:]], live)
    assert failed.value.index == place
    assert isinstance(failed.value.__cause__, KeyError | TypeError | AttributeError)
    assert live == expected


@pytest.mark.parametrize("name", list(ALL)[1:])
def test_even_if_only_one_of_many_fails(name: str) -> None:
    picky = agg.reduce(lambda a, b: a + b, "y")
    live = run({**ALL, "picky": picky}, [{"x": 1, "y": 1}])
    before = copy.deepcopy(live)
    with pytest.raises(RowFailedError) as failed:
        run(
            {name: ALL[name], "picky": picky}, [{"x": 1, "y": "text"}], {b"k": [before[b"k"][list(ALL).index(name)], 1]}
        )
    assert failed.value.index == 0
    compiled = compile_aggregates({**ALL, "picky": picky})
    with pytest.raises(RowFailedError):
        compiled.update(live, {}, [b"k"], [{"x": 2, "y": "text"}], [9])
    assert live == before


@pytest.mark.parametrize("aggregate", [agg.sum("x"), agg.mean("x"), agg.min("x"), agg.max("x")])
def test_the_first_of_a_group_fails_where_the_second_would(aggregate: Any) -> None:
    for bad in (None, {"nested": 1}):
        with pytest.raises(RowFailedError):
            run({"a": aggregate}, [{"x": bad}])


def test_nothing_is_nothing() -> None:
    assert run(ALL, []) == {}


def test_a_traceback_shows_the_generated_line() -> None:
    with pytest.raises(RowFailedError) as failed:
        run({"t": agg.sum("x")}, [{}])
    import traceback

    assert "value['x']" in "".join(traceback.format_exception(failed.value))
