"""A log that counts the time which the processing thread spends in it, and clocks of other threads and processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from headrace.log.api import Log, Reader
from headrace.record import RecordBatch, TopicPartition

CLIENT_THREAD = "headrace-kafka"


class Meter:
    """CPU seconds of the calling thread, by what it did."""

    def __init__(self) -> None:
        self.read_s = 0.0
        self.send_s = 0.0


class MeteredLog:
    """A log whose readers and whose ``send`` are metered; everything else is passed on as it is."""

    def __init__(self, log: Log, meter: Meter) -> None:
        self._log = log
        self._meter = meter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def send(self, partition: TopicPartition, batch: RecordBatch) -> None:
        begun = time.thread_time()
        self._log.send(partition, batch)
        self._meter.send_s += time.thread_time() - begun

    def reader(self, partition: TopicPartition, offset: int) -> MeteredReader:
        return MeteredReader(self._log.reader(partition, offset), self._meter)


class MeteredReader:
    """A reader whose ``read`` is metered."""

    def __init__(self, reader: Reader, meter: Meter) -> None:
        self._reader = reader
        self._meter = meter
        self.end_offset = reader.end_offset
        self.close = reader.close

    @property
    def position(self) -> int:
        return self._reader.position

    @position.setter
    def position(self, offset: int) -> None:
        self._reader.position = offset

    def read(self, max_records: int) -> RecordBatch | None:
        begun = time.thread_time()
        batch = self._reader.read(max_records)
        self._meter.read_s += time.thread_time() - begun
        return batch


def client_cpu_s() -> float:
    """Return the CPU seconds of the Kafka client's thread so far, 0 if there is none."""
    threads = [thread for thread in threading.enumerate() if thread.name == CLIENT_THREAD]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident)) for thread in threads if thread.ident)


def broker_process() -> int | None:
    """Return the process id of the broker that this process has started, None if it runs elsewhere."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, fields = (folder / "stat").read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue  # it has ended meanwhile
        if name == "java" and int(fields.split()[1]) == os.getpid():
            return int(folder.name)
    return None


def cpu_s(process: int) -> float:
    """Return the CPU seconds that a process has taken so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def burnt(process: int | None) -> Iterator[list[float]]:
    """Yield a list that gets the CPU seconds which a process takes within the block, if it is known."""
    found: list[float] = []
    before = cpu_s(process) if process is not None else 0.0
    yield found
    if process is not None:
        found.append(cpu_s(process) - before)
