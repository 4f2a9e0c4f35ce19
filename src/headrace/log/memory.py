"""A log in memory, for tests and trials: the contract of ``log.api`` for the threads of one process."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

from headrace.clock import Clock
from headrace.errors import InvalidError, NotFoundError
from headrace.log.api import Committed, Group, Layout, Lease, Reader, TopicConfig, TopicInfo
from headrace.log.groups import GroupState, check_lease
from headrace.log.membership import StoredGroup
from headrace.log.names import (
    check_growth,
    check_new_topic,
    check_same_partitions,
    no_such_partition,
    no_such_topic,
    topic_deleted,
)
from headrace.log.slices import BatchPieces
from headrace.record import JoinedBytes, Origin, RecordBatch, TopicPartition


@dataclass(slots=True)
class _Partition:
    """The batches of one partition; ``bases`` holds the first offset of each. Both change under the log's lock."""

    topic: TopicInfo
    number: int
    batches: list[RecordBatch] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    next_offset: int = 0
    deleted: bool = False

    def check(self) -> None:
        """Refuse a topic that was deleted."""
        if self.deleted:
            raise topic_deleted(self.topic.name)


class MemoryLog:
    """A log in memory. Everything is kept until ``trim`` or the topic's deletion; every batch is a segment of its own.

    Args:
        clock: Measures the silence of group members.
    """

    url = "memory://"
    identity = "memory"
    hash_key = staticmethod(crc32)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._topics: dict[str, tuple[TopicInfo, list[_Partition]]] = {}
        self._ids: dict[str, int] = {}
        """How many topics were made before each of those that there are."""
        self._made = 0
        self._groups = MemoryGroupStore()

    def topics(self) -> dict[str, TopicInfo]:
        """Return every topic, sorted by name."""
        with self._lock:
            return {name: topic for name, (topic, _) in sorted(self._topics.items())}

    def layout(self, names: Collection[str]) -> dict[str, Layout]:
        """Return what the topics of these names are now; one that does not exist is left out."""
        with self._lock:
            found = (name for name in names if name in self._topics)
            return {name: Layout(self._topics[name][0].partitions, str(self._ids[name])) for name in found}

    def create_topic(self, name: str, partitions: int, config: TopicConfig | None = None) -> TopicInfo:
        """Create a topic, or return it if it exists with that many partitions."""
        check_new_topic(name, partitions)
        with self._lock:
            if name in self._topics:
                return check_same_partitions(self._topics[name][0], partitions)
            topic = TopicInfo(name, partitions, config or TopicConfig())
            self._topics[name] = topic, [_Partition(topic, number) for number in range(partitions)]
            self._ids[name], self._made = self._made, self._made + 1
            return topic

    def grow_topic(self, name: str, partitions: int) -> TopicInfo:
        """Give a topic more partitions, which are empty."""
        with self._lock:
            if name not in self._topics:
                raise no_such_topic(name)
            before, stored = self._topics[name]
            check_growth(before, partitions)
            topic = replace(before, partitions=partitions)
            added = [_Partition(topic, number) for number in range(before.partitions, partitions)]
            self._topics[name] = topic, [*stored, *added]
            return topic

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records."""
        with self._lock:
            if name not in self._topics:
                raise no_such_topic(name)
            for partition in self._topics.pop(name)[1]:
                partition.deleted = True
                partition.batches.clear()
                partition.bases.clear()

    def append(self, partition: TopicPartition, batch: RecordBatch) -> int:
        """Append all records of ``batch`` as one and return the offset of its first."""
        with self._lock:
            stored = self._find(partition)
            base = stored.next_offset
            if len(batch):
                stored.batches.append(_stored(batch, base))
                stored.bases.append(base)
                stored.next_offset = base + len(batch)
            return base

    def send(self, partition: TopicPartition, batch: RecordBatch) -> None:
        """Append a batch."""
        self.append(partition, batch)

    def flush(self) -> None:
        """Do nothing: memory is as durable as it gets."""

    def reader(self, partition: TopicPartition, offset: int) -> Reader:
        """Read ``partition`` from ``offset`` on."""
        with self._lock:
            return MemoryReader(self._find(partition), offset, self._lock)

    def start_offset(self, partition: TopicPartition) -> int:
        """Return the oldest offset that is kept."""
        with self._lock:
            stored = self._find(partition)
            return stored.bases[0] if stored.bases else stored.next_offset

    def end_offset(self, partition: TopicPartition) -> int:
        """Return the offset that the next appended record will get."""
        with self._lock:
            return self._find(partition).next_offset

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """Return the offset of the first record that is not older than ``timestamp_ms``, or the end offset."""
        with self._lock:
            stored = self._find(partition)
            for batch in stored.batches:
                for offset, timestamp in zip(batch.offsets, batch.timestamps, strict=True):
                    if timestamp >= timestamp_ms and not batch.control:
                        return offset
            return stored.next_offset

    def trim(self, partition: TopicPartition, before: int) -> None:
        """Delete the batches that hold only records before ``before``, except the last one."""
        with self._lock:
            stored = self._find(partition)
            doomed = max(bisect_right(stored.bases, before) - 1, 0)
            del stored.batches[:doomed], stored.bases[:doomed]

    def group(self, name: str) -> Group:
        """Return the consumer group of that name; it need not exist yet."""
        return StoredGroup(name, self._groups, self._clock)

    def groups(self) -> list[str]:
        """Return the names of all groups that have members or committed offsets, sorted."""
        return self._groups.names()

    def close(self) -> None:
        """Do nothing: another part of the process may still use the log."""

    def _find(self, partition: TopicPartition) -> _Partition:
        if partition.topic not in self._topics:
            raise no_such_topic(partition.topic)
        topic, partitions = self._topics[partition.topic]
        if not 0 <= partition.partition < topic.partitions:
            raise no_such_partition(partition, topic.partitions)
        return partitions[partition.partition]


class MemoryReader:
    """Reads one partition of a log in memory forwards; for one thread."""

    def __init__(self, partition: _Partition, offset: int, lock: threading.RLock) -> None:
        self.position = offset
        self._partition = partition
        self._expected = offset
        self._lock = lock
        self._pieces: BatchPieces | None = None

    def read(self, max_records: int) -> RecordBatch | None:
        """Return the next batch, or None at the end."""
        stored = self._partition
        stored.check()
        if self._pieces is None or self.position != self._expected:
            if self.position >= stored.next_offset:
                return None
            with self._lock:
                at = bisect_right(stored.bases, self.position) - 1
                if at < 0:
                    raise self._not_kept()
                self._pieces = BatchPieces(stored.batches[at], self.position)
        batch = self._pieces.take(max_records)
        if self._pieces.exhausted:
            self._pieces = None
        self.position = self._expected = batch.offsets[-1] + 1
        return batch

    def end_offset(self) -> int:
        """Return the offset that the next appended record will get."""
        self._partition.check()
        return self._partition.next_offset

    def close(self) -> None:
        """Do nothing."""

    def _not_kept(self) -> NotFoundError:
        stored = self._partition
        oldest = stored.bases[0] if stored.bases else stored.next_offset
        return NotFoundError(
            f"offset {self.position} of topic {stored.topic.name}, partition {stored.number} is no longer kept; "
            f"kept are {oldest} to {stored.next_offset}",
            remedy=f"Start again at {oldest}",
        )


class MemoryGroupStore:
    """Keeps groups in memory; see ``log.membership.GroupStore``."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._states: dict[str, GroupState] = {}
        self._offsets: dict[str, dict[TopicPartition, Committed]] = {}
        self._tokens = 0

    def state(self, group: str) -> GroupState:
        """Return what is known of a group."""
        with self._lock:
            return self._states.get(group, GroupState())

    def update(self, group: str, change: Callable[[GroupState], GroupState]) -> GroupState:
        """Replace the state of a group by what ``change`` makes of it, and return that."""
        with self._lock:
            after = self._states[group] = change(self.state(group))
            return after

    def names(self) -> list[str]:
        """Return the groups that have members or committed offsets, sorted."""
        with self._lock:
            return sorted({name for name, state in self._states.items() if state.members} | self._offsets.keys())

    def admit(self) -> int:
        """Return a token that was never used."""
        with self._lock:
            self._tokens += 1
            return self._tokens

    def dismiss(self, token: int) -> None:
        """Do nothing: the members live in this process."""

    def dead(self, tokens: Sequence[int]) -> frozenset[int]:
        """Return nobody: the members live in this process."""
        return frozenset()

    def beat(self, group: str, token: int) -> None:
        """Add one to a member's counter."""
        with self._lock:
            state = self.state(group)
            member = state.members.get(token)
            if member is not None:
                beaten = replace(member, counter=member.counter + 1)
                self._states[group] = replace(state, members={**state.members, token: beaten})

    def commit(self, group: str, token: int, lease: Lease, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Record offsets if the member holds the lease."""
        with self._lock:
            check_lease(self.state(group).leases.get(lease.unit), token, lease, group)
            if offsets:
                self._offsets.setdefault(group, {}).update(offsets)

    def committed(self, group: str) -> dict[TopicPartition, Committed]:
        """Return what was committed last."""
        with self._lock:
            return dict(sorted(self._offsets.get(group, {}).items()))


def _stored(batch: RecordBatch, base: int) -> RecordBatch:
    """Copy a batch, so that nothing the caller does later changes the log."""
    count = len(batch)
    origin, headers, values = batch.origin, batch.headers, batch.values
    same = count == len(batch.keys) == len(values)
    if not same or (headers is not None and len(headers) != count) or (origin and len(origin.positions) != count):
        raise InvalidError("the columns of the batch differ in length")
    return RecordBatch(
        list(batch.timestamps),
        list(batch.keys),
        JoinedBytes(values.joined, array("i", values.lengths)),
        None if headers is None else tuple(tuple((name, value) for name, value in row) for row in headers),
        None if origin is None else Origin(origin.source, array("q", origin.positions)),
        batch.progress,
        range(base, base + count),
        batch.control,
    )
