"""The contract of a partitioned log and of the consumer groups on it.

Calls block, and they work on batches: the processing thread of a worker makes them between two steps. A log object
belongs to one process and may be used from several threads unless a method says otherwise. Implementations:
``log.memory``, ``log.embedded``, ``log.kafka``; the suite in ``headrace.testing.conformance.log`` holds for each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

from headrace.record import RecordBatch, TopicPartition


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """How long a topic keeps its records.

    Retention deletes whole segments that are closed and older or beyond the size; ``compact`` keeps the newest
    record per key (and drops a key whose newest value is missing).
    """

    retention_ms: int | None = 7 * 24 * 3600 * 1000
    retention_bytes: int | None = None
    segment_bytes: int = 64 * 1024 * 1024
    compact: bool = False


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """What a topic is."""

    name: str
    partitions: int
    config: TopicConfig = field(default_factory=TopicConfig)
    max_record_bytes: int | None = field(default=None, compare=False)
    """The largest record that it takes, with what the log adds to it and before it is compressed; None if any."""
    by_event_time: bool = field(default=False, compare=False)
    """Whether its retention goes by the records' own time, so that old data goes as soon as it comes."""


class Layout(NamedTuple):
    """What may change of a topic while it is used."""

    partitions: int
    topic_id: str = ""
    """Made with the topic: one of the same name that is made later has another one. Empty if nobody knows it."""


class Committed(NamedTuple):
    """What a group committed for one partition."""

    offset: int
    """The next offset to read."""
    metadata: str = ""


class GroupMember(NamedTuple):
    """One member of a group, for tools."""

    member_id: str
    units: tuple[str, ...]


class Lease(NamedTuple):
    """The right to run one unit (a task), with the number that fences older owners."""

    unit: str
    epoch: int


class Assignment(NamedTuple):
    """What one member should run now."""

    generation: int
    """Grows whenever a member comes or goes."""
    leases: Mapping[str, Lease]
    """Units that this member holds."""
    revoked: frozenset[str]
    """Those of them that it must hand over now: finish, checkpoint, then ``release``."""
    outgoing: frozenset[str] = frozenset()
    """Those of them that are meant for others: revoked as soon as the next holder has a copy of their state."""
    incoming: frozenset[str] = frozenset()
    """Units that others hold and that are meant for it."""
    copies: frozenset[str] = frozenset()
    """Units of others of which it should have a copy, and say so (``copied``): they may come to it."""
    confirmed: bool = True
    """Whether the group has heard of the member within its session. If not, others may have its units by now without
    its knowing, as after the process stood still: it goes on with what it has at hand, and begins nothing."""


Assign = Callable[[Sequence[str], Sequence[str], Mapping[str, str]], Mapping[str, str]]
"""(member ids, units, unit -> member that held it last) -> unit -> member that should hold it. Pure."""


class Reader(Protocol):
    """Reads one partition forwards. Used by one thread."""

    position: int
    """The next offset to read."""

    def read(self, max_records: int) -> RecordBatch | None:
        """Return the next batch, or None at the end.

        A batch ends where an appended batch ended or after ``max_records``; those without ``progress`` may come
        joined. Its offsets start at ``position`` or later (where retention, compaction or the marks of transactions
        left gaps). Control batches are returned too. A log that fetches in the background returns None also where
        nothing has come yet: then ``position`` lies before ``end_offset()``.

        What was returned is as durable as the log's policy promises, whoever appended it, flushed or not: a record
        that somebody has seen is not lost any more, and no other takes its offset.

        Raises:
            CorruptError: a batch in the middle fails its checksum; names file and position.
            NotFoundError: the topic is gone, or ``position`` lies before the oldest record that is kept.
            RetriableError: the disk refuses, or the brokers do; ``position`` is where it was.
        """
        ...

    def end_offset(self) -> int:
        """Return the offset that the next appended record will get; cheap enough to call for every batch.

        It may be a moment old where others append; ``Log.end_offset`` is not.
        """
        ...

    def close(self) -> None:
        """Release files; idempotent."""
        ...


