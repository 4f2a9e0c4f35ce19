"""Dead letters as the log holds them, and which of them were replayed.

What was replayed is remembered in the log itself, as what the consumer group ``<topology>-dead-letter-replay`` has
committed for each partition: everything before the committed offset is done with, and the commit's metadata names
what is done with behind it, as ``1 17 20-25``: the version of this format, then offsets and ranges of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from headrace.cli.consume import partitions_of, read_batches
from headrace.errors import CorruptError, NotFoundError
from headrace.log.api import Committed, Log
from headrace.record import Headers, RecordBatch, TopicPartition
from headrace.runtime.tasks.failures import (
    ATTEMPT_HEADER,
    ERROR_AT_HEADER,
    ERROR_HEADER,
    LETTER_HEADERS,
    MADE_HEADER,
    OFFSET_HEADER,
    PARTITION_HEADER,
    STEP_HEADER,
    TOPIC_HEADER,
)

_SUFFIX = "-dead-letter"
_VERSION = "1"

Ranges = tuple[tuple[int, int], ...]
"""First and last of each run of offsets, in order and apart from each other."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    def said(self, name: str) -> str | None:
        """Return what a header says, None if there is none."""
        for header, value in self.headers:
            if header == name:
                return value.decode(errors="replace")
        return None

    @property
    def step(self) -> str:
        """Return the step that failed."""
        return self.said(STEP_HEADER) or "-"

    @property
    def error(self) -> str:
        """Return what was raised."""
        return self.said(ERROR_HEADER) or "-"

    @property
    def error_at(self) -> str | None:
        """Return the user's line that raised it, if one did."""
        return self.said(ERROR_AT_HEADER)

    @property
    def attempt(self) -> str:
        """Return how often the record has failed."""
        told = self.said(ATTEMPT_HEADER)
        return told if told is not None and _is_number(told) else "1"

    @property
    def source(self) -> TopicPartition | None:
        """Return where the record was read from; None if there is nothing to replay, since time made it."""
        topic, partition = self.said(TOPIC_HEADER), self.said(PARTITION_HEADER)
        if self.said(MADE_HEADER) is not None or topic is None or partition is None or not _is_number(partition):
            return None
        return TopicPartition(topic, int(partition))

    @property
    def source_offset(self) -> str | None:
        """Return the offset at which the record was read."""
        told = self.said(OFFSET_HEADER)
        return told if told is not None and _is_number(told) else None

    @property
    def place(self) -> str:
        """Return where the record was read from, for people."""
        return "made by time" if self.source is None else f"{self.source} {self.source_offset or '-'}"

    def own_headers(self) -> Headers:
        """Return the headers that the record itself has, and the number of attempts, from which the next is counted."""
        own = tuple(header for header in self.headers if header[0] not in LETTER_HEADERS)
        return (*own, (ATTEMPT_HEADER, self.attempt.encode()))


def _is_number(told: str) -> bool:
    return told.isascii() and told.isdecimal() and len(told) < 19


def topic_of(topology: str) -> str:
    """Return the topic of a topology's dead letters."""
    return f"{topology}{_SUFFIX}"


def group_of(topology: str) -> str:
    """Return the group that remembers which of them were replayed."""
    return f"{topology}{_SUFFIX}-replay"


def letter_partitions(log: Log, topology: str, only: int | None = None) -> list[TopicPartition]:
    """Return the partitions of a topology's dead letters.

    Raises:
        NotFoundError: there is no such topic or partition.
    """
    topics = log.topics()
    if topic_of(topology) not in topics:
        known = [name.removesuffix(_SUFFIX) for name in topics if name.endswith(_SUFFIX)]
        raise NotFoundError(
            f"topology {topology!r} has no dead letters in the log {log.url}",
            remedy=f"Give the topology's name, not its module; there are dead letters of: {', '.join(known) or 'none'}",
        )
    return partitions_of(log, topic_of(topology), only)


def read_letters(
    log: Log, partitions: Sequence[TopicPartition], starts: dict[TopicPartition, int] | None = None
) -> Iterator[Letter]:
    """Yield the letters of one partition after the other, up to the ends that these have when they are reached.

    Args:
        log: To read.
        partitions: Of one topic.
        starts: Where to begin; where it is kept from, if that is later or there is no such entry.
    """
    given = starts or {}
    for partition in partitions:
        end = log.end_offset(partition)
        batches = read_batches(
            log, [partition], lambda log, place: max(log.start_offset(place), given.get(place, 0))
        )  # fmt: skip
        try:
            for batch, number in batches:
                if batch is None or batch.offsets[0] >= end:
                    break
                yield from _letters(batch, number)
        finally:
            batches.close()


def _letters(batch: RecordBatch, partition: int) -> Iterator[Letter]:
    headers = batch.headers or [()] * len(batch)
    columns = zip(batch.offsets, batch.timestamps, batch.keys, batch.values.split(), headers, strict=True)
    for row in columns:
        yield Letter(partition, *row)


@dataclass(frozen=True, slots=True)
class Done:
    """The offsets of one partition that a replay is done with."""

    below: int = 0
    """All before this one."""
    ranges: Ranges = ()
    """And these."""

    def __contains__(self, offset: int) -> bool:
        return offset < self.below or any(first <= offset <= last for first, last in self.ranges)

    def with_offsets(self, offsets: Collection[int]) -> Done:
        """Return what is done when ``offsets`` are too.

        Example:
            >>> Done(2, ((5, 6),)).with_offsets([2, 3, 7, 9])
            Done(below=4, ranges=((5, 7), (9, 9)))
            >>> Done(2, ((5, 6),)).with_offsets([2, 3, 4])
            Done(below=7, ranges=())
        """
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self.ranges, *((offset, offset) for offset in offsets if offset >= self.below)]):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            else:
                merged.append((first, last))
        if merged and merged[0][0] <= self.below:
            return Done(merged[0][1] + 1, tuple(merged[1:]))
        return Done(self.below, tuple(merged))

    def committed(self) -> Committed:
        """Return it as a group commits it.

        Example:
            >>> Done(4, ((5, 7), (9, 9))).committed()
            Committed(offset=4, metadata='1 5-7 9')
        """
        told = [f"{first}-{last}" if last > first else str(first) for first, last in self.ranges]
        return Committed(self.below, " ".join([_VERSION, *told]))

    @classmethod
    def parse(cls, committed: Committed) -> Done:
        """Return what a group committed.

        Raises:
            CorruptError: it makes no sense, or a newer version wrote it.

        Example:
            >>> Done.parse(Committed(4, "1 5-7 9"))
            Done(below=4, ranges=((5, 7), (9, 9)))
        """
        version, *told = committed.metadata.split() or [_VERSION]
        try:
            if version != _VERSION:
                raise ValueError
            pairs = [(int(first), int(last or first)) for first, _, last in (text.partition("-") for text in told)]
        except ValueError:
            raise CorruptError(
                "what was committed for the replay of dead letters cannot be read",
                remedy="Use the version of headrace that wrote it, or replay with --again",
            ) from None
        return cls(committed.offset, tuple(pairs))


def done_with(log: Log, topology: str) -> dict[TopicPartition, Done]:
    """Return what was replayed of each partition of a topology's dead letters.

    Raises:
        CorruptError: it cannot be read.
    """
    found: dict[TopicPartition, Done] = {}
    for partition, committed in log.group(group_of(topology)).committed().items():
        if partition.topic == topic_of(topology):
            # A topic that was deleted and made anew begins at 0 again.
            fresh = partition.topic in log.topics() and committed.offset > log.end_offset(partition)
            found[partition] = Done() if fresh else Done.parse(committed)
    return found
