"""Says why brokers do not take what is sent to them."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from aiokafka.errors import (
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownError,
)
from aiokafka.record.memory_records import MemoryRecords

from headrace.errors import FatalError, HeadraceError, InvalidError, NotFoundError, RetriableError
from headrace.log.kafka.connection import Connection
from headrace.log.kafka.topics import Topics
from headrace.record import TopicPartition

REFUSED = (10, 32, 87)
"""Codes for what no other attempt can mend: records too large, of a time that the topic does not take, or invalid."""
_NAMED = 3
"""How many of the partitions that wait are named."""


async def refusal(
    connection: Connection, topics: Topics, partition: TopicPartition, batch: bytes, size: int,
    error: KafkaError | AssertionError | NotFoundError,
) -> HeadraceError:  # fmt: skip
    """Return why a batch was not taken, after the library tried for as long as that made sense.

    Args:
        connection: Says who refused it.
        topics: What there is.
        partition: Where the batch should have gone.
        batch: As Kafka takes it.
        size: At most what its records take, not compressed.
        error: What the library says.
    """
    if isinstance(error, NotFoundError):
        return error
    if isinstance(error, MessageSizeTooLargeError):
        return InvalidError(
            f"the brokers refuse records for {partition}, as they are too large: {len(_records(batch))} of at most "
            f"{size} bytes together",
            remedy="Raise max.message.bytes of the topic",
        )
    if isinstance(error, InvalidTimestampError):
        return _bad_time(partition, batch)
    if isinstance(error, AssertionError) or not topics.knows(partition):
        return NotFoundError(f"topic {partition.topic} has no partition {partition.partition}")
    if isinstance(error, UnknownError):  # which is all that the library says of an invalid record
        keyless = sum(record.key is None for record in _records(batch))
        if keyless and await _is_compacted(topics, partition.topic):
            return _without_keys(partition, keyless)
    if isinstance(error, TopicAuthorizationFailedError):
        error = TopicAuthorizationFailedError(f"Write on topic {partition.topic!r}")
    cause = connection.translated(error, str(partition))
    # What cannot be sent is lost, even if another try might pass: tasks must go back to their checkpoints.
    return FatalError(cause.message) if isinstance(cause, RetriableError) else cause


async def what_waits(connection: Connection, topics: Topics, waiting: Collection[TopicPartition]) -> str:
    """Return what keeps brokers from acknowledging what was sent to some partitions; empty if nobody answers."""
    names = sorted({partition.topic for partition in waiting})
    try:
        response = await connection.metadata(names)
        least = await topics.least_in_sync(names)
    except KafkaError:
        return ""
    found = {
        TopicPartition(name, number): _state(leader, replicas, in_sync, least.get(name, 1))
        for _, name, _, parts in response.topics
        for _, number, leader, replicas, in_sync, *_ in parts
    }
    named = [f"{partition} {found.get(partition, 'is not there')}" for partition in sorted(waiting)[:_NAMED]]
    if len(waiting) > _NAMED:
        named.append(f"{len(waiting) - _NAMED} more wait")
    return "; ".join(named)


def _state(leader: int, replicas: list[int], in_sync: list[int], least: int) -> str:
    if leader < 0:
        return "has no leader"
    if len(in_sync) < least:
        return f"has {len(in_sync)} of {len(replicas)} replicas in sync, and must have {least} (min.insync.replicas)"
    return f"is led by broker {leader}, which does not take it"


def _without_keys(partition: TopicPartition, keyless: int) -> FatalError:
    return FatalError(
        f"the brokers refuse records for {partition}: {keyless} of them have no key, and topic {partition.topic} keeps "
        "the newest of each key (cleanup.policy=compact)",
        remedy="Give records keys (key_by) before they go there, or let the topic have another cleanup.policy, and "
        "start again: nothing is lost",
    )


def _bad_time(partition: TopicPartition, batch: bytes) -> FatalError:
    times = [record.timestamp for record in _records(batch)]
    first, last = (datetime.fromtimestamp(time / 1000, UTC).isoformat() for time in (min(times), max(times)))
    return FatalError(
        f"the brokers refuse the time of records for {partition}: they are of {first} to {last}",
        remedy="Set message.timestamp.before.max.ms and message.timestamp.after.max.ms of the topic (before Kafka 3.6: "
        "message.timestamp.difference.max.ms) to 9223372036854775807, and start again: nothing is lost",
    )


def _records(batch: bytes) -> list[Any]:
    return list(MemoryRecords(batch).next_batch())


async def _is_compacted(topics: Topics, topic: str) -> bool:
    try:
        return await topics.is_compacted(topic)
    except KafkaError:
        return False
