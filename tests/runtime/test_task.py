"""The task as a state machine: what it restores, what it refuses, what it reports."""

from typing import Any

import msgpack
import pytest

from headrace import FatalError, InvalidError, Topology, TopologyError, agg, hopping, session, tumbling
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.tasks.edges import Append
from headrace.runtime.tasks.task import Task
from headrace.serde.msgpack import Msgpack
from headrace.state.keys import store_prefix
from headrace.state.memory import MemoryStore
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.plan import TaskId, plan

SOURCE = TopicPartition("in", 0)


def simple(**aggregates: Any) -> Topology:
    topology = Topology("t")
    stream = topology.stream("in", keyed_by="k", time="at")
    stream.window(tumbling("10s")).aggregate(**(aggregates or {"n": agg.count()})).to("out")
    return topology


def repartitioned() -> Topology:
    topology = Topology("t")
    counts = topology.stream("in", keyed_by="k", time="at").window(tumbling("10s")).aggregate(n=agg.count())
    counts.window(session("30s")).aggregate(n=agg.sum("n")).key_by(lambda r: "all", name="together").to("out")
    return topology


def task_of(topology: Topology, store: MemoryStore, starts: dict[TopicPartition, int] | None = None) -> Task:
    made = plan(topology.graph(), {"in": 1})
    sub = made.subtopologies[0]
    partitions = {"out": 1, "in": 1, **dict.fromkeys(made.internal_topics(), 3)}
    return Task(made, sub, TaskId(sub.name, 0), store, partitions=partitions, cache_bytes=1 << 20, starts=starts or {})


def batch(times: list[int], base: int = 0) -> RecordBatch:
    values = Msgpack().encode_many([{"k": "a", "at": at, "n": 1} for at in times])
    offsets = range(base, base + len(times))
    return RecordBatch(times, [b"a"] * len(times), JoinedBytes.of(values), offsets=offsets)


def test_a_new_task_begins_where_it_is_told_and_a_restored_one_where_it_left_off() -> None:
    store = MemoryStore()
    task = task_of(simple(), store, {SOURCE: 40})
    assert task.positions == {SOURCE: 40}
    task.step(SOURCE, batch([1000, 2000], 40))
    assert task.changed
    task.flush()
    assert not task.changed
    again = task_of(simple(), store, {SOURCE: 7})
    assert again.positions == {SOURCE: 42}
    assert again.watermark == 2000


def test_a_window_closes_once_over_a_hand_off() -> None:
    store = MemoryStore()
    task = task_of(simple(), store)
    assert task.step(SOURCE, batch([1000, 10_000])) != []
    task.flush()
    again = task_of(simple(), store)
    ((partition, records),) = again.step(SOURCE, batch([20_000], 2))
    assert partition == ("out", 0)
    assert records.timestamps == [19_999]
    assert records.origin is not None
    assert (records.origin.source, list(records.origin.positions)) == ("t/in-tumbling-10000ms-to-out/in-0", [1])


CHANGES = [
    (simple(n=agg.sum("n")), r"aggregates is different \('n' was count and is sum\)"),
    (simple(n=agg.count(), m=agg.count()), r"aggregates is different \('m' is new\)"),
    (simple(m=agg.count()), r"aggregates is different \('n' is gone; 'm' is new\)"),
]


@pytest.mark.parametrize(("changed", "message"), CHANGES)
def test_a_changed_shape_is_refused_on_restore(changed: Topology, message: str) -> None:
    store = MemoryStore()
    task_of(simple(), store).flush()
    with pytest.raises(TopologyError, match=f"step 'in-tumbling-10000ms' of task in-0 .*{message}.*--allow-reset"):
        task_of(changed, store)


def test_aggregates_in_another_order_are_another_shape() -> None:
    store = MemoryStore()
    task = task_of(simple(n=agg.count(), total=agg.sum("n")), store)
    task.step(SOURCE, batch([1000]))
    task.flush()
    with pytest.raises(TopologyError, match=r"aggregates is different \(they are in another order\)"):
        task_of(simple(total=agg.sum("n"), n=agg.count()), store)


KINDS = [
    lambda s: s.deduplicate("k", within="1s", name="x").to("out"),
    lambda s: s.window(hopping("10s", "5s")).aggregate(n=agg.count(), name="x").to("out"),
    lambda s: s.window(session("10s")).aggregate(n=agg.count(), name="x").to("out"),
]


@pytest.mark.parametrize("make", KINDS)
def test_another_kind_of_step_under_a_kept_name_is_refused(make: Any) -> None:
    def topology_of(how: Any) -> Topology:
        topology = Topology("t")
        how(topology.stream("in", keyed_by="k", time="at"))
        return topology

    store = MemoryStore()
    task_of(topology_of(lambda s: s.window(tumbling("9s")).aggregate(n=agg.count(), name="x").to("out")), store).flush()
    with pytest.raises(TopologyError, match="step 'x'"):
        task_of(topology_of(make), store)


