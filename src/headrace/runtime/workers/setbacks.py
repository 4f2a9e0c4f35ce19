"""Decides how a task whose state turned out to be damaged is brought back; pure.

::

    REUSE ──damaged──> FETCH ──damaged──> FALL_BACK ──damaged──> GIVE_UP
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from headrace.checkpoint.manifest import Manifest

FORGOTTEN_MS = 600_000
"""A task that has worked for this long after a setback has overcome it."""


class Way(Enum):
    """How a task is brought back."""

    REUSE = "reuse"
    """From its last checkpoint, with the files that are on this machine and whole."""
    FETCH = "fetch"
    """From its last checkpoint, every file from the checkpoint store."""
    FALL_BACK = "fall back"
    """From the checkpoint before, every file from the checkpoint store."""
    GIVE_UP = "give up"
    """Not at all: somebody must look at it."""


@dataclass(frozen=True, slots=True)
class Setback:
    """What is known of the state of a task that was damaged."""

    way: Way = Way.REUSE
    """How the task is to be brought back now."""
    failed: tuple[Manifest, ...] = ()
    """Checkpoints that proved to be of no use."""


def next_way(way: Way, *, local: bool, worked_ms: int) -> Way:
    """Decide how to bring a task back whose state is damaged.

    Args:
        way: How it was brought back the last time.
        local: Whether files that were on this machine, or were made there since, may be at fault.
        worked_ms: How long ago that was.

    Example:
        >>> next_way(Way.REUSE, local=True, worked_ms=0)
        <Way.FETCH: 'fetch'>
    """
    if worked_ms >= FORGOTTEN_MS:
        return Way.FETCH
    match way:
        case Way.REUSE:
            return Way.FETCH if local else Way.FALL_BACK
        case Way.FETCH:
            return Way.FALL_BACK
    return Way.GIVE_UP
