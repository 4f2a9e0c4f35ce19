"""Brings the outputs of a task to the log, in order, and keeps them while the log refuses them."""

from __future__ import annotations

import logging

from headrace.clock import Clock
from headrace.errors import CorruptError, FatalError, RetriableError
from headrace.log.api import Log
from headrace.runtime.tasks.edges import Append
from headrace.runtime.workers.slot import Slot

_log = logging.getLogger("headrace")

_RETRY_MS = 500
"""How long to wait before a log that refused an append is asked again."""


def send(slot: Slot, appends: list[Append], log: Log, clock: Clock) -> None:
    """Append what a task wants appended, behind what still waits; what the log refuses waits in the slot.

    As long as anything waits, the task takes no more records, so this is at most what one step of it made. A log that
    is slow holds up the turn: that bounds memory too, and the time counts as blocked.

    Args:
        slot: The task's.
        appends: What it wants appended now; empty to try again.
        log: Where to.
        clock: Tells how long it takes.

    Raises:
        FatalError: the log is damaged.
    """
    slot.unsent.extend(appends)
    if not slot.unsent:
        return
    begun_ms = clock.monotonic_ms()
    if begun_ms < slot.retry_ms:
        return
    waited_ms = begun_ms - slot.retry_ms + _RETRY_MS if slot.retry_ms else 0
    refused = _append(slot, log)
    now_ms = clock.monotonic_ms()
    slot.metrics.blocked((waited_ms + now_ms - begun_ms) / 1000)
    if refused is not None:
        if slot.retry_ms == 0:
            _log.warning("task %s waits: %s", slot.id, refused)
        slot.retry_ms = now_ms + _RETRY_MS
    elif slot.retry_ms:
        _log.warning("task %s goes on: the log takes its outputs again", slot.id)
        slot.retry_ms = 0


def _append(slot: Slot, log: Log) -> RetriableError | None:
    """Append what the slot holds as far as the log takes it; return why it does not take the rest."""
    while slot.unsent:
        try:
            log.send(*slot.unsent[0])
        except RetriableError as error:
            return error
        except CorruptError as error:
            # The log is no state of the task: to restore that would help nobody.
            raise FatalError(error.message, remedy=error.remedy) from error
        slot.unsent.popleft()
    return None
