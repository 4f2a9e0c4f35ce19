"""A client of another make, which knows nothing of headrace: librdkafka, by way of confluent-kafka."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.kafka.broker import archived, fetched

_TIMEOUT_S = 30
_PAUSE_S = 0.02


class Row(NamedTuple):
    """A record to write."""

    key: bytes | None
    value: bytes | None
    timestamp: int = 1
    partition: int = -1
    """-1 leaves it to the partitioner."""
    headers: list[tuple[str, bytes | None]] = []  # noqa: RUF012


class Written(NamedTuple):
    """Where a record came to lie."""

    partition: int
    offset: int


def producer(address: str, **options: Any) -> Producer:
    """Return a producer that partitions as Java's clients do, unless ``options`` (with _ for .) say otherwise."""
    said = {name.replace("_", "."): value for name, value in options.items()}
    return Producer(
        {"bootstrap.servers": address, "partitioner": "murmur2_random", "linger.ms": 2, "log_level": 2, **said}
    )


def write(address: str, topic: str, rows: Iterable[Row], **options: Any) -> list[Written]:
    """Write records, wait until all are acknowledged, and return where they are, in the order of ``rows``."""
    client = producer(address, **options)
    return _deliver(client, topic, rows)


def transact(address: str, topic: str, rows: Iterable[Iterable[Row]], *, commit: bool) -> None:
    """Write records in transactions, one after the other."""
    client = producer(address, transactional_id=f"foreign-{topic}-{commit}")
    client.init_transactions(_TIMEOUT_S)
    for one in rows:
        client.begin_transaction()
        _deliver(client, topic, one)
        (client.commit_transaction if commit else client.abort_transaction)(_TIMEOUT_S)


def _deliver(client: Producer, topic: str, rows: Iterable[Row]) -> list[Written]:
    found: dict[int, Written] = {}

    def delivered(number: int) -> Callable[[KafkaError | None, Message], None]:
        def note(error: KafkaError | None, message: Message) -> None:
            if error is None:
                found[number] = Written(message.partition(), message.offset())

        return note

    every = list(rows)
    for number, row in enumerate(every):
        client.produce(
            topic, row.value, row.key, row.partition, on_delivery=delivered(number), timestamp=row.timestamp,
            headers=row.headers,
        )  # fmt: skip
    assert client.flush(_TIMEOUT_S) == 0
    return [found[number] for number in range(len(every))]


def read(address: str, topic: str) -> Iterator[Message]:
    """Yield what stands in a topic, partition by partition in order, up to the end."""
    client = Consumer({
        "bootstrap.servers": address, "group.id": "foreign", "enable.partition.eof": True, "enable.auto.commit": False,
        "fetch.wait.max.ms": 10,
    })  # fmt: skip
    try:
        known = client.list_topics(topic, _TIMEOUT_S).topics[topic].partitions
        client.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in known])
        left = set(known)
        while left:
            for message in client.consume(10_000, 0.5):
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    left.discard(message.partition())
                else:
                    raise KafkaException(error)
    finally:
        client.close()


@contextmanager
def member(address: str, group: str, topic: str, protocol: str) -> Iterator[Consumer]:
    """Yield a consumer that has joined a group, by the old or the new ``protocol``, and got its partitions."""
    client = Consumer({
        "bootstrap.servers": address, "group.id": group, "client.id": "stranger", "auto.offset.reset": "earliest",
        "enable.auto.commit": False, "group.protocol": protocol,
    })  # fmt: skip
    client.subscribe([topic])
    try:
        while not client.assignment():
            client.poll(0.05)
        yield client
    finally:
        client.close()


def take_brokers_time(address: str, topic: str) -> None:
    """Have the records of a topic get the time at which the broker takes them."""
    entry = ConfigEntry("message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET)
    change = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    client = AdminClient({"bootstrap.servers": address, "log_level": 2})
    for done in client.incremental_alter_configs([change]).values():
        done.result(_TIMEOUT_S)


def described(address: str, group: str) -> tuple[str, dict[str, list[tuple[str, int]]]]:
    """Return the state of a group, and the partitions of its members by client id, as an admin sees them."""
    client = AdminClient({"bootstrap.servers": address, "log_level": 2})
    found = client.describe_consumer_groups([group])[group].result(_TIMEOUT_S)
    members = {
        member.client_id: [(part.topic, part.partition) for part in member.assignment.topic_partitions]
        for member in found.members
    }
    return found.state.name, members


def committed(address: str, group: str) -> dict[tuple[str, int], int]:
    """Return the offsets that a group has committed, as an admin client sees them."""
    client = AdminClient({"bootstrap.servers": address, "log_level": 2})
    asked = ConsumerGroupTopicPartitions(group)
    found = client.list_consumer_group_offsets([asked])[group].result(_TIMEOUT_S)
    return {(part.topic, part.partition): part.offset for part in found.topic_partitions}


def java(tool: str, *arguments: str, stdin: str = "") -> str:
    """Run one of Kafka's own tools, and return what it prints; it must succeed."""
    command = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", f"-XX:SharedArchiveFile={archived()}", "-cp"]
    command += [f"{fetched()}/*", f"org.apache.kafka.tools.{tool}", *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Feed:
    """Writes records from a thread of its own, as far as it is allowed to; a broker that is away makes it wait.

    Args:
        address: Of the broker.
        topic: Where they go.
        rows: All there are.
        count: How many these are.
        chunk: How many at a time, fifty times a second at most.
    """

    def __init__(self, address: str, topic: str, rows: Iterable[Row], count: int, chunk: int) -> None:
        self._client = producer(address, enable_idempotence=True, compression_type="lz4", message_timeout_ms=120_000)
        self._topic = topic
        self._rows = iter(rows)
        self._count = count
        self._chunk = chunk
        self._allowed = self._written = 0
        self._changed = threading.Condition()
        self._ended = threading.Event()
        self._lost = 0
        self._thread = threading.Thread(target=self._run)

    @contextmanager
    def going(self) -> Iterator[Feed]:
        """Write for as long as the block lasts; unless it fails, all that is left at its end."""
        self._thread.start()
        try:
            yield self
            self.allow(self._count)
        finally:
            with self._changed:
                self._ended.set()
                self._changed.notify_all()
            self._thread.join()
        assert not self._lost

    def allow(self, total: int) -> None:
        """Let it write up to this many in all."""
        with self._changed:
            self._allowed = total
            self._changed.notify_all()

    def _run(self) -> None:
        while self._written < self._count:
            with self._changed:
                self._changed.wait_for(lambda: self._allowed > self._written or self._ended.is_set())
                goal = min(self._allowed, self._written + self._chunk)
            if goal <= self._written:
                return
            while self._written < goal:
                self._put(next(self._rows))
                self._written += 1
            self._client.poll(0)
            self._ended.wait(_PAUSE_S)
        self._client.flush()

    def _put(self, row: Row) -> None:
        while True:
            try:
                self._client.produce(
                    self._topic, row.value, row.key, row.partition, on_delivery=self._note, timestamp=row.timestamp
                )
            except BufferError:  # as much waits as it takes
                self._client.poll(0.05)
            else:
                return

    def _note(self, error: KafkaError | None, _: Message) -> None:
        self._lost += error is not None
