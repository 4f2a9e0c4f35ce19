"""Reading one partition forwards, and finding places in it."""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_right

from headrace.errors import CorruptError, InvalidError, NotFoundError
from headrace.log.embedded.files import opened, storage_error
from headrace.log.embedded.format import SEGMENT_HEADER_BYTES, decode_columns
from headrace.log.embedded.marks import End
from headrace.log.embedded.recovery import recover
from headrace.log.embedded.segment import (
    EndFile,
    Place,
    SegmentScanner,
    closed_index,
    load_index,
    read_segment_header,
    start_for_offset,
    start_for_time,
)
from headrace.log.slices import BatchPieces
from headrace.record import RecordBatch


class PartitionReader:
    """Reads one partition of an embedded log forwards; for one thread.

    It hands out nothing that could be lost with the power: whoever has seen a record may write what follows from it to
    another partition, or count it in a checkpoint, and another record would take its offset. What nobody has forced to
    the disk before, the reader forces, for all that is there by then.

    Args:
        place: The partition.
        offset: Where to begin.
        forces: Whether to do that.
    """

    def __init__(self, place: Place, offset: int, *, forces: bool) -> None:
        self.position = offset
        self._place = place
        self._expected = offset
        self._end_file = opened_end(place)
        self._scanner: SegmentScanner | None = None
        self._pieces: BatchPieces | None = None
        self._forces = forces
        self._forced = (-1, 0)
        """A segment, and the byte up to which this reader has forced it."""

    def read(self, max_records: int) -> RecordBatch | None:
        """Return the next batch, or None at the end; see ``log.api.Reader``."""
        if self.position != self._expected:
            self._forget_place()
        if self._pieces is None:
            try:
                end = self._end()
                if self.position >= end.next_offset or not self._advance(end):
                    return None
                self._force(end)
            except OSError as error:
                self._forget_place()  # what was found and could not be forced is read again
                raise storage_error(error, f"read of {self._place}", self._place.directory) from error
        pieces = self._pieces
        assert pieces is not None
        batch = pieces.take(max_records)
        if pieces.exhausted:
            self._pieces = None
        self.position = self._expected = batch.offsets[-1] + 1
        return batch

    def end_offset(self) -> int:
        """Return the offset that the next appended record will get."""
        return self._end().next_offset

    def close(self) -> None:
        """Close all files; idempotent."""
        self._forget_place()
        self._end_file.close()

    def _end(self) -> End:
        if self._end_file.fd < 0:
            raise InvalidError(f"the reader of {self._place} is closed")
        try:
            return self._end_file.read()
        except CorruptError:
            return repaired_end(self._place)

    def _advance(self, end: End) -> bool:
        """Decode the next batch that holds ``position`` or a later offset; False if a crash took it away."""
        for repaired in (False, True):
            try:
                return self._next_pieces(end)
            except CorruptError:
                scanner = self._scanner
                may_be_torn = scanner is None or (scanner.base == end.segment and scanner.position >= end.synced)
                if repaired or not may_be_torn:
                    raise
                self._forget_place()
                end = repaired_end(self._place)
                if self.position >= end.next_offset:
                    return False
        return False

    def _next_pieces(self, end: End) -> bool:
        scanner = self._scanner or self._seek(end)
        while True:
            self._set_limit(scanner, end)
            found = scanner.next()
            if found is None:
                if scanner.base >= end.segment:
                    return False
                scanner = self._next_segment(scanner)
                continue
            header, covered = found
            if header.next_offset <= self.position:
                continue
            try:
                batch = decode_columns(header, covered)
            except CorruptError as error:
                at = scanner.position - len(covered)
                raise self._place.corrupt(error.message, scanner.base, at, header.base_offset) from error
            pieces = BatchPieces(batch, self.position)
            if not pieces.exhausted:
                self._pieces = pieces
                return True

    def _force(self, end: End) -> None:
        """Force what was found to the disk, if the power could still take it; closed segments were forced before."""
        scanner = self._scanner
        assert scanner is not None
        if not self._forces or scanner.base != end.segment or scanner.position <= end.synced:
            return
        base, forced = self._forced
        if base != scanner.base or scanner.position > forced:
            os.fsync(scanner.fd)
            self._forced = scanner.base, end.position

    def _set_limit(self, scanner: SegmentScanner, end: End) -> None:
        if scanner.base == end.segment:
            scanner.limit = end.position
        elif scanner.position >= scanner.limit:
            scanner.limit = os.fstat(scanner.fd).st_size

    def _seek(self, end: End) -> SegmentScanner:
        bases = self._place.bases()
        at = bisect_right(bases, self.position)
        if not at:
            raise self._not_kept(bases, end)
        base = bases[at - 1]
        fd = self._open(base)
        limit = end.position if base == end.segment else os.fstat(fd).st_size
        start = start_for_offset(load_index(self._place, base), self.position, fd, limit)
        return self._scan(base, fd, start, limit)

    def _next_segment(self, scanner: SegmentScanner) -> SegmentScanner:
        bases = self._place.bases()
        later = bases[bisect_right(bases, scanner.base) :]
        # A gap before the next segment is compaction's, unless the segment at hand was deleted by retention.
        if not later or (scanner.base not in bases and later[0] > self.position):
            raise self._not_kept(bases, self._end())
        fd = self._open(later[0])
        return self._scan(later[0], fd, SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES)

    def _open(self, base: int) -> int:
        try:
            fd = os.open(self._place.segment(base), os.O_RDONLY)
        except FileNotFoundError as error:
            raise self._not_kept(self._place.bases(), self._end()) from error
        try:
            read_segment_header(self._place, base, fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _scan(self, base: int, fd: int, position: int, limit: int) -> SegmentScanner:
        if self._scanner is not None:
            os.close(self._scanner.fd)
        self._scanner = SegmentScanner(self._place, base, fd, position, limit)
        return self._scanner

    def _not_kept(self, bases: list[int], end: End) -> NotFoundError:
        oldest = bases[0] if bases else end.next_offset
        return NotFoundError(
            f"offset {self.position} of {self._place} is no longer kept; kept are {oldest} to {end.next_offset}",
            remedy=f"Start again at {oldest}, and raise the topic's retention if that loses records",
        )

    def _forget_place(self) -> None:
        if self._scanner is not None:
            os.close(self._scanner.fd)
        self._scanner = self._pieces = None
        self._expected = self.position


def opened_end(place: Place) -> EndFile:
    """Open the published end for reading, after repairing the partition if it is missing."""
    try:
        return EndFile(place, writable=False)
    except FileNotFoundError:
        repaired_end(place)
        return EndFile(place, writable=False)


def published_end(place: Place) -> End:
    """Return the published end, after repairing the partition if that cannot be read."""
    end_file = opened_end(place)
    try:
        return end_file.read()
    except CorruptError:
        return repaired_end(place)
    finally:
        end_file.close()


def repaired_end(place: Place) -> End:
    """Return the published end after repairing what a crash left of the partition."""
    end_file = EndFile(place, writable=True)
    try:
        fcntl.flock(end_file.fd, fcntl.LOCK_EX)
        try:
            known: End | None = end_file.read()
        except CorruptError:
            known = None
        end = recover(place, known)
        if end != known:
            end_file.write(end)
        return end
    finally:
        end_file.close()


def offset_at(place: Place, end: End, timestamp_ms: int) -> int:
    """Return the offset of the first record that is not older than ``timestamp_ms``, or the end offset."""
    for base in place.bases():
        if base > end.segment or not end.position:
            break
        grows = base == end.segment
        entries = load_index(place, base) if grows else closed_index(place, base)
        if not grows and entries[-1].max_timestamp < timestamp_ms:
            continue
        with opened(place.segment(base)) as fd:
            limit = end.position if grows else os.fstat(fd).st_size
            scanner = SegmentScanner(place, base, fd, start_for_time(entries, timestamp_ms, fd, limit), limit)
            while (found := scanner.next()) is not None:
                header, covered = found
                if header.control or header.max_timestamp < timestamp_ms:
                    continue
                batch = decode_columns(header, covered)
                for offset, timestamp in zip(batch.offsets, batch.timestamps, strict=True):
                    if timestamp >= timestamp_ms:
                        return int(offset)
    return end.next_offset