class Membership(Protocol):
    """One worker's membership of a group."""

    member_id: str

    def heartbeat(self) -> None:
        """Say that this member lives.

        Called on a timer from a thread of its own, so that slow user code costs no membership.
        """
        ...

    def poll(self) -> Assignment:
        """Observe the group, take what is free and meant for this member, and return what it should run.

        What others do may show a little later. Members whose heartbeat stood still for the session timeout are
        removed; who measures it (the caller's own clock, or a broker) is up to the log.

        Raises:
            FencedError: this member itself was removed by the others; it must drop its tasks and join again.
        """
        ...

    def release(self, unit: str) -> None:
        """Give up a unit after its last checkpoint, so that its next owner may take it. Idempotent."""
        ...

    def retire(self) -> None:
        """Get nothing more, so that the others make ready for what this member holds. Idempotent."""
        ...

    def copied(self, unit: str) -> None:
        """Say that this member has a copy of what the last checkpoint of a unit consists of; idempotent.

        Or of as much of it as there was time for, where checkpoints follow each other faster.
        """
        ...

    def commit(self, lease: Lease, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Record positions for lag and tools; recovery trusts the checkpoint manifest instead.

        Raises:
            FencedError: the unit has another owner or a newer epoch.
        """
        ...

    def leave(self) -> None:
        """Release everything and leave; idempotent."""
        ...


class Group(Protocol):
    """A consumer group."""

    name: str

    def join(
        self,
        member_id: str,
        units: Mapping[str, Sequence[TopicPartition]],
        assign: Assign,
        *,
        session_timeout_ms: int,
        handoff_timeout_ms: int = 0,
        standby_copies: int = 0,
    ) -> Membership:
        """Become a member that can run any of ``units``; each unit reads the partitions that stand beside it.

        Args:
            member_id: Its name; an earlier member of the same name is fenced.
            units: What it can run.
            assign: Says who should run what, from what all members know.
            session_timeout_ms: It is removed when its heartbeat stands still for this long.
            handoff_timeout_ms: How long what it holds waits for a next holder that has no copy yet.
            standby_copies: How many members should have a copy of each unit in case its holder dies.
        """
        ...  # fmt: skip

    def members(self) -> list[GroupMember]:
        """Return the members and what they hold, sorted by id."""
        ...

    def committed(self) -> dict[TopicPartition, Committed]:
        """Return what was committed last for each partition."""
        ...


class Log(Protocol):
    """Topics of ordered, durable, partitioned records."""

    url: str
    identity: str
    """Made with the log and never changed: another log, even at the same place, has another one."""

    def topics(self) -> dict[str, TopicInfo]:
        """Return every topic, internal ones included, sorted by name."""
        ...

    def layout(self, names: Collection[str]) -> dict[str, Layout]:
        """Return what the topics of these names are now; one that does not exist is left out.

        Cheap enough to be asked for every few seconds.
        """
        ...

    def create_topic(self, name: str, partitions: int, config: TopicConfig | None = None) -> TopicInfo:
        """Create a topic, or return it if it exists with that many partitions.

        Raises:
            InvalidError: the name cannot be used (``[A-Za-z0-9._-]``, at most 249), ``partitions`` is not positive,
                or the topic exists with another number of partitions (which the message names).
        """
        ...

    def grow_topic(self, name: str, partitions: int) -> TopicInfo:
        """Give a topic more partitions, which are empty; those that it has stay as they are.

        Who writes by key from then on finds other partitions for most keys. Growing to the number that a topic has
        changes nothing.

        Raises:
            NotFoundError: there is none of that name.
            InvalidError: the topic has more partitions than that.
        """
        ...

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records.

        Raises:
            NotFoundError: there is none of that name.
        """
        ...

    def append(self, partition: TopicPartition, batch: RecordBatch) -> int:
        """Append all records of ``batch`` as one and return the offset of its first.

        Readers see the batch whole or not at all, unless it is larger than the log takes as one: then it is appended
        in pieces, in order. Durability is what ``flush`` promises.

        Raises:
            NotFoundError: no such topic or partition.
            RetriableError: the disk is full, and nothing of the batch is visible; or the brokers do not answer, and it
                may still be written once they do.
        """
        ...

    def send(self, partition: TopicPartition, batch: RecordBatch) -> None:
        """Append a batch behind what was appended to the partition before, without waiting until it is acknowledged.

        Raises:
            NotFoundError: no such topic or partition.
            RetriableError: the log takes no more now; nothing of the batch will be visible.
            FatalError: something sent before is lost, so tasks must go back to their checkpoints.
        """
        ...

    @property
    def hash_key(self) -> Callable[[bytes], int]:
        """The hash, not negative, by whose remainder keys go to partitions.

        It is the one that other producers on this log use, and it counts in internal topics as well: what is
        repartitioned to meet a topic of the user's must meet it in the same partition.
        """
        ...

    def flush(self) -> None:
        """Return once every batch appended or sent here is acknowledged and as durable as the log's policy says."""
        ...

    def reader(self, partition: TopicPartition, offset: int) -> Reader:
        """Read ``partition`` from ``offset`` on.

        Raises:
            NotFoundError: no such topic or partition.
        """
        ...

    def start_offset(self, partition: TopicPartition) -> int:
        """Return the oldest offset that is kept."""
        ...

    def end_offset(self, partition: TopicPartition) -> int:
        """Return the offset that the next appended record will get."""
        ...

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """Return the offset of the first record whose timestamp is at least ``timestamp_ms``, or the end offset."""
        ...

    def trim(self, partition: TopicPartition, before: int) -> None:
        """Allow records before offset ``before`` to be deleted now (whole segments only); for internal topics."""
        ...

    def group(self, name: str) -> Group:
        """Return the consumer group of that name; it need not exist yet."""
        ...

    def groups(self) -> list[str]:
        """Return the names of all groups that have members or committed offsets, sorted."""
        ...

    def close(self) -> None:
        """Release files and connections; idempotent."""
        ...


class Writer(Protocol):
    """Writes in transactions under a name. Used by one thread at a time.

    Given up with the first error: whoever goes on opens the name again, and learns from ``note`` what counts.
    """

    note: bytes | None
    """What was committed with the last transaction of the name that counts; None if there was none."""

    def write(self, appends: Sequence[tuple[TopicPartition, RecordBatch]], note: bytes) -> None:
        """Append batches, those of a partition in order, and replace the note: all of it or, if it fails, nothing.

        Readers see nothing of it before it counts. It counts when this returns; if it raises RetriableError, it may.

        Raises:
            FencedError: somebody has opened the name since, or the brokers gave the transaction up.
            InvalidError: a record is larger than the log takes.
            NotFoundError: no such topic or partition.
            RetriableError: the log does not answer.
        """
        ...


@runtime_checkable
class TransactionalLog(Protocol):
    """A log that can also write in transactions: Kafka. The others have no such thing."""

    def writer(self, name: str, notes: TopicPartition) -> Writer:
        """Open a name: end its open transaction, and refuse whatever comes from those who opened it before.

        Args:
            name: Who writes.
            notes: A partition that nobody writes to but the writer of that name; keeps its notes.

        Raises:
            NotFoundError: there is no such partition.
            FatalError: the user may not do that.
            RetriableError: the log does not answer.
        """
        ...
