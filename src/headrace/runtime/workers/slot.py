"""One task on one worker: its readers, its store, and where in its life it is."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from headrace.checkpoint.manifest import Manifest
from headrace.errors import CorruptError, FatalError
from headrace.log.api import Lease, Log, Reader, Writer
from headrace.log.slices import BatchPieces
from headrace.metrics import TaskMetrics
from headrace.record import RecordBatch, TopicPartition
from headrace.runtime.tasks.edges import Append
from headrace.runtime.tasks.task import Task
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.lifecycle import Phase, moved
from headrace.runtime.workers.placement import Placement
from headrace.runtime.workers.pressure import Facts
from headrace.runtime.workers.setbacks import Setback
from headrace.settings import Settings
from headrace.state.api import Store
from headrace.topology.plan import SubTopology, TaskId


@dataclass(slots=True)
class Slot:
    """What a worker knows of one of its tasks."""

    id: TaskId
    sub: SubTopology
    lease: Lease
    metrics: TaskMetrics
    job: Future[Any] | None = None
    """The restore or checkpoint that is under way."""
    job_started_ms: int = 0
    job_retry_ms: int = 0
    """No restore or checkpoint begins before, because the last one failed."""
    after: Future[Any] | None = None
    """What must have ended before the restore begins: a job of the slot that had the task before on this worker."""
    given_up: Event = field(default_factory=Event)
    """Set when the restore need not go on."""
    failures: int = 0
    """How many jobs failed since one succeeded."""
    unsaved_failures: int = 0
    """How many checkpoints failed since one did not."""
    phase: Phase = Phase.RESTORING
    task: Task | None = None
    store: Store | None = None
    placement: Placement | None = None
    """Looks at the keys that are read."""
    readers: dict[TopicPartition, Reader] = field(default_factory=dict)
    read_time_ms: dict[TopicPartition, int] = field(default_factory=dict)
    """Timestamp of the record that was read last."""
    manifest: Manifest | None = None
    checkpointed_ms: int = 0
    """When its last checkpoint began."""
    reported_ms: int = 0
    """When the task last told internal partitions how far it is."""
    saved_ms: int = 0
    """When its last checkpoint was committed."""
    unsent: deque[Append] = field(default_factory=deque)
    """Outputs that the log did not take yet; until it does, the task takes no more records."""
    retry_ms: int = 0
    writer: Writer | None = None
    """Opened for the task, and not given up since."""
    transaction: Future[Writer] | None = None
    """What is on its way in transactions, or the opening of the writer."""
    transaction_rows: int = 0
    """How many rows of the outbox that are."""
    transaction_retry_ms: int = 0
    """No other begins before, because the last one failed."""
    batch_ms: int = 0
    """When the task took its last batch."""
    batch_records: int = 0
    """How many records that has, until the task is done with it."""
    leaving_ms: int = 0
    """When the task was told to leave."""
    setback: Setback = field(default_factory=Setback)
    """What is known of its state if that proved damaged."""
    restored_bytes: int = 0
    """How much of its state is in place, while it is being restored."""
    restore_bytes: int = 0
    """How much that is in all, as far as is known."""
    restored_ms: int = 0
    """When its state was in place."""
    local: bool = False
    """Whether files of that were on this machine before, or may have been made here since."""
    unsaved_ms: int | None = None
    """Since when there is something that no checkpoint holds; None if there is nothing."""
    saved_end: int = -1
    """The bound up to which its last checkpoint says that it is finished."""

    @property
    def parked(self) -> bool:
        """Return whether the task is in the middle of something and waits."""
        return self.task is not None and self.task.parked is not None

    def facts(self, settings: Settings, monotonic_ms: int) -> Facts:
        """Return what shows whether the task waits."""
        return Facts(
            refused=bool(self.unsent),
            parked_ms=monotonic_ms - self.batch_ms if self.parked else 0,
            unsaved_ms=0 if self.unsaved_ms is None else monotonic_ms - self.unsaved_ms,
            failures=self.unsaved_failures,
            interval_ms=settings.checkpoint_interval_ms,
            limit_ms=settings.unsaved_limit_ms,
        )

    def move(self, phase: Phase) -> None:
        """Go on to the next phase of its life."""
        self.phase = moved(self.phase, phase)

    def open(self, log: Log, task: Task, store: Store, placement: Placement) -> None:
        """Take the restored task and begin to read its inputs where it left off."""
        self.task, self.store, self.placement = task, store, placement
        for partition, position in task.positions.items():
            # An internal topic may end before that, if its tail was lost with the power: see ``first_offsets``.
            self.readers[partition] = log.reader(partition, min(position, log.end_offset(partition)))

    def close(self) -> None:
        """Drop task and readers; what was not checkpointed is gone."""
        self.move(Phase.GONE)
        self.given_up.set()
        if self.transaction is not None:
            self.transaction.cancel()  # if it has not begun
        for reader in self.readers.values():
            reader.close()
        if self.task is not None:
            self.task.close()

    def read(self, max_records: int, bounds: Bounds | None) -> tuple[TopicPartition, RecordBatch] | None:
        """Return the next batch of the input whose event time is furthest behind, None if there is none.

        With bounds, a source is not read beyond its end.

        Raises:
            FatalError: the log is damaged, or keys lie where they do not meet others.
            NotFoundError: the topic or the records are gone.
        """
        assert self.task is not None
        for partition in self.task.inputs_by_time():
            reader = self.readers[partition]
            most = max_records
            if bounds is not None:
                left = bounds.left(partition, reader.position)
                most = max_records if left is None else min(max_records, left)
            try:
                batch = reader.read(most) if most else None
            except CorruptError as error:
                # The log is no state of the task: to restore that would help nobody.
                raise FatalError(error.message, remedy=error.remedy) from error
            if batch is not None and bounds is not None:
                batch = _before_end(reader, batch, bounds.ends.get(partition))
            if batch is not None:
                if self.placement is not None:
                    self.placement.look(partition, batch)
                return partition, batch
        return None

    def at_end(self) -> dict[TopicPartition, bool]:
        """Return which inputs were read to the end they have now."""
        return {p: reader.position >= reader.end_offset() for p, reader in self.readers.items()}

    def finishes(self, bounds: Bounds) -> bool:
        """Return whether the task has had all its input but was not told so yet."""
        assert self.task is not None
        if (
            not bounds.closes
            or self.unsent
            or self.parked
            or self.task.closing
            or self.task.finished >= bounds.number
            or not self.task.upstream_finished(bounds.number)
        ):
            return False
        return not any(bounds.left(p, reader.position) for p, reader in self.readers.items())

    def lag(self) -> dict[TopicPartition, int]:
        """Return how many records of each input are yet to be read."""
        return {p: max(0, reader.end_offset() - reader.position) for p, reader in self.readers.items()}


def _before_end(reader: Reader, batch: RecordBatch, end: int | None) -> RecordBatch | None:
    """Return what of a batch lies before the end of a bounded run, and let the reader go on there.

    Where offsets have gaps, as many records as there are offsets left may lead beyond the end.
    """
    if end is None or batch.next_offset <= end:
        return batch
    reader.position = end
    count = bisect_left(batch.offsets, end)
    return BatchPieces(batch, batch.offsets[0]).take(count) if count else None
