"""What a task made and may not send yet, because a replay might make something else. Pure.

Where a replay does not repeat itself, an output may leave only when it is certain that it was made. So it gets its
position, waits, and goes into the task's store with the next checkpoint. Once that counts, it leaves; a later
checkpoint forgets it. Whoever restores a checkpoint sends again what stands in it.

Why a reader that keeps the highest position of each source, and drops what is not above it, gets every record once,
whoever sends, and however often:

- A position has one content for ever. It is told to nobody before the checkpoint that contains it counts; and what
  was not in that checkpoint gets its position from the next owner, who begins where the checkpoint ends or above it.
- Whoever sends at all, an owner or one who does not know yet that he no longer is, sends rows of a checkpoint that
  counts, in ascending order, without a gap, and begins no later than at the first that may not be in the log: a row is
  forgotten only by a checkpoint that began after the log had taken it, and that first made the log durable.
- So when a position appears in a partition for the first time, all smaller ones are there already, and the first
  appearances are in ascending order. They are what is above the highest so far. If the log loses its tail with the
  power, the same holds of what is sent again; what was read of the tail stays read, and its repeats are dropped.

If a checkpoint is damaged, so that an owner has to go back to the one before it, there may be repeats with other
content, as with at-least-once; they are numbered above what may have left, so that nothing is lost.

Rows for topics that are written to in transactions leave apart from the others. Their numbers grow in the order of
sending, and no number means two rows, not even where damage made an owner go back: as for positions, there is room for
each checkpoint's own. So a note, committed with the rows, of the first number that has not left yet says which of the
rows in a checkpoint have. It says so of the life that the outbox has in one line of checkpoints, which has a name: who
begins anew without them has another.

What a task tells of its progress waits in the same way, behind what it made before: a record that a replay makes in
another order would be late for a time that was told too early. It is not kept in the store, as a new owner tells anew.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgpack
import msgspec

from headrace.errors import FatalError
from headrace.record import JoinedBytes, Origin, Progress, RecordBatch, TopicPartition
from headrace.runtime.tasks.edges import Append, first_in
from headrace.state.api import Store, WriteBatch
from headrace.state.decoding import unreadable
from headrace.state.keys import decode_time, encode_time, prefix_end, store_prefix

ROW_FORMAT = 1
"""Version of a row: what it holds, ``encode_append`` says."""

KEPT = store_prefix(0) + b"outbox"
"""What the keys of all that the store keeps for an outbox begin with."""

ROWS = KEPT + b"/"
"""What the keys of the rows begin with; a number follows, in the order of sending."""

_LIFE = KEPT + b"-life"

_LEAST_LIMIT_BYTES = 256 * 1024
_HEADERS_BYTES = 64
_RECORD_BYTES = 24
"""About what a record takes beside its key, value and headers."""


class Row(NamedTuple):
    """What leaves in a transaction."""

    number: int
    append: Append


class Outbox:
    """The outputs of one task that wait for a checkpoint.

    Args:
        limit_bytes: How much may wait before the task takes no more records; it is a little at least.
        transacted: The topics that are written to in transactions.
        life: What the life of an outbox is called that begins here; no other is called that.

    Example:
        >>> outbox = Outbox(2**20)
        >>> batch = RecordBatch([0], [b"k"], JoinedBytes.of([b"v"]), origin=Origin("t/s/in-0/+outbox", [0]))
        >>> outbox.add((TopicPartition("out", 0), batch))
        >>> outbox.flush(WriteBatch())
        >>> [partition for partition, _ in outbox.saved()]
        [TopicPartition(topic='out', partition=0)]
    """

    def __init__(self, limit_bytes: int, transacted: frozenset[str] = frozenset(), life: str = "") -> None:
        self.transacted = transacted
        self.departing: list[Row] = []
        """What is to leave in a transaction and has not yet."""
        self.life = life
        self._limit_bytes = max(limit_bytes, _LEAST_LIMIT_BYTES)
        self._next = 0
        """The number of the next row."""
        self._made: list[Append] = []
        """What no flush has written yet."""
        self._told: dict[TopicPartition, Append] = {}
        """By partition, the progress to tell behind that."""
        self._sealed: list[Row] = []
        """What a flush has written; it waits for its checkpoint."""
        self._sealed_told: dict[TopicPartition, Append] = {}
        self._left: list[int] = []
        """The rows in the store that were sent, and which the next flush forgets."""
        self._flushing = False
        """Whether a flush waits for its checkpoint."""
        self._made_bytes = 0
        self._sealed_bytes = 0
        self._departing_bytes = 0

    def restore(self, store: Store, checkpoint: int = 0) -> None:
        """Take the rows that the last owner left; ``saved`` returns them, as the checkpoint that they are in counts.

        Args:
            store: The task's.
            checkpoint: The number of the checkpoint that it holds.

        Raises:
            CorruptError: a row makes no sense.
            FatalError: a newer version wrote it.
        """
        for key, data in store.scan(ROWS, prefix_end(ROWS)):
            row = Row(decode_time(key, len(ROWS)), decode_append(data))
            self._next = row.number + 1
            self._sealed.append(row)
            self._sealed_bytes += _size_of(row.append)
        self._flushing = bool(self._sealed)
        if self.transacted:
            self._next = max(self._next, first_in(checkpoint))
            life = store.get(_LIFE)
            try:
                self.life = self.life if life is None else life.decode()
            except UnicodeDecodeError as bad:
                raise unreadable("the outbox", type(bad).__name__) from bad

    def add(self, append: Append) -> None:
        """Keep what was made, behind what is there; it speaks for itself how far the task is."""
        self._told.pop(append[0], None)
        self._made.append(append)
        self._made_bytes += _size_of(append)

    def tell(self, append: Append, *, changed: bool) -> list[Append]:
        """Keep a report of progress to a partition, or return it if it may leave at once.

        Args:
            append: The report; what waits of an earlier one to that partition is forgotten.
            changed: Whether the task has done anything since its last flush; if not, the report speaks of what that
                holds.
        """
        partition = append[0]
        if changed or self._made or self._told:
            self._told[partition] = append
        elif self._flushing:
            self._sealed_told[partition] = append
        else:
            return [append]
        return []

    def flush(self, batch: WriteBatch) -> None:
        """Write what was made, and forget what was sent.

        To be called only when the log has taken everything that ``saved`` returned, and nothing is ``departing``.
        """
        assert not self.departing, "what was to leave has not left"
        batch.deletes += map(_row_key, self._left)
        self._left = []
        if self.transacted and self._made:
            batch.put(_LIFE, self.life.encode())
        for append in self._made:
            batch.put(_row_key(self._next), encode_append(append))
            self._sealed.append(Row(self._next, append))
            self._next += 1
            self._sealed_told.pop(append[0], None)
        self._sealed_told |= self._told
        self._sealed_bytes += self._made_bytes
        self._made, self._told, self._made_bytes = [], {}, 0
        self._flushing = True

    def saved(self) -> list[Append]:
        """Return what may leave, in order, as the checkpoint of the last flush counts.

        What has to leave in a transaction is ``departing`` instead.
        """
        apart = [row for row in self._sealed if row.append[0].topic in self.transacted]
        others = [row for row in self._sealed if row.append[0].topic not in self.transacted]
        self.departing += apart
        self._departing_bytes += sum(_size_of(row.append) for row in apart)
        self._left += [row.number for row in others]
        released = [*(row.append for row in others), *self._sealed_told.values()]
        self._sealed, self._sealed_told, self._sealed_bytes = [], {}, 0
        self._flushing = False
        return released

    def departed(self, count: int) -> list[Append]:
        """Learn that the first ``count`` of what was departing count for readers, and return them."""
        gone, self.departing = self.departing[:count], self.departing[count:]
        self._departing_bytes -= sum(_size_of(row.append) for row in gone)
        self._left += [row.number for row in gone]
        return [row.append for row in gone]

    @property
    def waiting(self) -> bool:
        """Return whether there is anything that has not left."""
        return bool(self._made or self._told or self._sealed or self._sealed_told or self.departing)

    @property
    def kept(self) -> bool:
        """Return whether the store holds any rows."""
        return bool(self._sealed or self._left)

    @property
    def has_news(self) -> bool:
        """Return whether a flush would write or forget something, or let something leave."""
        return bool(self._made or self._told or self._left or self.departing)

    @property
    def in_use(self) -> bool:
        """Return whether anything ever waited here, since the task was made."""
        return self._next > 0 or bool(self._made)

    @property
    def waiting_bytes(self) -> int:
        """Return about how many bytes wait."""
        return self._made_bytes + self._sealed_bytes + self._departing_bytes

    @property
    def waiting_records(self) -> int:
        """Return how many records wait."""
        rows = [*self._made, *(row.append for row in self._sealed), *(row.append for row in self.departing)]
        return sum(len(batch) for _, batch in rows)

    @property
    def filling(self) -> bool:
        """Return whether a checkpoint should begin soon, before the outbox is full."""
        return 2 * self._made_bytes >= self._limit_bytes

    @property
    def full(self) -> bool:
        """Return whether the task should take no more records until something has left."""
        return self.waiting_bytes >= self._limit_bytes


def encode_append(append: Append) -> bytes:
    """Return the row of a batch that waits: one MessagePack array with a version in front.

    It holds topic, partition, timestamps, keys, lengths, values, headers, source, positions and progress, in the
    columns of ``RecordBatch``; the numbers are little-endian, the last four nil where there are none.
    """
    (topic, partition), batch = append
    values, origin = batch.values, batch.origin
    headers = None if batch.headers is None else [list(map(list, record)) for record in batch.headers]
    row = [
        ROW_FORMAT, topic, partition, _packed("q", batch.timestamps), list(batch.keys), _packed("i", values.lengths),
        values.joined, headers,
        origin and origin.source, origin and _packed("q", origin.positions), batch.progress and list(batch.progress),
    ]  # fmt: skip
    data: bytes = msgpack.packb(row)
    return data


_Columns = tuple[
    str, Annotated[int, msgspec.Meta(ge=0)], bytes, list[bytes | None], bytes, bytes,
    list[list[tuple[str, bytes]]] | None, str | None, bytes | None, tuple[int, bool, int] | None,
]  # fmt: skip


def decode_append(row: bytes) -> Append:
    """Return the batch of a row.

    Raises:
        CorruptError: it makes no sense.
        FatalError: a newer version wrote it.
    """
    try:
        version, *columns = msgpack.unpackb(row)
        if version > ROW_FORMAT:
            raise FatalError(
                f"the outbox has format {version}, this version knows {ROW_FORMAT}",
                remedy="Run the newer version of headrace that wrote it",
            )
        topic, partition, timestamps, keys, lengths, joined, headers, source, positions, progress = msgspec.convert(
            columns, _Columns
        )
        batch = RecordBatch(
            _unpacked("q", timestamps),
            keys,
            JoinedBytes(joined, _unpacked("i", lengths)),
            headers and [tuple((name, value) for name, value in record) for record in headers],
            None if source is None else Origin(source, _unpacked("q", positions)),
            None if progress is None else Progress(*progress),
        )
        places = batch.origin.positions if batch.origin else keys
        sizes = {len(batch), len(keys), len(batch.values), len(headers or keys), len(places)}
        whole = sum(length for length in batch.values.lengths if length >= 0) == len(joined)
    except (ValueError, TypeError, RecursionError, struct.error, msgpack.UnpackException, msgspec.MsgspecError) as bad:
        raise unreadable("the outbox", type(bad).__name__) from bad
    if len(sizes) > 1 or not whole or min(batch.values.lengths, default=0) < -1:
        raise unreadable("the outbox", "the columns of a batch differ in length")
    return TopicPartition(topic, partition), batch


def _row_key(number: int) -> bytes:
    return ROWS + encode_time(number)


def _size_of(append: Append) -> int:
    batch = append[1]
    keys = sum(len(key) for key in batch.keys if key is not None)
    headers = _HEADERS_BYTES * sum(map(len, batch.headers or ()))
    return len(batch.values.joined) + keys + headers + _RECORD_BYTES * len(batch)


def _packed(code: str, numbers: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


def _unpacked(code: str, data: bytes) -> list[int]:
    return list(struct.unpack(f"<{len(data) // struct.calcsize('<' + code)}{code}", data))
