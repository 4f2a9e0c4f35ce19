"""When the results of a window leave, if not only at its close.

What time makes leaves between the records that it lies between, so that it does not matter where batches are cut.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

from headrace.operators.aggregates import Aggregate
from headrace.operators.api import EMIT_RECORDS, Batch
from headrace.operators.causes import cause
from headrace.state.cache import Bucket, WriteBehind
from headrace.state.keys import decode_time, encode_time


@dataclass(frozen=True, slots=True)
class Every:
    """Results leave at every multiple of an interval of event time, and at close; made by ``every``."""

    interval_ms: int


@dataclass(frozen=True, slots=True)
class When:
    """A result leaves when a predicate of it becomes true, and again at close; made by ``when``."""

    predicate: Callable[[dict[str, Any]], Any]


Emission = Literal["close", "update"] | Every | When

_FIRED = Aggregate(
    "fired", None, lambda x, t: False, lambda a, x, t: a, lambda a, b: a or b, inline=("False", "{a}")
)  # fmt: skip
_REPORTED_AT = Aggregate(
    "reported-at", None, lambda x, t: 0, lambda a, x, t: a, lambda a, b: min(a, b) or a or b, inline=("0", "{a}")
)  # fmt: skip
_MARK = "mark of emit="
"""The name of the aggregate that is kept behind the user's; no result shows it."""


def marked(aggregates: Mapping[str, Aggregate], emission: Emission, *, sessions: bool) -> dict[str, Aggregate]:
    """Return the aggregates with the mark behind them that ``emission`` keeps in every row, if it does.

    ``when`` keeps whether the predicate was true once. ``every`` keeps for each session the multiple of the interval at
    which its change will be reported, or 0 if it has not changed since, because nothing else tells sessions apart that
    merge.
    """
    if isinstance(emission, When):
        return {**aggregates, _MARK: _FIRED}
    if isinstance(emission, Every) and sessions:
        return {**aggregates, _MARK: _REPORTED_AT}
    return dict(aggregates)


def never_in_place(aggregates: Mapping[str, Aggregate]) -> dict[str, Aggregate]:
    """Return aggregates that make new accumulators, so that a record may be tried without a trace."""
    return {name: _new_each_time(item) if item.in_place else item for name, item in aggregates.items()}


def _new_each_time(item: Aggregate) -> Aggregate:
    first, step, merge = item.first, item.step, item.merge

    def joined(accumulator: Any, value: Any, timestamp: int) -> Any:
        if merge is None:
            return step(deepcopy(accumulator), value, timestamp)
        return merge(accumulator, first(value, timestamp))

    return replace(item, step=joined, inline=None, in_place=False)


class Ticks:
    """What has changed and was not reported yet, by the multiple of an interval at which it will be.

    A change is reported at the first multiple after the time of the record that made it, or after the watermark at
    which the record came if that is more. The rows are ``multiple + row``, where the multiple takes eight bytes, and
    have no value.
    """

    def __init__(self, interval_ms: int, cache: WriteBehind[bool]) -> None:
        self._interval_ms = interval_ms
        self._cache = cache
        self._buckets: dict[int, Bucket[bool]] = {decode_time(bucket.prefix): bucket for bucket in cache.buckets()}
        self._order = list(self._buckets)

    def after(self, time: int) -> int:
        """Return the first multiple after ``time``."""
        return (time // self._interval_ms + 1) * self._interval_ms

    def note(self, timestamps: Sequence[int], watermark: int, rows: Sequence[bytes]) -> None:
        """Remember rows that records of these timestamps changed, which came at a watermark."""
        first, last = (self.after(max(time, watermark)) for time in (min(timestamps), max(timestamps)))
        if first == last:
            self._bucket(first).live.update(dict.fromkeys(rows, True))
            return
        for time, row in zip(timestamps, rows, strict=True):
            self._bucket(self.after(max(time, watermark))).live[row] = True

    def next_due(self) -> int | None:
        """Return the multiple at which there may be something to report."""
        return self._order[0] if self._order else None

    def take(self) -> Iterable[Sequence[bytes]]:
        """Take away what is to be reported next, in order, some rows at a time; read it to the end."""
        bucket = self._buckets.pop(self._order.pop(0))
        for rows, _ in self._cache.columns(bucket, EMIT_RECORDS):
            yield rows
        self._cache.drop(bucket)

    def forget(self, rows: Sequence[bytes]) -> None:
        """Report rows no more until they change again."""
        for bucket in self._buckets.values():
            for row in rows:
                self._cache.discard(bucket, row)

    def _bucket(self, due: int) -> Bucket[bool]:
        bucket = self._buckets.get(due)
        if bucket is None:
            bucket = self._buckets[due] = self._cache.bucket(encode_time(due))
            insort(self._order, due)
        return bucket


def between(made: Sequence[Batch], batch: Batch, place: int, lateness_ms: int) -> list[Batch]:
    """Return what time made, as it leaves just before the record at ``place`` of ``batch``.

    Args:
        made: Results, whose timestamps say when: ``lateness_ms`` and 1 later.
        batch: What goes by.
        place: Where it has got to.
        lateness_ms: That of the windows.
    """
    for results in made:
        results.offsets = [cause(batch, place, timestamp + lateness_ms + 1) for timestamp in results.timestamps]
        results.running = batch.running
        results.timed = True
    return [results for results in made if len(results)]


def mark_final(batches: list[Batch], *, final: bool) -> list[Batch]:
    """Say in every result whether it is its window's last."""
    for batch in batches:
        for value in batch.values:
            value["final"] = final
    return batches
