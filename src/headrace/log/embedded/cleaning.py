"""Deleting what a topic no longer keeps: retention, trimming and compaction of closed segments."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from headrace.errors import CorruptError
from headrace.log.api import TopicConfig
from headrace.log.embedded.files import locked_file, opened, read_versioned_json, write_all, write_json
from headrace.log.embedded.format import (
    SEGMENT_HEADER_BYTES,
    BatchEncoder,
    decode_columns,
    encode_segment_header,
    seal,
)
from headrace.log.embedded.marks import End
from headrace.log.embedded.segment import (
    EndFile,
    Place,
    SegmentScanner,
    closed_index,
    read_segment_header,
    rebuild_index,
)
from headrace.record import JoinedBytes, Origin, RecordBatch

_COMPACTED_VERSION = 1


@dataclass(frozen=True, slots=True)
class ClosedSegment:
    """What decides whether a segment that grows no more is kept."""

    base: int
    next_base: int
    size_bytes: int
    max_timestamp: int
    closed_ms: int
    """When it was closed, by the log's clock."""


def beyond_retention(
    segments: Sequence[ClosedSegment], growing_bytes: int, config: TopicConfig, now_ms: int
) -> list[int]:
    """Return the first offsets of the segments to delete: always the oldest, without gaps.

    A segment is too old when both its newest record and its closing are, so that history which was loaded today
    stays for the whole retention. It is beyond the size when the segments after it alone fill that size.
    """
    after = growing_bytes + sum(segment.size_bytes for segment in segments)
    doomed: list[int] = []
    for segment in segments:
        after -= segment.size_bytes
        age = now_ms - max(segment.max_timestamp, segment.closed_ms)
        too_old = config.retention_ms is not None and age > config.retention_ms
        too_much = config.retention_bytes is not None and after >= config.retention_bytes
        if not too_old and not too_much:
            break
        doomed.append(segment.base)
    return doomed


def clean_partition(
    place: Place, config: TopicConfig, encoder: BatchEncoder, now_ms: int, *, thorough: bool = True
) -> None:
    """Delete what is beyond the retention, or compact a compacted topic.

    Args:
        place: The partition.
        config: What its topic keeps. A compacted topic keeps the newest record of every key, however old.
        encoder: Writes compacted batches.
        now_ms: The time.
        thorough: Compact whatever is new; otherwise only when at least half is, which keeps the total cost linear.
    """
    with locked_file(place.directory / "clean.lock"):
        end = _published(place)
        bases = [base for base in place.bases() if base <= end.segment]
        if config.compact:
            _compact(place, bases, end, encoder, thorough=thorough)
        elif config.retention_ms is not None or config.retention_bytes is not None:
            segments = [_closed(place, base, after) for base, after in pairwise(bases)]
            _delete(place, beyond_retention(segments, end.position, config, now_ms))


def trim_partition(place: Place, before: int) -> None:
    """Delete the closed segments that hold only offsets before ``before``."""
    with locked_file(place.directory / "clean.lock"):
        end = _published(place)
        bases = [base for base in place.bases() if base <= end.segment]
        _delete(place, [base for base, after in pairwise(bases) if after <= before])


def _published(place: Place) -> End:
    end_file = EndFile(place, writable=False)
    try:
        return end_file.read()
    finally:
        end_file.close()


def _closed(place: Place, base: int, next_base: int) -> ClosedSegment:
    entries = closed_index(place, base)
    with opened(place.segment(next_base)) as fd:
        closed_ms = read_segment_header(place, next_base, fd).created_ms
    return ClosedSegment(base, next_base, entries[-1].position, entries[-1].max_timestamp, closed_ms)


def _delete(place: Place, bases: Sequence[int]) -> None:
    for base in bases:
        place.segment(base).unlink(missing_ok=True)
        place.index_file(base).unlink(missing_ok=True)


def _compact(place: Place, bases: Sequence[int], end: End, encoder: BatchEncoder, *, thorough: bool) -> None:
    marker = place.directory / "compacted.json"
    try:
        done = int(read_versioned_json(marker, _COMPACTED_VERSION)["before"])
    except (FileNotFoundError, CorruptError, KeyError, ValueError):
        done = 0
    closed = [base for base in bases if base < end.segment]
    sizes = {base: place.segment(base).stat().st_size for base in closed}
    new_bytes = sum(size for base, size in sizes.items() if base >= done)
    if not new_bytes or (not thorough and 2 * new_bytes < sum(sizes.values())):
        return
    newest: dict[bytes, int] = {}
    for base in bases:
        limit = end.position if base == end.segment else sizes[base]
        for _, batch in _batches(place, base, limit):
            newest.update((key, at) for key, at in zip(batch.keys, batch.offsets, strict=True) if key is not None)
    # Oldest first: a crash half-way must not remove a deletion before the values that it deletes.
    for base in closed:
        _rewrite(place, base, sizes[base], newest, encoder)
    write_json(marker, {"format": _COMPACTED_VERSION, "before": end.segment})


def _batches(place: Place, base: int, limit: int) -> Iterator[tuple[bool, RecordBatch]]:
    """Yield the batches of a segment, and for each whether its offsets have gaps."""
    with opened(place.segment(base)) as fd:
        scanner = SegmentScanner(place, base, fd, SEGMENT_HEADER_BYTES, limit)
        while (found := scanner.next()) is not None:
            batch = decode_columns(*found)
            yield not isinstance(batch.offsets, range), batch


def _rewrite(place: Place, base: int, size: int, newest: dict[bytes, int], encoder: BatchEncoder) -> None:
    """Write the segment anew without the records that newer ones replace; its offsets stay as they are."""
    with opened(place.segment(base)) as fd:
        header = read_segment_header(place, base, fd)
    temporary = place.segment(base).with_suffix(".new")
    dropped = 0
    with opened(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
        write_all(fd, encode_segment_header(header), 0)
        position = SEGMENT_HEADER_BYTES
        for gaps, batch in _batches(place, base, size):
            kept = _kept(batch, newest)
            dropped += len(batch) - len(kept)
            if not kept:
                continue
            fewer = len(kept) < len(batch)
            encoded = encoder.encode(_select(batch, kept) if fewer else batch, explicit_offsets=gaps or fewer)
            data = seal(encoded, batch.offsets[kept[0]]) + encoded.columns
            write_all(fd, data, position)
            position += len(data)
        os.fsync(fd)
    if not dropped:
        temporary.unlink()
        return
    place.index_file(base).unlink(missing_ok=True)
    temporary.rename(place.segment(base))
    rebuild_index(place, base, position, closed=True)


def _kept(batch: RecordBatch, newest: dict[bytes, int]) -> list[int]:
    lengths = batch.values.lengths
    return [
        i
        for i, (key, offset) in enumerate(zip(batch.keys, batch.offsets, strict=True))
        if key is None or (newest.get(key) == offset and lengths[i] >= 0)
    ]


def _select(batch: RecordBatch, rows: list[int]) -> RecordBatch:
    values = batch.values.split()
    headers, origin = batch.headers, batch.origin
    return RecordBatch(
        [batch.timestamps[i] for i in rows],
        [batch.keys[i] for i in rows],
        JoinedBytes.of([values[i] for i in rows]),
        None if headers is None else [headers[i] for i in rows],
        None if origin is None else Origin(origin.source, [origin.positions[i] for i in rows]),
        batch.progress,
        [batch.offsets[i] for i in rows],
        batch.control,
    )
