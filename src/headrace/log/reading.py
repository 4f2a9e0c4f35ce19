"""Reading a part of a partition to its end, whatever kind of log it is in."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from headrace.errors import RetriableError
from headrace.log.api import Log, Reader
from headrace.record import RecordBatch, TopicPartition

_COUNTED_RECORDS = 4096
"""How many records are read at a time where they are counted."""
_PAUSE_S = 0.02
_PAUSES = 1500
"""As many in a row are 30 seconds, after which nobody waits any longer."""


def read_to(reader: Reader, end: int, max_records: int) -> Iterator[RecordBatch]:
    """Yield the batches that begin before an offset, and wait for those that a log fetches in the background.

    Args:
        reader: It stands where to begin; the caller closes it.
        end: At most the end offset of the partition.
        max_records: How many a batch may have.

    Raises:
        RetriableError: nothing comes, although more is there.
    """
    patience, empty = threading.Event(), 0
    while reader.position < end:
        batch = reader.read(max_records)
        if batch is not None:
            empty = 0
            if batch.offsets[0] < end:
                yield batch
        elif reader.position < end:
            empty += 1
            if empty > _PAUSES:
                raise RetriableError(f"the log sends nothing of a partition from offset {reader.position} on")
            patience.wait(_PAUSE_S)


def count_records(log: Log, partition: TopicPartition, position: int) -> int:
    """Return how many records a partition has from an offset on; what only producers and readers see is none.

    Args:
        log: The log.
        partition: The partition.
        position: An offset that is kept.

    Raises:
        NotFoundError: there is no such partition, or the offset is not kept.
        RetriableError: the log sends nothing, although more is there.
    """
    reader = log.reader(partition, position)
    try:
        batches = read_to(reader, log.end_offset(partition), _COUNTED_RECORDS)
        return sum(len(batch) for batch in batches if not batch.control)
    finally:
        reader.close()
