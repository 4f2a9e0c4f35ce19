"""Joins of tables through real workers and stores, in bounded runs that follow each other."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

import msgspec

from headrace import Topology, run
from headrace.clock import SystemClock
from headrace.log.memory import MemoryLog
from headrace.record import JoinedBytes, RecordBatch, TopicPartition


def named_orders() -> Topology:
    topology = Topology("named-orders")
    orders, customers = topology.table("orders"), topology.table("customers")
    named = orders.join(customers, lambda order, customer: [order["n"], customer["n"]], on="c")
    named.join(topology.table("notes"), lambda pair, note: [*pair, note and note["n"]], how="left").to("out")
    return topology


def append(log: MemoryLog, topic: str, changes: list[tuple[str, Any]]) -> None:
    partitions = log.topics()[topic].partitions
    for key, row in changes:
        place = TopicPartition(topic, crc32(key.encode()) % partitions)
        value = None if row is None else msgspec.msgpack.encode(row)
        log.append(place, RecordBatch([0], [key.encode()], JoinedBytes.of([value])))


def written(log: MemoryLog) -> dict[str, Any]:
    """Return the rows that the changes in ``out`` leave."""
    rows: dict[str, Any] = {}
    for partition in range(log.topics()["out"].partitions):
        reader = log.reader(TopicPartition("out", partition), 0)
        while (batch := reader.read(1000)) is not None:
            for key, value in zip(batch.keys, batch.values.split(), strict=True):
                rows.pop((key or b"").decode(), None)
                if value is not None:
                    rows[(key or b"").decode()] = msgspec.msgpack.decode(value)
    return rows


def test_runs_that_follow_each_other_leave_what_a_nested_loop_finds(tmp_path: Path) -> None:
    log = MemoryLog(SystemClock())
    for topic, partitions in (("orders", 2), ("customers", 3), ("notes", 2)):
        log.create_topic(topic, partitions)
    random = Random(7)
    tables: dict[str, dict[str, Any]] = {"orders": {}, "customers": {}, "notes": {}}
    for turn in range(3):
        for topic, count in (("orders", 300), ("customers", 40), ("notes", 100)):
            changes: list[tuple[str, Any]] = []
            for _ in range(count):
                row = {"n": random.randrange(1000), "c": f"c{random.randrange(30)}"}
                key = f"{'c' if topic == 'customers' else 'o'}{random.randrange(30 if topic == 'customers' else 200)}"
                changes.append((key, None if random.random() < 0.2 else row))
                tables[topic][key] = changes[-1][1]
            append(log, topic, changes)
        # The state directory is another each time: what a run knows of the last one comes from the checkpoint.
        options = {"checkpoints": str(tmp_path / "checkpoints"), "state_dir": str(tmp_path / f"state-{turn}")}
        status = run(named_orders(), log=log, until_end=True, metrics_port=0, cache_bytes=1000, **options)
        assert status.state == "finished"
        orders, customers, notes = tables.values()
        assert written(log) == {
            key: [order["n"], customers[order["c"]]["n"], notes[key]["n"] if notes.get(key) else None]
            for key, order in orders.items()
            if order and customers.get(order["c"])
        }
