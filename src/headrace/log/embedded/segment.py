"""The files of one partition: where they are, how a segment is walked, and the index beside it."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from headrace.errors import CorruptError
from headrace.log.embedded.files import opened, write_all
from headrace.log.embedded.format import (
    HEADER_BYTES,
    PREFIX_BYTES,
    SEGMENT_HEADER_BYTES,
    BatchHeader,
    SegmentHeader,
    decode_segment_header,
    encode_segment_header,
    open_batch,
    peek_header,
    read_prefix,
)
from headrace.log.embedded.marks import (
    END_BYTES,
    INDEX_HEADER,
    NO_TIMESTAMP,
    End,
    IndexEntry,
    decode_end,
    decode_index,
    encode_end,
    encode_entry,
)
from headrace.log.names import topic_deleted

INDEX_INTERVAL_BYTES = 64 * 1024
_SMALL_CHUNK = 64 * 1024
_LARGE_CHUNK = 1024 * 1024
_LARGE_BATCH = 128 * 1024
_DIGITS = 20
_REMEDY = "Restore the file from a backup, or delete the topic and write it again from its source"
_SPINS = 1000


class Place(NamedTuple):
    """Where one partition lives."""

    topic: str
    partition: int
    directory: Path

    def __str__(self) -> str:
        return f"topic {self.topic}, partition {self.partition}"

    def segment(self, base: int) -> Path:
        """Return the file of the segment that starts at offset ``base``."""
        return self.directory / f"{base:0{_DIGITS}d}.log"

    def index_file(self, base: int) -> Path:
        """Return the index file of the segment that starts at offset ``base``."""
        return self.directory / f"{base:0{_DIGITS}d}.index"

    @property
    def end_file(self) -> Path:
        """The file with the published end, which is also the partition's lock."""
        return self.directory / "end"

    def bases(self) -> list[int]:
        """Return the first offsets of all segments, in order."""
        names = os.listdir(self.directory)
        return sorted(int(name[:_DIGITS]) for name in names if name.endswith(".log") and name[:_DIGITS].isdigit())

    def corrupt(self, reason: str, base: int, position: int, offset: int | None = None) -> CorruptError:
        """Say what is damaged, and where."""
        near = "" if offset is None else f", offset {offset}"
        return CorruptError(
            f"{reason}: file {self.segment(base)}, byte {position}, {self}{near}",
            remedy=_REMEDY,
        )


