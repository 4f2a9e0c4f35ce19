"""What to do about calls that fail."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from headrace.dsl.definition import user_location
from headrace.errors import TopologyError
from headrace.operators.retrying import FinalPolicy, Retry
from headrace.settings import duration_ms


def retry(
    attempts: int,
    backoff: str | timedelta = "100ms",
    max_backoff: str | timedelta = "30s",
    on: type[Exception] | tuple[type[Exception], ...] = Exception,
    then: FinalPolicy | None = None,
) -> Retry:
    """Make a call that failed again, up to ``attempts`` calls in all, before anything else is done about the record.

    It is a value of ``on_error=`` for the steps that call a function record by record and keep no state: ``map``,
    ``filter``, ``flat_map``, ``tap``, ``branch``, ``map_async``, and what combines the two sides of a join. Given to a
    whole topology, it counts for those steps, and ``then`` for all others. Such a step calls its function for one
    record after the other, no record more often than that. While it waits, so does its task, which reads no further;
    the other tasks of the worker go on. Tries are not remembered over a crash: they begin anew.

    Args:
        attempts: How many calls are made for one record at most, the first among them.
        backoff: How long to wait before the second call; each wait after that is twice as long.
        max_backoff: The longest that a wait grows to.
        on: What must have been raised for the call to be made again: an exception class, or several.
        then: What becomes of the record after the last call: ``"stop"``, ``"skip"`` or ``"dead-letter"``; the
            topology's policy if None.

    Raises:
        TopologyError: an argument makes no sense.
        SettingsError: a duration is none.

    Example:
        >>> from headrace import Topology, retry
        >>> topology = Topology("lookups", on_error=retry(5, on=OSError, then="dead-letter"))
    """
    if type(attempts) is not int or attempts < 1:
        raise TopologyError(
            f"attempts of retry must be a whole number of at least 1, not {attempts!r} ({user_location()})",
            remedy="It counts all calls for one record, the first among them",
        )
    kinds: tuple[Any, ...] = on if isinstance(on, tuple) else (on,)
    if not kinds or not all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        raise TopologyError(f"on= of retry needs exception classes, such as on=OSError ({user_location()})")
    if then not in (None, "stop", "skip", "dead-letter"):
        raise TopologyError(f'then= of retry must be "stop", "skip" or "dead-letter", not {then!r} ({user_location()})')
    backoff_ms = duration_ms(backoff, f"backoff of retry ({user_location()})")
    longest_ms = duration_ms(max_backoff, f"max_backoff of retry ({user_location()})")
    if backoff_ms > longest_ms:
        raise TopologyError(f"backoff of retry is longer than its max_backoff ({user_location()})")
    return Retry(attempts, backoff_ms, longest_ms, kinds, then)
