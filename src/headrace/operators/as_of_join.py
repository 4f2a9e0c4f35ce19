"""Joining each record of a stream with what was known at its time: of another stream, or of a table.

Every record has an effective time: its timestamp or, if it is late, the watermark when it came, because what was due
before has left. Left records wait until the watermark has passed it and then leave, by effective time and arrival, each
with the version of its key that had the greatest effective time up to that. So the answer follows from times alone.

Versions are one ``Timeline`` per key; one without a value ends what came before it. Left records wait in a ``Room``.
``due`` holds keys whose old versions can go at a time, ``time + key``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from headrace.operators.api import EMIT_RECORDS, MAIN, Batch, Outputs, StepContext
from headrace.operators.causes import cause
from headrace.operators.stored import StoredValues, stored_shape
from headrace.operators.timelines import MARKS, DueTimes, Timeline, timeline_codec
from headrace.operators.waiting import Room, Waiting, effective, open_room
from headrace.record import MIN_WATERMARK
from headrace.serde.api import Serde
from headrace.state.cache import WriteBehind

AsOfHow = Literal["inner", "left"]

_SLOT_MS = 1000


@dataclass(frozen=True, slots=True)
class AsOfJoin:
    """Pairs each left record with the latest right record of its key at or before its time."""

    left: Serde[Any]
    right: Serde[Any]
    how: AsOfHow = "inner"
    within_ms: int | None = None
    table: bool = False
    """True if the right side is a table, whose changes take effect in the order in which they come."""
    kind: ClassVar[str] = "as-of join"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = True
    uses_clock: ClassVar[bool] = False
    ports: ClassVar[tuple[str, ...]] = (MAIN,)
    timed_ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored records and versions depend on."""
        return {
            "within_ms": self.within_ms,
            "table": self.table,
            "left": stored_shape(self.left),
            "right": stored_shape(self.right),
        }

    def build(self, context: StepContext) -> AsOfJoinOperator:
        """Make the operator of one task."""
        store, budget, prefix = context.store, context.budget, context.store_prefix
        left, right = StoredValues(self.left, context.step), StoredValues(self.right, context.step)
        versions = WriteBehind(store, prefix("versions"), timeline_codec(right), budget=budget, width=0)
        due = WriteBehind(store, prefix("due"), MARKS, budget=budget)
        room = open_room(context, left)
        kept = Versions(versions, due, room.left, self.within_ms, self.table)
        return AsOfJoinOperator(self.how, left, right, room, kept)


