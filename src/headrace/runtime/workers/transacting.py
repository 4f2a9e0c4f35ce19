"""Transactions: what waited in an outbox comes to users' topics so that who reads only what is committed sees it once.

The outbox makes it certain that a row has one content for ever, and that it is sent until it is there. What remains
are the repeats, and those a transaction keeps from readers: with the rows it commits a note of the first row that has
not left yet. A task has one writer, by its own name. Whoever opens that, because he has the task now or goes on after a
failure, ends the transaction that was open, reads the note and sends only what it does not name. Who had it before, and
may not know yet that he no longer does, is refused from then on. If such a one opens it once more, that does no harm:
he sends rows of a checkpoint that counts, from the note on, and the owner is refused, opens it again, and finds in the
note how far the other has come.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial

import msgpack

from headrace.errors import FatalError, RetriableError
from headrace.log.api import TransactionalLog, Writer
from headrace.record import TopicPartition
from headrace.runtime.tasks.outbox import Row
from headrace.runtime.workers.parts import Parts
from headrace.runtime.workers.slot import Slot
from headrace.runtime.workers.topics import notes_topic

_log = logging.getLogger("headrace")

NOTE_FORMAT = 1
"""Version of a note, which is a MessagePack array: version, life of the outbox, first row that has not left."""

_TRANSACTION_BYTES = 8 * 1024 * 1024
"""About how much goes into one transaction, so that none takes too long."""
_RETRY_MS = 500


def encode_note(life: str, first: int) -> bytes:
    """Return a note that all rows before ``first`` have left.

    Args:
        life: That of the outbox.
        first: The number of a row.
    """
    note: bytes = msgpack.packb([NOTE_FORMAT, life, first])
    return note


def first_left(note: bytes | None, life: str) -> int:
    """Return the number of the first row that has not left, as far as a note says; 0 if it speaks of another life.

    Raises:
        FatalError: a newer version wrote it, or it makes no sense.
    """
    if note is None:
        return 0
    try:
        version, *rest = msgpack.unpackb(note)
        if version > NOTE_FORMAT:
            raise FatalError(
                f"the note of a transaction has format {version}, this version knows {NOTE_FORMAT}",
                remedy="Run the newer version of headrace that wrote it",
            )
        said, first = rest
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise FatalError("the note of a transaction makes no sense") from error
    return int(first) if said == life else 0


def depart(
    log: TransactionalLog, name: str, notes: TopicPartition, writer: Writer | None, life: str, rows: Sequence[Row]
) -> Writer:
    """Commit rows, but those that count already. Blocks; runs in a job.

    Args:
        log: Where to.
        name: That of the task's writer.
        notes: Its partition.
        writer: If it is open.
        life: That of the outbox.
        rows: In order.

    Returns:
        The writer; it is open.

    Raises:
        FencedError: somebody else has opened it since.
        RetriableError: the log does not answer; open it again, as nobody knows what counts.
    """
    if writer is None:
        writer = log.writer(name, notes)
    first = first_left(writer.note, life)
    for piece in _pieces([row for row in rows if row.number >= first]):
        writer.write([row.append for row in piece], encode_note(life, piece[-1].number + 1))
    return writer


def transact(slot: Slot, parts: Parts) -> None:
    """Let what departs from a task go on its way; take note of what has arrived.

    The writer of a new owner is opened at once, also if he has nothing to send: as long as a transaction of the last
    one is open, readers of what is committed get nothing that lies behind it.

    Raises:
        FencedError: somebody else has opened the writer; the task must be dropped.
        HeadraceError: the log refuses it.
    """
    if slot.task is None or not slot.task.outbox.transacted:
        return
    outbox, now_ms = slot.task.outbox, parts.clock.monotonic_ms()
    if slot.transaction is not None:
        if not slot.transaction.done():
            return
        job, slot.transaction = slot.transaction, None
        try:
            slot.writer = job.result()
        except RetriableError as error:
            if not slot.transaction_retry_ms:
                _log.warning("task %s: its outputs wait: %s", slot.id, error)
            slot.writer, slot.transaction_retry_ms = None, now_ms + _RETRY_MS
            return
        slot.transaction_retry_ms = 0
        outbox.departed(slot.transaction_rows)
    if now_ms >= slot.transaction_retry_ms and (slot.writer is None or outbox.departing):
        assert isinstance(parts.log, TransactionalLog)
        rows, slot.transaction_rows = tuple(outbox.departing), len(outbox.departing)
        name = f"headrace-{parts.group.name}-{slot.id}"
        notes = TopicPartition(notes_topic(parts.group.name, slot.sub), slot.id.partition)
        slot.transaction = parts.jobs.submit(partial(depart, parts.log, name, notes, slot.writer, outbox.life, rows))


def _pieces(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Divide rows so that each transaction is of a good size."""
    piece: list[Row] = []
    size = 0
    for row in rows:
        piece.append(row)
        size += len(row.append[1].values.joined)
        if size >= _TRANSACTION_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
