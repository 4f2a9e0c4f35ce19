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
    TopicAuthorizationFailedError,
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
from headrace.log.names import (
    check_growth,
    check_new_topic,
    check_same_partitions,
    no_such_partition,
    no_such_topic,
    topic_deleted,
)
from headrace.record import TopicPartition

LEAST_SEGMENT_BYTES = 1024 * 1024
"""Kafka 4 makes no smaller segments."""
_TOPIC, _BROKER = 2, 4
_UNKNOWN_TOPIC = 3
_TIMEOUT_MS = 15_000
_GONE_S = 1.0
"""How long all that is asked says that a topic is gone before that is believed: brokers learn of things one by one."""
_FAR_FUTURE = "message.timestamp.after.max.ms"
_LARGEST = "max.message.bytes"
_TIME = "message.timestamp.type"
_IN_SYNC = "min.insync.replicas"
_USUAL_LARGEST_BYTES = 1_048_588
"""What brokers take unless they are told otherwise."""
_OWN_LARGEST_BYTES = 8 * 1024 * 1024
"""What headrace's own topics take: dead letters and internal records are somewhat larger than what they come from."""
_UNASKED = {_FAR_FUTURE: str(2**63 - 1), "retention.ms": "-1"}
"""What a topic gets that is made without a config. Retention goes by event times, so that the results of a replay
would be gone at once; and whoever made the topic by writing to it has not said that it may lose anything."""


