"""What a topic may be called."""

from __future__ import annotations

import re

from headrace.errors import InvalidError, NotFoundError
from headrace.log.api import TopicInfo
from headrace.record import TopicPartition

_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")


def check_new_topic(name: str, partitions: int) -> None:
    """Refuse a topic that cannot be created.

    Raises:
        InvalidError: the name or the number of partitions cannot be used.
    """
    if not is_topic_name(name):
        raise InvalidError(
            f"{name!r} cannot be the name of a topic",
            remedy='Use letters, digits, ".", "_" and "-", at most 249 of them, and neither "." nor ".."',
        )
    if partitions < 1:
        raise InvalidError(f"topic {name} must have at least one partition: {partitions}")


def is_topic_name(name: str) -> bool:
    """Tell whether a topic can have that name."""
    return _NAME.fullmatch(name) is not None and name not in (".", "..")


def check_same_partitions(existing: TopicInfo, partitions: int) -> TopicInfo:
    """Return the topic that exists already.

    Raises:
        InvalidError: it has another number of partitions.
    """
    if existing.partitions != partitions:
        raise InvalidError(
            f"topic {existing.name} exists with {existing.partitions} partitions, and {partitions} were asked for",
            remedy=f"Ask for {existing.partitions} partitions, or delete the topic first",
        )
    return existing


def check_growth(existing: TopicInfo, partitions: int) -> None:
    """Refuse to take partitions away from a topic.

    Raises:
        InvalidError: it has more than ``partitions``.
    """
    if partitions < existing.partitions:
        raise InvalidError(
            f"topic {existing.name} has {existing.partitions} partitions, and cannot shrink to {partitions}",
            remedy="Write its records to a new topic with fewer partitions",
        )


def no_such_topic(name: str) -> NotFoundError:
    """Say that a topic does not exist."""
    return NotFoundError(f"there is no topic {name}", remedy="Create it, or check its name with `headrace topics`")


def topic_deleted(name: str) -> NotFoundError:
    """Say that a topic is gone that was there before."""
    return NotFoundError(
        f"topic {name} was deleted while it was in use",
        remedy="What was written to it is made again from the last checkpoint on once it is there; what was read from "
        "it and is not in a checkpoint is lost, and whoever read it begins anew with other checkpoints and another "
        "group (--group)",
    )


def no_such_partition(partition: TopicPartition, partitions: int) -> NotFoundError:
    """Say that a topic has fewer partitions."""
    return NotFoundError(
        f"topic {partition.topic} has no partition {partition.partition}: it has {partitions}",
        remedy=f"Use a partition from 0 to {partitions - 1}",
    )
