"""A topic that gets more partitions under a topology with state, with real processes and a real kill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from headrace.demo.payments import Payments
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from tests.e2e.harness import Rows, Site, committed, kill_all, results, wait_for

MODULE = "topologies.card_spend"
FAST = {"HEADRACE_CHECKPOINT_INTERVAL": "100ms", "HEADRACE_BATCH_RECORDS": "200"}


def put(site: Site, rows: Sequence[Any], partitions: int) -> None:
    log = site.open()
    parts: list[list[Any]] = [[] for _ in range(partitions)]
    for row in rows:
        parts[log.hash_key(row["customer_id"].encode()) % partitions].append(row)
    for number, part in enumerate(parts):
        values = JoinedBytes.of([msgspec.msgpack.encode(row) for row in part])
        keys = [row["customer_id"].encode() for row in part]
        log.append(TopicPartition("payments", number), RecordBatch([row["at"] for row in part], keys, values))
    log.close()


def windows(rows: Sequence[Any]) -> Rows:
    """Return what each payment counted once makes; none of them is late, apart from duplicates."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        window = (row["customer_id"], row["at"] - row["at"] % 60_000)
        found.setdefault(window, {})[row["transaction_id"]] = row["total"]
    return {window: (len(totals), round(sum(totals.values()), 2)) for window, totals in found.items()}


def test_no_window_is_lost_or_counted_twice(tmp_path: Path) -> None:
    site = Site(tmp_path)
    payments = Payments(count=12_000, customers=300, duplicate_share=0.1)
    rows = [row for batch in payments.batches() for row in batch]
    log = site.open()
    log.create_topic("payments", 3)
    log.close()
    put(site, rows[:5_000], 3)
    process = site.start("run", MODULE, "--workers", "2", **FAST)
    try:
        wait_for(lambda: committed(site, "card-spend") >= 2_000)
        put(site, rows[5_000:6_000], 3)
    finally:
        kill_all(process)
    site.run("topics", "payments", "--grow-to", "5")
    put(site, rows[6_000:], 5)
    refused = site.start("run", MODULE, "--until-end")
    output, _ = refused.communicate(timeout=60)
    assert refused.returncode == 2
    assert f"headrace rescale {MODULE}" in output
    said = site.run("rescale", MODULE, "--yes", **FAST)
    assert "5 tasks have their state where their keys are" in said
    site.run("run", MODULE, "--until-end", "--workers", "2", **FAST)
    assert results(site.read("spend-per-minute")) == windows(rows)
