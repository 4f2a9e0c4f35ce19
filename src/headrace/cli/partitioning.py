"""Dealing encoded records out to the partitions of a topic, and appending them in batches."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.log.api import Log
from headrace.record import JoinedBytes, RecordBatch, TopicPartition

_HELD_BYTES = 16 * 1024 * 1024


class _Pending:
    """Records of one partition that wait for company."""

    __slots__ = ("keys", "timestamps", "values")

    def __init__(self) -> None:
        self.timestamps: list[int] = []
        self.keys: list[bytes | None] = []
        self.values: list[bytes | None] = []


class TopicWriter:
    """Appends records to a topic, those with one key to one partition.

    Args:
        log: Where the topic is.
        topic: Its name.
        partitions: How many it has.
        batch_records: How many records of a partition are appended at once.
        first: Where records without keys go first; any number.
    """

    def __init__(self, log: Log, topic: str, partitions: int, batch_records: int, first: int = 0) -> None:
        self.written = 0
        """Records appended so far."""
        self._log = log
        self._partitions = [TopicPartition(topic, number) for number in range(partitions)]
        self._batch_records = batch_records
        self._pending = [_Pending() for _ in self._partitions]
        self._held_bytes = 0
        self._turn = first % partitions

    def add(
        self, timestamps: Sequence[int], keys: Sequence[bytes] | None, values: Sequence[bytes | None], size_bytes: int
    ) -> None:
        """Take records in; some of them, or of those before, are appended.

        Args:
            timestamps: Milliseconds.
            keys: None for records without keys, which go to the partitions in turn, a batch to each.
            values: Encoded; None for a record without one.
            size_bytes: About how much memory they take.
        """
        if keys is None:
            self._add_keyless(timestamps, values)
        else:
            self._add_keyed(timestamps, keys, values)
        self._held_bytes += size_bytes
        if self._held_bytes > _HELD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Append everything that was taken in."""
        for number, pending in enumerate(self._pending):
            if pending.timestamps:
                self._append(number, pending)
        self._held_bytes = 0

    def _add_keyed(self, timestamps: Sequence[int], keys: Sequence[bytes], values: Sequence[bytes | None]) -> None:
        count = len(self._partitions)
        rows: list[list[int]] = [[] for _ in range(count)]
        appends = [row.append for row in rows]
        for i, code in enumerate(map(self._log.hash_key, keys)):
            appends[code % count](i)
        for number, row in enumerate(rows):
            pending = self._pending[number]
            pending.timestamps += [timestamps[i] for i in row]
            pending.keys += [keys[i] for i in row]
            pending.values += [values[i] for i in row]
            if len(pending.timestamps) >= self._batch_records:
                self._append(number, pending)

    def _add_keyless(self, timestamps: Sequence[int], values: Sequence[bytes | None]) -> None:
        start = 0
        while start < len(values):
            pending = self._pending[self._turn]
            end = start + self._batch_records - len(pending.timestamps)
            taken = values[start:end]
            pending.timestamps += timestamps[start:end]
            pending.keys += [None] * len(taken)
            pending.values += taken
            start += len(taken)
            if len(pending.timestamps) >= self._batch_records:
                self._append(self._turn, pending)

    def _append(self, number: int, pending: _Pending) -> None:
        # Taken out first: what may or may not have been appended must not be appended again.
        self._pending[number] = _Pending()
        self._turn = (number + 1) % len(self._partitions)
        step = self._batch_records
        for start in range(0, len(pending.timestamps), step):
            end = start + step
            batch = RecordBatch(
                pending.timestamps[start:end], pending.keys[start:end], JoinedBytes.of(pending.values[start:end])
            )
            self._log.append(self._partitions[number], batch)
            self.written += len(batch)
