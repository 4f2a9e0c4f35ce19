"""The life of a task on one worker.

::

    RESTORING ──> RUNNING ──> LEAVING ──> GONE
        └────────────┴───────────────────────┘   (lost, failed, or not yet restored when it must go)
"""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """Where in its life a task is."""

    RESTORING = "restoring"
    """Its last checkpoint is being fetched."""
    RUNNING = "running"
    """It takes records."""
    LEAVING = "leaving"
    """It takes no more records; its last checkpoint is on the way."""
    GONE = "gone"


MOVES = {
    Phase.RESTORING: frozenset({Phase.RUNNING, Phase.GONE}),
    Phase.RUNNING: frozenset({Phase.LEAVING, Phase.GONE}),
    Phase.LEAVING: frozenset({Phase.GONE}),
    Phase.GONE: frozenset[Phase](),
}


def moved(phase: Phase, to: Phase) -> Phase:
    """Return ``to`` if that is a legal move.

    Raises:
        ValueError: it is not, which is a fault of the caller.

    Example:
        >>> moved(Phase.RUNNING, Phase.LEAVING).value
        'leaving'
    """
    if to not in MOVES[phase]:
        raise ValueError(f"a task cannot go from {phase.value} to {to.value}")
    return to
