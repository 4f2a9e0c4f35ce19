"""Aggregation over windows that follow from a record's timestamp: tumbling, hopping, and a user's own.

State is one row per window and key, under the window's prefix (its end; for a user's own its end and its start, with
2**63 added) and the key. Open windows are buckets of the write-behind cache, so that a record costs a look-up in a
dict, and a window closes by walking its bucket: there is no timer per key.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from headrace.operators.api import EMIT_RECORDS, Batch, Outputs, RecordsFailedError
from headrace.operators.compiled import Accumulators, Compiled, RowFailedError
from headrace.operators.results import Failures, Results, leave
from headrace.operators.windows import Window, WindowLayout
from headrace.record import MIN_WATERMARK
from headrace.state.cache import Bucket, WriteBehind

LATE = "late"
"""The port of records that came after all their windows had closed."""

Columns = tuple[Sequence[bytes], Sequence[Any], Sequence[int]]
"""Keys, values and timestamps."""

Touched = tuple[Window, Sequence[bytes], Sequence[int]]
"""A window that took records, and for each of them the key and the timestamp."""


class OpenWindows:
    """The windows that have not closed yet, and what is in them.

    Args:
        layout: Which windows there are.
        lateness_ms: How long after its end a window closes.
        compiled: Puts records into accumulators.
        cache: Where those are kept.
    """

    def __init__(
        self, layout: WindowLayout, lateness_ms: int, compiled: Compiled, cache: WriteBehind[Accumulators]
    ) -> None:
        self.layout = layout
        self.lateness_ms = lateness_ms
        self.cache = cache
        self._compiled = compiled
        self._buckets = {layout.window(bucket.prefix): bucket for bucket in cache.buckets()}
        self._order = list(self._buckets)

    def add(self, batch: Batch, watermark: int, touched: list[Touched] | None = None) -> dict[int, Exception]:
        """Add records to those of their windows that are open.

        Args:
            batch: The records.
            watermark: The watermark before the batch.
            touched: Gets what took records, if it is not None.

        Returns:
            The places of the records on which user code failed, and what was raised.
        """
        failures: dict[int, Exception] = {}
        for window, places in self.layout.split(batch.timestamps):
            part, rows = self._in_time(batch, window[0], places, watermark)
            if part is None:
                continue
            failed = apply_update(self._compiled, self.bucket(window), part)
            for i, error in failed:
                failures.setdefault(i if rows is None else rows[i], error)
            if touched is not None:
                keys, _, timestamps = part
                if failed:
                    without = {i for i, _ in failed}
                    kept = [i for i in range(len(keys)) if i not in without]
                    keys, timestamps = [keys[i] for i in kept], [timestamps[i] for i in kept]
                if keys:
                    touched.append((window, keys, timestamps))
        return failures

    def late(self, batch: Batch, watermark: int) -> Batch | None:
        """Return the records whose windows had all closed when they came; None if there are none."""
        limit = (batch.running.last if batch.running else watermark) - self.lateness_ms
        mask = self.layout.closed(batch.timestamps, limit)
        if mask is None:
            return None
        late = batch.where(mask)
        if batch.running is None:
            return late
        before, lateness, last_end = batch.running.before, self.lateness_ms, self.layout.last_end
        exact = [last_end(t) + lateness <= before(o) for t, o in zip(late.timestamps, late.offsets, strict=True)]
        return late.where(exact) if any(exact) else None

    def find(self, window: Window) -> Bucket[Accumulators] | None:
        """Return the rows of a window, None if it has none."""
        return self._buckets.get(window)

    def bucket(self, window: Window) -> Bucket[Accumulators]:
        """Return the rows of a window, which is opened if need be."""
        bucket = self._buckets.get(window)
        if bucket is None:
            bucket = self._buckets[window] = self.cache.bucket(self.layout.prefix(window))
            bisect.insort(self._order, window)
        return bucket

    def closes(self) -> list[int]:
        """Return the watermarks that close the open windows, in order."""
        return [end + self.lateness_ms for end, _ in self._order]

    def next_close(self) -> int | None:
        """Return the watermark that closes the first open window."""
        return self._order[0][0] + self.lateness_ms if self._order else None

    def last_close(self) -> int | None:
        """Return the watermark that closes the last open window."""
        return self._order[-1][0] + self.lateness_ms if self._order else None

    def pop(self) -> tuple[Window, Bucket[Accumulators]]:
        """Take the first open window away; its rows are to be dropped from the cache when they were read."""
        window = self._order.pop(0)
        return window, self._buckets.pop(window)

    def _in_time(
        self, batch: Batch, end: int, rows: list[int] | None, watermark: int
    ) -> tuple[Columns | None, list[int] | None]:
        """Return the columns of the records that came before the window ``end`` closed, and their places."""
        closes = end + self.lateness_ms
        if (batch.running.last if batch.running else watermark) >= closes:
            if batch.running is None:
                return None, rows
            places = range(len(batch)) if rows is None else rows
            before = batch.running.before
            rows = [i for i in places if before(batch.offsets[i]) < closes]
        keys: Any = batch.keys
        if rows is None:
            return (keys, batch.values, batch.timestamps), None
        if not rows:
            return None, rows
        if len(rows) == 1:
            i = rows[0]
            return ([keys[i]], [batch.values[i]], [batch.timestamps[i]]), rows
        pick = itemgetter(*rows)
        return (pick(keys), pick(batch.values), pick(batch.timestamps)), rows


class WindowedAggregateOperator:
    """Emits each window once, when the watermark passes its end and the lateness."""

    def __init__(self, windows: OpenWindows, results: Results) -> None:
        self._windows = windows
        self._results = results
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Add the records to their windows; those whose windows have all closed leave by ``late``."""
        failures = self._windows.add(batch, self._watermark)
        late = self._windows.late(batch, self._watermark)
        outputs: Outputs = [] if late is None else [(LATE, late)]
        if failures:
            raise RecordsFailedError(list(failures.items()), outputs)
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Close the windows that the watermark has passed, by time and, within a window, by key."""
        self._watermark = watermark
        failures: Failures = []
        return leave(close_windows(self._windows, watermark, self._results, failures), failures)

    def output_watermark(self, watermark: int) -> int:
        """Hold the watermark back by the lateness, because a window's result comes that much after its end."""
        return max(MIN_WATERMARK, watermark - self._windows.lateness_ms)

    def next_close(self) -> int | None:
        """Return the watermark that closes the first open window."""
        return self._windows.next_close()

    def close_at_end(self) -> int | None:
        """Return the watermark that closes the last open window."""
        return self._windows.last_close()


