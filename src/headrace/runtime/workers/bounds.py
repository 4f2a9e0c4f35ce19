"""The end of a bounded run. Pure.

A run with ``until_end`` takes the end offsets of the sources, as they are when it starts, for the end of the input.
Their sum is a number that only grows from run to run; a task that is finished says up to which. What reads an internal
topic is finished when all its writers are, up to that number at least.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.log.api import Committed
from headrace.record import TopicPartition

_PREFIX = "end="
_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where the sources end."""

    ends: Mapping[TopicPartition, int]
    closes: bool = True
    """Whether tasks are finished there and close what is open, or only read no further."""

    @property
    def number(self) -> int:
        """Return the number that stands for these ends; one that nobody reaches if nothing is finished there."""
        return sum(self.ends.values()) if self.closes else _NEVER

    def left(self, partition: TopicPartition, position: int) -> int | None:
        """Return how many records are left from ``position`` on; None for what is not a source."""
        end = self.ends.get(partition)
        return None if end is None else max(0, end - position)


def metadata(finished: int) -> str:
    """Return what is committed beside an offset by a task that is finished up to ``finished``; -1 if it is not."""
    return f"{_PREFIX}{finished}" if finished >= 0 else ""


def is_finished(committed: Committed | None, number: int) -> bool:
    """Return whether the task that committed this is finished up to ``number``.

    Example:
        >>> is_finished(Committed(10, "end=12"), 12), is_finished(Committed(10, ""), 12)
        (True, False)
    """
    if committed is None or not committed.metadata.startswith(_PREFIX):
        return False
    text = committed.metadata.removeprefix(_PREFIX)
    return text.isdigit() and int(text) >= number
