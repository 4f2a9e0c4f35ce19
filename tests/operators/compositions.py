"""Random small topologies, and runs of them.

A topology is drawn as a list of ``Step``: what it does, which streams that are there already it takes, and two numbers
that choose among its variants. Every stream there is holds dicts with ``k``, the key, and ``n``, a number, and is
written to a topic of its own, so that each is compared and any step can follow any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple
from zlib import crc32

from hypothesis import strategies as st

from headrace import (
    Context,
    KeyedStream,
    ListState,
    MapState,
    Topology,
    ValueState,
    agg,
    counting,
    every,
    hopping,
    session,
    sliding,
    tumbling,
    when,
)
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.plan import at_least_once

Value = dict[str, Any]
Keyed = KeyedStream[Any]

DISORDER = 20
"""Out-of-orderness of every source, in units."""


class Step(NamedTuple):
    """What a step does, to which streams, and how."""

    kind: str
    left: int = 0
    right: int = 0
    way: int = 0
    size: int = 0


@dataclass(frozen=True)
class Recipe:
    """How to make a topology."""

    steps: tuple[Step, ...]
    unit: int = 1
    """Milliseconds in a unit of time."""
    on_error: Any = "skip"
    sources: int = 1
    fails: bool = False
    """Whether functions fail on some values."""
    certain: bool = False
    """Whether asynchronous calls are replaced by plain ones, which the plan knows to be repeatable."""


@dataclass
class Maker:
    """Makes one topology of a recipe."""

    recipe: Recipe
    streams: list[Keyed] = field(default_factory=list)
    number: int = 0

    def ms(self, units: int) -> timedelta:
        return timedelta(milliseconds=units * self.recipe.unit)

    def name(self, kind: str) -> str:
        return f"{kind}-{self.number}"

    def check(self, n: int) -> None:
        if self.recipe.fails and n % 5 == 3:
            raise ValueError("this one fails")


def mixed(*parts: Any) -> int:
    """Return a number that follows from all of ``parts`` and their order."""
    return crc32(repr(parts).encode()) % 9973


class Uneven:
    """Windows of a user's own: they overlap, differ in length, and leave times uncovered."""

    name = "uneven"

    def __init__(self, unit: int) -> None:
        self.unit = unit

    def windows(self, timestamp: int) -> list[tuple[int, int]]:
        base, at = divmod(timestamp // self.unit, 40)
        spans = [(0, 12), (8, 30), (8, 20)]
        return [
            ((base * 40 + start) * self.unit, (base * 40 + end) * self.unit)
            for start, end in spans
            if start <= at < end
        ]

    def shape(self) -> dict[str, Any]:
        return {"unit": self.unit}


def _map(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    def renumbered(value: Value) -> Value:
        maker.check(value["n"])
        return {"k": value["k"], "n": value["n"] * 3 + step.size}

    return [left.map(renumbered, name=maker.name("map"))]


def _filter(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    def kept(value: Value) -> bool:
        maker.check(value["n"])
        return bool(value["n"] % 3 != step.size % 3)

    return [left.filter(kept, name=maker.name("filter"))]


def _flat_map(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    def several(value: Value) -> list[Value]:
        maker.check(value["n"])
        return [{"k": value["k"], "n": value["n"] + i} for i in range(value["n"] % 3)]

    return [left.flat_map(several, name=maker.name("flat_map"))]


def _branch(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    parts = left.branch(name=maker.name("branch"), odd=lambda v: v["n"] % 2, rest=lambda v: v["n"] % 3)
    return [parts["odd"], parts["rest"]]


def _merge(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    return [left.merge(right, name=maker.name("merge"))]


def _async_map(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    if maker.recipe.certain:
        return _map(maker, step, left, right)

    async def renumbered(value: Value) -> Value:
        maker.check(value["n"])
        return {"k": value["k"], "n": value["n"] * 3 + step.size}

    return [left.map_async(renumbered, order=("key", "input")[step.way % 2], name=maker.name("map"))]  # type: ignore[arg-type]


def _deduplicate(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    def id_of(value: Value) -> int:
        maker.check(value["n"])
        return int(value["n"] % 4)

    return [left.deduplicate(id_of, within=maker.ms((5, 15, 40)[step.size % 3]), name=maker.name("deduplicate"))]


_EMISSIONS = 4


def _window(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    ms, size = maker.ms, (10, 20, 35)[step.size % 3]
    kinds: list[Any] = [
        tumbling(ms(size)), hopping(ms(size), ms(size // 3 + 1)), session(ms(size // 3 + 2)), Uneven(maker.recipe.unit),
        sliding(ms(size)), counting(step.size % 3 + 1),
    ]  # fmt: skip
    kind = step.way % 6
    emission: Any = "close"
    if kind < 4:
        emission = ("close", "update", every(ms(7)), when(lambda r: r["n"] >= 2))[step.way // 6 % _EMISSIONS]
    lateness = ms((0, 6, 25)[step.way // 24 % 3]) if kind != 5 else "0s"

    def joined(a: int, b: int) -> int:
        maker.check(b)
        return mixed(min(a, b), max(a, b))

    found = left.window(kinds[kind], lateness=lateness).aggregate(
        emit=emission, name=maker.name("window"), n=agg.count(), all=agg.collect("n"), mix=agg.reduce(joined, "n")
    )

    def as_value(result: Value) -> Value:
        rest = sorted(item for item in result.items() if item[0] != "mix")
        return {"k": result["key"], "n": mixed(rest)}

    results: Keyed = found.map(as_value, name=maker.name("result"))
    if kind == 5:
        return [results]
    return [results, found.late]


def _in_order(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    return [left.in_order(name=maker.name("in_order"))]


def _process(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    ttl = _ttl(maker, step)

    def counted(value: Value, context: Context, seen: ValueState[int]) -> Iterator[Value]:
        seen.value += 1
        maker.check(value["n"])
        yield {"k": context.key, "n": mixed(value["n"], seen.value)}

    def listed(value: Value, context: Context, last: ListState[int]) -> Iterator[Value]:
        last.append(value["n"])
        maker.check(value["n"])
        if len(last) >= 3:
            yield {"k": context.key, "n": mixed(list(last))}
            last.clear()

    def mapped(value: Value, context: Context, seen: MapState[int, int]) -> Iterator[Value]:
        seen[value["n"] % 3] = seen.get(value["n"] % 3, 0) + 1
        maker.check(value["n"])
        yield {"k": context.key, "n": mixed(sorted(seen.items()))}

    name = maker.name("process")
    way = step.way % 5
    if way == 0:
        return [left.process(counted, name=name, seen=ValueState(int, default=0, ttl=ttl))]
    if way == 1:
        return [left.process(listed, name=name, last=ListState(int, ttl=ttl))]
    if way == 2:
        return [left.process(mapped, name=name, seen=MapState(int, int, ttl=ttl))]
    return _timers(maker, step, left)


def _ttl(maker: Maker, step: Step) -> timedelta | None:
    return (None, maker.ms(9), maker.ms(25))[step.size // 3 % 3]


def _timers(maker: Maker, step: Step, left: Keyed) -> list[Keyed]:
    ms, size = maker.ms, (4, 12, 30)[step.size % 3]
    length = size * maker.recipe.unit

    def timed(value: Value, context: Context, seen: ListState[int]) -> Iterator[Value]:
        seen.append(value["n"])
        maker.check(value["n"])
        if step.size // 9 % 3 == 0:
            context.set_timer("t", after=ms(size))
        elif step.size // 9 % 3 == 1:
            context.set_timer(f"t{value['n'] % 2}", at=max(0, context.timestamp + (value["n"] % 3 - 1) * length))
        elif not context.timers:
            context.set_timer("t", at=(context.timestamp // length + 1) * length)
        else:
            context.cancel_timer("t")
        yield {"k": context.key, "n": mixed(value["n"], len(seen), context.watermark)}

    def on_timer(name: str, context: Context, seen: ListState[int]) -> Iterator[Value]:
        found = list(seen)
        seen.clear()
        if name != "again" and len(found) > 1:
            context.set_timer("again", after=ms(5))
        maker.check(len(found))
        yield {"k": context.key, "n": mixed(name, found, context.watermark)}

    states = {"seen": ListState(int, ttl=_ttl(maker, step))}
    return [left.process(timed, on_timer=on_timer, name=maker.name("process"), **states)]


def _combine(maker: Maker) -> Callable[[Any, Any], Value]:
    def combine(left: Any, right: Any) -> Value:
        a, b = left and left["n"], right and right["n"]
        maker.check(mixed(a, b))
        some = left or right
        return {"k": some.get("k") or some["key"], "n": mixed(a, b)}

    return combine


def _join(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    how: Any = ("inner", "left", "right", "outer")[step.way % 4]
    within = (maker.ms((3, 10, 0)[step.size % 3]), maker.ms((0, 5, 18)[step.size // 3 % 3]))
    lateness = maker.ms((0, 8)[step.way // 4 % 2])
    found = left.join(right, _combine(maker), within=within, how=how, lateness=lateness, name=maker.name("join"))
    return [found, found.late, found.late_right]


def _as_of(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    within = (None, maker.ms(12))[step.size % 2]
    how: Any = ("left", "inner")[step.way % 2]
    return [left.as_of(right, _combine(maker), within=within, how=how, name=maker.name("as_of"))]


def _some(changes: Keyed, name: str) -> Keyed:
    def as_value(row: Value) -> Value:
        return {"k": row.get("k") or row["key"], "n": row["n"] % 9973}

    return changes.filter(lambda row: row is not None, name=f"{name}-rows").map(as_value, name=f"{name}-values")


def _table(maker: Maker, stream: Keyed, way: int, name: str) -> Any:
    def reduced(a: Value, b: Value) -> Value | None:
        maker.check(b["n"])
        return None if b["n"] % 4 == 3 else {"k": a["k"], "n": mixed(a["n"], b["n"])}

    if way % 4 == 0:
        return stream.to_table()
    if way % 4 == 1:
        return stream.aggregate(name=name, n=agg.sum("n"), last=agg.last("n"))
    if way % 4 == 2:
        return stream.reduce(reduced, name=name)
    return stream.to_table().filter(lambda row: row["n"] % 3, name=name)


def _running(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    name = maker.name("running")
    return [_some(_table(maker, left, step.way, name).changes(), name)]


def _table_join(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    how: Any = ("inner", "left", "outer")[step.way % 3]
    name = maker.name("tables")
    one = _table(maker, left, step.size, f"{name}-one")
    other = _table(maker, right, step.size // 4, f"{name}-other")
    return [_some(one.join(other, _combine(maker), how=how, name=name).changes(), name)]


def _lookup(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    how: Any = ("inner", "left")[step.way % 2]
    match: Any = ("as-of", "latest")[step.way // 2 % 2]
    name = maker.name("lookup")
    table = _table(maker, right, step.size, f"{name}-table")
    return [left.join(table, _combine(maker), how=how, match=match, name=name)]


def _foreign(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    how: Any = ("inner", "left")[step.way % 2]
    name = maker.name("foreign")
    one, other = left.to_table(), _table(maker, right, step.size, f"{name}-other")
    on = lambda row: "abc"[row["n"] % 3]  # noqa: E731
    return [_some(one.join(other, _combine(maker), how=how, on=on, name=name).changes(), name)]


def _key_by(maker: Maker, step: Step, left: Keyed, right: Keyed) -> list[Keyed]:
    def key_of(value: Value) -> str:
        maker.check(value["n"])
        return "abcd"[value["n"] % 4]

    moved = left.key_by(key_of, key=str, name=maker.name("by"))
    return [moved.map(lambda v: {"k": "abcd"[v["n"] % 4], "n": v["n"]}, name=maker.name("moved"))]


Make = Callable[[Maker, Step, Keyed, Keyed], list[Keyed]]

LOCAL: dict[str, Make] = {
    "map": _map, "filter": _filter, "flat_map": _flat_map, "branch": _branch, "merge": _merge,
    "async_map": _async_map, "deduplicate": _deduplicate, "window": _window, "in_order": _in_order,
    "process": _process, "join": _join, "as_of": _as_of, "running": _running, "table_join": _table_join,
    "lookup": _lookup,
}  # fmt: skip
"""Steps that stay in one task."""

MOVING: dict[str, Make] = {"key_by": _key_by, "foreign": _foreign}
"""Steps with internal topics."""


def topology_of(recipe: Recipe) -> Topology:
    """Make the topology; the stream that is number ``i`` is written to ``out-i``."""
    topology = Topology("composed", on_error=recipe.on_error)
    maker = Maker(recipe)
    disorder = maker.ms(DISORDER)
    for number in range(recipe.sources):
        maker.streams.append(
            topology.stream(
                f"in-{number}", keyed_by="k", time="at", out_of_orderness=disorder, idle_after=timedelta(seconds=2)
            )
        )
    for step in recipe.steps:
        maker.number += 1
        streams = maker.streams
        make = (LOCAL | MOVING)[step.kind]
        # numbers count back, so that a step reads the one before it unless it says otherwise
        streams += make(maker, step, streams[-1 - step.left % len(streams)], streams[-1 - step.right % len(streams)])
    for number, stream in enumerate(maker.streams):
        if number >= recipe.sources:
            stream.to(f"out-{number}", name=f"sink-{number}")
    return topology


class Row(NamedTuple):
    """What was written."""

    partition: int
    timestamp: int
    key: Any
    value: Any
    id: bytes


Outputs = dict[str, list[Row]]


def outputs_of(driver: TopologyTestDriver) -> Outputs:
    """Return all that was written, by topic."""
    return {topic: [_row(record) for record in driver.read(topic)] for topic in driver.outputs}


def _row(record: Any) -> Row:
    header = dict(record.headers)["headrace-id"]
    return Row(record.partition, record.timestamp, record.key, record.value, header)


@dataclass(frozen=True)
class Scenario:
    """What is sent, in portions, and how much time passes after each, in units."""

    portions: tuple[tuple[tuple[int, str, int], ...], ...]
    """Records: which source, key, and time in units; each has its place as its number."""
    pauses: tuple[int, ...] = ()
    """Seconds, by portion."""

    def run(self, driver: TopologyTestDriver, recipe: Recipe) -> None:
        number = 0
        for place, portion in enumerate(self.portions):
            for source in range(recipe.sources):
                values = []
                for of, key, at in portion:
                    if of % recipe.sources == source:
                        values.append({"k": key, "n": number, "at": (at + 100) * recipe.unit})
                        number += 1
                if values:
                    driver.send_many(f"in-{source}", values)
            if place < len(self.pauses) and self.pauses[place]:
                driver.advance_time(timedelta(seconds=self.pauses[place]))
        driver.end_input()


def result_of(recipe: Recipe, scenario: Scenario, **options: Any) -> Outputs:
    """Run a topology to the end and return what it wrote."""
    driver = TopologyTestDriver(topology_of(recipe), **options)
    scenario.run(driver, recipe)
    return outputs_of(driver)


def weaknesses(recipe: Recipe, **options: Any) -> dict[str, str | None]:
    """Return by topic why it is not deterministic, as if calls always had the same answers; None if it is."""
    certain = Recipe(recipe.steps, recipe.unit, "skip", recipe.sources, certain=True)
    plan = TopologyTestDriver(topology_of(certain), **options).plan
    weak = at_least_once(plan)
    return {sink.topic: weak.get(sink.name) for sink in plan.sinks()}


def contents(rows: Iterable[Row]) -> Counter[str]:
    return Counter(repr((row.timestamp, row.key, row.value)) for row in rows)


def unique(rows: Iterable[Row]) -> dict[tuple[int, bytes], Row]:
    """Return rows by id; of those with one id all must be the same."""
    found: dict[tuple[int, bytes], Row] = {}
    for row in rows:
        first = found.setdefault((row.partition, row.id), row)
        assert first == row, f"written with one id: {first} and {row}"
    return found


_numbers = st.integers(0, 71)


def recipes(
    kinds: Sequence[str], *, least: int = 1, most: int = 5, sources: int = 1, policies: Sequence[Any] = ("skip",)
) -> st.SearchStrategy[Recipe]:
    """Draw topologies of ``least`` to ``most`` steps."""
    step = st.builds(Step, st.sampled_from(list(kinds)), st.integers(0, 4), st.integers(0, 4), _numbers, _numbers)
    return st.builds(
        Recipe,
        st.lists(step, min_size=least, max_size=most).map(tuple),
        st.sampled_from([1, 100]),
        st.sampled_from(list(policies)),
        st.just(sources),
        st.booleans(),
    )


_record = st.tuples(st.integers(0, 1), st.sampled_from("abc"), st.integers(0, 120))


@st.composite
def scenarios(draw: st.DrawFn, *, pauses: bool = True, orderly: bool = False) -> Scenario:
    """Draw inputs: in any order, or in one in which none is later than it may be."""
    records = draw(st.lists(_record, max_size=30))
    if orderly:
        records = [r for _, r in sorted(enumerate(records), key=lambda pair: pair[1][2] // DISORDER)]
    elif draw(st.booleans()):
        records = [r for _, r in sorted(enumerate(records), key=lambda pair: pair[1][2] // 35)]
    sizes = draw(st.lists(st.integers(1, 9), max_size=4))
    portions, rest = [], records
    for size in sizes:
        portions.append(tuple(rest[:size]))
        rest = rest[size:]
    portions.append(tuple(rest))
    waits = draw(st.lists(st.sampled_from([0, 0, 1, 3, 4, 9]), max_size=5)) if pauses else []
    return Scenario(tuple(portions), tuple(waits))
