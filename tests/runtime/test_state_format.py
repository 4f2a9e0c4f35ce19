"""The state of a task as a released version wrote it can be read, and goes on as it should."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace import Topology, agg, session, tumbling
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.tasks.task import Task
from headrace.state.api import Store
from headrace.state.memory import MemoryStores
from headrace.topology.plan import TaskId, plan

GOLDEN = Path(__file__).parent / "golden"
NEWEST = "task-v2"
INPUT = TopicPartition("events", 0)
ROWS = [("a", 1, 1_000), ("b", 2, 2_000), ("a", 3, 3_500), ("a", 1, 4_000), ("b", 5, 61_000)]


def build(store: Store) -> Task:
    """Return a task with every kind of state."""
    topology = Topology("golden")
    events = topology.stream("events", keyed_by="key", time="at", out_of_orderness="5s")
    unique = events.deduplicate(by="number", within="1h")
    unique.window(tumbling("1m"), lateness="1s").aggregate(
        count=agg.count(), total=agg.sum("number"), mean=agg.mean("number"), all=agg.collect("number")
    ).to("minutes")
    unique.window(session("10s")).aggregate(last=agg.last("number")).to("sessions")
    planned = plan(topology.graph(), {"events": 1})
    partitions = {"minutes": 1, "sessions": 1}
    return Task(
        planned,
        planned.subtopologies[0],
        TaskId("events", 0),
        store,
        partitions=partitions,
        cache_bytes=2**20,
        starts={},
    )


def batch(rows: list[tuple[str, int, int]], start: int) -> RecordBatch:
    values = [msgspec.msgpack.encode({"key": key, "number": number, "at": at}) for key, number, at in rows]
    keys = [key.encode() for key, _, _ in rows]
    offsets = range(start, start + len(rows))
    return RecordBatch([at for _, _, at in rows], keys, JoinedBytes.of(values), offsets=offsets)


def write_golden(directory: Path) -> None:
    """Write what the fixture holds; run once for each new version of the format."""
    store = MemoryStores().open(directory / "store")
    task = build(store)
    task.step(INPUT, batch(ROWS, 0))
    task.flush()
    store.snapshot(directory / "snapshot")


def test_this_version_writes_the_newest_version(tmp_path: Path) -> None:
    write_golden(tmp_path)
    written = {path.name: path.read_bytes() for path in (tmp_path / "snapshot").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (GOLDEN / NEWEST).iterdir()}


@pytest.mark.parametrize("version", ["task-v1", "task-v2"])
def test_every_version_goes_on(version: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / version, tmp_path / "store")
    task = build(MemoryStores().open(tmp_path / "store"))
    assert task.positions == {INPUT: len(ROWS)}
    assert task.watermark == 56_000
    task.step(INPUT, batch([("a", 1, 59_000), ("b", 7, 59_500)], len(ROWS)))
    task.finish(7)
    out: dict[str, list[Any]] = {}
    for partition, appended in task.settle():
        out.setdefault(partition.topic, []).extend(
            (msgspec.msgpack.decode(value or b""), position)
            for value, position in zip(
                appended.values.split(), appended.origin.positions if appended.origin else [], strict=True
            )
        )
    assert out["minutes"] == [
        ({"key": "a", "window_start": 0, "window_end": 60_000, "count": 2, "total": 4, "mean": 2.0, "all": [1, 3]}, 0),
        ({"key": "b", "window_start": 0, "window_end": 60_000, "count": 2, "total": 9, "mean": 4.5, "all": [2, 7]}, 1),
        (
            {
                "key": "b",
                "window_start": 60_000,
                "window_end": 120_000,
                "count": 1,
                "total": 5,
                "mean": 5.0,
                "all": [5],
            },
            2,
        ),
    ]
    assert [(value["key"], value["window_start"], value["last"], at) for value, at in out["sessions"]] == [
        ("b", 59_500, 5, 2),
    ]