class Versions:
    """What each key was from which time on, as far back as a record that is still to leave may ask."""

    def __init__(
        self, cache: WriteBehind[Timeline], due: WriteBehind[bool], left: int, within_ms: int | None, table: bool
    ) -> None:
        self._cache = cache
        self._rows = cache.bucket(b"")
        self._within_ms = within_ms
        self._table = table
        self._due = DueTimes(due, _SLOT_MS if within_ms is None else max(_SLOT_MS, within_ms // 8), left)

    def load(self, keys: Iterable[bytes]) -> None:
        """Bring the versions of ``keys`` into memory, with one call of the store."""
        if not self._rows.complete:
            self._rows.load(sorted(set(keys)))

    def add(self, time: int, key: bytes, value: Any) -> None:
        """Take what ``key`` is from ``time`` on; its row must have been loaded."""
        live = self._rows.live
        row = live.get(key)
        if row is None:
            row = self._rows.clean.pop(key, None)
            row = live[key] = Timeline() if row is None else row
        row.add(max(time, row.times[-1]) if self._table and row.times else time, value)

    def at(self, records: Sequence[Waiting]) -> list[Any]:
        """Return what each record's key was at its time, None if nothing; the keys must have been loaded."""
        live, clean, within = self._rows.live, self._rows.clean, self._within_ms
        found: list[Any] = []
        for time, _, key, _, _ in records:
            row = live.get(key) or clean.get(key)
            if row is None:
                found.append(None)
                continue
            times = row.times
            place = len(times) if times[-1] <= time else bisect_right(times, time)
            fits = place and (within is None or time - times[place - 1] <= within)
            found.append(row.values[place - 1] if fits else None)
        return found

    def prune(self, keys: Iterable[bytes], watermark: int) -> None:
        """Drop what no record at or after ``watermark`` can ask for."""
        within = self._within_ms
        for key in keys:
            row = self._rows.live.get(key) or self._rows.clean.get(key)
            if row is None:
                continue
            place = bisect_right(row.times, watermark) - 1
            gone = max(place, 0)
            if place >= 0 and (
                row.values[place] is None or (within is not None and row.times[place] + within < watermark)
            ):
                gone += 1
            if gone == len(row.times):
                self._cache.discard(self._rows, key)
                continue
            if gone:
                row.forget(gone)
                self._rows.live[key] = row
                self._rows.clean.pop(key, None)
            if len(row.times) > 1 or row.values[-1] is None:
                self._due.note(row.times[-1], key)
            elif within is not None:
                self._due.note(row.times[-1] + within, key)

    def forget(self, watermark: int) -> None:
        """Drop what has become of no use by ``watermark``."""
        keys = list(dict.fromkeys(key for _, key in self._due.due(watermark)))
        if keys:
            self.load(keys)
            self.prune(keys, watermark)
        self._due.drop(watermark)


class AsOfJoinOperator:
    """The running form of ``AsOfJoin``."""

    def __init__(self, how: AsOfHow, left: StoredValues, right: StoredValues, room: Room, versions: Versions) -> None:
        self._inner = how == "inner"
        self._left = left
        self._right = right
        self._room = room
        self._versions = versions
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Take records of the left side."""
        return self.process_sides(batch, [0] * len(batch))

    def process_sides(self, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Take records of both sides, and let go the left ones that the watermark has passed within the batch.

        What leaves depends on effective times alone, so it can leave in one go behind the batch.
        """
        marks, settled = effective(batch, self._watermark)
        self._watermark = marks[-1]
        times = list(map(max, batch.timestamps, marks))
        headers = batch.headers or [()] * len(batch)
        keys: Any = batch.keys
        columns = zip(times, keys, batch.values, headers, sides, strict=True)
        arrivals = [(time, key, value, extra) for time, key, value, extra, side in columns if not side]
        changes = [row for row, side in zip(zip(times, keys, batch.values, strict=True), sides, strict=True) if side]
        self._left.check([value for _, _, value, _ in arrivals])
        self._right.check([value for _, _, value in changes])
        if arrivals:
            self._room.enter(arrivals, settled)
        leaving = self._room.leave(marks[-1])
        self._versions.load([row[1] for row in changes] + [record.key for record in leaving])
        for time, key, value in changes:
            self._versions.add(time, key, value)
        causes = [cause(batch, bisect_right(marks, record.time), record.time + 1) for record in leaving]
        outputs = self._pairs(leaving, causes, batch.running)
        self._versions.prune(dict.fromkeys(row[1] for row in changes), marks[-1])
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Let go the left records that the watermark has passed."""
        self._watermark = max(self._watermark, watermark)
        leaving = self._room.leave(watermark)
        self._versions.load([record.key for record in leaving])
        outputs: Outputs = []
        for start in range(0, len(leaving), EMIT_RECORDS):
            part = leaving[start : start + EMIT_RECORDS]
            outputs += self._pairs(part, [-1] * len(part), None)
        self._room.remember()
        self._versions.forget(watermark)
        return outputs

    def output_watermark(self, watermark: int) -> int:
        """Return the watermark: what it passes leaves at once."""
        return watermark

    def next_close(self) -> int | None:
        """Return the watermark at which the first left record leaves."""
        first = self._room.first()
        return None if first is None else first + 1

    def close_at_end(self) -> int | None:
        """Return the watermark at which the last left record leaves."""
        last = self._room.last()
        return None if last is None else last + 1

    def _pairs(self, leaving: Sequence[Waiting], offsets: list[int], running: Any) -> Outputs:
        if not leaving:
            return []
        found = self._versions.at(leaving)
        pairs = [(record.value, version) for record, version in zip(leaving, found, strict=True)]
        headers = [record.headers for record in leaving] if any(record.headers for record in leaving) else None
        stamps, keys = [record.time for record in leaving], [record.key for record in leaving]
        batch = Batch(offsets, stamps, keys, pairs, headers, running, running is not None)
        return [(MAIN, batch.where([version is not None for version in found]) if self._inner else batch)]
