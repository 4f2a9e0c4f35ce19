"""A log in memory that can lose what was not flushed, and what each worker sees of it and of the group."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from headrace.errors import RetriableError
from headrace.log.api import Committed, Group, Layout, Lease, Reader, TopicConfig, TopicInfo
from headrace.log.groups import GroupState
from headrace.log.membership import GroupStore, StoredGroup
from headrace.log.memory import MemoryLog
from headrace.record import RecordBatch, TopicPartition
from headrace.testing.simulation import faults
from headrace.testing.simulation.objects import Operator

T = TypeVar("T")


class LogWatcher(Protocol):
    """Is told of what happens to the log and the group."""

    def appended(self, partition: TopicPartition, batch: RecordBatch, by: str) -> None:
        """A worker appended a batch."""
        ...

    def leased(self, state: GroupState) -> None:
        """The state of the group changed."""
        ...

    def committed(self, lease: Lease, offsets: Mapping[TopicPartition, Committed], by: str) -> None:
        """Offsets were committed."""
        ...


class SimulatedLog(MemoryLog):
    """A log of which the records behind the last flush can vanish."""

    def __init__(self, clock: object) -> None:
        super().__init__(clock)  # type: ignore[arg-type]
        self.durable: dict[TopicPartition, int] = {}
        """Up to where each partition survives a loss of power."""

    def keep(self, partition: TopicPartition, end: int) -> None:
        """Make a partition durable up to ``end``."""
        self.durable[partition] = max(self.durable.get(partition, 0), end)

    def unflushed(self) -> list[TopicPartition]:
        """Return the partitions that could lose something."""
        return [
            TopicPartition(topic, number)
            for topic, info in self.topics().items()
            for number in range(info.partitions)
            if self.end_offset(TopicPartition(topic, number)) > self.durable.get(TopicPartition(topic, number), 0)
        ]

    def lose(self, partition: TopicPartition, share: float) -> int:
        """Lose a share of the batches that were not flushed, the last ones; return how many records that are."""
        stored = self._find(partition)
        durable = self.durable.get(partition, 0)
        first = next((i for i, base in enumerate(stored.bases) if base >= durable), len(stored.bases))
        at = first + int((1 - share) * (len(stored.bases) - first))
        if at >= len(stored.bases):
            return 0
        lost = stored.next_offset - stored.bases[at]
        stored.next_offset = stored.bases[at]
        del stored.bases[at:], stored.batches[at:]
        return lost


class WorkerLog:
    """The log as one worker sees it; see ``log.api.Log``."""

    def __init__(
        self, shared: SimulatedLog, operator: Operator, name: str, watcher: LogWatcher, group: Callable[[str], Group]
    ) -> None:
        self.url = shared.url
        self.identity = shared.identity
        self.written: dict[TopicPartition, int] = {}
        """The end of what this worker appended and did not flush yet, by partition."""
        self._shared = shared
        self._operator = operator
        self._name = name
        self._watcher = watcher
        self._group = group

    def topics(self) -> dict[str, TopicInfo]:
        """Return every topic, sorted by name."""
        return self._shared.topics()

    def layout(self, names: Collection[str]) -> dict[str, Layout]:
        """Return what the topics of these names are now."""
        return self._shared.layout(names)

    def create_topic(self, name: str, partitions: int, config: TopicConfig | None = None) -> TopicInfo:
        """Create a topic, or return it if it exists with that many partitions."""
        return self._shared.create_topic(name, partitions, config)

    def grow_topic(self, name: str, partitions: int) -> TopicInfo:
        """Give a topic more partitions."""
        return self._shared.grow_topic(name, partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records."""
        self._shared.delete_topic(name)

    def append(self, partition: TopicPartition, batch: RecordBatch) -> int:
        """Append all records of ``batch`` as one and return the offset of its first."""
        if self._operator.strike("append", f"{len(batch)} to {partition}") == faults.FAIL:
            raise RetriableError("simulated: the log does not take records")
        base = self._shared.append(partition, batch)
        if len(batch):
            self.written[partition] = base + len(batch)
            self._watcher.appended(partition, batch, self._name)
        self._operator.finish()
        return base

    def send(self, partition: TopicPartition, batch: RecordBatch) -> None:
        """Append a batch behind what was appended before."""
        self.append(partition, batch)

    @property
    def hash_key(self) -> Callable[[bytes], int]:
        """The hash by whose remainder keys go to partitions."""
        return self._shared.hash_key

    def flush(self) -> None:
        """Make durable what was appended here."""
        if self._operator.strike("flush", "") == faults.FAIL:
            raise RetriableError("simulated: the log does not answer")
        written, self.written = self.written, {}
        for partition, end in written.items():
            self._shared.keep(partition, end)
        self._operator.finish()

    def reader(self, partition: TopicPartition, offset: int) -> Reader:
        """Read ``partition`` from ``offset`` on."""
        return WorkerReader(self._shared, partition, offset, self._operator)

    def start_offset(self, partition: TopicPartition) -> int:
        """Return the oldest offset that is kept."""
        return self._operator.operate("look", lambda: self._shared.start_offset(partition), "")

    def end_offset(self, partition: TopicPartition) -> int:
        """Return the offset that the next appended record will get."""
        return self._operator.operate("look", lambda: self._shared.end_offset(partition), "")

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """Return the offset of the first record that is not older than ``timestamp_ms``, or the end offset."""
        return self._operator.operate("look", lambda: self._shared.offset_at(partition, timestamp_ms), "")

    def trim(self, partition: TopicPartition, before: int) -> None:
        """Delete the batches that hold only records before ``before``."""
        self._operator.operate("trim", lambda: self._shared.trim(partition, before), f"{partition} before {before}")

    def group(self, name: str) -> Group:
        """Return the consumer group of that name."""
        return self._group(name)

    def groups(self) -> list[str]:
        """Return the names of all groups."""
        return self._shared.groups()

    def close(self) -> None:
        """Do nothing: others still use the log."""


