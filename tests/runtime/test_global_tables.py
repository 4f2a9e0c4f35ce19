"""Tables that every task reads, through real workers: bounded runs, positions, crashes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import Topology, run
from headrace.clock import SystemClock
from headrace.log.memory import MemoryLog
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.hosts.status import RunStatus
from headrace.runtime.workers.worker import Worker
from tests.runtime.workers import Place


def looked_up() -> Topology:
    """Look up in one table in two sub-topologies, each of several tasks."""
    topology = Topology("counting")
    rates = topology.global_table("rates")
    first = topology.stream("in").join(rates, lambda sale, rate: {**sale, "first": rate}, on="c", how="left")
    second = first.key_by("n", key=int).join(rates, lambda sale, rate: {**sale, "second": rate}, on="c", how="left")
    second.to("out")
    return topology


def append(log: MemoryLog, topic: str, partition: int, rows: list[tuple[str, Any]]) -> None:
    values = [msgspec.msgpack.encode(value) for _, value in rows]
    batch = RecordBatch([0] * len(rows), [key.encode() for key, _ in rows], JoinedBytes.of(values))
    log.append(TopicPartition(topic, partition), batch)


def sales(first: int, end: int) -> list[tuple[str, Any]]:
    return [("k", {"n": n, "c": "ab"[n % 2]}) for n in range(first, end)]


def found(log: MemoryLog) -> list[dict[str, Any]]:
    rows = []
    for partition in range(log.topics()["out"].partitions):
        reader = log.reader(TopicPartition("out", partition), 0)
        while (batch := reader.read(1000)) is not None:
            rows += [msgspec.msgpack.decode(value or b"") for value in batch.values.split()]
    return sorted(rows, key=lambda row: row["n"])


def expected(first: int, end: int, a: Any, b: Any) -> list[dict[str, Any]]:
    return [
        {**sale, "first": rate, "second": rate} for _, sale in sales(first, end) for rate in [(a, b)[sale["n"] % 2]]
    ]


def test_a_bounded_run_reads_the_whole_table_first_and_counts_records_once(tmp_path: Path) -> None:
    log = MemoryLog(SystemClock())
    for topic, partitions in (("in", 2), ("rates", 3)):
        log.create_topic(topic, partitions)

    def run_to_the_end() -> RunStatus:
        options = {"checkpoints": str(tmp_path / "checkpoints"), "state_dir": str(tmp_path / "state")}
        return run(looked_up(), log=log, until_end=True, metrics_port=0, **options)

    for partition in (0, 1):
        append(log, "in", partition, sales(partition * 500, partition * 500 + 500))
    append(log, "rates", 0, [("a", 1)])
    append(log, "rates", 2, [("b", 2), ("b", 3)])
    status = run_to_the_end()
    assert (status.state, status.records_in, status.total, status.lag_records) == ("finished", 1000, 1000, 0)
    assert found(log) == expected(0, 1000, 1, 3)
    committed = {str(p): at.offset for p, at in log.group("counting").committed().items() if p.topic != "in"}
    assert not [partition for partition in committed if partition.startswith("rates")], "no task owns these"

    append(log, "rates", 1, [("a", 7)])
    append(log, "in", 0, sales(1000, 1100))
    status = run_to_the_end()
    assert (status.records_in, status.total) == (100, 100)
    assert found(log) == expected(0, 1000, 1, 3) + expected(1000, 1100, 7, 3)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    made.log.create_topic("rates", 2)
    yield made
    made.close()


def test_after_a_crash_the_table_goes_on_where_the_checkpoint_left_it(place: Place) -> None:
    append(place.log, "rates", 0, [("a", 1)])
    append(place.log, "rates", 1, [("b", 2)])
    append(place.log, "in", 0, sales(0, 50))
    first = place.worker("a", looked_up())
    group = place.log.group("counting")
    place.run(first, until=lambda: sum(p.offset for p in group.committed().values()) >= 100)
    place.run(
        first, until=lambda: not any(slot.job or slot.task is None or slot.task.changed for slot in first.slots())
    )
    append(place.log, "rates", 0, [("a", 5)])
    first.close()
    append(place.log, "in", 1, sales(50, 100))
    second = place.worker("b", looked_up())
    place.run(second, until=lambda: len(found(place.log)) >= 100 and ends(second) == [2] * 4)
    second.drain()
    place.run(second, until=lambda: second.done)
    assert found(place.log) == expected(0, 50, 1, 2) + expected(50, 100, 5, 2)
    assert second.totals.records_in["rates"] == 4, "each of four tasks read what was new, and nothing again"


def ends(worker: Worker) -> list[int]:
    """Return how far each task has read the first partition of the table."""
    return [slot.task.positions[TopicPartition("rates", 0)] for slot in worker.slots() if slot.task]


def test_two_workers_share_the_tasks_and_each_has_the_whole_table(place: Place) -> None:
    workers = [place.worker(member, looked_up()) for member in "ab"]
    place.run(*workers, until=lambda: [len(worker.slots()) for worker in workers] == [2, 2])
    append(place.log, "rates", 0, [("a", 1), ("b", 2)])
    place.run(*workers, until=lambda: [worker.totals.records_in["rates"] for worker in workers] == [4, 4])
    for partition in (0, 1):
        append(place.log, "in", partition, sales(partition * 50, partition * 50 + 50))
    place.run(*workers, until=lambda: len(found(place.log)) == 100)
    assert found(place.log) == expected(0, 100, 1, 2)
    for worker in workers:
        worker.drain()
    place.run(*workers, until=lambda: all(worker.done for worker in workers))