def close_windows(windows: OpenWindows, watermark: int, results: Results, failures: Failures) -> list[Batch]:
    """Close the windows that the watermark has passed and return their results."""
    batches = []
    while (closes := windows.next_close()) is not None and closes <= watermark:
        window, bucket = windows.pop()
        for keys, rows in windows.cache.columns(bucket, EMIT_RECORDS):
            batches.append(results.of_window(window, keys, rows, window[0] - 1, failures))
        windows.cache.drop(bucket)
    return batches


def apply_update(compiled: Compiled, bucket: Bucket[Accumulators], columns: Columns) -> Failures:
    """Add rows to a bucket and return the places of those on which user code failed, with what it raised."""
    bucket.load(columns[0])
    return apply_rows(compiled, bucket.live, bucket.clean, *columns)


def apply_rows(
    compiled: Compiled,
    live: dict[Any, Accumulators],
    clean: dict[Any, Accumulators],
    keys: Sequence[Any],
    values: Sequence[Any],
    timestamps: Sequence[int],
) -> Failures:
    """Add rows to accumulators by key and return the places of those that failed; the others took effect."""
    failures: Failures = []
    start = 0
    while start < len(values):
        try:
            compiled.update(live, clean, keys[start:], values[start:], timestamps[start:])
            break
        except RowFailedError as failed:
            start += failed.index
            if failed.index:
                continue  # the loop is chosen by the first row: this one may only be of another kind than those before
            cause = failed.__cause__
            failures.append((start, cause if isinstance(cause, Exception) else failed))
            start += 1
    return failures
