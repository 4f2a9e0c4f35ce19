"""Tells when a run with a bounded input is over."""

from __future__ import annotations

import logging
from collections.abc import Collection

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.errors import RetriableError
from headrace.log.api import Group
from headrace.runtime.workers.bounds import Bounds, is_finished
from headrace.runtime.workers.slot import Slot
from headrace.topology.plan import SubTopology, TaskId

_log = logging.getLogger("headrace")


def all_finished(
    bounds: Bounds,
    slots: Collection[Slot],
    group: Group,
    checkpoints: Checkpoints,
    tasks: Collection[tuple[TaskId, SubTopology]],
) -> bool:
    """Return whether every task of the topology, here or elsewhere, is finished up to the bounds.

    Args:
        bounds: Where the input ends.
        slots: The tasks of this worker.
        group: Knows how far the others are, if these are the checkpoints that it was told of.
        checkpoints: Those of the topology. They are asked last, as that may take long.
        tasks: All tasks of the topology.
    """
    here = {slot.id for slot in slots if slot.saved_end >= bounds.number}
    if len(here) < len(slots):
        return False
    try:
        committed = group.committed()
        return all(
            is_finished(committed.get(partition), bounds.number)
            for task, sub in tasks
            for partition in sub.owns(task.partition)
        ) and all(_has_finished(checkpoints, task, bounds.number) for task, _ in tasks if task not in here)
    except RetriableError as error:
        _log.warning("%s", error)
        return False


def _has_finished(checkpoints: Checkpoints, task: TaskId, number: int) -> bool:
    manifest = checkpoints.newest(str(task))
    return manifest is not None and int(manifest.info.get("finished", -1)) >= number
