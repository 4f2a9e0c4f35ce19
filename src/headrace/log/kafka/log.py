"""Kafka as the log: the contract of ``log.api`` over a cluster."""

from __future__ import annotations

from collections.abc import Collection
from concurrent.futures import wait as wait_for_all

from headrace.clock import Clock
from headrace.errors import RetriableError
from headrace.log.api import Group, Layout, Reader, TopicConfig, TopicInfo
from headrace.log.kafka.codec import check
from headrace.log.kafka.connection import TIMEOUT_S, Connection
from headrace.log.kafka.fetching import Fetcher
from headrace.log.kafka.groups import KafkaGroup, group_names
from headrace.log.kafka.keys import java_hash
from headrace.log.kafka.layouts import layouts
from headrace.log.kafka.offsets import EARLIEST, LATEST, Offsets
from headrace.log.kafka.options import KafkaOptions, servers_of
from headrace.log.kafka.reader import KafkaReader
from headrace.log.kafka.sending import Sender
from headrace.log.kafka.topics import Topics
from headrace.log.kafka.transactions import KafkaWriter
from headrace.record import RecordBatch, TopicPartition


class KafkaLog:
    """A Kafka cluster as the log.

    Args:
        url: ``kafka://host:port,...``.
        clock: Dates the memberships of groups.
        options: How to connect.

    Raises:
        RetriableError: no broker can be reached.
        SettingsError: address or options cannot be used, or the brokers refuse the user.
    """

    hash_key = staticmethod(java_hash)

    def __init__(self, url: str, *, clock: Clock, options: KafkaOptions | None = None) -> None:
        self.url = url
        self._clock = clock
        self._connection = Connection(servers_of(url), options or KafkaOptions())
        self._topics = Topics(self._connection)
        self._offsets = Offsets(self._connection, self._topics)
        self._fetcher = Fetcher(self._connection, self._topics, self._offsets)
        self._connection.at_end(self._fetcher.close)
        try:
            self.identity = str(self._connection.call(self._connection.metadata(None)).cluster_id)
            self._sender = Sender(self._connection, self._topics)
        except BaseException:
            self._connection.close()
            raise

    def topics(self) -> dict[str, TopicInfo]:
        """Return every topic but Kafka's own, sorted by name."""
        return self._connection.call(self._topics.all())

    def layout(self, names: Collection[str]) -> dict[str, Layout]:
        """Return what the topics of these names are now; one that does not exist is left out."""
        return self._connection.call(layouts(self._connection, names))

    def create_topic(self, name: str, partitions: int, config: TopicConfig | None = None) -> TopicInfo:
        """Create a topic, or return it if it exists with that many partitions."""
        return self._connection.call(self._topics.create(name, partitions, config))

    def grow_topic(self, name: str, partitions: int) -> TopicInfo:
        """Give a topic more partitions, which are empty."""
        return self._connection.call(self._topics.grow(name, partitions))

    def delete_topic(self, name: str) -> None:
        """Delete a topic and its records."""
        self._connection.call(self._topics.delete(name))

    def append(self, partition: TopicPartition, batch: RecordBatch) -> int:
        """Append a batch, wait until it is acknowledged, and return the offset of its first record."""
        check(batch)
        self._topics.forget(partition.topic)
        self._connection.call(self._topics.check(partition))
        if not len(batch):
            return self.end_offset(partition)
        parts = self._sender.send(partition, batch)
        if wait_for_all(parts, TIMEOUT_S).not_done:
            raise RetriableError(f"the brokers did not acknowledge a batch for {partition} within {TIMEOUT_S:.0f} s")
        return min(part.result() for part in parts)

    def send(self, partition: TopicPartition, batch: RecordBatch) -> None:
        """Append a batch behind what was sent before; ``flush`` waits until it is acknowledged."""
        check(batch)
        if not self._topics.knows(partition):
            self._connection.call(self._topics.check(partition))
        if len(batch):
            self._sender.send(partition, batch)

    def flush(self) -> None:
        """Return once everything that was appended or sent here is acknowledged by all replicas in sync."""
        self._sender.flush()

    def writer(self, name: str, notes: TopicPartition) -> KafkaWriter:
        """Open the transactions of a name, and fence whoever had them before; see ``log.api.TransactionalLog``."""
        return KafkaWriter(self._connection, self._topics, self._offsets, self.reader, name, notes, self._clock)

    def reader(self, partition: TopicPartition, offset: int) -> Reader:
        """Read ``partition`` from ``offset`` on."""
        feed = self._connection.call(self._fetcher.open(partition, offset))
        return KafkaReader(self._connection, self._fetcher, feed, offset)

    def start_offset(self, partition: TopicPartition) -> int:
        """Return the oldest offset that is kept."""
        return self._connection.call(self._offsets.at(partition, EARLIEST))

    def end_offset(self, partition: TopicPartition) -> int:
        """Return the offset up to which can be read: it lies before transactions that are not finished."""
        return self._connection.call(self._offsets.at(partition, LATEST))

    def offset_at(self, partition: TopicPartition, timestamp_ms: int) -> int:
        """Return the offset of the first record that is not older than ``timestamp_ms``, or the end offset."""
        found = self._connection.call(self._offsets.at(partition, max(timestamp_ms, 0)))
        return found if found >= 0 else self.end_offset(partition)

    def trim(self, partition: TopicPartition, before: int) -> None:
        """Delete the records before ``before``."""
        self._connection.call(self._offsets.trim(partition, before))

    def group(self, name: str) -> Group:
        """Return the consumer group of that name; it need not exist yet."""
        return KafkaGroup(name, self._connection, self._clock)

    def groups(self) -> list[str]:
        """Return the names of all groups that have members or committed offsets, sorted."""
        return self._connection.call(group_names(self._connection))

    def close(self) -> None:
        """Send what waits, and end all connections; idempotent."""
        self._connection.close()
