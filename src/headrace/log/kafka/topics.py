"""Topics: what there is, making and deleting them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka.errors import (
    InvalidConfigurationError,
    InvalidReplicationFactorError,
    KafkaError,
    LeaderNotAvailableError,
    PolicyViolationError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.admin import (
    CreatePartitionsRequest,
    CreateTopicsRequest,
    DeleteTopicsRequest,
    DescribeConfigsRequest,
)

from headrace.errors import InvalidError
from headrace.log.api import TopicConfig, TopicInfo
from headrace.log.kafka.connection import Connection, check_code
from headrace.log.names import check_growth, check_new_topic, check_same_partitions, no_such_partition, no_such_topic
from headrace.record import TopicPartition

LEAST_SEGMENT_BYTES = 1024 * 1024
"""Kafka 4 makes no smaller segments."""
_TOPIC, _BROKER = 2, 4
_UNKNOWN_TOPIC = 3
_TIMEOUT_MS = 15_000
_FAR_FUTURE = "message.timestamp.after.max.ms"


class Topics:
    """The topics of a cluster.

    Remembers how many partitions each has, which never falls as long as the topic exists; whoever is told that a topic
    is unknown calls ``forget``.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._partitions: dict[str, int] = {}

    async def all(self) -> dict[str, TopicInfo]:
        """Return every topic but Kafka's own, sorted by name."""
        response = await self._connection.metadata(None)
        found = {name: len(parts) for code, name, own, parts in _fields(response) if not own and not code}
        self._partitions = found
        configs = await self._configs(sorted(found))
        return {name: TopicInfo(name, count, configs[name]) for name, count in sorted(found.items())}

    async def count(self, topic: str) -> int | None:
        """Return how many partitions a topic has, None if there is no such topic."""
        if topic not in self._partitions:
            response = await self._connection.metadata([topic])
            ((code, _, _, parts),) = _fields(response)
            if code == _UNKNOWN_TOPIC or (not parts and code != LeaderNotAvailableError.errno):
                return None
            check_code(code)
            await self._connection.metadata(None)
            self._partitions[topic] = len(parts)
        return self._partitions[topic]

    async def check(self, partition: TopicPartition) -> None:
        """Refuse what does not exist.

        Raises:
            NotFoundError: no such topic or partition.
        """
        if not self.knows(partition):
            self.forget(partition.topic)  # it may have grown
        count = await self.count(partition.topic)
        if count is None:
            raise no_such_topic(partition.topic)
        if not 0 <= partition.partition < count:
            raise no_such_partition(partition, count)

    def knows(self, partition: TopicPartition) -> bool:
        """Return whether the partition exists, as far as is known without asking."""
        return 0 <= partition.partition < self._partitions.get(partition.topic, 0)

    def forget(self, topic: str) -> None:
        """Ask again the next time."""
        self._partitions.pop(topic, None)

    async def create(self, name: str, partitions: int, config: TopicConfig | None) -> TopicInfo:
        """Create a topic, or return it if it exists with that many partitions; without a config, the brokers' counts.

        Kafka's retention goes by the timestamps of records, which are event times: of a replay of old data, it may
        delete everything within minutes. So nothing is said of it that nobody asked for.
        """
        check_new_topic(name, partitions)
        self.forget(name)
        if await self.count(name) is None:
            own = {_FAR_FUTURE: to_kafka(TopicConfig())[_FAR_FUTURE]} if config is None else to_kafka(config)
            await self._create(name, partitions, own)
        return check_same_partitions(await self._there(name), partitions)

    async def _create(self, name: str, partitions: int, config: dict[str, str]) -> None:
        replication = self._connection.options.replication or await self._default_replication()
        try:
            await self._ask_to_create(name, partitions, replication, config)
        except InvalidConfigurationError:
            if _FAR_FUTURE not in config:
                raise
            # Brokers before 3.6 do not know it, nor need it.
            rest = {key: value for key, value in config.items() if key != _FAR_FUTURE}
            await self._ask_to_create(name, partitions, replication, rest)

    async def _ask_to_create(self, name: str, partitions: int, replication: int, config: dict[str, str]) -> None:
        request = CreateTopicsRequest(
            [(name, partitions, replication, [], list(config.items()))],
            _TIMEOUT_MS,
            validate_only=False,
        )

        async def attempt() -> None:
            code, told = (await self._to_controller(request)).topic_errors[0][1:3]
            check_code(code, told or "")

        try:
            await self._connection.attempts(attempt)
        except TopicAlreadyExistsError:
            return  # somebody was faster; whether as we want it is looked at next
        except (InvalidReplicationFactorError, PolicyViolationError) as error:
            raise InvalidError(
                f"topic {name} cannot be created: {error}", remedy="Look at HEADRACE_KAFKA_REPLICATION"
            ) from error

    async def grow(self, name: str, partitions: int) -> TopicInfo:
        """Give a topic more partitions, and wait until they are there."""
        self.forget(name)
        before = await self.count(name)
        if before is None:
            raise no_such_topic(name)
        check_growth(TopicInfo(name, before), partitions)
        if before < partitions:
            request = CreatePartitionsRequest([(name, (partitions, None))], _TIMEOUT_MS, validate_only=False)

            async def attempt() -> None:
                code, told = (await self._to_controller(request)).topic_errors[0][1:3]
                check_code(code, told or "")

            await self._connection.attempts(attempt)
        return await self._there(name, partitions)

    async def _there(self, name: str, least: int = 1) -> TopicInfo:
        """Wait until a topic has so many partitions, and every one of them a leader."""

        async def there() -> int:
            self.forget(name)
            count = await self.count(name)
            leader = self._connection.client.cluster.leader_for_partition
            found = (leader(TopicPartition(name, number)) for number in range(count or 0))
            if count is None or count < least or any(node in (None, -1) for node in found):
                self.forget(name)
                raise LeaderNotAvailableError(name)
            return count

        count = await self._connection.attempts(there)
        return TopicInfo(name, count, (await self._configs([name]))[name])

    async def delete(self, name: str) -> None:
        """Delete a topic and its records, and wait until it is gone."""
        self.forget(name)
        if await self.count(name) is None:
            raise no_such_topic(name)

        async def attempt() -> None:
            response = await self._to_controller(DeleteTopicsRequest([name], _TIMEOUT_MS))
            check_code(response.topic_error_codes[0][1])

        try:
            await self._connection.attempts(attempt)
        except UnknownTopicOrPartitionError:
            pass  # somebody was faster

        async def gone() -> None:
            self.forget(name)
            if await self.count(name) is not None:
                raise LeaderNotAvailableError(name)

        await self._connection.attempts(gone)
        await self._connection.metadata(None)

    async def _to_controller(self, request: Any) -> Any:
        cluster = self._connection.client.cluster
        if cluster.controller is None:
            await self._connection.metadata(None)
        try:
            return await self._connection.send(cluster.controller.nodeId, request)
        except KafkaError:
            await self._connection.metadata(None)
            raise

    async def _default_replication(self) -> int:
        nodes = [broker.nodeId for broker in self._connection.client.cluster.brokers()]
        request = DescribeConfigsRequest([(_BROKER, str(nodes[0]), ["default.replication.factor"])])
        code, _, _, _, entries = (await self._connection.send(nodes[0], request)).resources[0]
        told = {} if code else {name: value for name, value, *_ in entries}
        return int(told.get("default.replication.factor") or min(3, len(nodes)))

    async def _configs(self, names: list[str]) -> dict[str, TopicConfig]:
        if not names:
            return {}
        wanted = list(to_kafka(TopicConfig()))
        request = DescribeConfigsRequest([(_TOPIC, name, wanted) for name in names])
        found = {}
        for code, _, _, name, entries in (await self._connection.send_any(request)).resources:
            # Whoever may not look at it gets what is usual.
            found[name] = TopicConfig() if code else from_kafka({key: value for key, value, *_ in entries})
        return found


