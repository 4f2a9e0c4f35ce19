"""Sketches: close enough, the same after any division into groups or any number of trips through the store."""

import bisect
import math
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import TopologyError, agg
from headrace.operators.aggregates import Aggregate
from headrace.operators.compiled import RowCodec, RowFailedError, compile_aggregates
from headrace.operators.selectors import getter
from headrace.operators.sketches import Digest, Distinct, sketch_key
from headrace.serde.schema import schema_of

GOLDEN = Path(__file__).parent / "golden"


def accumulated(aggregate: Aggregate, values: list[Any]) -> Any:
    select = getter(aggregate.selector)
    accumulator = aggregate.first(select({"x": values[0]}), 0)
    for value in values[1:]:
        accumulator = aggregate.step(accumulator, select({"x": value}), 0)
    return accumulator


def result(aggregate: Aggregate, accumulator: Any) -> Any:
    assert aggregate.result is not None
    return aggregate.result(accumulator)


def merged(aggregate: Aggregate, groups: list[list[Any]]) -> Any:
    assert aggregate.merge is not None
    first, *others = [accumulated(aggregate, group) for group in groups if group]
    for other in others:
        first = aggregate.merge(first, other)
    return first


many = st.builds(
    lambda seed, size, kinds: [f"user-{random.Random(seed + i).randrange(kinds)}" for i in range(size)],
    st.integers(0, 99), st.integers(1, 3000), st.sampled_from([1, 10, 300, 100_000]),
)  # fmt: skip


@settings(max_examples=30)
@given(values=many, seed=st.integers(0, 9))
def test_distinct_values_are_counted_alike_in_any_order_and_division(values: list[str], seed: int) -> None:
    item = agg.approx_distinct("x")
    whole = accumulated(item, values)
    found = result(item, whole)
    assert found == pytest.approx(len(set(values)), rel=0.1)
    shuffled = random.Random(seed).sample(values, len(values))
    cut = seed * len(values) // 10
    assert result(item, merged(item, [shuffled[:cut], shuffled[cut:], values[:cut]])) == found
    assert result(item, accumulated(item, shuffled)) == found
    assert result(item, whole) == found, "asking changes nothing"
    again = Distinct.from_bytes(whole.to_bytes())
    assert result(item, again) == found


@pytest.mark.parametrize(
    ("values", "number"),
    [([1, 1.0, True], 1), (["", ""], 1), (["", None, b""], 3), ([math.nan, -math.nan], 1), ([2**70, 2**70, 2**71], 2),
     ([0.0, -0.0, 0], 1), ([b"a", "a"], 2), ([(1, 2), [1, 2], (2, 1)], 2), ([1.5, -1.5], 2), ([-1, 1], 2)],
)  # fmt: skip
def test_few_values_are_counted_exactly(values: list[Any], number: int) -> None:
    item = agg.approx_distinct("x")
    assert result(item, accumulated(item, values * 2)) == number


def test_what_is_stored_has_a_name_that_no_module_gives_it() -> None:
    assert schema_of(agg.approx_distinct("x").kind) == {"class": "hyperloglog"}
    assert schema_of(agg.quantile("x", 0.5).kind) == {"class": "t-digest"}


KEYS = ["a", "", b"a", 5, 1.5, True, None, 2**70, (1, "b"), math.nan]


def test_what_stands_for_a_value_is_the_same_in_every_process() -> None:
    code = "import tests.operators.test_sketches as t; print([t.sketch_key(k) for k in t.KEYS], end='')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == str([sketch_key(key) for key in KEYS])


numbers = st.builds(
    lambda seed, size: [random.Random(seed + i).gauss(0, 100) for i in range(size)],
    st.integers(0, 99), st.integers(1, 3000),
)  # fmt: skip
RANKS = [0.0, 0.01, 0.5, 0.9, 0.99, 1.0]


def ranks_off(values: list[float], found: list[float]) -> list[float]:
    """Return how far the rank of each estimate is from the one that was asked for."""
    order = sorted(values)
    off = []
    for rank, value in zip(RANKS, found, strict=True):
        low, high = bisect.bisect_left(order, value) / len(order), bisect.bisect_right(order, value) / len(order)
        off.append(max(low - rank, rank - high, 0.0))
    return off


@settings(max_examples=30)
@given(values=numbers, cuts=st.lists(st.integers(0, 3000), max_size=3))
def test_quantiles_are_close_in_any_division(values: list[float], cuts: list[int]) -> None:
    item = agg.quantile("x", RANKS)
    places = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    groups = [values[a:b] for a, b in pairwise(places)]
    for accumulator in (accumulated(item, values), merged(item, groups)):
        found = result(item, accumulator)
        assert max(ranks_off(values, found)) <= 0.02 + 1 / len(values)
        assert (found[0], found[-1]) == (min(values), max(values))
        assert result(item, accumulator) == found, "asking changes nothing"


@settings(max_examples=30)
@given(values=numbers, every=st.integers(1, 700))
def test_how_often_a_digest_was_stored_and_asked_says_nothing(values: list[float], every: int) -> None:
    item = agg.quantile("x", RANKS)
    accumulator = accumulated(item, values[:1])
    for i, value in enumerate(values[1:]):
        accumulator = item.step(accumulator, value, 0)
        if i % every == 0:
            result(item, accumulator)
            accumulator = Digest.from_bytes(accumulator.to_bytes())
    assert accumulator.to_bytes() == accumulated(item, values).to_bytes()


