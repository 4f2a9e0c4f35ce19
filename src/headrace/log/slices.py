"""Handing out a batch in pieces without splitting its values."""

from __future__ import annotations

from bisect import bisect_left

from headrace.record import JoinedBytes, Origin, RecordBatch


class BatchPieces:
    """Hands out a batch from an offset on, at most so many records at a time; each piece costs what it holds."""

    __slots__ = ("_batch", "_byte", "_index", "_missing")

    def __init__(self, batch: RecordBatch, from_offset: int) -> None:
        self._batch = batch
        self._index = 0
        self._byte = 0
        offsets = batch.offsets
        self._missing: bool | None = None
        if from_offset > offsets[0]:
            in_order = isinstance(offsets, range)
            self._index = min(from_offset - offsets[0], len(offsets)) if in_order else bisect_left(offsets, from_offset)
            self._byte = self._size(0, self._index)

    @property
    def exhausted(self) -> bool:
        """Whether everything was handed out."""
        return self._index >= len(self._batch)

    def take(self, max_records: int) -> RecordBatch:
        """Return the next piece, which holds at least one record."""
        batch, start, first = self._batch, self._index, self._byte
        count = len(batch)
        stop = min(start + max(max_records, 1), count)
        if start == 0 and stop == count:
            self._index = count
            return batch
        last = first + self._size(start, stop)
        self._index, self._byte = stop, last
        origin, headers = batch.origin, batch.headers
        return RecordBatch(
            batch.timestamps[start:stop],
            batch.keys[start:stop],
            JoinedBytes(batch.values.joined[first:last], batch.values.lengths[start:stop]),
            None if headers is None else headers[start:stop],
            None if origin is None else Origin(origin.source, origin.positions[start:stop]),
            batch.progress if stop == count else None,  # it speaks of the whole batch, so it waits for the last record
            batch.offsets[start:stop],
            batch.control,
        )

    def _size(self, start: int, stop: int) -> int:
        values = self._batch.values
        if self._missing is None:
            self._missing = sum(values.lengths) != len(values.joined)
        lengths = values.lengths[start:stop]
        return sum(length for length in lengths if length > 0) if self._missing else sum(lengths)
