"""Every aggregate in windows and tables: as the naive model, however records are cut, cached and crashed."""

import statistics
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import Aggregate, Record, Topology, TopologyError, agg, session, sliding, tumbling
from headrace.testing.driver import TopologyTestDriver

Rows = list[dict[str, Any]]


def odd(value: dict[str, Any]) -> bool:
    return bool(value["x"] % 2)


def add(kept: list[int], value: dict[str, Any]) -> list[int]:
    kept.append(value["x"])
    return sorted(kept)


AGGREGATES: dict[str, tuple[Aggregate, Callable[[list[int]], Any]]] = {
    "n": (agg.count(), len),
    "odd": (agg.count().where(odd), lambda xs: len([x for x in xs if x % 2])),
    "largest_odd": (agg.max("x").where(odd), lambda xs: max((x for x in xs if x % 2), default=None)),
    "kinds": (agg.count_distinct("x"), lambda xs: len(set(xs))),
    "about": (agg.approx_distinct("x"), lambda xs: len(set(xs))),
    "variance": (agg.variance("x", ddof=0), statistics.pvariance),
    "top": (agg.top(2, "x"), lambda xs: sorted(xs, reverse=True)[:2]),
    "ends": (agg.quantile("x", [0, 1]), lambda xs: [min(xs), max(xs)]),
    "all": (agg.fold(list, add, lambda a, b: sorted(a + b)), sorted),
    "each": (agg.combine(lambda total, kinds: total / kinds, total=agg.sum("x"), kinds=agg.count_distinct("x")),
             lambda xs: sum(xs) / len(set(xs))),
    "doubled": (agg.sum("x").then(lambda total: total * 2), lambda xs: sum(xs) * 2),
}  # fmt: skip
ITEMS = {name: item for name, (item, _) in AGGREGATES.items()}


def topology() -> Topology:
    made = Topology("t")
    events = made.stream("events", keyed_by="key", time="at", out_of_orderness="5s")
    events.window(tumbling("10s")).aggregate(**ITEMS).to("windows")
    events.window(session("3s")).aggregate(**ITEMS).to("sessions")
    events.aggregate(**ITEMS).to("table")
    return made


def expected(xs: list[int]) -> dict[str, Any]:
    return {
        name: pytest.approx(model(xs)) if name == "variance" else model(xs) for name, (_, model) in AGGREGATES.items()
    }


events = st.lists(
    st.fixed_dictionaries({"key": st.sampled_from("ab"), "x": st.integers(0, 9), "at": st.integers(0, 30_000)}),
    min_size=1, max_size=20,
)  # fmt: skip
TOPICS = ("windows", "sessions", "table")


def run(rows: Rows, crash_at: int | None = None, **options: Any) -> dict[str, list[Any]]:
    driver = TopologyTestDriver(topology(), **options)
    for i, row in enumerate(rows):
        if i == crash_at:
            driver.checkpoint()
        driver.send("events", row)
    if crash_at is not None:
        driver.crash()
        driver.restart()
    driver.end_input()
    return {topic: once(driver.read(topic)) for topic in TOPICS}


def once(records: list[Record]) -> list[Any]:
    """Return keys and values without those that were written again after a crash, which must be the same."""
    seen: dict[bytes, Any] = {}
    for record in records:
        found = (record.key, record.value)
        assert seen.setdefault(dict(record.headers)["headrace-id"], found) == found
    return list(seen.values())


@settings(max_examples=25, deadline=None)
@given(rows=events, crash_at=st.integers(0, 20))
def test_steps_agree_with_the_model_whatever_happens(rows: Rows, crash_at: int) -> None:
    rows = sorted(rows, key=lambda row: row["at"])
    found = run(rows)
    wanted: dict[Any, list[int]] = {}
    for row in rows:
        wanted.setdefault((row["key"], row["at"] // 10_000 * 10_000), []).append(row["x"])
    results = {
        (value["key"], value["window_start"]): {name: value[name] for name in AGGREGATES}
        for _, value in found["windows"]
    }
    assert results == {place: expected(xs) for place, xs in wanted.items()}
    last = {value["key"]: {name: value[name] for name in AGGREGATES} for _, value in found["table"]}
    assert last == {key: expected([row["x"] for row in rows if row["key"] == key]) for key in last}
    assert run(rows, cache_bytes=0, batch_records=3) == found
    assert run(rows, crash_at=crash_at, batch_records=7) == found


def test_a_merge_that_is_missing_is_asked_for_where_it_is_needed() -> None:
    stream = Topology("t").stream("events", keyed_by="key")
    alone = agg.fold(0, lambda kept, value: kept + 1)
    stream.window(tumbling("10s")).aggregate(n=alone)
    for windows in (session("3s"), sliding("3s")):
        with pytest.raises(
            TopologyError, match=r"n= cannot be used in (session|sliding) windows .*test_aggregates_in_"
        ):
            stream.window(windows).aggregate(n=alone)
