"""Tells when a run with a bounded input is over."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from headrace.errors import RetriableError
from headrace.log.api import Group
from headrace.runtime.bounds import Bounds, is_finished
from headrace.runtime.slot import Slot
from headrace.topology.plan import SubTopology, TaskId

_log = logging.getLogger("headrace")


def all_finished(
    bounds: Bounds, slots: Iterable[Slot], group: Group, tasks: Iterable[tuple[TaskId, SubTopology]]
) -> bool:
    """Return whether every task of the topology, here or elsewhere, is finished up to the bounds.

    Args:
        bounds: Where the input ends.
        slots: The tasks of this worker.
        group: Knows how far the others are.
        tasks: All tasks of the topology.
    """
    if any(slot.saved_end < bounds.number for slot in slots):
        return False
    try:
        committed = group.committed()
    except RetriableError as error:
        _log.warning("%s", error)
        return False
    return all(
        is_finished(committed.get(partition), bounds.number)
        for task, sub in tasks
        for partition in sub.owns(task.partition)
    )
