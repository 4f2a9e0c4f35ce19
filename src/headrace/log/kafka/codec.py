"""Batches as Kafka's records, and back. Pure.

A record is a record. What headrace says of a whole batch (where its records come from and how far its producer has
got) only internal topics need: it stands in a header of the batch's first record, ``headrace-batch``, whose value is a
msgpack array::

    version | count of records | control | source or nil | positions or nil | progress or nil

Positions are the first one and the differences that follow. In users' topics every record has its own id in the header
``headrace-id``, which anybody can read; records read with such ids have them as their origin again.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from operator import attrgetter, lt, sub
from typing import Protocol

import msgpack

from headrace.errors import CorruptError, InvalidError
from headrace.record import ID_HEADER, Headers, JoinedBytes, Origin, Progress, RecordBatch

BATCH_HEADER = "headrace-batch"
VERSION = 1

Row = tuple[int, bytes | None, bytes | None, list[tuple[str, bytes]]]
"""Timestamp, key, value and headers of one record."""

_RECORD_OVERHEAD_BYTES = 32
"""At most what Kafka adds to key, value and headers of a record."""
_HEADER_OVERHEAD_BYTES = 10
_POSITION_DIGITS = 18


class StoredRecord(Protocol):
    """A record as the client library reads it."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def check(batch: RecordBatch) -> None:
    """Refuse a batch whose columns are not of one length.

    Raises:
        InvalidError: they are not.
    """
    count = len(batch)
    columns = [len(batch.keys), len(batch.values)]
    if batch.headers is not None:
        columns.append(len(batch.headers))
    if batch.origin is not None:
        columns.append(len(batch.origin.positions))
    if any(length != count for length in columns):
        raise InvalidError("the columns of the batch differ in length")


def size_bytes(batch: RecordBatch, *, described: bool) -> int:
    """Return at most how many bytes the records of a batch take, not compressed; for ``described`` see ``rows``."""
    count = len(batch)
    size = len(batch.values.joined) + sum(map(len, filter(None, batch.keys))) + _RECORD_OVERHEAD_BYTES * count
    if batch.headers is not None:
        size += sum(len(n) * 4 + len(v) + _HEADER_OVERHEAD_BYTES for row in batch.headers for n, v in row)
    if batch.origin is not None:
        each = 9 if described else len(batch.origin.source) * 4 + len(ID_HEADER) + 20 + _HEADER_OVERHEAD_BYTES
        size += each * count
    return size + 128


def rows(batch: RecordBatch, *, described: bool) -> Iterator[Row]:
    """Return the records of a batch as Kafka shall have them.

    Args:
        batch: At least one record.
        described: Whether the batch, or the one that it is a piece of, ``is_described``.
    """
    headers: Iterable[list[tuple[str, bytes]]]  # the builder takes nothing but lists
    headers = [[]] * len(batch) if batch.headers is None else map(list, batch.headers)
    if described:
        first, *rest = headers
        headers = [[*first, (BATCH_HEADER, _batch_header(batch))], *rest]
    elif batch.origin is not None:
        prefix = f"{batch.origin.source}/".encode()
        ids = [(ID_HEADER, prefix + b"%d" % position) for position in batch.origin.positions]
        headers = [[*row, own] for row, own in zip(headers, ids, strict=True)]
    # Kafka looks records up by time: what carries no record must not be found.
    timestamps = [-1] * len(batch) if batch.control else batch.timestamps
    return zip(timestamps, batch.keys, batch.values.split(), headers, strict=True)


def batches(records: Sequence[StoredRecord], place: str) -> list[RecordBatch]:
    """Return the batches that one of Kafka's record batches holds.

    Args:
        records: In the order of their offsets; at least one.
        place: Topic and partition, for errors.

    Raises:
        CorruptError: what headrace wrote there makes no sense.
        InvalidError: a newer headrace wrote it.
    """
    headers: list[Sequence[tuple[str, bytes | None]]] = list(map(attrgetter("headers"), records))
    if not any(headers):
        return [_plain(records, None)]
    origin = _one_origin(headers)
    if origin is not None:
        batch = _plain(records, None)
        batch.origin = origin
        return [batch]
    starts = [i for i, row in enumerate(headers) if row and row[-1][0] == BATCH_HEADER]
    made: list[RecordBatch] = []
    at = 0
    for start in [*starts, len(records)]:
        if at < start:
            made += _with_ids(records[at:start], [tuple((n, v or b"") for n, v in row) for row in headers[at:start]])
        if start < len(records):
            batch = _described(records, headers, start, place)
            made.append(batch)
            at = start + len(batch)
    return made


def is_described(batch: RecordBatch) -> bool:
    """Return whether the batch says something that no single record says."""
    return batch.control or batch.progress is not None


