"""Workers on a log in memory, with a clock that tests set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from headrace import Topology, agg, tumbling
from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.store import open_objects
from headrace.clock import SystemClock
from headrace.log.memory import MemoryLog
from headrace.metrics import Metrics
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.calls import AsyncCalls
from headrace.runtime.workers.parts import Parts
from headrace.runtime.workers.worker import Worker
from headrace.settings import Settings
from headrace.state.rocksdb import RocksStores
from headrace.topology.plan import AT_LEAST_ONCE, plan, source_topics


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def now_ms(self) -> int:
        return self.ms

    def monotonic_ms(self) -> int:
        return self.ms

    def sleep_ms(self, duration_ms: int) -> None:
        self.ms += duration_ms


class Place:
    """A log, a checkpoint store and a state directory that workers share."""

    def __init__(self, folder: Path, partitions: int = 2, clock: SystemClock | None = None) -> None:
        self.folder = folder
        self.clock: Any = clock or Clock()
        self.log = MemoryLog(self.clock)
        self.log.create_topic("in", partitions)
        self.log.create_topic("out", 1)
        self.jobs = ThreadPoolExecutor(2)
        self.calls = AsyncCalls(SystemClock())
        self.copies: ThreadPoolExecutor | None = None
        """With it, workers copy the state of tasks that may come to them."""

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(open_objects(str(self.folder / "checkpoints"), {}), "counting")

    def put(self, partition: int, rows: Iterable[Mapping[str, Any]]) -> None:
        values = [msgspec.msgpack.encode(row) for row in rows]
        batch = RecordBatch([0] * len(values), [b"k"] * len(values), JoinedBytes.of(values))
        self.log.append(TopicPartition("in", partition), batch)

    def worker(
        self, member: str = "a", topology: Topology | None = None, bounds: Bounds | None = None, **settings: Any
    ) -> Worker:
        graph = (topology or counting()).graph()
        counts = {name: self.log.topics()[name].partitions for name in source_topics(graph)}
        planned = plan(graph, counts, guarantee=settings.get("guarantee", AT_LEAST_ONCE))
        for name, count in planned.internal_topics().items():
            self.log.create_topic(name, count)
        given = {"checkpoint_interval_ms": 100, "state_dir": str(self.folder / "state"), **settings}
        parts = Parts(
            planned, self.log, self.log.group("counting"), self.checkpoints, RocksStores(4 * 1024**2), self.jobs,
            self.clock, Metrics(), Settings(**given), {"out": 1, **planned.internal_topics()}, self.calls,
            copies=self.copies,
        )  # fmt: skip
        return Worker(parts, member, bounds)

    def run(self, *workers: Worker, until: Callable[[], Any]) -> None:
        """Let workers make turns, and time pass, until something holds."""
        real = SystemClock()
        end_ms = real.monotonic_ms() + 10_000
        while not until():
            assert real.monotonic_ms() < end_ms, "timed out"
            for worker in workers:
                if not worker.done:
                    worker.membership.heartbeat()
                    worker.turn()
            self.clock.ms += 20
            real.sleep_ms(1)

    def counted(self) -> dict[int, int]:
        """Return the results: window start -> records; repeats must be alike."""
        reader = self.log.reader(TopicPartition("out", 0), 0)
        found: dict[int, int] = {}
        while (batch := reader.read(1000)) is not None:
            for record in batch.records("out", 0):
                value = msgspec.msgpack.decode(record.value)
                assert found.setdefault(value["window_start"], value["n"]) == value["n"]
        return found

    def close(self) -> None:
        self.calls.close()
        self.jobs.shutdown()
        if self.copies is not None:
            self.copies.shutdown()


def committed(place: Place) -> int:
    """Return how many records its tasks have read, by their last checkpoints."""
    return sum(position.offset for position in place.log.group("counting").committed().values())


def counting(step: Callable[[Any], Any] = lambda row: row) -> Topology:
    topology = Topology("counting")
    stream = topology.stream("in", keyed_by=lambda row: "k", time="at")
    stream.filter(step, name="check").window(tumbling("10ms")).aggregate(n=agg.count()).to("out")
    return topology


def rows(first: int, end: int) -> list[dict[str, int]]:
    return [{"at": at} for at in range(first, end)]
