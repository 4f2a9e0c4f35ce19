"""What a group keeps beside the positions of its members: the epochs under which they were committed.

Kafka has one text for each position. What the runtime wants to be kept comes first in it, the epoch last, so that a
group that begins anew knows what its last life has reached: ``end=12 epoch=1700000000123``.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from aiokafka.protocol.commit import OffsetFetchRequest

from headrace.log.api import Committed
from headrace.log.kafka.connection import Connection, check_code
from headrace.log.kafka.coordinator import coordinator
from headrace.record import TopicPartition

_EPOCH = re.compile(r"(?:^| )epoch=(\d{1,18})$")


class Note(NamedTuple):
    """What was committed for a partition."""

    committed: Committed
    epoch: int
    """Of the lease that it was committed under; 0 if another program or an earlier version wrote it."""


def noted(metadata: str, epoch: int) -> str:
    """Return the text to commit.

    Example:
        >>> noted("end=12", 1700000000123), noted("", 7)
        ('end=12 epoch=1700000000123', 'epoch=7')
    """
    return f"{metadata} epoch={epoch}".lstrip()


def note_of(offset: int, text: str) -> Note:
    """Return what a committed text says.

    Example:
        >>> note_of(10, "end=12 epoch=7").epoch, note_of(10, "end=12").epoch
        (7, 0)
    """
    match = _EPOCH.search(text)
    if match is None:
        return Note(Committed(offset, text), 0)
    return Note(Committed(offset, text[: match.start()]), int(match[1]))


async def committed(connection: Connection, group: str) -> dict[TopicPartition, Note]:
    """Return what a group committed last for each partition.

    Raises:
        KafkaError: the coordinator cannot be asked.
    """

    async def attempt() -> Any:
        response = await connection.send(await coordinator(connection, group), OffsetFetchRequest(group, None))
        check_code(getattr(response, "error_code", 0), needs=f"Describe on group {group!r}")
        return response

    response = await connection.attempts(attempt)
    found = {}
    for topic, partitions in response.topics:
        for number, offset, metadata, code in partitions:
            check_code(code, needs=f"Describe on topic {topic!r}")
            if offset >= 0:
                found[TopicPartition(topic, number)] = note_of(offset, metadata or "")
    return found