class Topics:
    """The topics of a cluster.

    Remembers how many partitions each has, which never falls as long as the topic exists; whoever is told that a topic
    is unknown calls ``forget``.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._partitions: dict[str, int] = {}
        self._largest: dict[str, int] = {}

    async def all(self) -> dict[str, TopicInfo]:
        """Return every topic but Kafka's own, sorted by name."""
        response = await self._connection.metadata(None)
        found = {name: len(parts) for code, name, own, parts in _fields(response) if not own and not code}
        self._partitions = found
        return await self._described(dict(sorted(found.items())))

    async def count(self, topic: str) -> int | None:
        """Return how many partitions a topic has, None if there is no such topic."""
        if topic not in self._partitions:
            response = await self._connection.metadata([topic])
            ((code, _, _, parts),) = _fields(response)
            if code == TopicAuthorizationFailedError.errno:
                check_code(code, needs=f"Describe on topic {topic!r}")
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

    async def confirm(self, partition: TopicPartition) -> None:
        """Refuse what has not existed for a while, whoever is asked: a broker that has just come may not know it yet.

        Raises:
            NotFoundError: the topic was deleted, or made again with fewer partitions.
        """
        deadline = self._connection.loop.time() + _GONE_S
        while True:
            self.forget(partition.topic)
            count = await self.count(partition.topic)
            if count is not None and partition.partition < count:
                return
            if self._connection.loop.time() > deadline:
                raise topic_deleted(partition.topic) if count is None else no_such_partition(partition, count)
            await self._connection.pause()

    def largest(self, topic: str) -> int | None:
        """Return the size of the largest batch that a topic takes, None if that was not learnt yet."""
        return self._largest.get(topic)

    async def learn_largest(self, topic: str) -> int:
        """Ask for the size of the largest batch that a topic takes."""
        await self._configs([topic])
        return self._largest[topic]

    async def is_compacted(self, topic: str) -> bool:
        """Ask whether a topic keeps the newest record of each key."""
        return from_kafka((await self._configs([topic]))[topic]).compact

    async def least_in_sync(self, topics: list[str]) -> dict[str, int]:
        """Ask how many replicas of topics must be in sync to take records; those that tell are in it."""
        configs = await self._configs(topics)
        return {topic: int(found[_IN_SYNC]) for topic, found in configs.items() if _IN_SYNC in found}

    def knows(self, partition: TopicPartition) -> bool:
        """Return whether the partition exists, as far as is known without asking."""
        return 0 <= partition.partition < self._partitions.get(partition.topic, 0)

    def forget(self, topic: str) -> None:
        """Ask again the next time."""
        self._partitions.pop(topic, None)

    async def create(self, name: str, partitions: int, config: TopicConfig | None) -> TopicInfo:
        """Create a topic, or return it if it exists with that many partitions; without a config, the brokers' counts.

        Topics that are made without a config keep their records: see ``_UNASKED``. What gives a config is headrace
        itself, whose records may be larger than those of users.
        """
        check_new_topic(name, partitions)
        self.forget(name)
        if await self.count(name) is None:
            own = _UNASKED if config is None else to_kafka(config) | {_LARGEST: str(_OWN_LARGEST_BYTES)}
            await self._create(name, partitions, own)
        return check_same_partitions(await self._there(name), partitions)

    async def _create(self, name: str, partitions: int, config: dict[str, str]) -> None:
        replication = self._connection.options.replication or await self._default_replication()
        try:
            await self._ask_to_create(name, partitions, replication, config)
        except InvalidConfigurationError:
            if _FAR_FUTURE not in config:
                raise
            # Brokers before 3.6 do not know the one, nor need it; others allow less of the other.
            rest = {key: value for key, value in config.items() if key not in (_FAR_FUTURE, _LARGEST)}
            await self._ask_to_create(name, partitions, replication, rest)

    async def _ask_to_create(self, name: str, partitions: int, replication: int, config: dict[str, str]) -> None:
        request = CreateTopicsRequest(
            [(name, partitions, replication, [], list(config.items()))],
            _TIMEOUT_MS,
            validate_only=False,
        )

        async def attempt() -> None:
            code, told = (await self._to_controller(request)).topic_errors[0][1:3]
            check_code(code, told or "", needs=f"Create on topic {name!r}, or on the cluster")

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
                check_code(code, told or "", needs=f"Alter on topic {name!r}")

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
        return (await self._described({name: count}))[name]

    async def delete(self, name: str) -> None:
        """Delete a topic and its records, and wait until it is gone."""
        self.forget(name)
        if await self.count(name) is None:
            raise no_such_topic(name)

        async def attempt() -> None:
            response = await self._to_controller(DeleteTopicsRequest([name], _TIMEOUT_MS))
            check_code(response.topic_error_codes[0][1], needs=f"Delete on topic {name!r}")

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
            return await self._connection.send(cluster.controller.nodeId, request, timeout_s=_TIMEOUT_MS / 1000 + 5)
        except KafkaError:
            await self._connection.metadata(None)
            raise

    async def _default_replication(self) -> int:
        nodes = [broker.nodeId for broker in self._connection.client.cluster.brokers()]
        request = DescribeConfigsRequest([(_BROKER, str(nodes[0]), ["default.replication.factor"])])
        code, _, _, _, entries = (await self._connection.send(nodes[0], request)).resources[0]
        told = {} if code else {name: value for name, value, *_ in entries}
        return int(told.get("default.replication.factor") or min(3, len(nodes)))

    async def _described(self, counts: Mapping[str, int]) -> dict[str, TopicInfo]:
        configs = await self._configs(list(counts))
        return {
            name: TopicInfo(name, count, from_kafka(found), self._largest[name], by_event_time(found))
            for (name, count), found in zip(counts.items(), map(configs.__getitem__, counts), strict=True)
        }

    async def _configs(self, names: list[str]) -> dict[str, dict[str, str]]:
        """Return the settings of topics; whoever may not look at them gets what is usual, which is none here."""
        if not names:
            return {}
        wanted = [*to_kafka(TopicConfig()), _LARGEST, _TIME, _IN_SYNC]
        request = DescribeConfigsRequest([(_TOPIC, name, wanted) for name in names])
        found: dict[str, dict[str, str]] = {name: {} for name in names}
        for code, _, _, name, entries in (await self._connection.send_any(request)).resources:
            found[name] = {} if code else {key: value for key, value, *_ in entries if value}
        for name, settings in found.items():
            self._largest[name] = int(settings.get(_LARGEST, _USUAL_LARGEST_BYTES))
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


def by_event_time(settings: Mapping[str, str]) -> bool:
    """Return whether a topic deletes records by the time that their producers gave them."""
    kept = int(settings.get("retention.ms", -1)) < 0 or "delete" not in settings.get("cleanup.policy", "delete")
    return not kept and settings.get(_TIME) == "CreateTime"


def _limit(text: str) -> int | None:
    return None if int(text) < 0 else int(text)


def _fields(response: Any) -> list[tuple[int, str, bool, list[Any]]]:
    return [(code, name, own, parts) for code, name, own, parts in response.topics]
