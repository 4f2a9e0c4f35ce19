"""Brings the tasks of a worker back, in jobs: begins, tells how far it is, and decides again when state is damaged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from headrace.errors import CorruptError, FencedError
from headrace.runtime.workers.parts import Parts
from headrace.runtime.workers.recovery import Restored, restore
from headrace.runtime.workers.setbacks import Setback, Way, next_way
from headrace.runtime.workers.slot import Slot

_log = logging.getLogger("headrace")


def begin_restore(parts: Parts, slot: Slot, home: Path, copies: Sequence[Path]) -> None:
    """Begin to restore a task in a job.

    Args:
        parts: What the worker works with.
        slot: The task's.
        home: Its directory on this machine.
        copies: Other directories with files of its checkpoints.
    """

    def go_on(done: int, total: int) -> None:
        if slot.given_up.is_set():
            raise FencedError("the restore was given up")
        slot.restored_bytes, slot.restore_bytes = done, total

    slot.job = (parts.restores or parts.jobs).submit(
        partial(
            restore,
            parts.checkpoints,
            slot.lease,
            home,
            parts.clock.now_ms,
            go_on,
            parts.log.identity,
            copies=copies,
            setback=slot.setback,
        )
    )


def took(slot: Slot, restored: Restored, monotonic_ms: int) -> None:
    """Note what a restore brought, and tell what was damaged."""
    for problem in restored.problems:
        _log.warning("task %s: %s", slot.id, problem)
    slot.restored_ms = monotonic_ms
    slot.local = restored.reused_bytes > 0
    slot.manifest = restored.manifest
    slot.metrics.restored(
        (monotonic_ms - slot.job_started_ms) / 1000,
        restored.fetched_bytes,
        restored.reused_bytes,
        restored.fallbacks + (slot.setback.way is Way.FALL_BACK),
    )


def after_damage(slot: Slot, error: CorruptError, monotonic_ms: int) -> Setback:
    """Return how to bring a task back whose state on this machine is damaged.

    Args:
        slot: The task's, as far as it came.
        error: What was found.
        monotonic_ms: The time by a clock that never goes back.

    Raises:
        CorruptError: that has been tried already.
    """
    way = next_way(slot.setback.way, local=slot.local, worked_ms=monotonic_ms - slot.restored_ms)
    if way is Way.GIVE_UP or slot.manifest is None:
        raise error
    failed = (slot.manifest,) if way is Way.FALL_BACK else ()
    told = {Way.FETCH: "its last checkpoint", Way.FALL_BACK: "the checkpoint before the last"}[way]
    _log.warning(
        "the state of task %s is damaged, it is discarded and fetched anew from %s: %s", slot.id, told, error.message
    )
    return Setback(way, failed)