def test_another_lateness_is_no_other_shape() -> None:
    def late(lateness: str) -> Topology:
        topology = Topology("t")
        stream = topology.stream("in", keyed_by="k", time="at")
        stream.window(tumbling("10s"), lateness=lateness).aggregate(n=agg.count()).to("out")
        return topology

    store = MemoryStore()
    task = task_of(late("1h"), store)
    task.step(SOURCE, batch([1000, 50_000]))
    task.flush()
    again = task_of(late("0s"), store)
    ((_, records),) = again.step(SOURCE, batch([50_000], 2))
    assert records.timestamps == [9_999]


def test_the_state_of_another_task_is_refused() -> None:
    store = MemoryStore()
    task_of(simple(), store).flush()
    meta = msgpack.unpackb(store.get(store_prefix(0) + b"task"))
    store._rows[store_prefix(0) + b"task"] = msgpack.packb({**meta, "task": "in-1"})
    with pytest.raises(InvalidError, match="the state of task in-1 was given to task in-0"):
        task_of(simple(), store)


def test_the_state_of_a_newer_version_is_refused() -> None:
    store = MemoryStore()
    task_of(simple(), store).flush()
    meta = msgpack.unpackb(store.get(store_prefix(0) + b"task"))
    store._rows[store_prefix(0) + b"task"] = msgpack.packb({**meta, "format": 99})
    with pytest.raises(FatalError, match="format 99"):
        task_of(simple(), store)


def finished(task: Task, bound: int) -> list[Append]:
    task.finish(bound)
    assert task.closing
    return task.settle()


def ends(appends: list[Append]) -> list[tuple[int, int, bool]]:
    return [(p.partition, r.progress.end if r.progress else -1, r.control) for p, r in appends]


def test_whoever_hears_that_a_task_is_finished_has_all_that_it_made() -> None:
    task = task_of(repartitioned(), MemoryStore())
    task.step(SOURCE, batch([1000, 2000]))
    found = ends(finished(task, 5))
    told = [place for place, (_, end, _) in enumerate(found) if end == 5]
    made = [place for place, (_, _, control) in enumerate(found) if not control]
    assert made
    assert max(made) < min(told)
    assert sorted(found[place][0] for place in told) == [0, 1, 2]
    assert task.finished == 5
    assert task.report() == []


def test_finishing_moves_the_watermark_no_further_than_it_must() -> None:
    task = task_of(simple(), MemoryStore())
    task.step(SOURCE, batch([1000]))
    finished(task, 1)
    assert task.watermark == 10_000
    assert finished(task, 2) == []
    task.step(SOURCE, batch([10_000], 1))
    assert [records.timestamps for _, records in finished(task, 3)] == [[19_999]]


def test_time_that_passes_closes_the_last_window() -> None:
    driver = TopologyTestDriver(simple())
    driver.send("in", {"k": "a", "at": 5_000})
    driver.advance_time("34s")
    assert driver.read("out") == []
    driver.advance_time("1s")
    assert [record.value["n"] for record in driver.read("out")] == [1]


def test_time_that_passes_reaches_through_an_internal_topic() -> None:
    topology = Topology("t")
    keyed = topology.stream("in", time="at", idle_after="10s").key_by("k")
    keyed.window(tumbling("10s")).aggregate(n=agg.count()).to("out")
    driver = TopologyTestDriver(topology, partitions=3)
    for i in range(9):
        driver.send("in", {"k": "a", "at": 5_000 + i})
    driver.advance_time("14s")
    assert driver.read("out") == []
    driver.advance_time("2s")
    assert [record.value["n"] for record in driver.read("out")] == [9]


def test_an_idle_partition_does_not_hold_a_window_back() -> None:
    topology = Topology("t")
    keyed = topology.stream("in", time="at").key_by("k")
    keyed.window(tumbling("10s")).aggregate(n=agg.count()).to("out")
    driver = TopologyTestDriver(topology, partitions=2)
    driver.send("in", {"k": "a", "at": 1_000}, partition=0)
    driver.send("in", {"k": "a", "at": 60_000}, partition=0)
    assert driver.read("out") == []
    driver.advance_time("31s")
    assert [record.value["n"] for record in driver.read("out")] == [1]


def test_what_a_task_did_is_told_once() -> None:
    task = task_of(simple(), MemoryStore())
    task.step(SOURCE, batch([1000, 10_000]))
    tally = task.take_tally()
    assert (tally.records_in, tally.records_out) == ({SOURCE: 2}, {"out": 1})
    assert task.take_tally().records_in == {}
