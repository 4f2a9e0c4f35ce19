"""Brings the outputs of a task to the log, in order, and keeps them while the log refuses them."""

from __future__ import annotations

import logging

from headrace.errors import RetriableError
from headrace.log.api import Log
from headrace.runtime.edges import Append
from headrace.runtime.slot import Slot

_log = logging.getLogger("headrace")

_RETRY_MS = 500
"""How long to wait before a log that refused an append is asked again."""


def send(slot: Slot, appends: list[Append], log: Log, monotonic_ms: int) -> None:
    """Append what a task wants appended, behind what still waits; what the log refuses waits in the slot.

    As long as anything waits, the task takes no more records, so this is at most what one step of it made.

    Args:
        slot: The task's.
        appends: What it wants appended now; empty to try again.
        log: Where to.
        monotonic_ms: The time by a clock that never goes back.
    """
    slot.unsent.extend(appends)
    if monotonic_ms < slot.retry_ms:
        return
    while slot.unsent:
        try:
            log.send(*slot.unsent[0])
        except RetriableError as error:
            if slot.retry_ms == 0:
                _log.warning("task %s waits: %s", slot.id, error)
            else:
                slot.metrics.blocked((monotonic_ms - slot.retry_ms + _RETRY_MS) / 1000)
            slot.retry_ms = monotonic_ms + _RETRY_MS
            return
        slot.unsent.popleft()
    if slot.retry_ms:
        _log.warning("task %s goes on: the log takes its outputs again", slot.id)
        slot.metrics.blocked((monotonic_ms - slot.retry_ms + _RETRY_MS) / 1000)
        slot.retry_ms = 0
