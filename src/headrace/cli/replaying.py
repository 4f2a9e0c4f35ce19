"""Sending dead letters back to where their records came from."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from headrace.cli.letters import Done, Letter, done_with, group_of, letter_partitions, read_letters
from headrace.errors import InvalidError, NotFoundError
from headrace.log.api import Lease, Log, Membership
from headrace.record import JoinedBytes, RecordBatch, TopicPartition

_UNIT = "replay"
_AT_ONCE = 1000
"""Letters between two commits, which is what may be sent twice if the command is killed."""
_SESSION_TIMEOUT_MS = 60_000


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters to replay."""

    step: str | None = None
    partition: int | None = None
    offset: int | None = None
    limit: int | None = None
    again: bool = False
    """Those too that were replayed before."""

    def takes(self, letter: Letter) -> bool:
        """Return whether a letter is meant, replayed or not."""
        return (self.step is None or letter.step == self.step) and self.offset in (None, letter.offset)


@dataclass(slots=True)
class Replayed:
    """What a replay did, or would do."""

    records: Counter[str] = field(default_factory=Counter)
    """By the topic that they went to."""
    made: int = 0
    """Letters that have no record to replay."""
    before: int = 0
    """Letters that an earlier replay was done with."""

    @property
    def total(self) -> int:
        """Return how many records there were."""
        return self.records.total()


def preview(log: Log, topology: str, selection: Selection) -> Replayed:
    """Return what a replay would do.

    Raises:
        NotFoundError: there are no such dead letters, or a topic to which they belong is gone.
    """
    counted = Replayed()
    for letters in _portions(_chosen(log, topology, selection, counted)):
        for partition in _by_source(log, letters):
            counted.records[partition.topic] += sum(letter.source == partition for letter in letters)
        counted.made += sum(letter.source is None for letter in letters)
    return counted


def replay(log: Log, topology: str, selection: Selection) -> Replayed:
    """Append the records of dead letters to the partitions they were read from, and remember that.

    A record goes as it was, with its own headers and the number of attempts so far. It is remembered after it was
    written: if the command is killed in between, the next one sends up to a thousand records again.

    Raises:
        NotFoundError: there are no such dead letters, or a topic to which they belong is gone.
        InvalidError: somebody else replays them at this moment.
    """
    partitions = letter_partitions(log, topology, selection.partition)
    counted = Replayed()
    with _membership(log, topology, partitions) as (member, lease):
        done = {partition: Done() for partition in partitions} | done_with(log, topology)
        for letters in _portions(_chosen(log, topology, selection, counted)):
            for partition, records in _by_source(log, letters).items():
                log.append(partition, _batch(records))
                counted.records[partition.topic] += len(records)
            log.flush()
            counted.made += sum(letter.source is None for letter in letters)
            changed = _remember(log, partitions[0].topic, letters, done)
            member.heartbeat()
            member.commit(lease, {partition: mark.committed() for partition, mark in changed.items()})
    return counted


def _chosen(log: Log, topology: str, selection: Selection, counted: Replayed) -> Iterator[Letter]:
    """Yield what is to be replayed, and of what has no record to replay that which nobody was told about."""
    partitions = letter_partitions(log, topology, selection.partition)
    done = done_with(log, topology)
    starts: dict[TopicPartition, int] = {}
    if selection.offset is not None:
        starts = dict.fromkeys(partitions, selection.offset)
    elif not selection.again:
        starts = {partition: mark.below for partition, mark in done.items()}
        counted.before += sum(max(0, mark.below - log.start_offset(p)) for p, mark in done.items() if p in partitions)
    topic = partitions[0].topic

    def meant() -> Iterator[Letter]:
        for letter in read_letters(log, partitions, starts):
            replayed = letter.offset in done.get(TopicPartition(topic, letter.partition), Done())
            if not selection.takes(letter):
                continue
            if replayed and not selection.again:
                counted.before += 1
                continue
            yield letter
            if selection.offset is not None:
                return

    left = selection.limit
    for letter in meant():
        if letter.source is not None and left is not None:
            if not left:
                return
            left -= 1
        yield letter


def _portions(letters: Iterator[Letter]) -> Iterator[list[Letter]]:
    while portion := list(islice(letters, _AT_ONCE)):
        yield portion


def _by_source(log: Log, letters: Sequence[Letter]) -> dict[TopicPartition, list[Letter]]:
    """Return the letters that have a record by where it goes, in their order.

    Raises:
        NotFoundError: it cannot go there any more.
    """
    found: dict[TopicPartition, list[Letter]] = {}
    for letter in letters:
        if letter.source is not None:
            found.setdefault(letter.source, []).append(letter)
    topics = log.topics()
    for partition, records in found.items():
        if partition.topic not in topics or partition.partition >= topics[partition.topic].partitions:
            raise NotFoundError(
                f"the dead letter at offset {records[0].offset} of partition {records[0].partition} was read from "
                f"{partition}, which is not there any more",
                remedy="Make the topic again, or leave such records out with --step, --partition or --offset",
            )
    return found


def _batch(letters: Sequence[Letter]) -> RecordBatch:
    return RecordBatch(
        [letter.timestamp for letter in letters],
        [letter.key for letter in letters],
        JoinedBytes.of([letter.value for letter in letters]),
        [letter.own_headers() for letter in letters],
    )


def _remember(
    log: Log, topic: str, letters: Sequence[Letter], done: dict[TopicPartition, Done]
) -> Mapping[TopicPartition, Done]:
    changed: dict[TopicPartition, Done] = {}
    for number in sorted({letter.partition for letter in letters}):
        partition = TopicPartition(topic, number)
        before = done.get(partition, Done())
        # What is no longer kept needs no replay.
        kept = Done(max(before.below, log.start_offset(partition)), before.ranges)
        offsets = [letter.offset for letter in letters if letter.partition == number]
        changed[partition] = done[partition] = kept.with_offsets(offsets)
    return changed


@contextmanager
def _membership(log: Log, topology: str, partitions: Sequence[TopicPartition]) -> Iterator[tuple[Membership, Lease]]:
    """Join the group that remembers replays, as the only one that replays now.

    Raises:
        InvalidError: somebody else does.
    """
    everything = letter_partitions(log, topology)

    def assign(members: Sequence[str], units: Sequence[str], last: Mapping[str, str]) -> dict[str, str]:
        return {unit: last[unit] if last.get(unit) in members else members[0] for unit in units}

    member = log.group(group_of(topology)).join(
        f"{socket.gethostname()}-{os.getpid()}", {_UNIT: everything}, assign, session_timeout_ms=_SESSION_TIMEOUT_MS
    )
    try:
        lease = member.poll().leases.get(_UNIT)
        if lease is None:
            raise InvalidError(
                f"the dead letters of {topology!r} are being replayed by another command",
                remedy="Wait until it has ended",
            )
        yield member, lease
    finally:
        member.leave()