class WorkerReader:
    """Reads one partition for one worker; see ``log.api.Reader``."""

    def __init__(self, shared: SimulatedLog, partition: TopicPartition, offset: int, operator: Operator) -> None:
        self._shared = shared
        self._reader = shared.reader(partition, offset)
        self._operator = operator
        self._partition = partition

    @property
    def position(self) -> int:
        """The next offset to read."""
        return self._reader.position

    @position.setter
    def position(self, offset: int) -> None:
        self._reader.position = offset

    def read(self, max_records: int) -> RecordBatch | None:
        """Return the next batch, which no loss of power takes any more, or None at the end."""
        if self._reader.position >= self._reader.end_offset():
            return None  # too often to be an operation of its own
        return self._operator.operate(
            "read", lambda: self._read(max_records), f"{self._partition} at {self._reader.position}"
        )

    def _read(self, max_records: int) -> RecordBatch | None:
        batch = self._reader.read(max_records)
        if batch is not None:
            self._shared.keep(self._partition, batch.next_offset)
        return batch

    def end_offset(self) -> int:
        """Return the offset that the next appended record will get."""
        return self._reader.end_offset()

    def close(self) -> None:
        """Release files."""
        self._reader.close()


class WorkerGroupStore:
    """What a group is stored in, as one worker reaches it; see ``log.membership.GroupStore``."""

    def __init__(self, shared: GroupStore, operator: Operator, name: str, watcher: LogWatcher) -> None:
        self._shared = shared
        self._operator = operator
        self._name = name
        self._watcher = watcher

    def state(self, group: str) -> GroupState:
        """Return what is known of a group."""
        return self._reach("group", lambda: self._shared.state(group), "")

    def update(self, group: str, change: Callable[[GroupState], GroupState]) -> GroupState:
        """Replace the state of a group by what ``change`` makes of it, and return that."""

        def carry_out() -> GroupState:
            after = self._shared.update(group, change)
            self._watcher.leased(after)
            return after

        return self._reach("group", carry_out, "update")

    def admit(self) -> int:
        """Return a token that was never used."""
        return self._shared.admit()

    def dismiss(self, token: int) -> None:
        """Drop what ``admit`` made."""
        self._shared.dismiss(token)

    def dead(self, tokens: Sequence[int]) -> frozenset[int]:
        """Return those whose process is known to have died."""
        return self._shared.dead(tokens)

    def beat(self, group: str, token: int) -> None:
        """Add one to a member's counter."""
        self._shared.beat(group, token)

    def commit(self, group: str, token: int, lease: Lease, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Record offsets if the member holds the lease."""

        def carry_out() -> None:
            self._shared.commit(group, token, lease, offsets)
            self._watcher.committed(lease, offsets, self._name)

        self._reach("commit", carry_out, f"{lease.unit} under {lease.epoch}")

    def committed(self, group: str) -> dict[TopicPartition, Committed]:
        """Return what was committed last."""
        return self._reach("group", lambda: self._shared.committed(group), "committed")

    def _reach(self, kind: str, effect: Callable[[], T], told: str) -> T:
        return self._operator.operate(kind, effect, told)


def group_of(name: str, store: WorkerGroupStore, clock: object) -> Group:
    """Return the group of that name over what one worker reaches it by."""
    return StoredGroup(name, store, clock)  # type: ignore[arg-type]
