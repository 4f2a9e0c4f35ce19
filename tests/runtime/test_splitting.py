"""State that is split by key: what comes out is what would have come out without it, for every kind of step."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from zlib import crc32

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import (
    Context,
    InvalidError,
    Process,
    Topology,
    ValueState,
    agg,
    counting,
    every,
    session,
    sliding,
    tumbling,
)
from headrace.operators.layouts import layouts
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.splitting import Splitting, merged_shapes, split
from headrace.runtime.tasks.meta import META_KEY, read_meta
from headrace.runtime.tasks.task import Task
from headrace.state.memory import MemoryStore
from headrace.topology.change import Widths
from headrace.topology.graph import Step
from headrace.topology.plan import Plan, plan

Build = Callable[[Topology], Any]
Row = tuple[str, str, int, int]
"""Topic, key, number, time."""
Found = Counter[tuple[str, bytes | None, bytes | None]]

TOPICS = ("in", "other", "rows")


def planned(build: Build, partitions: int) -> Plan:
    topology = Topology("t")
    build(topology)
    return plan(topology.graph(), {**dict.fromkeys(TOPICS, partitions), "whole": 2})


class Tasks:
    """The tasks of the one sub-topology, each with its store."""

    def __init__(self, made: Plan, stores: Mapping[int, MemoryStore], found: Found, whole: list[Row]) -> None:
        self.plan = made
        self.sub = made.subtopologies[0]
        self.stores = stores
        self.found = found
        self.whole = whole
        """What every task has to read."""
        counts = {sink.topic: 1 for sink in made.sinks()}
        starts = {p: 0 for task in self.sub.tasks() for p in self.sub.reads(task.partition)}
        self.tasks = {
            task.partition: Task(
                made, self.sub, task, stores[task.partition], partitions=counts, cache_bytes=1 << 20, starts=starts
            )
            for task in self.sub.tasks()
        }

    def take(self, appends: Sequence[Any]) -> None:
        for partition, batch in appends:
            self.found.update((partition.topic, k, v) for k, v in zip(batch.keys, batch.values.split(), strict=True))

    def feed(self, rows: Sequence[Row]) -> None:
        for row in rows:
            if row[0] == "whole":
                self.whole.append(row)
                for task in self.tasks.values():
                    self.give(task, TopicPartition("whole", crc32(row[1].encode()) % 2), row)
            else:
                goal = crc32(row[1].encode()) % self.sub.partitions
                self.give(self.tasks[goal], TopicPartition(row[0], goal), row)

    def give(self, task: Task, partition: TopicPartition, row: Row) -> None:
        _, key, number, time = row
        value = msgspec.msgpack.encode({"k": key, "n": number, "at": time})
        offset = task.positions[partition]
        batch = RecordBatch([time], [key.encode()], JoinedBytes.of([value]), offsets=range(offset, offset + 1))
        self.take(task.step(partition, batch))

    def tick(self, now_ms: int) -> None:
        for task in self.tasks.values():
            self.take(task.tick(now_ms, dict.fromkeys(task.positions, False)))

    def finish(self) -> None:
        for task in self.tasks.values():
            task.finish(10**6)
            self.take(task.settle())

    def rescaled(self, build: Build, partitions: int) -> Tasks:
        for task in self.tasks.values():
            task.flush()
        new = planned(build, partitions)
        sub = new.subtopologies[0]
        moved = {
            node.name: Widths(self.sub.partitions, partitions)
            for node in sub.nodes
            if isinstance(node, Step) and node.spec.stateful and not any(port.node == "whole" for port in node.inputs)
        }
        metas = {t.partition: read_meta(self.stores[t.partition].get(META_KEY), t) for t in self.sub.tasks()}
        starts = {p: 0 for task in sub.tasks() for p in sub.reads(task.partition)}
        splitting = Splitting(new, sub, moved, metas, TOPICS, starts)
        goals = {partition: MemoryStore() for partition in range(partitions)}
        split(splitting, self.stores, goals)
        tasks = Tasks(new, goals, self.found, self.whole)
        for number in range(self.sub.partitions, partitions):
            for row in self.whole:
                tasks.give(tasks.tasks[number], TopicPartition("whole", crc32(row[1].encode()) % 2), row)
        return tasks


def run(build: Build, parts: Sequence[tuple[int, Sequence[Row]]], clock: Sequence[int] = (0,)) -> Found:
    """Return what comes out if records are read in parts, each by so many tasks."""
    tasks = None
    for (count, rows), now_ms in zip(parts, [*clock, *[clock[-1]] * len(parts)], strict=False):
        if tasks is None:
            made = planned(build, count)
            tasks = Tasks(made, {n: MemoryStore() for n in range(count)}, Counter(), [])
        elif count != tasks.sub.partitions:
            tasks = tasks.rescaled(build, count)
        tasks.tick(now_ms)
        tasks.feed(rows)
    assert tasks is not None
    tasks.tick(clock[-1])
    tasks.finish()
    return tasks.found


def made_rows(seed: int, count: int, topics: Sequence[str]) -> list[Row]:
    """Return records in about the order of their times; those of ``whole`` all come first."""
    chance = random.Random(seed)
    rows = [
        (topic, f"key-{chance.randrange(7)}", chance.randrange(12), 400 * i + chance.randrange(1500))
        for i in range(count)
        for topic in [chance.choice(topics)]
    ]
    return sorted(rows, key=lambda row: row[0] != "whole")


class Remind(Process[dict[str, Any], dict[str, Any]]):
    """Counts, and says so some time later by both clocks."""

    n = ValueState(int)

    def on_record(self, record: dict[str, Any], context: Context) -> None:
        self.n.value = (self.n.value or 0) + 1
        if record["n"] % 3:
            context.set_timer("event", at=context.timestamp + 50_000 + record["n"])
        else:
            context.set_clock_timer("clock", after="20s")

    def on_timer(self, name: str, context: Context) -> list[dict[str, Any]]:
        return [{"name": name, "n": self.n.value}]

    def on_clock_timer(self, name: str, context: Context) -> list[dict[str, Any]]:
        return [{"name": name, "n": self.n.value}]


def both(left: Any, right: Any) -> dict[str, Any]:
    return {"left": left, "right": right}


def source(topology: Topology, topic: str = "in") -> Any:
    return topology.stream(topic, keyed_by="k", time="at", out_of_orderness="2s")


def windowed(window: Any, **options: Any) -> Build:
    def build(topology: Topology) -> None:
        results = source(topology).window(window).aggregate(n=agg.count(), sum=agg.sum("n"), name="w", **options)
        (results.filter(lambda value: value.get("final", True))).to("out")

    return build


def joined(how: str) -> Build:
    def build(topology: Topology) -> None:
        source(topology).join(source(topology, "other"), both, within="3s", how=how, name="j").to("out")

    return build


def tables(topology: Topology) -> None:
    table = topology.table("rows")
    source(topology).join(table, both, how="left", match="latest", name="latest").to("out-latest")
    table.join(source(topology, "other").to_table(), both, how="outer", name="both").changes().to("out-both")


def as_of(topology: Topology) -> None:
    source(topology).as_of(source(topology, "other"), both, within="6s", how="left", name="a").to("out")


def changes(topology: Topology) -> None:
    table = topology.table("rows", time="at", out_of_orderness="2s")
    source(topology).join(table, both, how="left", name="a").to("out")


def in_order(topology: Topology) -> None:
    source(topology).in_order(name="o").to("out")


def lookups(topology: Topology) -> None:
    stream = source(topology).join(topology.global_table("whole", name="whole"), both, on="k", how="left", name="g")
    stream.to("out")


def plain(topology: Topology) -> None:
    once = source(topology).deduplicate(by="n", within="8s", name="once")
    once.to("out-once")
    once.window(tumbling("5s")).aggregate(n=agg.count(), name="w").to("out-w")
    once.aggregate(n=agg.count(), name="totals").to("out-totals")
    once.reduce(lambda a, b: {**a, "n": a["n"] + b["n"]}, name="sums").to("out-sums")


KINDS: dict[str, tuple[Build, tuple[str, ...]]] = {
    "plain": (plain, ("in",)),
    "every": (windowed(tumbling("5s"), emit=every("1s")), ("in",)),
    "update": (windowed(tumbling("5s"), emit="update"), ("in",)),
    "session": (windowed(session("2s")), ("in",)),
    "session every": (windowed(session("2s"), emit=every("1s")), ("in",)),
    "sliding": (windowed(sliding("4s")), ("in",)),
    "counting": (windowed(counting(3)), ("in",)),
    "process": (lambda topology: source(topology).process(Remind, name="p").to("out"), ("in",)),
    "inner": (joined("inner"), ("in", "other")),
    "left": (joined("left"), ("in", "other")),
    "outer": (joined("outer"), ("in", "other")),
    "tables": (tables, ("in", "other", "rows")),
    "as-of": (as_of, ("in", "other")),
    "changes": (changes, ("in", "rows")),
    "in order": (in_order, ("in",)),
    "lookups": (lookups, ("in", "whole")),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(0, 4), st.integers(0, 40))
def test_results_are_those_of_a_run_that_nobody_disturbed(
    kind: str, seed: int, before: int, more: int, cut: int
) -> None:
    build, topics = KINDS[kind]
    rows = made_rows(seed, 40, topics)
    clock = (0, 1000, 30_000)
    disturbed = run(build, [(before, rows[:cut]), (before + more, rows[cut:])], clock)
    assert disturbed == run(build, [(before, rows[:cut]), (before, rows[cut:])], clock)


def test_every_part_of_every_kind_has_a_layout() -> None:
    for build, _ in KINDS.values():
        made = planned(build, 2)
        for node in made.graph.nodes:
            if isinstance(node, Step) and node.spec.stateful:
                found = layouts(node.spec)
                assert found is not None
                stores = {0: MemoryStore(), 1: MemoryStore()}
                parts = {
                    name.partition("/")[2]
                    for name in Tasks(made, stores, Counter(), []).tasks[0]._store_ids
                    if name.partition("/")[0] == node.name
                }
                assert parts <= set(found)


def test_rows_that_are_not_where_their_keys_belong_are_refused() -> None:
    made = planned(plain, 2)
    tasks = Tasks(made, {0: MemoryStore(), 1: MemoryStore()}, Counter(), [])
    stray = next(key for key in map(str, range(99)) if crc32(key.encode()) % 2 == 1)
    tasks.give(tasks.tasks[0], TopicPartition("in", 0), ("in", stray, 1, 5))
    with pytest.raises(InvalidError, match=r"state of a key that belongs to partition 1 of 2.*--allow-reset once"):
        tasks.rescaled(plain, 3)


def test_shapes_of_several_tasks_remember_all_that_may_be_stored() -> None:
    old, new = {"version": 1, "type": "int"}, {"version": 2, "type": "str", "oldest": 1}
    assert merged_shapes([{"a": {"x": 1}}, {"b": {"y": 2}}]) == {"a": {"x": 1}, "b": {"y": 2}}
    assert merged_shapes([{"a": {"value": old}}, {"a": {"value": new}}]) == {"a": {"value": {**new, "since": 1}}}
    other = {"version": 1, "type": "str", "written": ["float", "str"]}
    assert merged_shapes([{"a": old}, {"a": other}]) == {"a": {**old, "written": ["int", "float", "str"]}}