def to_kafka(config: TopicConfig) -> dict[str, str]:
    """Return the settings of a topic in Kafka's words.

    Event time may lie ahead of the broker's clock as far as it likes.
    """
    return {
        "retention.ms": str(-1 if config.retention_ms is None else config.retention_ms),
        "retention.bytes": str(-1 if config.retention_bytes is None else config.retention_bytes),
        "segment.bytes": str(max(config.segment_bytes, LEAST_SEGMENT_BYTES)),
        "cleanup.policy": "compact" if config.compact else "delete",
        _FAR_FUTURE: str(2**63 - 1),
    }


def from_kafka(settings: Mapping[str, str]) -> TopicConfig:
    """Return the settings of a topic in headrace's words."""
    usual = to_kafka(TopicConfig()) | {key: value for key, value in settings.items() if value}
    return TopicConfig(
        retention_ms=_limit(usual["retention.ms"]),
        retention_bytes=_limit(usual["retention.bytes"]),
        segment_bytes=int(usual["segment.bytes"]),
        compact="compact" in usual["cleanup.policy"],
    )


def _limit(text: str) -> int | None:
    return None if int(text) < 0 else int(text)


def _fields(response: Any) -> list[tuple[int, str, bool, list[Any]]]:
    return [(code, name, own, parts) for code, name, own, parts in response.topics]