@given(values=st.lists(st.integers(-9, 9) | st.booleans() | st.floats(-9, 9), min_size=1, max_size=40))
def test_one_quantile_is_a_number(values: list[Any]) -> None:
    low, high = agg.quantile("x", 0), agg.quantile("x", 1.0)
    assert result(low, accumulated(low, values)) == min(values)
    assert result(high, accumulated(high, values)) == max(values)


def test_merging_changes_neither() -> None:
    for item in (agg.approx_distinct("x"), agg.quantile("x", 0.5)):
        one, other = accumulated(item, [1, 2, 3]), accumulated(item, list(range(600)))
        before = one.to_bytes(), other.to_bytes()
        assert item.merge is not None
        item.merge(one, other)
        assert (one.to_bytes(), other.to_bytes()) == before


SOME: dict[str, tuple[Aggregate, list[Any]]] = {
    "distinct-few": (agg.approx_distinct("x"), ["a", b"a", 5, 1.5, None]),
    "distinct-many": (agg.approx_distinct("x", precision=8), [f"user-{i}" for i in range(1000)]),
    "digest-waiting": (agg.quantile("x", 0.5), [1.5, 2, 3]),
    "digest-full": (agg.quantile("x", 0.5, compression=20), [i * 7 % 100 for i in range(600)]),
}


@pytest.mark.parametrize("name", SOME)
def test_this_version_writes_version_2_and_reads_both(name: str) -> None:
    item, values = SOME[name]
    accumulator = accumulated(item, values)
    golden = (GOLDEN / f"{name}-v2.bin").read_bytes()
    assert accumulator.to_bytes() == golden
    for stored in (golden, (GOLDEN / f"{name}-v1.bin").read_bytes()):
        again = item.kind.from_bytes(stored)
        assert result(item, again) == result(item, accumulator)
        assert again.to_bytes() == golden
    with pytest.raises(ValueError, match="version 3"):
        item.kind.from_bytes(b"\x03" + golden[1:])
    with pytest.raises(ValueError, match="version none"):
        item.kind.from_bytes(b"")


@pytest.mark.parametrize("name", SOME)
def test_a_damaged_sketch_is_refused_and_does_not_reach_the_library(name: str) -> None:
    item, _ = SOME[name]
    golden = (GOLDEN / f"{name}-v2.bin").read_bytes()
    for at in range(8 * len(golden)):
        flipped = bytearray(golden)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"version|checksum"):
            item.kind.from_bytes(bytes(flipped))
    for size in range(len(golden)):
        with pytest.raises(ValueError, match=r"version|checksum"):
            item.kind.from_bytes(golden[:size])


AGGREGATES = {
    "users": agg.approx_distinct("x"), "median": agg.quantile("x", 0.5),
    "some": agg.quantile("x", [0.0, 1.0]).where(lambda value: value["x"] > 5),
    "both": agg.combine(lambda n, a, b: n + a + b, n=agg.count(), a=agg.approx_distinct("x"), b=agg.quantile("x", 1)),
}  # fmt: skip


def test_rows_come_back_and_go_on() -> None:
    codec, compiled = RowCodec("step", AGGREGATES), compile_aggregates(AGGREGATES)
    live: dict[bytes, list[Any]] = {}
    for value in range(10):
        compiled.update(live, {}, [b"k"], [{"x": value}], [0])
        live = {b"k": codec.decode_many(codec.encode_many([live[b"k"]]))[0]}
    (found,) = compiled.results(["k"], [live[b"k"]], 0, 1)
    assert {name: found[name] for name in AGGREGATES} == {"users": 10, "median": 5.0, "some": [6.0, 9.0], "both": 29.0}
    rows = [compiled.merge(live[b"k"], live[b"k"])]
    assert compiled.results(["k"], rows, 0, 1)[0]["both"] == 39.0


@pytest.mark.parametrize("bad", [{"x": "text"}, {"x": None}, {"x": math.nan}, {}])
def test_a_row_that_fails_leaves_no_trace(bad: dict[str, Any]) -> None:
    aggregates = {"users": agg.approx_distinct("x"), "median": agg.quantile("x", 0.5)}
    compiled = compile_aggregates(aggregates)
    live: dict[bytes, list[Any]] = {}
    compiled.update(live, {}, [b"k"], [{"x": 5}], [0])
    before = [item.to_bytes() for item in live[b"k"]]
    with pytest.raises(RowFailedError):
        compiled.update(live, {}, [b"k"], [bad], [0])
    assert [item.to_bytes() for item in live[b"k"]] == before


@pytest.mark.parametrize(
    ("make", "said"),
    [(lambda: agg.approx_distinct("x", precision=30), "precision"), (lambda: agg.quantile("x", 1.5), "q of"),
     (lambda: agg.quantile("x", []), "q of"), (lambda: agg.quantile("x", [0.5, True]), "q of"),
     (lambda: agg.quantile("x", 0.5, compression=5), "compression")],
)  # fmt: skip
def test_what_makes_no_sketch_is_refused(make: Any, said: str) -> None:
    with pytest.raises(TopologyError, match=said):
        make()


def test_without_the_library_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['datasketches'] = None\n"
        "from headrace import agg, TopologyError\n"
        "try: agg.approx_distinct('x')\n"
        "except TopologyError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert 'pip install "headrace[sketches]"' in said
