"""Windows that emit as records come: after every one, or when something becomes true.

What is open is kept as for windows that emit at their close (``windowed``, ``sessions``), with a mark behind the
accumulators where ``emission.marked`` says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from headrace.operators.api import MAIN, Batch, Outputs, RecordsFailedError, watermarks_before
from headrace.operators.compiled import Accumulators, Compiled, RowFailedError
from headrace.operators.emission import between, mark_final
from headrace.operators.results import Failures, Results, Row
from headrace.operators.sessions import OpenSessions, Session
from headrace.operators.windowed import LATE, OpenWindows
from headrace.operators.windows import Window
from headrace.record import MIN_WATERMARK

Before = Callable[[int], int]
"""Gives the watermark before the record at a place."""


class Change(NamedTuple):
    """What a record makes of one window, before it takes effect."""

    window: Window
    row: Accumulators
    replaced: list[Session]
    """The sessions that the window joins, if it is one."""


class RecordState(Protocol):
    """Open windows that take one record at a time."""

    lateness_ms: int

    def load(self, batch: Batch) -> None:
        """Prepare for a batch; nothing takes effect."""
        ...

    def changes(self, key: bytes, timestamp: int, value: Any, watermark: int) -> list[Change] | None:
        """Return what a record would make of its windows; None if they have closed."""
        ...

    def apply(self, key: bytes, changes: Sequence[Change]) -> None:
        """Let changes take effect."""
        ...

    def close(self, watermark: int) -> list[Row]:
        """Take away the windows that the watermark has passed, by their end and then by key."""
        ...

    def forget(self, watermark: int) -> None:
        """Drop the windows that the watermark has passed."""
        ...

    def next_close(self) -> int | None:
        """Return the watermark that closes the first window."""
        ...

    def last_close(self) -> int | None:
        """Return the watermark that closes the last window."""
        ...


class TimeWindowsByRecord:
    """Tumbling, hopping and custom windows that take one record at a time.

    Args:
        windows: The open windows.
        compiled: Puts records into accumulators, and changes none in place.
    """

    def __init__(self, windows: OpenWindows, compiled: Compiled) -> None:
        self.lateness_ms = windows.lateness_ms
        self._windows = windows
        self._compiled = compiled

    def load(self, batch: Batch) -> None:
        """Bring the rows of the windows of a batch into memory."""
        keys: Any = batch.keys
        for window, places in self._windows.layout.split(batch.timestamps):
            bucket = self._windows.find(window)
            if bucket is not None:
                bucket.load(keys if places is None else [keys[i] for i in places])

    def changes(self, key: bytes, timestamp: int, value: Any, watermark: int) -> list[Change] | None:
        """Return what a record would make of its windows; None if they have closed."""
        windows = self._windows.layout.windows_of(timestamp)
        opened = [window for window in windows if window[0] + self.lateness_ms > watermark]
        if not opened:
            return None if windows else []
        changes = []
        for window in opened:
            bucket = self._windows.find(window)
            row = None if bucket is None else bucket.get(key)
            rows = {} if row is None else {key: list(row)}
            self._compiled.update(rows, {}, [key], [value], [timestamp])
            changes.append(Change(window, rows[key], []))
        return changes

    def apply(self, key: bytes, changes: Sequence[Change]) -> None:
        """Let changes take effect."""
        for change in changes:
            self._windows.bucket(change.window).live[key] = change.row

    def close(self, watermark: int) -> list[Row]:
        """Take away the windows that the watermark has passed, by their end and then by key."""
        rows: list[Row] = []
        while (closes := self._windows.next_close()) is not None and closes <= watermark:
            window, bucket = self._windows.pop()
            rows += [(window, key, row) for key, row in self._windows.cache.rows(bucket)]
            self._windows.cache.drop(bucket)
        return rows

    def forget(self, watermark: int) -> None:
        """Drop the windows that the watermark has passed, without reading their rows."""
        while (closes := self._windows.next_close()) is not None and closes <= watermark:
            self._windows.cache.drop(self._windows.pop()[1])

    def next_close(self) -> int | None:
        """Return the watermark that closes the first window."""
        return self._windows.next_close()

    def last_close(self) -> int | None:
        """Return the watermark that closes the last window."""
        return self._windows.last_close()


class SessionsByRecord:
    """Sessions that take one record at a time."""

    def __init__(self, sessions: OpenSessions) -> None:
        self.lateness_ms = sessions.lateness_ms
        self._sessions = sessions

    def load(self, batch: Batch) -> None:
        """Bring the sessions of the keys of a batch into memory."""
        self._sessions.load(batch.keys)

    def changes(self, key: bytes, timestamp: int, value: Any, watermark: int) -> list[Change] | None:
        """Return the session that a record would make; None if it has closed."""
        found = self._sessions.joined(key, timestamp, value, watermark)
        if found is None:
            return None
        session, near = found
        window = (session.last + self._sessions.gap_ms, session.first)
        return [Change(window, session.accumulators, near)]

    def apply(self, key: bytes, changes: Sequence[Change]) -> None:
        """Let a change take effect."""
        for (end, first), row, near in changes:
            self._sessions.put(key, Session(first, end - self._sessions.gap_ms, row), near)

    def close(self, watermark: int) -> list[Row]:
        """Take away the sessions that the watermark has passed, by their end and then by key."""
        return self._sessions.close(watermark)

    def forget(self, watermark: int) -> None:
        """Drop the sessions that the watermark has passed."""
        self._sessions.close(watermark)

    def next_close(self) -> int | None:
        """Return the watermark that closes the first session."""
        return self._sessions.next_close()

    def last_close(self) -> int | None:
        """Return the watermark that closes the last session."""
        return self._sessions.last_close()


class EmitByRecord:
    """Emits after each record: always, or when a predicate of the result becomes true and again at close.

    A result that a record makes carries the record's timestamp, or the watermark before it if that is more, so that
    it is never late for what follows.

    Args:
        state: The open windows.
        results: Makes results.
        predicate: Makes results leave when it becomes true; they leave after every record if it is None. Then the
            last element of each row says whether it was true once.
    """

    def __init__(self, state: RecordState, results: Results, predicate: Callable[[dict[str, Any]], Any] | None) -> None:
        self._state = state
        self._results = results
        self._predicate = predicate
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Add each record to its windows and emit what that calls for, closing windows in between."""
        self._state.load(batch)
        outputs: Outputs = []
        failures: Failures = []
        late = [False] * len(batch)
        due = self.next_close()
        made: list[tuple[int, int, dict[str, Any]]] = []
        before = watermarks_before(batch, self._watermark)
        for i, (key, timestamp, value) in enumerate(zip(batch.keys, batch.timestamps, batch.values, strict=True)):
            self._watermark = watermark = max(before(i), self._watermark)
            if due is not None and due <= watermark:
                outputs += self._by_records(batch, made, before)
                outputs += [
                    (MAIN, r) for r in between(self._close(watermark, failures), batch, i, self._state.lateness_ms)
                ]
                made, due = [], self.next_close()
            try:
                changes = self._state.changes(key or b"", timestamp, value, watermark)
                results = self._emitted(key or b"", changes or ())
            except Exception as error:  # noqa: BLE001  # user code may raise anything
                cause = error.__cause__ if isinstance(error, RowFailedError) else error
                failures.append((i, cause if isinstance(cause, Exception) else error))
                continue
            late[i] = changes is None
            if changes:
                self._state.apply(key or b"", changes)
                due = self.next_close()
                made += [(i, max(timestamp, watermark), result) for result in results]
        outputs += self._by_records(batch, made, before)
        if any(late):
            outputs.append((LATE, batch.where(late)))
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Close the windows that the watermark has passed, by time and then by key."""
        self._watermark = max(self._watermark, watermark)
        failures: Failures = []
        outputs: Outputs = [(MAIN, batch) for batch in self._close(watermark, failures)]
        if failures:
            raise RecordsFailedError(failures, outputs)
        return outputs

    def output_watermark(self, watermark: int) -> int:
        """Hold the watermark back by the lateness if windows emit at their close too, so much after their end."""
        if self._predicate is None:
            return watermark
        return max(MIN_WATERMARK, watermark - self._state.lateness_ms)

    def next_close(self) -> int | None:
        """Return the watermark that closes the first window; None if nothing leaves at a close."""
        return None if self._predicate is None else self._state.next_close()

    def close_at_end(self) -> int | None:
        """Return the watermark that closes the last window; None if nothing leaves at a close."""
        return None if self._predicate is None else self._state.last_close()

    def _emitted(self, key: bytes, changes: Sequence[Change]) -> list[dict[str, Any]]:
        """Return the results that changes call for."""
        results = []
        for window, row, _ in changes:
            if self._predicate is None:
                results.append(self._results.of_record(window, key, row))
            elif not row[-1]:
                result = self._results.of_record(window, key, row)
                if self._predicate(result):
                    row[-1] = True
                    results.append({**result, "final": False})
        return results

    def _close(self, watermark: int, failures: Failures) -> list[Batch]:
        if self._predicate is None:
            self._state.forget(watermark)
            return []
        fired = [item for item in self._state.close(watermark) if item[2][-1]]
        batches = self._results.in_batches(fired, failures)
        return mark_final(batches, final=True)

    def _by_records(
        self, batch: Batch, made: Sequence[tuple[int, int, dict[str, Any]]], before: Before
    ) -> Iterator[tuple[str, Batch]]:
        """Yield what records made, where there is anything, with the watermark that it leaves at if time made them."""
        if not made:
            return
        places = [place for place, _, _ in made]
        moments: list[int] | None = None
        if batch.timed or batch.offsets[0] < 0:
            hold_ms = 0 if self._predicate is None else self._state.lateness_ms
            moments = [before(place) - hold_ms for place in places]
        offsets, keys = [batch.offsets[place] for place in places], [batch.keys[place] for place in places]
        timestamps, values = [timestamp for _, timestamp, _ in made], [result for _, _, result in made]
        yield MAIN, Batch(offsets, timestamps, keys, values, None, batch.running, batch.timed, moments)
