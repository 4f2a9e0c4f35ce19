"""Aggregation over windows of a number of records of one key, in the order of event time.

A record is held back until nothing that comes before it can come any more, and then counted. One that is late counts
as if it had the time of the watermark that it found; that is its effective time.

State is one row per key, a MessagePack list of four: how many records are in the open window, the effective time of
the first, their accumulators (a row of its own, empty if there are none), and the records that are held back, in
order, as ``[effective time, accumulators of the record alone]``. When to look at a key is noted in an agenda.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from headrace.errors import CorruptError
from headrace.operators.agenda import Agenda
from headrace.operators.api import Batch, Outputs, RecordsFailedError, watermarks_before
from headrace.operators.compiled import Accumulators, Compiled, RowCodec
from headrace.operators.results import Failures, Results, Row, leave
from headrace.operators.times import Count, Time, check_order
from headrace.operators.windowed import apply_rows
from headrace.record import MIN_WATERMARK
from headrace.state.cache import WriteBehind

SLOT_MS = 1000
"""How much time a slot of the agenda covers."""


@dataclass(slots=True)
class Counted:
    """The open window of one key and the records that are to follow."""

    count: int = 0
    start: int = 0
    row: Accumulators | None = None
    times: list[int] = field(default_factory=list)
    """The effective times of the records that are held back, in order."""
    rows: list[Accumulators] = field(default_factory=list)


class CountedCodec:
    """The windows of keys as MessagePack."""

    def __init__(self, rows: RowCodec) -> None:
        self._rows = rows

    def encode_many(self, values: Sequence[Counted]) -> list[bytes]:
        """Encode the window of each key."""
        rows = [row for value in values for row in ([] if value.row is None else [value.row]) + value.rows]
        encoded = iter(self._rows.encode_many(rows))
        return [
            msgspec.msgpack.encode(
                (
                    value.count,
                    value.start,
                    b"" if value.row is None else next(encoded),
                    [(time, next(encoded)) for time in value.times],
                )
            )
            for value in values
        ]

    def decode_many(self, rows: Sequence[bytes]) -> list[Counted]:
        """Decode the window of each key."""
        found = []
        for data in rows:
            kind = tuple[Count, Time, bytes, list[tuple[Time, bytes]]]
            count, start, row, held = msgspec.msgpack.decode(data, type=kind)
            times = [time for time, _ in held]
            if held:
                check_order(times)
            if bool(row) != bool(count):
                raise CorruptError("a window has accumulators and no records, or the other way round")
            decoded = self._rows.decode_many([row for _, row in held])
            opened = self._rows.decode_many([row])[0] if row else None
            found.append(Counted(count, start, opened, times, decoded))
        return found


class CountingAggregateOperator:
    """Emits each window as soon as it is full.

    Args:
        size: How many records a window has.
        compiled: Puts records into accumulators.
        results: Makes results.
        windows: Where the window of each key is kept.
        slots: Where the agenda is kept.
    """

    def __init__(
        self,
        size: int,
        compiled: Compiled,
        results: Results,
        windows: WriteBehind[Counted],
        slots: WriteBehind[bool],
    ) -> None:
        self._size = size
        self._compiled = compiled
        self._results = results
        self._cache = windows
        self._windows = windows.bucket(b"")
        self._agenda = Agenda(slots, SLOT_MS, self._outstanding)
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Hold each record back until its turn comes."""
        keys = [key or b"" for key in batch.keys]
        self._windows.load(keys)
        before = watermarks_before(batch, self._watermark)
        times = [max(timestamp, before(place)) for place, timestamp in enumerate(batch.timestamps)]
        rows: dict[int, Accumulators] = {}
        failures = apply_rows(self._compiled, rows, {}, range(len(batch)), batch.values, times)
        for place, row in rows.items():
            key, time = keys[place], times[place]
            window = self._windows.get(key)
            if window is None:
                window = self._windows.live[key] = Counted()
            turn = bisect_right(window.times, time)
            window.times.insert(turn, time)
            window.rows.insert(turn, row)
            if turn == 0:
                self._agenda.note(time + 1, key)
        if failures:
            raise RecordsFailedError(failures, [])
        return []

    def on_watermark(self, watermark: int) -> Outputs:
        """Count the records whose turn has come and emit full windows, by their end and then by key."""
        self._watermark = watermark
        full: list[Row] = []
        failures: Failures = []
        while noted := self._agenda.take(watermark):
            keys = list(dict.fromkeys(key for _, key in noted))
            self._windows.load(keys)
            for key in keys:
                window = self._windows.get(key)
                if window is not None:
                    full += self._count(key, window, watermark, failures)
        full.sort(key=lambda row: (row[0][0], row[1]))
        return leave(self._results.in_batches(full, failures), failures)

    def output_watermark(self, watermark: int) -> int:
        """Return the watermark: a window ends with its last record."""
        return watermark

    def next_close(self) -> int | None:
        """Return the watermark at which the turn of a record comes."""
        return self._agenda.next_due()

    def close_at_end(self) -> int | None:
        """Return the watermark at which no record is held back; a window that is not full stays open."""
        held = [window.times[-1] for _, window in self._cache.rows(self._windows) if window.times]
        return max(held) + 1 if held else None

    def _count(self, key: bytes, window: Counted, watermark: int, failures: Failures) -> list[Row]:
        full: list[Row] = []
        turns = bisect_right(window.times, watermark - 1)
        for time, row in zip(window.times[:turns], window.rows[:turns], strict=True):
            try:
                joined = row if window.row is None else self._compiled.merge(window.row, row)
            except Exception as error:  # noqa: BLE001  # a user's merge may raise anything
                failures.append((-1, error))
                continue
            start = time if window.row is None else window.start
            window.count, window.start, window.row = window.count + 1, start, joined
            if window.count == self._size:
                full.append(((time + 1, start), key, joined))
                window.count, window.start, window.row = 0, 0, None
        window.times, window.rows = window.times[turns:], window.rows[turns:]
        if window.times:
            self._agenda.note(window.times[0] + 1, key)
        elif not window.count:
            self._cache.discard(self._windows, key)
        return full

    def _outstanding(self, keys: Sequence[bytes]) -> Iterable[tuple[int, bytes]]:
        self._windows.load(keys)
        found = ((key, self._windows.peek(key)) for key in keys)
        return [(window.times[0] + 1, key) for key, window in found if window is not None and window.times]