class EndFile:
    """The published end of a partition, for one reader or under one appender's lock."""

    __slots__ = ("_seen", "fd", "place")

    def __init__(self, place: Place, *, writable: bool) -> None:
        self.place = place
        # A missing file is made again, and what belongs into it is found by repairing the partition.
        self.fd = os.open(place.end_file, os.O_RDWR | os.O_CREAT if writable else os.O_RDONLY, 0o666)
        self._seen: tuple[bytes, End] | None = None

    def read(self) -> End:
        """Return the published end.

        Raises:
            CorruptError: the file is damaged.
            NotFoundError: the topic was deleted.
        """
        raw = os.pread(self.fd, END_BYTES, 0)
        seen = self._seen
        if seen is None or raw != seen[0]:
            seen = self._seen = (raw, self._decode(raw))
        end = seen[1]
        # Who deletes the files by hand leaves those who have them open with files that nobody else will ever see.
        if end.deleted or not os.fstat(self.fd).st_nlink:
            raise topic_deleted(self.place.topic)
        return end

    def write(self, end: End) -> None:
        """Publish ``end``; the caller holds the partition's lock."""
        raw = encode_end(end)
        write_all(self.fd, raw, 0)
        self._seen = (raw, end)

    def close(self) -> None:
        """Close the file; idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _decode(self, raw: bytes) -> End:
        # An appender may be in the middle of writing it, which passes after a moment.
        for _ in range(_SPINS):
            try:
                return decode_end(raw)
            except CorruptError:
                raw = os.pread(self.fd, END_BYTES, 0)
        try:
            return decode_end(raw)
        except CorruptError as error:
            raise CorruptError(f"{error.message}: file {self.place.end_file}, {self.place}") from error


class SegmentScanner:
    """Reads the batches of one segment forwards, in large chunks."""

    __slots__ = ("_at", "_chunk", "_chunk_bytes", "_start", "base", "fd", "limit", "place")

    def __init__(self, place: Place, base: int, fd: int, position: int, limit: int) -> None:
        self.place = place
        self.base = base
        self.fd = fd
        self.limit = limit
        """Nothing is read from this byte on; it may be raised as the segment grows."""
        self._chunk = b""
        self._start = position
        self._at = 0
        self._chunk_bytes = _SMALL_CHUNK

    @property
    def position(self) -> int:
        """The byte at which the next batch starts."""
        return self._start + self._at

    def next(self) -> tuple[BatchHeader, bytes] | None:
        """Return the header and the bytes of the next batch, or None at the limit.

        Raises:
            CorruptError: there is no valid batch; the position stays.
        """
        if self.position >= self.limit:
            return None
        try:
            self._need(PREFIX_BYTES)
            length, checksum = read_prefix(self._chunk, self._at)
            start = self._at + PREFIX_BYTES
            if length >= _LARGE_BATCH and start + length > len(self._chunk):
                covered = self._read_alone(length)
                header = open_batch(covered, checksum)
                self._chunk, self._start, self._at = b"", self.position + PREFIX_BYTES + length, 0
                self._chunk_bytes = PREFIX_BYTES
                return header, covered
            self._need(PREFIX_BYTES + length)
            start = self._at + PREFIX_BYTES
            covered = self._chunk[start : start + length]
            header = open_batch(covered, checksum)
        except CorruptError as error:
            raise self.place.corrupt(error.message, self.base, self.position) from error
        self._at = start + length
        return header, covered

    def _read_alone(self, length: int) -> bytes:
        """Read a large batch by itself, which saves copying it out of a chunk."""
        position = self.position + PREFIX_BYTES
        if position + length > self.limit:
            raise CorruptError("a batch reaches beyond the end of what was published")
        covered = os.pread(self.fd, length, position)
        if len(covered) < length:
            raise CorruptError("the file ends inside a batch")
        return covered

    def _need(self, size: int) -> None:
        if len(self._chunk) - self._at >= size:
            return
        position = self.position
        if position + size > self.limit:
            raise CorruptError("a batch reaches beyond the end of what was published")
        wanted = min(max(size, self._chunk_bytes), self.limit - position)
        self._chunk_bytes = _LARGE_CHUNK
        self._chunk, self._start, self._at = os.pread(self.fd, wanted, position), position, 0
        if len(self._chunk) < size:
            raise CorruptError("the file ends inside a batch")


def create_segment(place: Place, base: int, created_ms: int) -> None:
    """Create an empty segment and its empty index, in place of what a crash may have left of them."""
    path = place.segment(base)
    try:
        with opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
            write_all(fd, encode_segment_header(SegmentHeader(base, created_ms)), 0)
        with opened(place.index_file(base), os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
            write_all(fd, INDEX_HEADER, 0)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def read_segment_header(place: Place, base: int, fd: int) -> SegmentHeader:
    """Read the header of an open segment.

    Raises:
        CorruptError: it is damaged, or the file is not the segment of its name.
    """
    try:
        header = decode_segment_header(os.pread(fd, SEGMENT_HEADER_BYTES, 0))
    except CorruptError as error:
        raise place.corrupt(error.message, base, 0, base) from error
    if header.base_offset != base:
        raise place.corrupt("the segment header names another first offset than the file", base, 0, base)
    return header


def walk_headers(place: Place, base: int, fd: int, position: int, limit: int) -> Iterator[tuple[int, BatchHeader]]:
    """Yield position and header of every batch from ``position`` on, without reading columns.

    Raises:
        CorruptError: the lengths or offsets do not lead from batch to batch.
    """
    least = base
    while position < limit:
        raw = os.pread(fd, HEADER_BYTES, position)
        try:
            if len(raw) < HEADER_BYTES:
                raise CorruptError("the file ends inside a batch")
            length, _ = read_prefix(raw, 0)
            header = peek_header(raw, PREFIX_BYTES)
            if header.base_offset < least or header.span < 1 or position + PREFIX_BYTES + length > limit:
                raise CorruptError("the header of a batch makes no sense")
        except CorruptError as error:
            raise place.corrupt(error.message, base, position, least) from error
        yield position, header
        position += PREFIX_BYTES + length
        least = header.next_offset


def load_index(place: Place, base: int) -> list[IndexEntry]:
    """Return what the index of a segment says, which is nothing if it is missing."""
    try:
        return decode_index(place.index_file(base).read_bytes())
    except FileNotFoundError:
        return []


def rebuild_index(place: Place, base: int, limit: int, *, closed: bool) -> list[IndexEntry]:
    """Make the index of a segment from the segment.

    Args:
        place: The partition.
        base: The first offset of the segment.
        limit: The end of what is valid in the segment.
        closed: Add the entry that marks the end of a segment that grows no more.
    """
    entries: list[IndexEntry] = []
    highest, indexed, next_offset = NO_TIMESTAMP, -INDEX_INTERVAL_BYTES, base
    with opened(place.segment(base)) as fd:
        for position, header in walk_headers(place, base, fd, SEGMENT_HEADER_BYTES, limit):
            if position - indexed >= INDEX_INTERVAL_BYTES:
                entries.append(IndexEntry(header.base_offset, position, highest))
                indexed = position
            next_offset = header.next_offset
            if not header.control:
                highest = max(highest, header.max_timestamp)
    if closed:
        entries.append(IndexEntry(next_offset, limit, highest))
    try:
        with opened(place.index_file(base), os.O_RDWR | os.O_CREAT | os.O_TRUNC) as fd:
            write_all(fd, INDEX_HEADER + b"".join(map(encode_entry, entries)), 0)
    except PermissionError:
        pass  # a reader that may not write does without
    return entries


def closed_index(place: Place, base: int) -> list[IndexEntry]:
    """Return the index of a closed segment, rebuilt if it is missing, damaged or does not reach the end."""
    size = place.segment(base).stat().st_size
    entries = load_index(place, base)
    if not entries or entries[-1].position != size:
        entries = rebuild_index(place, base, size, closed=True)
    return entries


def start_for_offset(entries: list[IndexEntry], offset: int, fd: int, limit: int) -> int:
    """Return a byte at which a batch starts that holds ``offset`` or lies before it."""
    return _trusted(entries, bisect_right(entries, offset, key=lambda entry: entry.offset), fd, limit)


def start_for_time(entries: list[IndexEntry], timestamp_ms: int, fd: int, limit: int) -> int:
    """Return a byte at which a batch starts and before which no record is as late as ``timestamp_ms``."""
    at = bisect_right(entries, timestamp_ms - 1, key=lambda entry: entry.max_timestamp)
    return _trusted(entries, at, fd, limit)


def _trusted(entries: list[IndexEntry], at: int, fd: int, limit: int) -> int:
    """Return where entry ``at - 1`` points if the open file agrees, for it may have been compacted meanwhile."""
    if not at or entries[at - 1].position >= limit:
        return SEGMENT_HEADER_BYTES
    entry = entries[at - 1]
    raw = os.pread(fd, HEADER_BYTES, entry.position)
    agrees = len(raw) == HEADER_BYTES and peek_header(raw, PREFIX_BYTES).base_offset == entry.offset
    return entry.position if agrees else SEGMENT_HEADER_BYTES
