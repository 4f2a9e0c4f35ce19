"""Appending to one partition, which any process may do under the partition's lock."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable

from headrace.clock import Clock
from headrace.errors import CorruptError, HeadraceError, NotFoundError
from headrace.log.api import TopicConfig
from headrace.log.embedded.files import opened, storage, storage_error, sync_directory, take_lock, write_all
from headrace.log.embedded.format import SEGMENT_HEADER_BYTES, BatchEncoder, EncodedBatch, seal
from headrace.log.embedded.marks import (
    EMPTY,
    ENTRY_BYTES,
    INDEX_HEADER,
    NO_TIMESTAMP,
    End,
    IndexEntry,
    encode_entry,
)
from headrace.log.embedded.recovery import recover
from headrace.log.embedded.segment import INDEX_INTERVAL_BYTES, EndFile, Place, create_segment
from headrace.record import RecordBatch

_PATIENCE_MS = 2_000
"""How long to wait for another process that is in the middle of an append: long enough for a slow disk."""
_SHORT_PATIENCE_MS = 20
"""The same while it is known that one is stopped there, as all tasks of the worker wait meanwhile."""
_logger = logging.getLogger("headrace.log")


class Appender:
    """Appends to one partition on behalf of one process; its threads take turns.

    Args:
        place: The partition.
        config: The configuration of its topic.
        encoder: Turns batches into bytes.
        clock: Dates new segments.
        fsync: ``checkpoint``, ``always`` or ``never``.
        on_roll: Called after a segment was closed, to delete what is no longer kept.
    """

    def __init__(
        self, place: Place, config: TopicConfig, encoder: BatchEncoder, clock: Clock, fsync: str,
        on_roll: Callable[[], None],
    ) -> None:  # fmt: skip
        self._place = place
        self._config = config
        self._encoder = encoder
        self._clock = clock
        self._fsync = fsync
        self._on_roll = on_roll
        self._lock = threading.Lock()
        self._end_file = EndFile(place, writable=True)
        self._verified = False
        self._base = -1
        self._segment_fd = -1
        self._index_fd = -1
        self._dirty: set[int] = set()
        self._closed = False
        self._patience_ms = _PATIENCE_MS

    def append(self, batch: RecordBatch) -> int:
        """Append a batch that is not empty and return the offset of its first record."""
        encoded = self._encoder.encode(batch)
        with self._lock:
            if self._closed:
                raise NotFoundError(f"the files of {self._place} were closed", remedy="Open the log again")
            lock_fd = self._end_file.fd
            self._take_lock("append to")
            try:
                end = self._current_end()
                before = end.segment
                after = self._write(end, encoded)
            except OSError as error:
                raise storage_error(error, f"append to {self._place}", self._place.directory) from error
            finally:
                fcntl.flock(lock_fd, fcntl.LOCK_UN)
        if after.segment != before:
            self._after_roll()
        return after.next_offset - encoded.span

    def flush(self) -> None:
        """Force what this object appended to the disk, if the policy says so."""
        if self._fsync == "never" or not self._dirty:
            return
        with storage(f"flush of {self._place}", self._place.directory):
            with self._lock:
                if self._closed:
                    return
                dirty, self._dirty = self._dirty, set()
                try:
                    end = self._end_file.read()
                except CorruptError:
                    end = EMPTY  # the next append repairs it; what was written is forced all the same
            try:
                for base in sorted(dirty):
                    _force(self._place, base)
                sync_directory(self._place.directory)
                if end.segment in dirty:
                    self._publish_synced(end)
            except BaseException:
                self._dirty |= dirty
                raise

    def close(self) -> None:
        """Close all files; idempotent."""
        with self._lock:
            self._end_file.close()
            self._close_segment()
            self._closed = True

    def _take_lock(self, verb: str) -> None:
        """Take the partition's lock; whoever waited for it in vain waits only shortly the next time."""
        patience_ms, self._patience_ms = self._patience_ms, _SHORT_PATIENCE_MS
        take_lock(self._end_file.fd, patience_ms, f"{verb} {self._place}")
        self._patience_ms = _PATIENCE_MS

    def _current_end(self) -> End:
        """Return the published end, after repairing what a crash left behind it."""
        try:
            end = self._end_file.read()
        except CorruptError:
            _logger.warning("rebuilding the published end of %s", self._place)
            return self._recover(None)
        if not self._verified or (end.position and self._size_of(end.segment) != end.position):
            return self._recover(end)
        return end

    def _recover(self, known: End | None) -> End:
        self._close_segment()
        end = recover(self._place, known)
        if end != known:
            self._end_file.write(end)
        self._verified = True
        return end

    def _size_of(self, base: int) -> int:
        self._open_segment(base)
        found = os.fstat(self._segment_fd)
        if not found.st_nlink:
            self._close_segment()
            raise self._place.corrupt("the segment file is missing", base, 0, base)
        return found.st_size

    def _write(self, end: End, encoded: EncodedBatch) -> End:
        size = encoded.size_bytes
        full = end.position + size > self._config.segment_bytes and end.position > SEGMENT_HEADER_BYTES
        if full or not end.position:
            end = self._roll(end)
        self._open_segment(end.segment)
        position = end.position
        entries, indexed = end.entries, end.indexed
        try:
            if not entries or position - indexed >= INDEX_INTERVAL_BYTES:
                self._write_entry(entries, IndexEntry(end.next_offset, position, end.max_timestamp))
                entries, indexed = entries + 1, position
            self._write_batch(seal(encoded, end.next_offset), encoded.columns, position)
            synced = end.synced
            if self._fsync == "always":
                os.fsync(self._segment_fd)
                synced = position + size
            control = encoded.attributes & 0b1000
            after = End(
                end.next_offset + encoded.span, end.segment, position + size,
                end.max_timestamp if control else max(end.max_timestamp, encoded.max_timestamp),
                synced, indexed, entries,
            )  # fmt: skip
            self._end_file.write(after)
        except OSError:
            # Not for an interrupt: the batch may be published by then, and the next append sees to the rest.
            os.ftruncate(self._segment_fd, position)
            raise
        if self._fsync == "checkpoint":
            self._dirty.add(end.segment)
        return after

    def _write_batch(self, head: bytes, columns: bytes, position: int) -> None:
        written = os.pwritev(self._segment_fd, [head, columns], position)
        if written < len(head) + len(columns):
            write_all(self._segment_fd, (head + columns)[written:], position + written)

    def _write_entry(self, at: int, entry: IndexEntry) -> None:
        write_all(self._index_fd, encode_entry(entry), len(INDEX_HEADER) + at * ENTRY_BYTES)

    def _roll(self, end: End) -> End:
        """Close the segment that grows and start the next one, which nobody sees before the batch in it."""
        if end.position:
            self._open_segment(end.segment)
            self._write_entry(end.entries, IndexEntry(end.next_offset, end.position, end.max_timestamp))
            if self._fsync != "never":
                # Only of the segment that grows may the power take something: readers rely on that.
                os.fsync(self._segment_fd)
        create_segment(self._place, end.next_offset, self._clock.now_ms())
        if self._fsync != "never":
            sync_directory(self._place.directory)
        start = SEGMENT_HEADER_BYTES
        return End(end.next_offset, end.next_offset, start, NO_TIMESTAMP, start, 0, 0)

    def _after_roll(self) -> None:
        try:
            self._on_roll()
        except (HeadraceError, OSError) as error:
            # The batch is appended, so the caller must not think that it failed.
            _logger.warning("could not clean %s after a roll: %s", self._place, error)

    def _open_segment(self, base: int) -> None:
        if base == self._base:
            return
        self._close_segment()
        self._segment_fd = os.open(self._place.segment(base), os.O_RDWR)
        self._index_fd = os.open(self._place.index_file(base), os.O_RDWR | os.O_CREAT, 0o666)
        self._base = base

    def _close_segment(self) -> None:
        for fd in (self._segment_fd, self._index_fd):
            if fd >= 0:
                os.close(fd)
        self._segment_fd = self._index_fd = self._base = -1

    def _publish_synced(self, seen: End) -> None:
        with self._lock:
            if self._closed:
                return
            self._take_lock("flush of")
            try:
                end = self._end_file.read()
                if end.segment == seen.segment and end.synced < seen.position <= end.position:
                    self._end_file.write(end._replace(synced=seen.position))
            finally:
                fcntl.flock(self._end_file.fd, fcntl.LOCK_UN)


def _force(place: Place, base: int) -> None:
    """Force one segment to the disk, if retention has not deleted it."""
    try:
        with opened(place.segment(base)) as fd:
            os.fsync(fd)
    except FileNotFoundError:
        return
