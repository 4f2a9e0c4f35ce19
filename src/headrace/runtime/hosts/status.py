"""What workers and runs are doing, as values."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What one worker is doing, as values."""

    state: str = "starting"
    tasks: int = 0
    restoring: int = 0
    restored_bytes: int = 0
    """How much of the state of these is in place."""
    restore_bytes: int = 0
    """How much that is in all, as far as is known."""
    waiting: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What tasks wait for (values of ``pressure.Wait``), and which tasks."""
    records_in: tuple[tuple[str, int], ...] = ()
    """By topic."""
    records_out: int = 0
    late: int = 0
    errors: int = 0
    lag_records: int = 0
    watermark_ms: int | None = None


@dataclass(frozen=True, slots=True)
class RunStatus:
    """What a run is doing, all its workers together."""

    state: str
    """``starting``, ``restoring``, ``running``, ``draining``, ``finished``, or ``stopped`` by a signal before that."""
    workers: int
    tasks: int
    restoring: int
    records_in: int
    """Read from sources since the start."""
    total: int | None
    """With ``until_end``, how many there were to read at the start."""
    records_out: int
    late: int
    errors: int
    lag_records: int
    watermark_ms: int | None
    metrics_url: str | None
    restored_bytes: int = 0
    """How much of the state of the tasks that are being restored is in place."""
    restore_bytes: int = 0
    """How much that is in all, as far as is known."""
    waiting: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """What tasks wait for: ``restore``, ``log``, ``calls``, ``checkpoint`` or ``turn``; and which tasks."""


def combined(statuses: list[WorkerStatus], total: int | None, sources: set[str], url: str | None) -> RunStatus:
    """Return the status of a run from those of its workers.

    Args:
        statuses: Of the workers.
        total: With ``until_end``, how many records there were to read at the start.
        sources: The topics whose records count as read.
        url: Where metrics and health are, if they are served.
    """
    states = {status.state for status in statuses}
    restoring = sum(status.restoring for status in statuses)
    state = next((s for s in ("draining", "running", "starting") if s in states), "finished")
    marks = [status.watermark_ms for status in statuses if status.watermark_ms is not None]
    return RunStatus(
        state="restoring" if state == "running" and restoring else state,
        workers=len(statuses),
        tasks=sum(status.tasks for status in statuses),
        restoring=restoring,
        records_in=sum(n for status in statuses for topic, n in status.records_in if topic in sources),
        total=total,
        records_out=sum(status.records_out for status in statuses),
        late=sum(status.late for status in statuses),
        errors=sum(status.errors for status in statuses),
        lag_records=sum(status.lag_records for status in statuses),
        watermark_ms=min(marks, default=None),
        metrics_url=url,
        restored_bytes=sum(status.restored_bytes for status in statuses),
        restore_bytes=sum(status.restore_bytes for status in statuses),
        waiting=waiting_of(statuses),
    )


def waiting_of(statuses: Iterable[WorkerStatus]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return what the tasks of several workers wait for, and which tasks.

    Example:
        >>> waiting_of([WorkerStatus(waiting=(("log", ("in-1",)),)), WorkerStatus(waiting=(("log", ("in-0",)),))])
        (('log', ('in-0', 'in-1')),)
    """
    found: dict[str, set[str]] = {}
    for status in statuses:
        for wait, tasks in status.waiting:
            found.setdefault(wait, set()).update(tasks)
    return tuple((wait, tuple(sorted(tasks))) for wait, tasks in sorted(found.items()))


def explain(statuses: Collection[WorkerStatus]) -> dict[str, object]:
    """Return what ``/ready`` says beside yes or no: the workers' states, and which tasks wait for what.

    Example:
        >>> explain([WorkerStatus("running", 2, waiting=(("log", ("in-1",)),))])
        {'states': ['running'], 'tasks': 2, 'waiting': {'log': ['in-1']}}
    """
    return {
        "states": [status.state for status in statuses],
        "tasks": sum(status.tasks for status in statuses),
        "waiting": {wait: list(tasks) for wait, tasks in waiting_of(statuses)},
    }