def _batch_header(batch: RecordBatch) -> bytes:
    origin = batch.origin
    source, positions = None, None
    if origin is not None:
        source, numbers = origin.source, origin.positions
        positions = [numbers[0], *map(sub, numbers[1:], numbers)]
    progress = None if batch.progress is None else list(batch.progress)
    return msgpack.packb([VERSION, len(batch), batch.control, source, positions, progress])  # type: ignore[no-any-return]


def _described(
    records: Sequence[StoredRecord], headers: list[Sequence[tuple[str, bytes | None]]], start: int, place: str
) -> RecordBatch:
    at = f"{place}, offset {records[start].offset}"
    *others, (_, described) = headers[start]
    headers[start] = others
    try:
        version, *fields = msgpack.unpackb(described or b"")
        if version > VERSION:
            raise InvalidError(f"a newer headrace wrote {at}: format {version}", remedy="Run that version")
        count, control, source, positions, progress = fields
        origin = None if source is None else Origin(source, array("q", accumulate(positions)))
        reached = None if progress is None else Progress(*progress)
        rest = headers[start : start + count]
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise CorruptError(f"the header {BATCH_HEADER} at {at} makes no sense") from error
    if not 0 < count == len(rest) or (origin is not None and len(origin.positions) != count):
        raise CorruptError(f"the batch at {at} says that it has {count} records, and does not")
    batch = _plain(records[start : start + count], None)
    if any(rest):
        batch.headers = [tuple((name, value or b"") for name, value in row) for row in rest]
    batch.origin, batch.progress, batch.control = origin, reached, control
    if control:
        batch.timestamps = [0] * count
    return batch


def _plain(records: Sequence[StoredRecord], headers: Sequence[Headers] | None) -> RecordBatch:
    first, last, count = records[0].offset, records[-1].offset, len(records)
    offsets: Sequence[int] = range(first, last + 1)
    if len(offsets) != count:  # compacted
        offsets = [record.offset for record in records]
    return RecordBatch(
        [record.timestamp for record in records],
        [record.key for record in records],
        JoinedBytes.of([record.value for record in records]),
        headers,
        offsets=offsets,
    )


def _one_origin(headers: list[Sequence[tuple[str, bytes | None]]]) -> Origin | None:
    """Return the origin of records that have ids of one source and nothing else, None of others.

    Most records that headrace wrote are of that kind; ``_with_ids`` finds the same, at more than twice the price.
    """
    try:
        ids = [value for ((name, value),) in headers if name == ID_HEADER]
    except ValueError:
        return None  # some have none, or others beside
    if len(ids) != len(headers) or None in ids:
        return None
    prefix = b"%s/" % ids[0].rpartition(b"/")[0]  # type: ignore[union-attr]
    digits = [found.removeprefix(prefix) for found in ids]  # type: ignore[union-attr]
    if sum(map(len, ids)) - sum(map(len, digits)) != len(prefix) * len(ids):  # type: ignore[arg-type]
        return None  # not all have the prefix
    if not (b"".join(digits).isdigit() and all(digits) and max(map(len, digits)) <= _POSITION_DIGITS):
        return None
    positions = array("q", map(int, digits))
    if not all(map(lt, positions, positions[1:])):
        return None
    return Origin(prefix[:-1].decode("utf-8", "replace"), positions)


def _with_ids(records: Sequence[StoredRecord], headers: list[Headers]) -> list[RecordBatch]:
    """Split where the source of the ids changes; what has no ids, or ids that do not grow, keeps its headers."""
    made: list[RecordBatch] = []
    start, seen, reached = 0, _id_of(headers[0]), -1
    positions: list[int] = []

    def close(stop: int) -> None:
        part = headers[start:stop]
        if seen is None:
            made.append(_plain(records[start:stop], part if any(part) else None))
            return
        rest = [row[:-1] for row in part]
        batch = _plain(records[start:stop], rest if any(rest) else None)
        batch.origin = Origin(seen[0], array("q", positions))
        made.append(batch)

    for i, row in enumerate(headers):
        found = _id_of(row)
        same = found is None if seen is None else found is not None and found[0] == seen[0] and found[1] > reached
        if not same:
            close(i)
            start, seen, positions = i, found, []
        if found is not None:
            reached = found[1]
            positions.append(reached)
    close(len(headers))
    return made


def _id_of(row: Headers) -> tuple[str, int] | None:
    if not row or row[-1][0] != ID_HEADER:
        return None
    source, _, position = row[-1][1].rpartition(b"/")
    if not position.isdigit() or len(position) > _POSITION_DIGITS:
        return None
    return source.decode("utf-8", "replace"), int(position)
