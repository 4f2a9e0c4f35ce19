"""The embedded log: the contract of ``log.api`` over the files of a directory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from headrace.clock import Clock
from headrace.errors import NotFoundError, SettingsError
from headrace.log.api import Group, Layout, Reader, TopicConfig, TopicInfo
from headrace.log.embedded.cleaning import clean_partition, trim_partition
from headrace.log.embedded.coordinator import SqliteGroupStore
from headrace.log.embedded.files import storage
from headrace.log.embedded.format import BatchEncoder
from headrace.log.embedded.partition import Appender
from headrace.log.embedded.reader import PartitionReader, offset_at, published_end
from headrace.log.embedded.segment import Place
from headrace.log.embedded.topics import TopicDirectory
from headrace.log.membership import StoredGroup
from headrace.log.names import no_such_partition, no_such_topic
from headrace.record import RecordBatch, TopicPartition

_FSYNC = ("checkpoint", "always", "never")
_Result = TypeVar("_Result")


class EmbeddedLog:
    """A log in a directory, which several processes of one machine may use at once.

    Args:
        directory: Where the log is or shall be.
        clock: Dates segments and measures the silence of group members.
        fsync: When bytes are forced to the disk: in ``flush`` and before a reader hands them out (``checkpoint``), in
            every ``append`` (``always``) or when the operating system likes (``never``).

    Raises:
        InvalidError: a newer headrace made the log.
        SettingsError: the directory or ``fsync`` cannot be used.
    """

    hash_key = staticmethod(crc32)

    def __init__(self, directory: Path, *, clock: Clock, fsync: str = "checkpoint") -> None:
        if fsync not in _FSYNC:
            raise SettingsError(f"fsync must be checkpoint, always or never: {fsync!r}")
        self.url = str(directory)
        self._directory = Path(directory)
        self._clock = clock
        self._fsync = fsync
        self._encoder = BatchEncoder()
        self._lock = threading.RLock()
        self._appenders: dict[TopicPartition, Appender] = {}
        self._groups: SqliteGroupStore | None = None
        self._topics = TopicDirectory(self._directory)
        self._topics.open()
        self.identity = self._topics.identity

    def topics(self) -> dict[str, TopicInfo]:
        """Return every topic, sorted by name."""
        found = ((name, self._topics.find(name)) for name in self._topics.names())
        return {name: topic for name, topic in found if topic is not None}

    def layout(self, names: Collection[str]) -> dict[str, Layout]:
        """Return what the topics of these names are now; one that does not exist is left out."""
        found = ((name, self._topics.layout(name)) for name in names)
        return {name: layout for name, layout in found if layout is not None}

    def create_topic(self, name: str, partitions: int, config: TopicConfig | None = None) -> TopicInfo:
        """Create a topic, or return it if it exists with that many partitions."""
        return self._topics.create(name, partitions, config or TopicConfig())

    def grow_topic(self, name: str, partitions: int) -> TopicInfo:
        """Give a topic more partitions, which are empty."""
        return self._topics.grow(name, partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records."""
        self._topics.delete(name)
        with self._lock:
            for partition in [partition for partition in self._appenders if partition.topic == name]:
                self._appenders.pop(partition).close()

    def append(self, partition: TopicPartition, batch: RecordBatch) -> int:
        """Append all records of ``batch`` as one and return the offset of its first."""
        if not len(batch):
            return self.end_offset(partition)
        try:
            return (self._appenders.get(partition) or self._appender(partition)).append(batch)
        except NotFoundError:
            # Another process may have deleted the topic and made it again.
            self._forget(partition)
            return self._appender(partition).append(batch)

    def send(self, partition: TopicPartition, batch: RecordBatch) -> None:
        """Append a batch."""
        self.append(partition, batch)

    def flush(self) -> None:
        """Force what this object appended to the disk, if the policy says so."""
        with self._lock:
            appenders = list(self._appenders.items())
        for partition, appender in appenders:
            try:
                appender.flush()
            except NotFoundError:
                self._forget(partition)

    def reader(self, partition: TopicPartition, offset: int) -> Reader:
        """Read ``partition`` from ``offset`` on."""
        place, _ = self._find(partition)
        with storage(f"{place}", place.directory):
            return PartitionReader(place, offset, forces=self._fsync != "never")

    def start_offset(self, partition: TopicPartition) -> int:
        """Return the oldest offset that is kept."""
        place, _ = self._find(partition)
        with storage(f"{place}", place.directory):
            bases = place.bases()
            return bases[0] if bases else published_end(place).next_offset

    def end_offset(self, partition: TopicPartition) -> int:
        """Return the offset that the next appended record will get."""
        place, _ = self._find(partition)
        with storage(f"{place}", place.directory):
            return published_end(place).next_offset

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """Return the offset of the first record that is not older than ``timestamp_ms``, or the end offset."""
        place, _ = self._find(partition)

        def find() -> int:
            return offset_at(place, published_end(place), timestamp_ms)

        with storage(f"{place}", place.directory):
            return _twice(find)

    def trim(self, partition: TopicPartition, before: int) -> None:
        """Delete the closed segments that hold only records before ``before``."""
        place, _ = self._find(partition)
        with storage(f"trimming {place}", place.directory):
            trim_partition(place, before)

    def clean(self, now_ms: int) -> None:
        """Delete what is beyond the retention of its topic, and compact the topics that say so."""
        for topic in self.topics().values():
            for number in range(topic.partitions):
                place = self._topics.place(topic.name, number)
                with storage(f"cleaning {place}", place.directory):
                    clean_partition(place, topic.config, self._encoder, now_ms)

    def group(self, name: str) -> Group:
        """Return the consumer group of that name; it need not exist yet."""
        return StoredGroup(name, self._group_store(), self._clock)

    def groups(self) -> list[str]:
        """Return the names of all groups that have members or committed offsets, sorted."""
        return self._group_store().names()

    def close(self) -> None:
        """Close all files; idempotent."""
        with self._lock:
            while self._appenders:
                self._appenders.popitem()[1].close()
            if self._groups is not None:
                self._groups.close()
                self._groups = None

    def _find(self, partition: TopicPartition) -> tuple[Place, TopicInfo]:
        topic = self._topics.find(partition.topic)
        if topic is None:
            raise no_such_topic(partition.topic)
        if not 0 <= partition.partition < topic.partitions:
            raise no_such_partition(partition, topic.partitions)
        return self._topics.place(*partition), topic

    def _appender(self, partition: TopicPartition) -> Appender:
        with self._lock:
            appender = self._appenders.get(partition)
            if appender is None:
                place, topic = self._find(partition)

                def clean() -> None:
                    clean_partition(place, topic.config, self._encoder, self._clock.now_ms(), thorough=False)

                with storage(f"{place}", place.directory):
                    appender = Appender(place, topic.config, self._encoder, self._clock, self._fsync, clean)
                self._appenders[partition] = appender
            return appender

    def _forget(self, partition: TopicPartition) -> None:
        with self._lock:
            appender = self._appenders.pop(partition, None)
        if appender is not None:
            appender.close()

    def _group_store(self) -> SqliteGroupStore:
        with self._lock:
            if self._groups is None:
                self._groups = SqliteGroupStore(self._directory, durable=self._fsync != "never")
            return self._groups


def _twice(find: Callable[[], _Result]) -> _Result:
    """Try again when a segment was deleted or compacted while it was searched."""
    try:
        return find()
    except FileNotFoundError:
        return find()
