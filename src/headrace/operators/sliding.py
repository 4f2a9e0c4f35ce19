"""Aggregation over sliding windows, aligned to records: one window for every time at which a key has a record.

State is one row per key, its panes in time order: a MessagePack list of how many of them had their window closed, and
a list of ``[time, accumulators]``, where the accumulators of all records of that time are a row of their own. Windows
close in the order of their panes, so those that have closed come first. A pane stays as long as a window that is open,
or may still be opened by a record that is not late, reaches back to it. When to look at a key is noted in an agenda.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from headrace.errors import CorruptError
from headrace.operators.agenda import Agenda
from headrace.operators.api import Batch, Outputs, RecordsFailedError
from headrace.operators.compiled import Accumulators, Compiled, RowCodec
from headrace.operators.results import Failures, Results, Row, leave
from headrace.operators.times import Count, Time, check_order
from headrace.operators.windowed import LATE, apply_rows
from headrace.record import MIN_WATERMARK
from headrace.state.cache import WriteBehind


class Fold:
    """The aggregate of a queue of panes, of which the newest is added and the oldest removed at a constant cost.

    It is two stacks: the older panes as what each of them and all after it make together, and the newer panes with
    what they make together. Panes move from the second to the first when that is empty.
    """

    __slots__ = ("_compiled", "_newer", "_newer_sum", "_older")

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._older: list[tuple[int, Accumulators]] = []
        self._newer: list[tuple[int, Accumulators]] = []
        self._newer_sum: Accumulators | None = None

    def add(self, time: int, row: Accumulators) -> None:
        """Add the newest pane."""
        self._newer_sum = row if self._newer_sum is None else self._compiled.merge(self._newer_sum, row)
        self._newer.append((time, row))

    def drop_before(self, time: int) -> None:
        """Remove the panes before ``time``."""
        while self._older and self._older[-1][0] < time:
            self._older.pop()
        if self._older or not self._newer or self._newer[0][0] >= time:
            return
        suffix: Accumulators | None = None
        for pane, row in reversed(self._newer):
            if pane < time:
                break
            suffix = row if suffix is None else self._compiled.merge(row, suffix)
            self._older.append((pane, suffix))
        self._newer, self._newer_sum = [], None

    def whole(self) -> Accumulators:
        """Return what all panes make together; there must be one."""
        if not self._older:
            assert self._newer_sum is not None
            return self._newer_sum
        older = self._older[-1][1]
        return older if self._newer_sum is None else self._compiled.merge(older, self._newer_sum)


@dataclass(slots=True)
class Panes:
    """The panes of one key."""

    closed: int = 0
    """How many of them had their window closed: the first ones."""
    times: list[int] = field(default_factory=list)
    rows: list[Accumulators] = field(default_factory=list)
    fold: Fold | None = None
    """The panes of the last window that closed; made again if it is not in memory."""


class PanesCodec:
    """The panes of a key as MessagePack."""

    def __init__(self, rows: RowCodec) -> None:
        self._rows = rows

    def encode_many(self, values: Sequence[Panes]) -> list[bytes]:
        """Encode the panes of each key."""
        rows = iter(self._rows.encode_many([row for panes in values for row in panes.rows]))
        return [
            msgspec.msgpack.encode((panes.closed, [(time, next(rows)) for time in panes.times])) for panes in values
        ]

    def decode_many(self, rows: Sequence[bytes]) -> list[Panes]:
        """Decode the panes of each key."""
        found = []
        for data in rows:
            closed, panes = msgspec.msgpack.decode(data, type=tuple[Count, list[tuple[Time, bytes]]])
            times = [time for time, _ in panes]
            check_order(times)
            if closed > len(times):
                raise CorruptError("more windows are closed than there are panes")
            found.append(Panes(closed, times, self._rows.decode_many([row for _, row in panes])))
        return found


class SlidingAggregateOperator:
    """Emits the window that ends with each record, when the watermark has passed the record and the lateness.

    Args:
        size_ms: How far back a window reaches.
        lateness_ms: How long after its end a window closes.
        compiled: Puts records into accumulators.
        results: Makes results.
        panes: Where the panes of each key are kept.
        slots: Where the agenda is kept.
        grows: True if accumulators grow with what is in them, so that it does not do to keep one for every pane.
    """

    def __init__(
        self,
        size_ms: int,
        lateness_ms: int,
        compiled: Compiled,
        results: Results,
        panes: WriteBehind[Panes],
        slots: WriteBehind[bool],
        *,
        grows: bool,
    ) -> None:
        self._size_ms = size_ms
        self._lateness_ms = lateness_ms
        self._compiled = compiled
        self._results = results
        self._cache = panes
        self._panes = panes.bucket(b"")
        self._agenda = Agenda(slots, max(1, size_ms // 8), self._outstanding)
        self._grows = grows
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Add each record to its pane; those whose window had closed leave by ``late``."""
        outputs: Outputs = []
        places: Sequence[int] = range(len(batch))
        lateness = self._lateness_ms + 1
        if min(batch.timestamps) + lateness <= (batch.running.last if batch.running else self._watermark):
            late = [
                watermark >= t + lateness for watermark, t in zip(self._before(batch), batch.timestamps, strict=True)
            ]
            if any(late):
                outputs.append((LATE, batch.where(late)))
                places = [i for i in places if not late[i]]
                batch = batch.where([not is_late for is_late in late])
        failures = self._add(batch) if len(batch) else []
        if failures:
            raise RecordsFailedError([(places[i], error) for i, error in failures], outputs)
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Close the windows that the watermark has passed, by time and then by key."""
        self._watermark = watermark
        closed: list[Row] = []
        failures: Failures = []
        while noted := self._agenda.take(watermark):
            keys = list(dict.fromkeys(key for _, key in noted))
            self._panes.load(keys)
            for key in keys:
                panes = self._panes.get(key)
                if panes is not None:
                    closed += self._close(key, panes, watermark, failures)
        closed.sort(key=lambda row: row[:2])
        return leave(self._results.in_batches(closed, failures), failures)

    def output_watermark(self, watermark: int) -> int:
        """Hold the watermark back by the lateness, because a window's result comes that much after its end."""
        return max(MIN_WATERMARK, watermark - self._lateness_ms)

    def next_close(self) -> int | None:
        """Return the watermark at which there is something to close or to forget."""
        return self._agenda.next_due()

    def close_at_end(self) -> int | None:
        """Return the watermark that closes the last open window."""
        open_ = [panes.times[-1] for _, panes in self._cache.rows(self._panes) if panes.closed < len(panes.times)]
        return max(open_) + 1 + self._lateness_ms if open_ else None

    def _before(self, batch: Batch) -> list[int]:
        if batch.running is None:
            return [self._watermark] * len(batch)
        return [batch.running.before(offset) for offset in batch.offsets]

    def _add(self, batch: Batch) -> Failures:
        """Add records to their panes and return the places of those on which user code failed."""
        keys = [key or b"" for key in batch.keys]
        self._panes.load(keys)
        pairs = list(zip(keys, batch.timestamps, strict=True))
        rows: dict[tuple[bytes, int], Accumulators] = {}
        for key, time in dict.fromkeys(pairs):
            panes = self._panes.peek(key)
            if panes is not None:
                place = bisect_left(panes.times, time)
                if place < len(panes.times) and panes.times[place] == time:
                    rows[key, time] = panes.rows[place]
        failures = apply_rows(self._compiled, rows, {}, pairs, batch.values, batch.timestamps)
        for (key, time), row in rows.items():
            panes = self._panes.get(key)
            if panes is None:
                panes = self._panes.live[key] = Panes()
            place = bisect_left(panes.times, time)
            if place == len(panes.times) or panes.times[place] != time:
                panes.times.insert(place, time)
                panes.rows.insert(place, row)
                if place == panes.closed:
                    self._agenda.note(time + 1 + self._lateness_ms, key)
        return failures

    def _close(self, key: bytes, panes: Panes, watermark: int, failures: Failures) -> list[Row]:
        """Return the windows of a key that the watermark has passed, and forget the panes that nobody needs."""
        closed: list[Row] = []
        size, wait = self._size_ms, 1 + self._lateness_ms
        while panes.closed < len(panes.times) and panes.times[panes.closed] + wait <= watermark:
            time = panes.times[panes.closed]
            panes.closed += 1
            try:
                row = self._whole(panes)
            except Exception as error:  # noqa: BLE001  # a user's merge may raise anything
                panes.fold = None
                failures.append((-1, error))
            else:
                closed.append(((time + 1, max(0, time + 1 - size)), key, row))
        gone = bisect_left(panes.times, watermark - size - self._lateness_ms + 1)
        if gone:
            panes.times, panes.rows, panes.closed = panes.times[gone:], panes.rows[gone:], panes.closed - gone
        if panes.times:
            self._agenda.note(self._next(panes), key)
        else:
            self._cache.discard(self._panes, key)
        return closed

    def _whole(self, panes: Panes) -> Accumulators:
        """Return what the panes of the window make together that was closed last."""
        last = panes.closed - 1
        start = panes.times[last] + 1 - self._size_ms
        if self._grows:
            return _merged(self._compiled, panes.rows[bisect_left(panes.times, start) : last + 1])
        fold = panes.fold
        if fold is None:
            fold = panes.fold = Fold(self._compiled)
            first = bisect_left(panes.times, start)
        else:
            first = last
        for place in range(first, last + 1):
            fold.add(panes.times[place], panes.rows[place])
        fold.drop_before(start)
        return fold.whole()

    def _next(self, panes: Panes) -> int:
        """Return the watermark at which there is something to do for a key."""
        if panes.closed < len(panes.times):
            return panes.times[panes.closed] + 1 + self._lateness_ms
        return panes.times[-1] + self._size_ms + self._lateness_ms

    def _outstanding(self, keys: Sequence[bytes]) -> Iterable[tuple[int, bytes]]:
        self._panes.load(keys)
        found = ((key, self._panes.peek(key)) for key in keys)
        return [(self._next(panes), key) for key, panes in found if panes is not None and panes.times]


def _merged(compiled: Compiled, rows: Sequence[Accumulators]) -> Accumulators:
    """Merge neighbours, then what they make, and so on, so that what grows is copied a few times and not once a row."""
    while len(rows) > 1:
        pairs = [compiled.merge(a, b) for a, b in zip(rows[::2], rows[1::2], strict=False)]
        rows = [*pairs, rows[-1]] if len(rows) % 2 else pairs
    return rows[0]
