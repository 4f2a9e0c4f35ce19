"""What the suites for logs share: a clock, batches, an assignment and fixtures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from headrace.clock import Clock
from headrace.log.api import Log, Reader
from headrace.record import JoinedBytes, RecordBatch, TopicPartition

PART = TopicPartition("payments", 0)
UNITS = {"a": [TopicPartition("payments", 0)], "b": [TopicPartition("payments", 1)]}
TIMEOUT_MS = 10_000


class StillClock:
    """A clock that moves only when it is told to."""

    def __init__(self, now_ms: int = 1_000_000) -> None:
        self.time_ms = now_ms

    def now_ms(self) -> int:
        """Return the time."""
        return self.time_ms

    def monotonic_ms(self) -> int:
        """Return the time."""
        return self.time_ms

    def sleep_ms(self, duration_ms: int) -> None:
        """Move the clock."""
        self.time_ms += duration_ms


def make_batch(
    values: Sequence[bytes | None], *, start_ms: int = 1000, keys: Sequence[bytes | None] | None = None, **columns: Any
) -> RecordBatch:
    """Return a batch of ``values`` with a timestamp each, one millisecond apart."""
    timestamps = list(range(start_ms, start_ms + len(values)))
    some = [b"k%d" % i for i in range(len(values))] if keys is None else list(keys)
    return RecordBatch(timestamps, some, JoinedBytes.of(values), **columns)


def until(check: Callable[[], object], timeout_s: float = 15) -> None:
    """Wait until ``check`` returns something true; what a log learns from others, it may learn a little later."""
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)


def read_next(reader: Reader, max_records: int = 10) -> RecordBatch | None:
    """Return the next batch, None at the end; wait for what is known to be there but has not come yet."""
    got: list[RecordBatch] = []

    def found() -> bool:
        batch = reader.read(max_records)
        got.extend([] if batch is None else [batch])
        return batch is not None or reader.position >= reader.end_offset()

    until(found)
    return got[0] if got else None


def read_all(reader: Reader, max_records: int = 1000) -> list[RecordBatch]:
    """Read up to the end."""
    batches = []
    while (batch := read_next(reader, max_records)) is not None:
        batches.append(batch)
    return batches


def read_until(reader: Reader, position: int) -> None:
    """Read until a position is reached, however long it takes to be appended."""
    until(lambda: reader.read(1) is None and reader.position >= position)


def values_of(batches: Sequence[RecordBatch]) -> list[bytes | None]:
    """Return the values of all batches that are not control batches."""
    return [value for batch in batches if not batch.control for value in batch.values.split()]


def assign_evenly(members: Sequence[str], units: Sequence[str], held: Mapping[str, str]) -> dict[str, str]:
    """Give every member its share, and let units stay where they were as far as that allows."""
    share = -(-len(units) // len(members))
    loads = dict.fromkeys(members, 0)
    chosen: dict[str, str] = {}
    for unit in units:
        holder = held.get(unit, "")
        if loads.get(holder, share) < share:
            chosen[unit] = holder
            loads[holder] += 1
    for unit in units:
        if unit not in chosen:
            chosen[unit] = min(members, key=lambda member: (loads[member], member))
            loads[chosen[unit]] += 1
    return chosen


class LogFixtures:
    """What the suites below are given."""

    least_segment_bytes = 1
    """The smallest segments that the log makes."""

    def open_log(self, directory: Path, clock: Clock) -> Log:
        """Return an empty log; ``directory`` is empty and may be used for its files."""
        raise NotImplementedError

    def another_log(self, log: Log, directory: Path, clock: Clock) -> Log:
        """Return a second log object on the records of ``log``; the same object if there cannot be two."""
        return log

    def pass_time(self, clock: StillClock, duration_ms: int) -> None:
        """Let time pass for the group's members; override it where that is not up to the log's clock."""
        clock.time_ms += duration_ms

    @pytest.fixture
    def clock(self) -> StillClock:
        """Return the clock that the log is given."""
        return StillClock()

    @pytest.fixture
    def log(self, tmp_path: Path, clock: StillClock) -> Iterator[Log]:
        """Yield a log with the topic ``payments`` of two partitions."""
        log = self.open_log(tmp_path, clock)
        log.create_topic("payments", 2)
        yield log
        log.close()

    @pytest.fixture
    def other(self, log: Log, tmp_path: Path, clock: StillClock) -> Iterator[Log]:
        """Yield another object on the same log."""
        other = self.another_log(log, tmp_path, clock)
        yield other
        other.close()
