"""Questions to the leaders of partitions: where they begin and end, and deleting what nobody needs any more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from aiokafka.errors import KafkaError, LeaderNotAvailableError, OffsetOutOfRangeError, UnknownTopicOrPartitionError
from aiokafka.protocol.admin import DeleteRecordsRequest
from aiokafka.protocol.offset import OffsetRequest

from headrace.log.kafka.connection import Connection, check_code
from headrace.log.kafka.topics import Topics
from headrace.record import TopicPartition

EARLIEST, LATEST = -2, -1
READ_UNCOMMITTED, READ_COMMITTED = 0, 1
_TIMEOUT_MS = 10_000
_Result = TypeVar("_Result")


class Offsets:
    """Offsets of partitions, as their leaders know them now."""

    def __init__(self, connection: Connection, topics: Topics) -> None:
        self._connection = connection
        self._topics = topics

    async def at(self, partition: TopicPartition, time: int, isolation: int = READ_COMMITTED) -> int:
        """Return the offset of the first record that is not older, of ``EARLIEST`` or ``LATEST``; -1 if there is none.

        The end is where a reader can get to: it lies before transactions that are not finished, unless ``isolation``
        says otherwise.
        """
        topic, number = partition
        request = OffsetRequest(-1, isolation, [(topic, [(number, time)])])

        async def ask(leader: int) -> int:
            response = await self._connection.send(leader, request)
            _, code, _, offset, *_ = response.topics[0][1][0]
            check_code(code, needs=f"Describe on topic {topic!r}")
            return int(offset)

        return await self._ask_leader(partition, ask)

    async def trim(self, partition: TopicPartition, before: int) -> None:
        """Delete the records before an offset, which may lie beyond the end."""
        topic, number = partition

        async def ask(leader: int) -> None:
            request = DeleteRecordsRequest([(topic, [(number, before)])], _TIMEOUT_MS)
            response = await self._connection.send(leader, request, timeout_s=_TIMEOUT_MS / 1000 + 5)
            check_code(response.topics[0][1][0][2], needs=f"Delete on topic {topic!r}")

        try:
            await self._ask_leader(partition, ask)
        except OffsetOutOfRangeError:
            before = -1  # up to the end
            await self._ask_leader(partition, ask)

    async def _ask_leader(self, partition: TopicPartition, ask: Callable[[int], Awaitable[_Result]]) -> _Result:
        async def attempt() -> _Result:
            await self._topics.check(partition)
            leader = self._connection.client.cluster.leader_for_partition(partition)
            try:
                if leader is None or leader < 0:
                    raise LeaderNotAvailableError(str(partition))
                return await ask(leader)
            except Exception as error:
                await self._learn(partition, error)
                raise

        return await self._connection.attempts(attempt)

    async def _learn(self, partition: TopicPartition, error: Exception) -> None:
        if isinstance(error, UnknownTopicOrPartitionError):
            self._topics.forget(partition.topic)
        if isinstance(error, KafkaError) and error.retriable:
            await self._connection.metadata(None)  # whoever does not answer may lead no more


def leader_of(connection: Connection, partition: TopicPartition) -> int | None:
    """Return the broker that leads a partition, None if that is not known."""
    leader: Any = connection.client.cluster.leader_for_partition(partition)
    return None if leader is None or leader < 0 else int(leader)
