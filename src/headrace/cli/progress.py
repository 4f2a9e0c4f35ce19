"""What a run is doing, live on a terminal and now and then as a line elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Self

from headrace.cli.output import LiveLine, duration, moment, note, rate
from headrace.clock import Clock

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from headrace.runtime.hosts.status import RunStatus

_PLAIN_EVERY_MS = 10_000
_RATE_OVER_MS = 5_000
_MB = 1024**2
_WAITS = {
    "log": "the log", "calls": "calls", "checkpoint": "checkpoints", "turn": "a step that takes long",
}  # fmt: skip


class Rate:
    """Records per second over the last few seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def update(self, now_ms: int, records: int) -> str:
        """Take in how many records there were by now, and return the rate for people."""
        seen = self._seen
        seen.append((now_ms, records))
        while len(seen) > 2 and now_ms - seen[1][0] >= _RATE_OVER_MS:
            seen.popleft()
        return rate(records - seen[0][1], now_ms - seen[0][0])


class RunProgress:
    """Shows a run while it lasts.

    With ``until_end`` that is a bar on a terminal and a line every ten seconds elsewhere; without, one live line on a
    terminal and nothing but changes of state elsewhere.

    Args:
        clock: For rates.
        until_end: Whether the end is known.
        label: Stands before the bar.
    """

    def __init__(self, clock: Clock, *, until_end: bool, label: str) -> None:
        self.started = False
        """True as soon as the workers run, after which a failure is no wrong use."""
        self._clock = clock
        self._until_end = until_end
        self._label = label
        self._rate = Rate()
        self._state = ""
        self._waits: list[str] = []
        self._url: str | None = None
        self._told_ms = clock.monotonic_ms()
        self._line = LiveLine(clock)
        self._terminal = sys.stderr.isatty()
        self._bar: Progress | None = None
        self._bar_task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._terminal and self._until_end:
            self._bar = progress_bar()
            self._bar_task = self._bar.add_task(self._label, total=None, told="starting")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._line.clear()
        if self._bar is not None:
            self._bar.stop()

    def update(self, status: RunStatus) -> None:
        """Show a new status."""
        self.started = self.started or status.state != "starting"
        now_ms = self._clock.monotonic_ms()
        speed = self._rate.update(now_ms, status.records_in)
        self._tell_changes(status)
        told = _told(status, speed, until_end=self._until_end)
        if self._bar is not None and self._bar_task is not None:
            total = None if status.total is None else max(status.total, status.records_in)
            self._bar.update(self._bar_task, total=total, completed=status.records_in, told=told)
            self._bar.refresh()
        elif self._terminal:
            self._line.show(told)
        elif self._until_end and now_ms - self._told_ms >= _PLAIN_EVERY_MS:
            self._told_ms = now_ms
            share = f"{status.records_in:,} of {status.total:,} records" if status.total is not None else ""
            note(f"{self._label}: {share}, {told}" if share else f"{self._label}: {told}")

    def _tell_changes(self, status: RunStatus) -> None:
        if status.metrics_url is not None and status.metrics_url != self._url:
            self._url = status.metrics_url
            self._say(f"{self._label}: metrics at {status.metrics_url}/metrics")
        waits = _waits(status)
        if (status.state, waits) == (self._state, self._waits):
            return
        told = [status.state] * (status.state != self._state or not waits) + waits
        self._state, self._waits = status.state, waits
        if not self._terminal and not self._until_end and status.state not in ("starting", "finished"):
            note(f"{self._label}: {', '.join(told)}")

    def _say(self, text: str) -> None:
        self._line.clear()
        if self._bar is not None:
            self._bar.console.print(text, style="dim", highlight=False, markup=False)
        else:
            note(text)


def progress_bar() -> Progress:
    """Return a progress bar on standard error, which moves when it is told to; its tasks have a field ``told``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn

    return Progress(
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(),
        MofNCompleteColumn(), TextColumn("{task.fields[told]}", markup=False),
        console=Console(stderr=True), auto_refresh=False, transient=True,
    )  # fmt: skip


def summary(name: str, status: RunStatus, elapsed_ms: int) -> str:
    """Return the line that stands at the end of a run."""
    counts = [f"{status.records_in:,} records in", f"{status.records_out:,} out"]
    if status.late:
        counts.append(f"{status.late:,} late")
    if status.errors:
        counts.append(f"{status.errors:,} errors")
    how = "stopped"
    if status.total is not None:
        how = "finished" if status.state == "finished" else "stopped before the end of its input"
    return f"{name} {how}: {', '.join(counts)} in {duration(elapsed_ms)} ({rate(status.records_in, elapsed_ms)})"


def _told(status: RunStatus, speed: str, *, until_end: bool) -> str:
    tasks = f"{status.tasks} task{'s' * (status.tasks != 1)}"
    if status.workers > 1:
        tasks += f" on {status.workers} workers"
    parts = [tasks]
    if status.state != "running" and not (status.state == "restoring" and status.restoring):
        parts.insert(0, status.state)
    if status.restoring:
        parts.append(_restoring(status))
    parts += _waits(status)
    parts.append(speed)
    if not until_end:
        parts += [f"lag {status.lag_records:,}", f"watermark {moment(status.watermark_ms)}"]
    if status.errors:
        parts.append(f"{status.errors:,} errors")
    return ", ".join(parts)


def _restoring(status: RunStatus) -> str:
    tasks = f"restoring {status.restoring} task{'s' * (status.restoring != 1)}"
    if not status.restore_bytes:
        return tasks
    return f"{tasks}, {status.restored_bytes / _MB:,.0f} of {status.restore_bytes / _MB:,.0f} MB"


def _waits(status: RunStatus) -> list[str]:
    """Return what tasks wait for outside, without how many: that changes too often for a line each."""
    return [f"waiting for {_WAITS[wait]}" for wait, _ in status.waiting if wait in _WAITS]
