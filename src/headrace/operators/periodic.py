"""Windows that emit every so often: at each multiple of an interval of event time what has changed, and at close.

What is open is kept as for windows that emit at their close (``windowed``, ``sessions``), with a mark behind the
accumulators of sessions (``emission.marked``); what has changed is kept by ``emission.Ticks``, for windows as the
window's prefix and the key, for sessions as the key.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from itertools import groupby
from typing import NamedTuple, Protocol

from headrace.operators.aggregates import Aggregate
from headrace.operators.api import MAIN, Batch, Outputs, RecordsFailedError, watermarks_before
from headrace.operators.compiled import RowFailedError
from headrace.operators.emission import Ticks, between, mark_final
from headrace.operators.results import Failures, Results, Row
from headrace.operators.sessions import OpenSessions
from headrace.operators.windowed import LATE, OpenWindows, Touched, close_windows
from headrace.record import MIN_WATERMARK

Before = Callable[[int], int]
"""Gives the watermark before the record at a place."""


class Added(NamedTuple):
    """What adding some records of a batch did."""

    stop: int
    """The place of the first record that was not added."""
    late: Batch | None
    failures: Failures


class PeriodicState(Protocol):
    """Open windows that take records until something is due."""

    lateness_ms: int

    def load(self, batch: Batch) -> None:
        """Prepare for a batch; nothing takes effect."""
        ...

    def add(self, batch: Batch, start: int, before: Before, limit: int) -> Added:
        """Add records from ``start`` on, up to that before which a window closes or the watermark reaches ``limit``."""
        ...

    def report(self, rows: Sequence[bytes], tick: int, failures: Failures) -> list[Batch]:
        """Return the results of what has changed, of what is still there."""
        ...

    def close(self, watermark: int, failures: Failures) -> list[Batch]:
        """Close the windows that the watermark has passed, by their end and then by key."""
        ...

    def next_close(self) -> int | None:
        """Return the watermark that closes the first window."""
        ...

    def last_close(self) -> int | None:
        """Return the watermark that closes the last window."""
        ...


class PeriodicWindows:
    """Tumbling, hopping and custom windows between two reports.

    Args:
        windows: The open windows.
        results: Makes results.
        aggregates: The aggregates that stand in them.
        ticks: What has changed.
    """

    def __init__(
        self, windows: OpenWindows, results: Results, aggregates: Mapping[str, Aggregate], ticks: Ticks
    ) -> None:
        self.lateness_ms = windows.lateness_ms
        self._windows = windows
        self._results = results
        self._ticks = ticks
        self._changing = [(i, name) for i, (name, item) in enumerate(aggregates.items()) if item.in_place]
        """Accumulators that change later, so that no result may hold one."""
        self._closes: list[int] = []

    def load(self, batch: Batch) -> None:
        """Find out when windows may close while the batch goes by."""
        ends = {window[0] + self.lateness_ms for window, _ in self._windows.layout.split(batch.timestamps)}
        self._closes = sorted(ends.union(self._windows.closes()))

    def add(self, batch: Batch, start: int, before: Before, limit: int) -> Added:
        """Add records from ``start`` on, up to that before which a window closes or the watermark reaches ``limit``."""
        watermark = before(start)
        closes = bisect_right(self._closes, watermark)
        due = min(limit, self._closes[closes]) if closes < len(self._closes) else limit
        stop = len(batch)
        if before(stop - 1) >= due:
            stop = bisect_left(range(stop), due, start, key=before)
        part = batch if stop - start == len(batch) else batch.part(start, stop)
        touched: list[Touched] = []
        failed = self._windows.add(part, watermark, touched)
        prefix = self._windows.layout.prefix
        for window, keys, times in touched:
            self._ticks.note(times, watermark, list(map(prefix(window).__add__, keys)))
        late = self._windows.late(part, watermark)
        return Added(stop, late, [(start + place, error) for place, error in failed.items()])

    def report(self, rows: Sequence[bytes], tick: int, failures: Failures) -> list[Batch]:
        """Return the results of the windows and keys that have changed, by window and then by key."""
        self._ticks.forget(rows)
        timestamp = _timestamp(tick, self.lateness_ms)
        layout = self._windows.layout
        width = layout.prefix_width
        batches = []
        for prefix, group in groupby(rows, key=lambda row: row[:width]):
            window = layout.window(prefix)
            bucket = self._windows.find(window)
            if bucket is None:
                continue  # its last result has left
            keys = [row[width:] for row in group]
            bucket.load(keys)
            found = [(key, row) for key in keys if (row := bucket.peek(key)) is not None]
            batch = self._results.of_window(window, [k for k, _ in found], [r for _, r in found], timestamp, failures)
            for i, name in self._changing:
                accumulators = {id(row[i]) for _, row in found}
                for value in batch.values:
                    if id(value[name]) in accumulators:
                        value[name] = deepcopy(value[name])
            batches.append(batch)
        return batches

    def close(self, watermark: int, failures: Failures) -> list[Batch]:
        """Close the windows that the watermark has passed, by their end and then by key."""
        return close_windows(self._windows, watermark, self._results, failures)

    def next_close(self) -> int | None:
        """Return the watermark that closes the first window."""
        return self._windows.next_close()

    def last_close(self) -> int | None:
        """Return the watermark that closes the last window."""
        return self._windows.last_close()


class PeriodicSessions:
    """Sessions between two reports; the last element of each row says when it is to be reported, 0 if it is not."""

    def __init__(self, sessions: OpenSessions, results: Results, ticks: Ticks) -> None:
        self.lateness_ms = sessions.lateness_ms
        self._sessions = sessions
        self._results = results
        self._ticks = ticks

    def load(self, batch: Batch) -> None:
        """Bring the sessions of the keys of a batch into memory."""
        self._sessions.load(batch.keys)

    def add(self, batch: Batch, start: int, before: Before, limit: int) -> Added:
        """Add records from ``start`` on, up to that before which a session closes or time reaches ``limit``."""
        failures: Failures = []
        late = [False] * len(batch)
        stop = len(batch)
        for i in range(start, stop):
            watermark = before(i)
            if watermark >= limit or ((due := self._sessions.next_close()) is not None and due <= watermark):
                stop = i
                break
            key, timestamp = batch.keys[i] or b"", batch.timestamps[i]
            try:
                found = self._sessions.joined(key, timestamp, batch.values[i], watermark)
            except Exception as error:  # noqa: BLE001  # user code may raise anything
                cause = error.__cause__ if isinstance(error, RowFailedError) else error
                failures.append((i, cause if isinstance(cause, Exception) else error))
                continue
            late[i] = found is None
            if found is not None:
                row = found[0].accumulators
                tick = self._ticks.after(max(timestamp, watermark))
                if not row[-1] or tick < row[-1]:
                    row[-1] = tick
                    self._ticks.note([timestamp], watermark, [key])
                self._sessions.put(key, *found)
        return Added(stop, batch.where(late) if any(late) else None, failures)

    def report(self, rows: Sequence[bytes], tick: int, failures: Failures) -> list[Batch]:
        """Return the results of the sessions that have changed, by key and then by time."""
        self._sessions.load(rows)
        changed: list[Row] = []
        for key in rows:
            for session in self._sessions.of(key):
                if 0 < session.accumulators[-1] <= tick:
                    session.accumulators[-1] = 0
                    window = (session.last + self._sessions.gap_ms, session.first)
                    changed.append((window, key, session.accumulators))
        return [self._results.of_rows(changed, _timestamp(tick, self.lateness_ms), failures)]

    def close(self, watermark: int, failures: Failures) -> list[Batch]:
        """Close the sessions that the watermark has passed, by their end and then by key."""
        return self._results.in_batches(self._sessions.close(watermark), failures)

    def next_close(self) -> int | None:
        """Return the watermark that closes the first session."""
        return self._sessions.next_close()

    def last_close(self) -> int | None:
        """Return the watermark that closes the last session."""
        return self._sessions.last_close()


class EmitPeriodically:
    """Emits what has changed at every multiple of an interval that the watermark passes, and each window at its close.

    Both carry the last timestamp that had to be complete for them, less the lateness, as results at a close do.
    """

    def __init__(self, state: PeriodicState, ticks: Ticks) -> None:
        self._state = state
        self._ticks = ticks
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Add the records to their windows, and emit what is due in between."""
        self._state.load(batch)
        floor = watermarks_before(batch, self._watermark)
        outputs: Outputs = []
        failures: Failures = []
        place = 0
        while place < len(batch):
            self._watermark = watermark = max(floor(place), self._watermark)
            due = self.next_close()
            if due is not None and due <= watermark:
                acted = self._act(watermark, failures)
                outputs += [(MAIN, b) for b in between(acted, batch, place, self._state.lateness_ms)]
            place, late, failed = self._state.add(batch, place, floor, self._ticks.after(watermark))
            if late is not None:
                outputs.append((LATE, late))
            failures += failed
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Emit what is due."""
        self._watermark = watermark = max(watermark, self._watermark)
        failures: Failures = []
        outputs: Outputs = [(MAIN, batch) for batch in self._act(watermark, failures) if len(batch)]
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs

    def output_watermark(self, watermark: int) -> int:
        """Hold the watermark back by the lateness, because a window's result comes that much after its end."""
        return max(MIN_WATERMARK, watermark - self._state.lateness_ms)

    def next_close(self) -> int | None:
        """Return the watermark at which something leaves next."""
        dues = [due for due in (self._state.next_close(), self._ticks.next_due()) if due is not None]
        return min(dues, default=None)

    def close_at_end(self) -> int | None:
        """Return the watermark that closes the last window; whatever has changed has left by then."""
        return self._state.last_close()

    def _act(self, watermark: int, failures: Failures) -> list[Batch]:
        """Emit what is due at ``watermark``; of what is due at one time, closed windows come first."""
        batches: list[Batch] = []
        while (due := self.next_close()) is not None and due <= watermark:
            tick = self._ticks.next_due()
            if tick != due or self._state.next_close() == due:
                until = watermark if tick is None else min(watermark, tick)
                batches += mark_final(self._state.close(until, failures), final=True)
                continue
            for rows in self._ticks.take():
                batches += mark_final(self._state.report(rows, due, failures), final=False)
        return batches


def _timestamp(tick: int, lateness_ms: int) -> int:
    """Return what a result carries that leaves at ``tick``."""
    return max(0, tick - lateness_ms - 1)
