"""How many events a second one worker takes from the embedded log to the output topic, with durable state.

Three forms of the same job (spend and number of payments per customer and minute): on a topic keyed by customer, with
a repartition before the window, and with deduplication before it. Every run has a process of its own; runs of all forms
and of the straight-line yardstick are interleaved, so that a noisy moment of the machine hits them all.

``python -m bench.card_spend --records 2000000 --repeats 5``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import msgspec

from bench import ceiling
from headrace import Topology, agg, run, tumbling
from headrace.clock import SystemClock
from headrace.demo.payments import Payments
from headrace.log.api import Log, TopicConfig
from headrace.log.embedded.log import EmbeddedLog
from headrace.record import JoinedBytes, RecordBatch, TopicPartition

PARTITIONS = 4
BATCH = 4096


class Payment(msgspec.Struct):
    transaction_id: str
    customer_id: str
    total: float
    at: int


def keyed() -> Topology:
    topology = Topology("bench-keyed")
    payments = topology.stream("payments", value=Payment, keyed_by="customer_id", time="at", out_of_orderness="5s")
    payments.window(tumbling("1m"), lateness="10s").aggregate(total=agg.sum("total"), payments=agg.count()).to(
        "spend-per-minute"
    )
    return topology


def repartitioned() -> Topology:
    topology = Topology("bench-repartitioned")
    payments = topology.stream("payments", value=Payment, time="at", out_of_orderness="5s")
    payments.key_by("customer_id").window(tumbling("1m"), lateness="10s").aggregate(
        total=agg.sum("total"), payments=agg.count()
    ).to("spend-per-minute")
    return topology


def deduplicated() -> Topology:
    topology = Topology("bench-deduplicated")
    payments = topology.stream("payments", value=Payment, keyed_by="customer_id", time="at", out_of_orderness="5s")
    payments.deduplicate(by="transaction_id", within="1h").window(tumbling("1m"), lateness="10s").aggregate(
        total=agg.sum("total"), payments=agg.count()
    ).to("spend-per-minute")
    return topology


FORMS = {"keyed": keyed, "repartitioned": repartitioned, "deduplicated": deduplicated}


def payments_of(records: int) -> Payments:
    return Payments(count=records, duration_ms=records * 600_000 // 1_000_000)


def fill(log: Log, records: int, batch_records: int = BATCH) -> float:
    """Write the payments and return how many a second were encoded, partitioned and appended."""
    log.create_topic("payments", PARTITIONS, TopicConfig(retention_ms=None))
    encode = msgspec.msgpack.Encoder().encode
    waiting: list[list[dict[str, object]]] = [[] for _ in range(PARTITIONS)]
    began, making = time.perf_counter(), 0.0

    def append(partition: int) -> None:
        rows, waiting[partition] = waiting[partition], []
        keys = [str(row["customer_id"]).encode() for row in rows]
        batch = RecordBatch([row["at"] for row in rows], keys, JoinedBytes.of(list(map(encode, rows))))  # type: ignore[misc]
        log.append(TopicPartition("payments", partition), batch)

    batches = payments_of(records).batches(PARTITIONS * batch_records)
    while True:
        before = time.perf_counter()
        rows = next(batches, None)
        making += time.perf_counter() - before
        if rows is None:
            break
        for row in rows:
            waiting[log.hash_key(row["customer_id"].encode()) % PARTITIONS].append(row)  # type: ignore[arg-type]
        for partition in range(PARTITIONS):
            if len(waiting[partition]) >= batch_records:
                append(partition)
    for partition in range(PARTITIONS):
        if waiting[partition]:
            append(partition)
    log.flush()
    return records / (time.perf_counter() - began - making)


def fill_directory(directory: Path, records: int) -> float:
    """Write the payments to an embedded log; see ``fill``."""
    with closing(EmbeddedLog(directory, clock=SystemClock())) as log:
        return fill(log, records)


def measure(form: str, log: Path, records: int) -> dict[str, float]:
    """Run one form in this process, which is there for nothing else."""
    if form == "yardstick":
        with tempfile.TemporaryDirectory() as folder:
            result = ceiling.run(Path(folder), records, checkpoint_interval_s=10)
        return {"events_per_s": result.events_per_s, "rss_mb": result.rss_mb}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "log")
        shutil.copytree(log, copy)
        began = time.perf_counter()
        status = run(
            FORMS[form](), log=str(copy), checkpoints=f"{folder}/checkpoints", state_dir=f"{folder}/state",
            until_end=True, metrics_port=0,
        )  # fmt: skip
        took = time.perf_counter() - began
    assert status.records_in == records, status
    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"events_per_s": records / took, "rss_mb": rss_mb}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--forms", nargs="*", default=["yardstick", *FORMS], choices=["yardstick", *FORMS])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--log", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one, given.log, given.records)))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {given.records:,} payments"
    )
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        print(f"filling the log: {fill_directory(log, given.records):,.0f} records/s")
        found: dict[str, list[dict[str, float]]] = {form: [] for form in given.forms}
        for _ in range(given.repeats):
            for form, results in found.items():
                command = [sys.executable, "-m", "bench.card_spend", "--one", form, "--log", str(log)]
                output = subprocess.run(
                    [*command, "--records", str(given.records)], check=True, capture_output=True, text=True
                )
                results.append(json.loads(output.stdout.splitlines()[-1]))
                print(
                    f"  {form}: {results[-1]['events_per_s']:,.0f} events/s, {results[-1]['rss_mb']:.0f} MB", flush=True
                )
    report(found)


def report(found: dict[str, list[dict[str, float]]]) -> None:
    yardstick = [r["events_per_s"] for r in found.get("yardstick", [])]
    print("\n| job | events/s, median | spread | share of the yardstick | memory |\n| --- | --- | --- | --- | --- |")
    for form, results in found.items():
        rates = [r["events_per_s"] for r in results]
        shares = [rate / other for rate, other in zip(rates, yardstick, strict=False)]
        share = f"{statistics.median(shares):.2f}" if shares else ""
        memory = max(r["rss_mb"] for r in results)
        print(
            f"| {form} | {statistics.median(rates):,.0f} | {min(rates):,.0f} - {max(rates):,.0f} | {share} "
            f"| {memory:.0f} MB |"
        )


if __name__ == "__main__":
    main()
