"""Aggregation over tumbling and hopping windows.

State is one row per window and key, under ``window end + key``. Open windows are buckets of the write-behind cache, so
that a record costs a look-up in a dict, and a window closes by walking its bucket: there is no timer per key.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, ClassVar

from headrace.operators.aggregates import Aggregate
from headrace.operators.api import EMIT_RECORDS, MAIN, Batch, Outputs, RecordsFailedError, StepContext
from headrace.operators.compiled import Accumulators, Compiled, RowCodec, RowFailedError, compile_aggregates
from headrace.operators.windows import AlignedWindows
from headrace.record import MIN_WATERMARK
from headrace.state.cache import Bucket, Codec, WriteBehind
from headrace.state.keys import decode_time, encode_time

LATE = "late"
"""The port of records that came after all their windows had closed."""

_FEW_WINDOWS = 8

DecodeKeys = Callable[[Sequence[bytes]], list[Any]]


@dataclass(frozen=True, slots=True)
class WindowedAggregate:
    """Aggregates per key and aligned window; results leave when the watermark passes ``end + lateness``."""

    windows: AlignedWindows
    aggregates: Mapping[str, Aggregate]
    lateness_ms: int
    decode_keys: DecodeKeys
    kind: ClassVar[str] = "window"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = (MAIN,)
    ports: ClassVar[tuple[str, ...]] = (MAIN, LATE)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {**self.windows.shape(), "aggregates": [[name, item.name] for name, item in self.aggregates.items()]}

    def build(self, context: StepContext) -> WindowedAggregateOperator:
        """Make the operator of one task."""
        rows = RowCodec(context.step, self.aggregates)
        codec = Codec(rows.encode_many, rows.decode_many)
        cache = WriteBehind(context.store, context.store_prefix("windows"), codec, budget=context.budget)
        return WindowedAggregateOperator(
            self.windows, self.lateness_ms, compile_aggregates(self.aggregates), self.decode_keys, cache
        )


class WindowedAggregateOperator:
    """The running form of ``WindowedAggregate``."""

    def __init__(
        self,
        windows: AlignedWindows,
        lateness_ms: int,
        compiled: Compiled,
        decode_keys: DecodeKeys,
        cache: WriteBehind[Accumulators],
    ) -> None:
        self._windows = windows
        self._lateness_ms = lateness_ms
        self._compiled = compiled
        self._decode_keys = decode_keys
        self._cache = cache
        self._watermark = MIN_WATERMARK
        self._open = {decode_time(bucket.prefix): bucket for bucket in cache.buckets()}
        self._ends = list(self._open)
        """Ends of the open windows, in order."""

    def process(self, batch: Batch) -> Outputs:
        """Add the records to their windows; those whose windows have all closed leave by ``late``."""
        failures: dict[int, Exception] = {}
        for end, places in self._split(batch.timestamps):
            part, rows = self._in_time(batch, end, places)
            if part is not None:
                for i, error in self._add(end, part):
                    failures.setdefault(i if rows is None else rows[i], error)
        late = self._late(batch)
        outputs: Outputs = [] if late is None else [(LATE, late)]
        if failures:
            raise RecordsFailedError(list(failures.items()), outputs)
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Close the windows that the watermark has passed, by time and, within a window, by key."""
        self._watermark = watermark
        outputs: Outputs = []
        while self._ends and self._ends[0] + self._lateness_ms <= watermark:
            end = self._ends.pop(0)
            bucket = self._open.pop(end)
            for keys, rows in self._cache.columns(bucket, EMIT_RECORDS):
                outputs.append((MAIN, self._results(end, keys, rows)))
            self._cache.drop(bucket)
        return outputs

    def output_watermark(self, watermark: int) -> int:
        """Hold the watermark back by the lateness, because a window's result comes that much after its end."""
        return max(MIN_WATERMARK, watermark - self._lateness_ms)

    def next_close(self) -> int | None:
        """Return the watermark that closes the first open window."""
        return self._ends[0] + self._lateness_ms if self._ends else None

    def close_at_end(self) -> int | None:
        """Return the watermark that closes the last open window."""
        return self._ends[-1] + self._lateness_ms if self._ends else None

    def _results(self, end: int, keys: Sequence[bytes], rows: Sequence[Accumulators]) -> Batch:
        values = self._compiled.results(self._decode_keys(keys), rows, end - self._windows.size_ms, end)
        return Batch([-1] * len(keys), [end - 1] * len(keys), keys, values)

    def _split(self, timestamps: Sequence[int]) -> list[tuple[int, list[int] | None]]:
        """Return the windows of a batch and the places of their records; None for all of them."""
        windows = self._windows
        low, high = min(timestamps), max(timestamps)
        first, last, every = windows.first_end(low), windows.last_end(high), windows.every_ms
        if first == last:
            return [(first, None)]
        size = windows.size_ms
        if (last - first) // every < _FEW_WINDOWS:
            ends = range(first, last + 1, every)
            return [(end, [i for i, t in enumerate(timestamps) if end - size <= t < end]) for end in ends]
        groups: dict[int, list[int]] = {}
        for i, t in enumerate(timestamps):
            for end in range(windows.first_end(t), windows.last_end(t) + 1, every):
                groups.setdefault(end, []).append(i)
        return sorted(groups.items())

    def _in_time(
        self, batch: Batch, end: int, rows: list[int] | None
    ) -> tuple[tuple[Sequence[bytes], Sequence[Any], Sequence[int]] | None, list[int] | None]:
        """Return the columns of the records that came before the window ``end`` closed, and their places."""
        closes = end + self._lateness_ms
        if (batch.running.last if batch.running else self._watermark) >= closes:
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

    def _late(self, batch: Batch) -> Batch | None:
        limit = (batch.running.last if batch.running else self._watermark) - self._lateness_ms
        if self._windows.last_end(min(batch.timestamps)) > limit:
            return None
        last_end = self._windows.last_end
        mask = [last_end(t) <= limit for t in batch.timestamps]
        late = batch.where(mask)
        if batch.running is None:
            return late
        before, lateness = batch.running.before, self._lateness_ms
        exact = [last_end(t) + lateness <= before(o) for t, o in zip(late.timestamps, late.offsets, strict=True)]
        return late.where(exact) if any(exact) else None

    def _add(
        self, end: int, columns: tuple[Sequence[bytes], Sequence[Any], Sequence[int]]
    ) -> list[tuple[int, Exception]]:
        bucket = self._bucket(end)
        return apply_update(self._compiled, bucket, columns)

    def _bucket(self, end: int) -> Bucket[Accumulators]:
        bucket = self._open.get(end)
        if bucket is None:
            bucket = self._open[end] = self._cache.bucket(encode_time(end))
            bisect.insort(self._ends, end)
        return bucket


def apply_update(
    compiled: Compiled, bucket: Bucket[Accumulators], columns: tuple[Sequence[bytes], Sequence[Any], Sequence[int]]
) -> list[tuple[int, Exception]]:
    """Add rows to a bucket and return the places of those on which user code failed, with what it raised."""
    keys, values, timestamps = columns
    bucket.load(keys)
    failures: list[tuple[int, Exception]] = []
    start = 0
    while start < len(values):
        try:
            compiled.update(bucket.live, bucket.clean, keys[start:], values[start:], timestamps[start:])
            break
        except RowFailedError as failed:
            start += failed.index
            if failed.index:
                continue  # the loop is chosen by the first row: this one may only be of another kind than those before
            cause = failed.__cause__
            failures.append((start, cause if isinstance(cause, Exception) else failed))
            start += 1
    return failures
