"""What becomes of a task whose position in an input is not in the log (any more)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from headrace.errors import FatalError, NotFoundError
from headrace.log.api import Log
from headrace.record import TopicPartition
from headrace.runtime.workers.slot import Slot

_log = logging.getLogger("headrace")


class Fit(Enum):
    """How a position fits into a log."""

    WITHIN = "within"
    GONE = "gone"
    """The records from there on were deleted by retention."""
    BEYOND = "beyond"
    """The log ends before it."""


@dataclass(frozen=True, slots=True)
class Place:
    """A task's position in one input, and what the log has of it."""

    partition: TopicPartition
    position: int
    start: int
    """The oldest offset that is kept."""
    end: int

    @property
    def fit(self) -> Fit:
        """Return how the position fits.

        Example:
            >>> Place(TopicPartition("in", 0), 5, 10, 20).fit
            <Fit.GONE: 'gone'>
        """
        if self.position > self.end:
            return Fit.BEYOND
        return Fit.GONE if self.position < self.start else Fit.WITHIN


def first_offsets(
    task: str, positions: Mapping[TopicPartition, int], log: Log, *, internal: frozenset[str], lost_records: str
) -> dict[TopicPartition, int]:
    """Return where to go on in inputs whose next records are gone, by the policy for that; refuse what cannot be.

    An internal topic may have lost its tail with the power: what was lost there is written again by those who wrote
    it, and dropped as repeats.

    Args:
        task: Its id.
        positions: The next offset of each input.
        log: The log that it would go on with.
        internal: The topics whose records only this topology reads.
        lost_records: ``stop`` or ``skip``, as in ``Settings``.

    Raises:
        FatalError: a source ends before the position, or records are gone and may not be left out.
    """
    return _firsts(task, _places(positions, log), internal, lost_records)


def _places(positions: Mapping[TopicPartition, int], log: Log) -> list[Place]:
    return [Place(p, position, log.start_offset(p), log.end_offset(p)) for p, position in positions.items()]


def _firsts(
    task: str, places: Iterable[Place], internal: frozenset[str], lost_records: str
) -> dict[TopicPartition, int]:
    found: dict[TopicPartition, int] = {}
    for place in places:
        partition = place.partition
        if place.fit is Fit.BEYOND and partition.topic in internal:
            _log.warning(
                "task %s has read internal partition %s up to offset %d, and it ends at %d now: what was lost there is "
                "written again by those who wrote it, if they go on from checkpoints that are older", task, partition,
                place.position, place.end,
            )  # fmt: skip
        elif place.fit is Fit.BEYOND:
            raise FatalError(
                f"the checkpoint of task {task} has read partition {partition} up to offset {place.position}, but the "
                f"log ends at {place.end}: it lost records, or is another log",
                remedy="Use the log that belongs to these checkpoints, or other checkpoints (--checkpoints)",
            )
        if place.fit is Fit.GONE:
            _may_leave_out(task, place, lost_records, internal=partition.topic in internal)
            found[partition] = place.start
    return found


def _may_leave_out(task: str, place: Place, lost_records: str, *, internal: bool) -> None:
    told = (
        f"task {task} would go on at offset {place.position} of partition {place.partition}, but the log keeps only "
        f"what begins at {place.start}: {place.start - place.position} records are gone"
    )
    if internal:
        raise FatalError(
            f"{told} that only this topology reads, and that are kept for its last two checkpoints",
            remedy="Use a newer checkpoint, or begin anew with other checkpoints and another group (--group). If two "
            "groups run this topology on one log, each deletes what it has read: give the topology of one another name",
        )
    if lost_records != "skip":
        raise FatalError(
            f"{told} by retention",
            remedy="Restore the topic; or leave them out for good with --lost-records skip (HEADRACE_LOST_RECORDS); "
            "and let the topic keep records for longer than a worker may be away",
        )


def pass_over(slot: Slot, log: Log, internal: frozenset[str], lost_records: str) -> bool:
    """Let a running task go on behind records that retention deleted before it came to them, if that is the policy.

    Returns:
        Whether there were any.

    Raises:
        FatalError: there are, and they may not be left out.
    """
    positions = {partition: reader.position for partition, reader in slot.readers.items()}
    try:
        places = _places(positions, log)
    except NotFoundError:
        return False  # the topic itself is gone, as the reader says
    if any(place.fit is Fit.BEYOND and place.partition.topic not in internal for place in places):
        return False  # nor is it the topic that the task has read so far
    firsts = _firsts(str(slot.id), places, internal, lost_records)
    leave_out(slot, firsts)
    return bool(firsts)


def leave_out(slot: Slot, firsts: Mapping[TopicPartition, int]) -> None:
    """Let readers go on behind records that are gone; say so and count them."""
    for partition, first in firsts.items():
        reader = slot.readers[partition]
        lost = first - reader.position
        reader.position = first
        slot.metrics.input(*partition).lost(lost)
        _log.warning(
            "task %s leaves out %d records of partition %s, which are gone by retention: it goes on at offset %d",
            slot.id, lost, partition, first,
        )  # fmt: skip
