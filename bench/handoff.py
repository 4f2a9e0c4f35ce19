"""How long a task pauses when it moves from one worker to another, by the size of its state.

Real workers, each a process with a disk directory of its own, on one embedded log, while records arrive steadily. The
pause of a task is the longest time from the moment when a record was appended to the moment when it was processed for
the first time; tasks that do not move show what is noise.

``python -m bench.handoff --state-mb 200 --repeats 3``
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headrace import Context, Topology, ValueState
from headrace.clock import SystemClock
from headrace.log.opening import open_log
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.settings import Settings

PARTITIONS = 4
BLOB_BYTES = 4096
RECORDS_PER_S = 100
"""Of each partition."""

SIGNALS = {"SIGTERM": signal.SIGTERM, "kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}

Key = tuple[int, int]
"""Partition and number of a record."""


def remember(record: dict[str, Any], context: Context, blob: ValueState[bytes]) -> Iterator[dict[str, Any]]:
    """Keep the blob of a key, and say when and where the record was processed."""
    if "blob" in record:
        blob.value = record["blob"]
    else:
        yield {**record, "done": SystemClock().now_ms(), "pid": os.getpid(), "size": len(blob.value)}


topology = Topology("handoff")
(
    topology.stream("in", keyed_by="k")
    .process(remember, blob=ValueState(bytes, default=b""), name="remember")
    .to("out", partitions=1)
)


class Bench:
    """One log, one checkpoint store, and workers on them.

    Args:
        folder: Empty; for what all of it writes.
        log: A directory or ``kafka://host:port``.
        partitions: How many tasks share the state.
        settings: Of every worker, by their variables.
    """

    def __init__(self, folder: Path, log: str, partitions: int, settings: Mapping[str, str]) -> None:
        self.folder = folder
        self.partitions = partitions
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")},
            "HEADRACE_LOG": log,
            "HEADRACE_CHECKPOINTS": str(folder / "checkpoints"),
            "HEADRACE_METRICS_PORT": "0",
            "HEADRACE_CACHE": "4MB",
            **settings,
        }
        self.log = open_log(Settings(log=log, fsync="never"), SystemClock())
        self.log.create_topic("in", partitions)
        self.workers: list[subprocess.Popen[bytes]] = []
        self.started = 0

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        self.started += 1
        state = {"HEADRACE_STATE_DIR": str(self.folder / f"state-{self.started}")}
        with (self.folder / f"worker-{self.started}.txt").open("wb") as told:
            worker = subprocess.Popen(
                [str(Path(sys.executable).with_name("headrace")), "run", "bench.handoff"],
                env={**self.environment, **state, **settings}, stdout=told, stderr=told, start_new_session=True,
            )  # fmt: skip
        self.workers.append(worker)
        return worker

    def holders(self) -> dict[str, int]:
        """Return which process holds each task."""
        return {
            unit: int(member.member_id.rpartition("-")[2])
            for member in self.log.group("handoff").members() for unit in member.units
        }  # fmt: skip

    def shared(self, pids: set[int]) -> bool:
        """Return whether these processes, and no others, have equal shares of the tasks."""
        held = list(self.holders().values())
        share = self.partitions // len(pids)
        return len(held) == self.partitions and set(held) == pids and all(held.count(pid) == share for pid in pids)

    def settle(self, *workers: subprocess.Popen[bytes]) -> dict[str, int]:
        """Wait until these workers share all tasks, and process."""
        pids = {worker.pid for worker in workers}
        wait(lambda: self.shared(pids), "the tasks are not shared")
        for partition in range(self.partitions):
            self.send(partition, [{"k": f"{partition}-0", "p": partition, "n": -1, "sent": SystemClock().now_ms()}])
        self.log.flush()
        wait(lambda: self.lag() == 0, "the workers do not catch up")
        return self.holders()

    def lag(self) -> int:
        committed = self.log.group("handoff").committed()
        inputs = [TopicPartition("in", number) for number in range(self.partitions)]
        ends = {partition: self.log.end_offset(partition) for partition in inputs}
        return sum(end - (committed[p].offset if p in committed else 0) for p, end in ends.items())

    def send(self, partition: int, rows: list[dict[str, Any]]) -> None:
        values = [msgspec.msgpack.encode(row) for row in rows]
        keys = [row["k"].encode() for row in rows]
        stamps = [SystemClock().now_ms()] * len(rows)
        self.log.send(TopicPartition("in", partition), RecordBatch(stamps, keys, JoinedBytes.of(values)))

    def fill(self, state_mb: int) -> int:
        """Write so much state, and return how many keys each task has."""
        rng = random.Random(1)
        keys = max(100, state_mb * 1024**2 // self.partitions // BLOB_BYTES)
        for first in range(0, keys, 100):
            for partition in range(self.partitions):
                numbers = range(first, min(first + 100, keys))
                self.send(partition, [{"k": f"{partition}-{n}", "blob": rng.randbytes(BLOB_BYTES)} for n in numbers])
            self.log.flush()
        return keys

    def outputs(self, offset: int = 0) -> list[dict[str, Any]]:
        """Return what the workers have written from an offset on: each record when it was processed first."""
        first: dict[Key, dict[str, Any]] = {}
        out = TopicPartition("out", 0)
        reader, end = self.log.reader(out, offset), self.log.end_offset(out)
        while reader.position < end:
            batch = reader.read(10_000)
            if batch is None:
                time.sleep(0.01)  # a log that fetches beside may not have it yet
                continue
            for record in batch.records("out", 0):
                row = msgspec.msgpack.decode(record.value)
                known = first.setdefault((row["p"], row["n"]), row)
                if row["done"] < known["done"]:
                    first[row["p"], row["n"]] = row
        reader.close()
        return list(first.values())

    def stop(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGCONT)
                worker.terminate()
        for worker in self.workers:
            worker.wait(60)
        self.workers.clear()

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()


def wait(condition: Any, failing: str, timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(failing)
        time.sleep(0.02)


class Load:
    """Appends small records to every partition, steadily, for as long as the block lasts."""

    def __init__(self, bench: Bench, keys: int) -> None:
        self.bench = bench
        self.keys = keys
        self.sent = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        rng = random.Random(2)
        while not self._ended.wait(1 / RECORDS_PER_S):
            for partition in range(self.bench.partitions):
                row = {"k": f"{partition}-{rng.randrange(self.keys)}", "p": partition, "n": self.sent}
                self.bench.send(partition, [{**row, "sent": SystemClock().now_ms()}])
            self.sent += 1


def pauses(bench: Bench, offset: int, since_ms: int) -> dict[str, int]:
    """Return the longest time that a record of each task had to wait, in milliseconds.

    What was processed already comes again after a crash: the first time counts, so outputs from ``offset`` on are read,
    but only records that were sent since the event are looked at.
    """
    waited: dict[str, int] = defaultdict(int)
    for row in bench.outputs(offset):
        if row["sent"] >= since_ms:
            task = f"in-{row['p']}"
            waited[task] = max(waited[task], row["done"] - row["sent"])
    return waited


def one(bench: Bench, event: str, keys: int, settings: dict[str, str]) -> list[Any]:
    """Run one event; return rows of task, moved and pause."""
    workers = [bench.start(**settings) for _ in range(1 if event == "scale out" else 2)]
    bench.settle(*workers)
    offset = bench.log.end_offset(TopicPartition("out", 0))
    with Load(bench, keys) as load:
        # Copies, if there are any, have followed by then.
        wait(lambda: load.sent > 4 * RECORDS_PER_S, "the load does not begin")
        before, since_ms = bench.holders(), SystemClock().now_ms()
        if event == "scale out":
            workers.append(bench.start(**settings))
        else:
            workers.pop(0).send_signal(SIGNALS[event])
        pids = {worker.pid for worker in workers}
        wait(lambda: set(bench.holders().values()) == pids, f"{event}: the tasks do not move")
        through = load.sent + 2 * RECORDS_PER_S
        wait(lambda: load.sent > through, "the load ended")
    after = bench.holders()
    wait(lambda: bench.lag() == 0, "the workers do not catch up")
    waited = pauses(bench, offset, since_ms)
    bench.stop()
    return [(task, before[task] != after[task], waited[task]) for task in sorted(before)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state-mb", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--events", default="scale out,SIGTERM,kill -9,SIGSTOP")
    parser.add_argument("--checkpoint-interval", default="2s")
    parser.add_argument("--session-timeout", type=int, default=6, help="seconds")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="handoff-"))
    settings = {
        "HEADRACE_CHECKPOINT_INTERVAL": options.checkpoint_interval,
        "HEADRACE_SESSION_TIMEOUT": f"{options.session_timeout}s",
    }
    bench = Bench(folder, str(folder / "log"), PARTITIONS, settings)
    ways = {
        "at once": {"HEADRACE_HANDOFF_TIMEOUT": "0s"},
        "copied first": {},
        "standby": {"HEADRACE_STANDBY_COPIES": "1"},
    }
    try:
        keys = bench.fill(options.state_mb)
        bench.settle(bench.start())
        bench.stop()
        print(f"{options.state_mb} MB in {PARTITIONS} tasks, checkpoints every {options.checkpoint_interval}")
        print("| event | way | moved tasks: pause ms, each repeat (median) | others: pause ms (median) |\n|-|-|-|-|")
        for event in options.events.split(","):
            for way, settings in ways.items():
                if way == "at once" and event in ("kill -9", "SIGSTOP"):
                    continue  # nobody can be asked to wait
                rows = [row for _ in range(options.repeats) for row in one(bench, event, keys, settings)]
                told = []
                for moved in (True, False):
                    found = sorted(pause for _, did, pause in rows if did is moved)
                    told.append(f"{found} ({statistics.median(found):.0f})" if found else "-")
                print(f"| {event} | {way} | {told[0]} | {told[1]} |", flush=True)
    finally:
        bench.kill()
        bench.log.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
