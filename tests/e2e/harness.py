"""What the end-to-end tests share: a log filled with payments, the command, and the answer that SQL gives."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import duckdb
import msgspec

from headrace.clock import SystemClock
from headrace.demo.payments import Payments
from headrace.log.embedded.log import EmbeddedLog
from headrace.record import JoinedBytes, Record, RecordBatch, TopicPartition
from headrace.testing.conformance.log_support import read_all

ROOT = Path(__file__).parents[2]
HEADRACE = str(Path(sys.executable).with_name("headrace"))

Rows = dict[tuple[str, int], tuple[int, float]]
"""(customer, window start) -> payments, total."""


@dataclass(frozen=True)
class Site:
    """A folder with everything that one run needs."""

    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **{k: v for k, v in os.environ.items() if not k.startswith("HEADRACE_")},
            "HEADRACE_LOG": str(self.log),
            "HEADRACE_CHECKPOINTS": str(self.folder / "checkpoints"),
            "HEADRACE_STATE_DIR": str(self.folder / "state"),
            "HEADRACE_METRICS_PORT": "0",
            **more,
        }

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the command in a session of its own, so that all of it can be killed."""
        return subprocess.Popen(
            [HEADRACE, *arguments],
            env=self.environment(**environment),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **environment: str) -> str:
        """Run the command to its end and return what it printed; it must succeed."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=100)
        assert process.returncode == 0, output
        return output

    def open(self) -> EmbeddedLog:
        return EmbeddedLog(self.log, clock=SystemClock())

    def read(self, topic: str) -> list[Record]:
        """Return every record of a topic, values decoded."""
        log = self.open()
        records = []
        for partition in range(log.topics()[topic].partitions if topic in log.topics() else 0):
            place = TopicPartition(topic, partition)
            reader = log.reader(place, log.start_offset(place))
            for batch in read_all(reader, 100_000):
                records += [] if batch.control else batch.records(topic, partition)
            reader.close()
        log.close()
        return [_decoded(record) for record in records]


def _decoded(record: Record) -> Record:
    value = None if record.value is None else msgspec.msgpack.decode(record.value)
    return dataclasses.replace(record, key=record.key and record.key.decode(), value=value)


def fill(site: Site, payments: Payments, partitions: int, *, keyed: bool = True) -> None:
    """Append payments to the topic ``payments``, by customer or in turns."""
    log = site.open()
    log.create_topic("payments", partitions)
    encode = msgspec.msgpack.Encoder().encode
    for turn, rows in enumerate(payments.batches(2000)):
        parts: list[list[Mapping[str, Any]]] = [[] for _ in range(partitions)]
        for row in rows:
            parts[crc32(row["customer_id"].encode()) % partitions if keyed else turn % partitions].append(row)
        for partition, part in enumerate(parts):
            if part:
                keys = [row["customer_id"].encode() if keyed else None for row in part]
                batch = RecordBatch([row["at"] for row in part], keys, JoinedBytes.of([encode(row) for row in part]))
                log.append(TopicPartition("payments", partition), batch)
    log.flush()
    log.close()


def expected(site: Site) -> Rows:
    """Return the windows that SQL computes from what stands in ``payments``, in the order in which it stands there."""
    records = site.read("payments")
    fields = ("transaction_id", "customer_id", "total", "at")
    columns = [(r.partition, r.offset, *(r.value[field] for field in fields)) for r in records]
    connection = duckdb.connect()
    connection.execute("create table p (part int, pos bigint, id text, customer text, total double, made bigint)")
    # DuckDB reads a file far faster than it takes rows.
    path = site.folder / "payments.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(columns)
    connection.execute(f"copy p from '{path}' (header false)")
    rows = connection.execute(
        """
        with seen as (
            select *, max(made) over (partition by part order by pos rows between unbounded preceding and 1 preceding)
                          - 5000 as watermark,
                   row_number() over (partition by customer, id order by part, pos) as nth,
                   made - made % 60000 as window_start
            from p
        )
        select customer, window_start, count(*), sum(total) from seen
        where nth = 1 and (watermark is null or window_start + 60000 + 10000 > watermark)
        group by all
        """
    ).fetchall()
    return {(customer, start): (count, round(total, 2)) for customer, start, count, total in rows}


def results(records: list[Record]) -> Rows:
    """Return the windows in an output topic; each once, and repeats of one output alike."""
    by_id: dict[bytes, Any] = {}
    rows: Rows = {}
    for record in records:
        value = record.value
        name = dict(record.headers)["headrace-id"]
        assert by_id.setdefault(name, value) == value, "one id, two outputs"
        row = (value["payments"], round(value["total"], 2))
        key = (value["key"], value["window_start"])
        assert record.key == value["key"]
        assert rows.setdefault(key, row) == row, f"window {key} came with two results"
    assert len(by_id) == len(rows), "one window has two ids"
    return rows


def wait_for(condition: Callable[[], Any], timeout_s: float = 100) -> Any:
    """Return what ``condition`` returns as soon as that is true."""
    clock = SystemClock()
    end = clock.monotonic_ms() + timeout_s * 1000
    while not (found := condition()):
        assert clock.monotonic_ms() < end, "timed out"
        clock.sleep_ms(5)
    return found


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of a supervisor's workers."""
    return [pid for pid in _children(process.pid) if b"spawn_main" in _command(pid)]


def _children(pid: int) -> Iterator[int]:
    try:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            yield from map(int, children.read_text().split())
    except OSError:
        return


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def kill_all(process: subprocess.Popen[str]) -> None:
    """Kill the command and everything it started, and wait for its end; what it said shows if the test fails."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    if process.stdout is not None and not process.stdout.closed:
        print(process.communicate()[0], end="")


def committed(site: Site, group: str) -> int:
    """Return how many records the tasks of a topology have read, by their last checkpoints."""
    log = site.open()
    try:
        return sum(position.offset for position in log.group(group).committed().values())
    finally:
        log.close()
