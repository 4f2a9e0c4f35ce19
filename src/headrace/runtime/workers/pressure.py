"""Decides what a task waits for, and whether it may take more records; pure.

A task that waits is bounded by itself: it takes no records while the log refuses its outputs, or while a call has no
answer, and what no checkpoint holds yet lies in its store on disk, with one snapshot of it beside it. So waiting costs
no memory; it is shown, and it ends by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

STUCK_MS = 60_000
"""What lasts this long is taken for stuck."""
STUCK_INTERVALS = 3
"""Checkpoints may take this many intervals, if that is longer."""
STUCK_FAILURES = 3
"""Checkpoints that failed in a row before their store is taken for stuck."""


class Wait(StrEnum):
    """What a task waits for; a worker with such a task is not ready."""

    RESTORE = "restore"
    """Its state, which is being fetched."""
    LOG = "log"
    """The log, which refuses its outputs."""
    CALLS = "calls"
    """Calls of its steps, which have not ended for a minute."""
    CHECKPOINT = "checkpoint"
    """The checkpoint store: what the task did has been in no checkpoint for far longer than the interval."""
    TURN = "turn"
    """A turn of its worker that has lasted for longer than ``slow_step``, in user code or in the log."""


WAITS = (Wait.LOG, Wait.CALLS, Wait.CHECKPOINT)
"""What a task that runs may wait for."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was seen of a task; times in milliseconds."""

    refused: bool = False
    """The log did not take an output."""
    parked_ms: int = 0
    """How long its batch has waited for calls."""
    unsaved_ms: int = 0
    """Age of the oldest change that no checkpoint holds; 0 if there is none."""
    failures: int = 0
    """Checkpoints that failed since one did not."""
    interval_ms: int = 0
    """Between two checkpoints."""
    limit_ms: int = 0
    """Age of the oldest change at which it takes no more records; 0 for none."""


def waits(facts: Facts) -> tuple[Wait, ...]:
    """Decide what a running task waits for.

    Example:
        >>> waits(Facts(unsaved_ms=70_000, interval_ms=10_000))
        (<Wait.CHECKPOINT: 'checkpoint'>,)
    """
    found = {
        Wait.LOG: facts.refused,
        Wait.CALLS: facts.parked_ms >= STUCK_MS,
        Wait.CHECKPOINT: facts.failures >= STUCK_FAILURES
        or facts.unsaved_ms >= max(STUCK_MS, STUCK_INTERVALS * facts.interval_ms)
        or is_held(facts),
    }
    return tuple(wait for wait in WAITS if found[wait])


def is_held(facts: Facts) -> bool:
    """Decide whether a task takes no more records until a checkpoint holds what it has done."""
    return 0 < facts.limit_ms <= facts.unsaved_ms
