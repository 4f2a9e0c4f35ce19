"""Reading one partition: taking apart what was fetched."""

from __future__ import annotations

from collections import deque
from typing import Any

from aiokafka.errors import CorruptRecordException
from aiokafka.record.control_record import ABORT_MARKER, ControlRecord
from aiokafka.record.memory_records import MemoryRecords

from headrace.errors import CorruptError
from headrace.log.kafka.codec import batches
from headrace.log.kafka.connection import Connection
from headrace.log.kafka.fetching import Chunk, Feed, Fetcher
from headrace.log.slices import BatchPieces
from headrace.record import RecordBatch

_TOGETHER = 1024
"""Record batches of Kafka with fewer records are joined."""


_SILENT_S = 5
"""A broker that did not answer for so long may have got records that nobody here knows of."""


class KafkaReader:
    """Reads one partition forwards; see ``log.api.Reader``.

    Records are fetched beside the reader. So ``read`` returns None at the end and also where nothing has come yet,
    which ``position`` and ``end_offset`` tell apart.
    """

    def __init__(self, connection: Connection, fetcher: Fetcher, feed: Feed, position: int) -> None:
        self._connection = connection
        self._fetcher = fetcher
        self._feed = feed
        self._position = position  # that of the feed is ahead already
        self._chunk: _Opened | None = None
        self._ready: deque[RecordBatch] = deque()
        self._pieces: BatchPieces | None = None
        self._behind = 0
        """The offset behind what is ready: what lies between is for nobody, such as the marks of transactions."""

    @property
    def position(self) -> int:
        """The next offset to read."""
        return self._position

    @position.setter
    def position(self, offset: int) -> None:
        if offset == self._position:
            return
        self._position = offset
        self._chunk, self._pieces = None, None
        self._ready.clear()
        old = self._feed
        self._feed = Feed(old.partition, offset, old.end, old.lane, heard=old.heard)
        self._connection.soon(self._fetcher.exchange, old, self._feed)

    def read(self, max_records: int) -> RecordBatch | None:
        """Return the next batch, or None at the end and where nothing has come yet."""
        while self._pieces is None:
            if not self._ready and not self._unpack():
                return None
            if self._ready:
                batch = self._ready.popleft()
                if batch.next_offset > self._position:
                    self._pieces = BatchPieces(batch, self._position)
        piece = self._pieces.take(max_records)
        if self._pieces.exhausted:
            self._pieces = None
            if not self._ready:
                self._position = max(piece.next_offset, self._behind)
                return piece
        self._position = piece.next_offset
        return piece

    def end_offset(self) -> int:
        """Return the offset that the next record will get, as of the broker's last answer.

        If that is too long ago, nobody knows where the end is, and so the reader is not there.
        """
        feed = self._feed
        silent = self._connection.loop.time() - feed.heard > _SILENT_S
        return max(feed.end, self._position + silent)

    def close(self) -> None:
        """Fetch no more."""
        self._connection.soon(self._fetcher.drop, self._feed)

    def _unpack(self) -> bool:
        """Take the next of Kafka's record batches apart; return whether there were any."""
        feed = self._feed
        if self._chunk is None:
            if not feed.chunks:
                if feed.error is not None:
                    raise feed.error
                return False
            chunk = feed.chunks.popleft()
            feed.taken_bytes += len(chunk.raw)
            self._fetcher.wake()
            self._chunk = _Opened(chunk, str(feed.partition))
        found = self._chunk.next()
        if found is None:
            self._chunk = None
            return True
        made, self._behind = found
        self._ready.extend(made)
        if not made:
            self._position = max(self._behind, self._position)
        return True


class _Opened:
    """A chunk that is being taken apart."""

    def __init__(self, chunk: Chunk, place: str) -> None:
        self._records = MemoryRecords(chunk.raw)
        self._from = chunk.position
        self._aborted = sorted(chunk.aborted, key=lambda entry: entry[1])
        self._given_up: set[int] = set()
        """Producers in the middle of a transaction that was given up."""
        self._place = place

    def next(self) -> tuple[list[RecordBatch], int] | None:
        """Return the batches in the next of Kafka's record batches, and the offset behind them.

        As many of these are taken together as make a good batch: other programs may write very small ones.
        """
        if not self._records.has_next():
            return None
        records: list[Any] = []
        try:
            while len(records) < _TOGETHER and self._records.has_next():
                stored = self._records.next_batch()
                if not stored.validate_crc():
                    raise CorruptRecordException("its checksum does not fit")
                records += self._kept(stored)
                self._from = stored.next_offset
        except CorruptRecordException as error:
            raise CorruptError(
                f"the records of {self._place} from offset {self._from} on are damaged: {error}",
                remedy="Look at the broker and at the network",
            ) from error
        return (batches(records, self._place) if records else []), self._from

    def _kept(self, stored: Any) -> list[Any]:
        producer = stored.producer_id
        if producer is not None and producer >= 0:
            while self._aborted and self._aborted[0][1] <= stored.base_offset:
                self._given_up.add(self._aborted.pop(0)[0])
        if stored.is_control_batch:
            mark = next(iter(stored), None)
            if mark is not None and ControlRecord.parse(mark.key) == ABORT_MARKER:
                self._given_up.discard(producer)
            return []
        if stored.is_transactional and producer in self._given_up:
            return []
        return list(stored)
