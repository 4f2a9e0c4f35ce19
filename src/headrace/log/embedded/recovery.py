"""Finding the true end of a partition after a crash: what is whole stays, a torn tail is cut."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import dataclass

from headrace.errors import CorruptError
from headrace.log.embedded.files import opened
from headrace.log.embedded.format import PREFIX_BYTES, SEGMENT_HEADER_BYTES, read_prefix
from headrace.log.embedded.marks import EMPTY, ENTRY_BYTES, INDEX_HEADER, NO_TIMESTAMP, End
from headrace.log.embedded.segment import (
    Place,
    SegmentScanner,
    load_index,
    read_segment_header,
    rebuild_index,
    walk_headers,
)

_logger = logging.getLogger("headrace.log")


@dataclass(frozen=True, slots=True)
class _Tail:
    """What a scan of the last bytes of a segment found."""

    position: int
    next_offset: int | None
    """None if the scan met no batch."""
    size: int
    damage: CorruptError | None


def recover(place: Place, known: End | None) -> End:
    """Return the end that the segments really have, cutting what is torn; the caller holds the partition's lock.

    Everything up to ``known.synced`` was on the disk and is trusted. Whole batches behind the published end stay:
    they were written before a crash that kept them from being published.

    Args:
        place: The partition.
        known: The published end, or None if it cannot be read.

    Raises:
        CorruptError: bytes are damaged that no crash explains, because a valid batch follows them.
    """
    bases = place.bases()
    if not bases:
        if known is not None and known.position:
            raise place.corrupt("the segment file is missing", known.segment, 0, known.segment)
        return known or EMPTY
    if known is not None and known.segment not in bases and known.position:
        raise place.corrupt("the segment file is missing", known.segment, 0, known.segment)
    first = known.segment if known is not None and known.position else bases[-1]
    end: End | None = None
    rest = [base for base in bases if base >= first]
    while rest:
        base = rest.pop(0)
        published = known if known is not None and known.segment == base and known.position else None
        if (end is not None and base != end.next_offset) or not _has_header(place, base, published):
            _drop(place, [base, *rest])
            break
        end, torn = _recover_segment(place, base, published)
        if torn:
            _drop(place, rest)
            break
    if end is None:
        return recover(place, None) if place.bases() else EMPTY
    return end


def _has_header(place: Place, base: int, published: End | None) -> bool:
    with opened(place.segment(base)) as fd:
        try:
            read_segment_header(place, base, fd)
        except CorruptError:
            if published is not None or os.fstat(fd).st_size > SEGMENT_HEADER_BYTES:
                raise
            return False
    return True


def _drop(place: Place, bases: list[int]) -> None:
    for base in bases:
        _logger.warning("removed a segment that a crash left unfinished: file %s, %s", place.segment(base), place)
        place.segment(base).unlink(missing_ok=True)
        place.index_file(base).unlink(missing_ok=True)


def _recover_segment(place: Place, base: int, published: End | None) -> tuple[End, bool]:
    synced = max(published.synced, SEGMENT_HEADER_BYTES) if published else SEGMENT_HEADER_BYTES
    with opened(place.segment(base), os.O_RDWR) as fd:
        tail = _scan(place, base, fd, synced)
        whole = tail.next_offset is not None or (published is not None and published.position == tail.position)
        if not whole and synced > SEGMENT_HEADER_BYTES:
            tail = _scan(place, base, fd, SEGMENT_HEADER_BYTES)
        torn = tail.position < tail.size
        if torn:
            visible = published is None or tail.position < published.position
            if visible and tail.damage is not None and _goes_on(place, base, fd, tail):
                raise tail.damage
            _logger.warning(
                "cut a torn tail of %d bytes: file %s, byte %d, %s",
                tail.size - tail.position, place.segment(base), tail.position, place,
            )  # fmt: skip
            os.ftruncate(fd, tail.position)
    if published is not None and tail.position == published.position and _index_is_whole(place, published):
        return published, torn
    entries = rebuild_index(place, base, tail.position, closed=False)
    next_offset, highest = _summary(place, base, tail.position)
    indexed = entries[-1].position if entries else 0
    end = End(next_offset, base, tail.position, highest, min(synced, tail.position), indexed, len(entries))
    return end, torn


def _scan(place: Place, base: int, fd: int, start: int) -> _Tail:
    size = os.fstat(fd).st_size
    if start > size:
        return _Tail(min(start, size), None, size, None)
    scanner = SegmentScanner(place, base, fd, start, size)
    next_offset: int | None = base if start == SEGMENT_HEADER_BYTES else None
    position = start
    try:
        while (found := scanner.next()) is not None:
            if next_offset is not None and found[0].base_offset < next_offset:
                raise place.corrupt("the offsets do not grow", base, position, next_offset)
            next_offset = found[0].next_offset
            position = scanner.position
    except CorruptError as error:
        return _Tail(position, next_offset, size, error)
    return _Tail(position, next_offset, size, None)


def _goes_on(place: Place, base: int, fd: int, tail: _Tail) -> bool:
    """Tell whether a valid batch stands behind the damage, so that it is not a torn tail."""
    limit = tail.size
    places = [entry.position for entry in load_index(place, base) if entry.position > tail.position]
    raw = os.pread(fd, PREFIX_BYTES, tail.position)
    with suppress(CorruptError):
        places.append(tail.position + PREFIX_BYTES + read_prefix(raw, 0)[0])
    for position in places:
        try:
            if position < limit and SegmentScanner(place, base, fd, position, limit).next() is not None:
                return True
        except CorruptError:
            continue
    return False


def _index_is_whole(place: Place, end: End) -> bool:
    try:
        size = place.index_file(end.segment).stat().st_size
    except FileNotFoundError:
        return False
    entries = load_index(place, end.segment)
    return size >= len(INDEX_HEADER) + end.entries * ENTRY_BYTES and len(entries) >= end.entries


def _summary(place: Place, base: int, limit: int) -> tuple[int, int]:
    """Return the next offset and the highest timestamp of a segment."""
    next_offset, highest = base, NO_TIMESTAMP
    with opened(place.segment(base)) as fd:
        for _, header in walk_headers(place, base, fd, SEGMENT_HEADER_BYTES, limit):
            next_offset = header.next_offset
            if not header.control:
                highest = max(highest, header.max_timestamp)
    return next_offset, highest
