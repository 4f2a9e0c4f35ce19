"""Joining two streams within an interval of time.

A left and a right record of one key are a pair if ``left - before <= right <= left + after``. Each side is kept under
``slice of time + key`` as a ``Timeline``: one row holds the records of a key whose times lie in one slice. So a record
looks at a few rows of the other side, a batch asks the store once per slice, and old records go a slice at a time,
without being looked at.

Where records without a partner leave too, a ``Timeline``'s marks tell who had one, ``DueTimes`` knows when each expires
(``expiry + side + key``), and ``released`` holds the watermark up to which they have left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from headrace.operators.api import EMIT_RECORDS, MAIN, Batch, Outputs, StepContext, watermarks_before
from headrace.operators.causes import cause
from headrace.operators.stored import StoredValues, stored_shape
from headrace.operators.timelines import MARKS, DueTimes, Timeline, timeline_codec
from headrace.operators.windowed import LATE
from headrace.record import MIN_WATERMARK
from headrace.serde.api import Serde
from headrace.state.cache import Bucket, Codec, WriteBehind
from headrace.state.decoding import unreadable
from headrace.state.keys import decode_time, decode_times, encode_time, encode_times

LATE_RIGHT = "late-right"
"""The port of records of the right side that came too late to be matched."""

How = Literal["inner", "left", "right", "outer"]

_LEAST_SLICE_MS = 100
_TIMES: Codec[int] = Codec(encode_times, decode_times)
_SIDES = (b"\0", b"\1")
_ALONE: tuple[Callable[[Any], Any], ...] = (lambda value: (value, None), lambda value: (None, value))


@dataclass(frozen=True, slots=True)
class IntervalJoin:
    """Pairs the records of two streams that have one key and lie near each other in time."""

    left: Serde[Any]
    right: Serde[Any]
    before_ms: int
    after_ms: int
    how: How = "inner"
    lateness_ms: int = 0
    kind: ClassVar[str] = "join"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = True
    uses_clock: ClassVar[bool] = False
    ports: ClassVar[tuple[str, ...]] = (MAIN, LATE, LATE_RIGHT)

    @property
    def timed_ports(self) -> tuple[str, ...]:
        """Return the main port where records without a partner leave by it."""
        return () if self.how == "inner" else (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored records depend on."""
        return {
            "within_ms": [self.before_ms, self.after_ms],
            "how": self.how,
            "left": stored_shape(self.left),
            "right": stored_shape(self.right),
        }

    def build(self, context: StepContext) -> IntervalJoinOperator:
        """Make the operator of one task."""
        waits = self.after_ms + self.lateness_ms, self.before_ms + self.lateness_ms
        emits = self.how in ("left", "outer"), self.how in ("right", "outer")
        hold = max([wait for wait, emit in zip(waits, emits, strict=True) if emit], default=0)
        slice_ms = max(_LEAST_SLICE_MS, (self.before_ms + self.after_ms) // 2)
        reaches = (self.before_ms, self.after_ms), (self.after_ms, self.before_ms)
        sides = []
        for side, (part, serde) in enumerate((("left", self.left), ("right", self.right))):
            stored = StoredValues(serde, context.step)
            prefix = context.store_prefix(part)
            cache = WriteBehind(context.store, prefix, timeline_codec(stored), budget=context.budget)
            back_ms, ahead_ms = reaches[side]
            keep_ms = hold if emits[side] else waits[side]
            sides.append(Side(stored, cache, slice_ms, back_ms, ahead_ms, waits[side], keep_ms, emits[side]))
        if self.how == "inner":
            return IntervalJoinOperator(sides, slice_ms, self.lateness_ms, 0, None)
        released = WriteBehind(context.store, context.store_prefix("released"), _TIMES, budget=context.budget, width=0)
        due = WriteBehind(context.store, context.store_prefix("due"), MARKS, budget=context.budget)
        unmatched = Unmatched(due, max(_LEAST_SLICE_MS, hold // 64), released.bucket(b""), hold)
        return IntervalJoinOperator(sides, slice_ms, self.lateness_ms, hold, unmatched)


@dataclass(slots=True)
class Side:
    """One side of a join: what is kept of it, and which times of the other side its records look for."""

    stored: StoredValues
    cache: WriteBehind[Timeline]
    slice_ms: int
    back_ms: int
    ahead_ms: int
    wait_ms: int
    """How far the watermark may be beyond a record that can still be matched."""
    keep_ms: int
    """The same for a record that is still needed."""
    emits: bool
    """Whether records without a partner leave."""
    slices: dict[int, Bucket[Timeline]] = field(init=False)

    def __post_init__(self) -> None:
        self.slices = {decode_time(bucket.prefix): bucket for bucket in self.cache.buckets()}

    def keep(self, key: bytes, timestamp: int, value: Any, matched: int) -> None:
        """Store a record; its row must have been loaded."""
        number = timestamp // self.slice_ms
        bucket = self.slices.get(number)
        if bucket is None:
            bucket = self.slices[number] = self.cache.bucket(encode_time(number))
        live = bucket.live
        row = live.get(key)
        if row is None:
            row = bucket.clean.pop(key, None)
            if row is None:
                live[key] = Timeline([timestamp], [value], bytearray((matched,)))
                return
            live[key] = row
        row.add(timestamp, value, matched)

    def load(self, wanted: dict[int, list[bytes]]) -> None:
        """Bring rows into memory: keys by the number of their slice."""
        for number, keys in wanted.items():
            if number in self.slices:
                self.slices[number].load(sorted(set(keys)))

    def unmatched(self, key: bytes, timestamp: int) -> list[Any]:
        """Return the values of one key and time that have found no partner."""
        bucket = self.slices.get(timestamp // self.slice_ms)
        row = None if bucket is None else bucket.peek(key)
        if row is None:
            raise unreadable(self.cache.part(), "a record that is to leave without a partner is not there")
        return [row.values[i] for i in row.between(timestamp, timestamp) if not row.marks[i]]

    def drop(self, watermark: int) -> None:
        """Drop the slices of which no record is needed any more."""
        for number in sorted(self.slices):
            if (number + 1) * self.slice_ms + self.keep_ms > watermark:
                break
            self.cache.drop(self.slices.pop(number))


class Unmatched:
    """When the records without a partner leave: ``hold_ms`` after their time."""

    def __init__(self, cache: WriteBehind[bool], slot_ms: int, released: Bucket[int], hold_ms: int) -> None:
        self._released = released
        self.hold_ms = hold_ms
        self.part = cache.part
        self.due = DueTimes(cache, slot_ms, released.peek(b"") or 0)

    def release(self, sides: Sequence[Side], watermark: int) -> list[tuple[int, bytes, Any]]:
        """Return (timestamp, key, pair) of what leaves at ``watermark``: by time, side, key and arrival."""
        found = []
        for entry in self.due.due(watermark):
            side, key, timestamp = _record(entry, self)
            found += [(timestamp, key, _ALONE[side](value)) for value in sides[side].unmatched(key, timestamp)]
        return found

    def remember(self, watermark: int) -> None:
        """Note in the store that everything due before ``watermark`` has left."""
        self.due.drop(watermark)
        if watermark > MIN_WATERMARK:
            self._released.live[b""] = watermark


@dataclass(slots=True)
class _Made:
    """What one batch makes, in order: pairs by the records that completed them, and between them what expired."""

    batch: Batch
    before: Callable[[int], int]
    """Gives the watermark before the record at a place."""
    hold_ms: int
    outputs: Outputs = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    stamps: list[int] = field(default_factory=list)
    pairs: list[Any] = field(default_factory=list)
    expired: list[tuple[int, bytes, Any]] = field(default_factory=list)
    causes: list[int] = field(default_factory=list)

    def expire(self, place: int, expired: list[tuple[int, bytes, Any]]) -> None:
        """Take what left before the record at ``place``, because of the one before that."""
        if not expired:
            return
        if self.pairs:
            self.leave_pairs()
        self.causes += [cause(self.batch, place, timestamp + self.hold_ms + 1) for timestamp, _, _ in expired]
        self.expired += expired

    def leave_expired(self) -> None:
        running = self.batch.running
        self.outputs.append((MAIN, _expired(self.expired, self.causes, running)))
        self.expired, self.causes = [], []

    def leave_pairs(self) -> None:
        batch, places = self.batch, self.places
        offsets, keys = [batch.offsets[i] for i in places], [batch.keys[i] for i in places]
        moments: list[int] | None = None
        if batch.timed or offsets[0] < 0:
            moments = [self.before(place) - self.hold_ms for place in places]
        pairs = Batch(offsets, self.stamps, keys, self.pairs, None, batch.running, batch.timed, moments)
        self.outputs.append((MAIN, pairs))
        self.places, self.stamps, self.pairs = [], [], []

    def leave(self) -> Outputs:
        if self.pairs:
            self.leave_pairs()
        if self.expired:
            self.leave_expired()
        return self.outputs


class IntervalJoinOperator:
    """The running form of ``IntervalJoin``."""

    def __init__(
        self, sides: Sequence[Side], slice_ms: int, lateness_ms: int, hold_ms: int, unmatched: Unmatched | None
    ) -> None:
        self._sides = sides
        self._slice_ms = slice_ms
        self._lateness_ms = lateness_ms
        self._hold_ms = hold_ms
        self._unmatched = unmatched
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Take records of the left side."""
        return self.process_sides(batch, [0] * len(batch))

    def process_sides(self, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Pair each record with what came before it, and keep it for what comes after."""
        for side, item in enumerate(self._sides):
            item.stored.check([value for value, of in zip(batch.values, sides, strict=True) if of == side])
        watermark = self._watermark
        before = watermarks_before(batch, watermark)
        limit = before(len(batch) - 1)
        if batch.timed or batch.offsets[0] < 0:
            limit = max(map(before, range(len(batch))))
        self._load(batch, sides, limit)
        made, late = _Made(batch, before, self._hold_ms), [0] * len(batch)
        unmatched, lateness = self._unmatched, self._lateness_ms
        due = unmatched.due if unmatched else None
        rows = zip(batch.keys, batch.timestamps, batch.values, sides, strict=True)
        for place, (key, timestamp, value, side) in enumerate(rows):
            assert key is not None
            own, other = self._sides[side], self._sides[1 - side]
            low = timestamp - own.back_ms
            if timestamp + lateness < limit or (due is not None and due.soonest < limit):
                watermark = max(watermark, before(place))
                if unmatched and due and due.soonest < watermark:
                    made.expire(place, unmatched.release(self._sides, watermark))
                if timestamp + lateness < watermark:
                    if timestamp + own.wait_ms < watermark:
                        late[place] = side + 1
                        continue
                    low = max(low, watermark - other.wait_ms)
            found = self._pair(made, place, key, timestamp, value, side, low)
            own.keep(key, timestamp, value, found)
            if own.emits and not found and due:
                due.note(timestamp + self._hold_ms, _SIDES[side] + key)
        self._watermark = limit
        outputs = made.leave()
        if any(late):
            ports = (LATE, 1), (LATE_RIGHT, 2)
            outputs += [(port, batch.where([of == side for of in late])) for port, side in ports if side in late]
        return outputs

    def on_watermark(self, watermark: int) -> Outputs:
        """Let go what has expired, and let it leave where it had no partner and that is wanted."""
        watermark = self._watermark = max(self._watermark, watermark)
        outputs: Outputs = []
        if self._unmatched is not None:
            self._load_due(watermark)
            gone = self._unmatched.release(self._sides, watermark)
            for start in range(0, len(gone), EMIT_RECORDS):
                part = gone[start : start + EMIT_RECORDS]
                outputs.append((MAIN, _expired(part, [-1] * len(part), None)))
            self._unmatched.remember(watermark)
        for side in self._sides:
            side.drop(watermark)
        return outputs

    def output_watermark(self, watermark: int) -> int:
        """Hold the watermark back by as much as records without a partner come later than their time."""
        return max(MIN_WATERMARK, watermark - self._hold_ms)

    def next_close(self) -> int | None:
        """Return the watermark at which the first record leaves without a partner."""
        if self._unmatched is None:
            return None
        due = self._unmatched.due
        while (entry := due.first()) is not None:
            if self._is_unmatched(entry):
                return entry[0] + 1
            due.skip()
        return None

    def close_at_end(self) -> int | None:
        """Return the watermark at which the last record leaves without a partner."""
        if self._unmatched is None:
            return None
        return next((e[0] + 1 for e in self._unmatched.due.last_first() if self._is_unmatched(e)), None)

    def _is_unmatched(self, entry: tuple[int, bytes]) -> bool:
        assert self._unmatched is not None
        side, key, timestamp = _record(entry, self._unmatched)
        return bool(self._sides[side].unmatched(key, timestamp))

    def _pair(self, made: _Made, place: int, key: bytes, timestamp: int, value: Any, side: int, low: int) -> int:
        """Pair one record with those of the other side; return 1 if there is any."""
        own, other = self._sides[side], self._sides[1 - side]
        slices, slice_ms, high = other.slices, self._slice_ms, timestamp + own.ahead_ms
        found = 0
        for number in range(low // slice_ms, high // slice_ms + 1):
            bucket = slices.get(number)
            if bucket is None:
                continue
            row = bucket.live.get(key)
            if row is None and (row := bucket.clean.get(key)) is None:
                continue
            near = row.between(low, high)
            if not near:
                continue
            found = 1
            if made.expired:
                made.leave_expired()
            made.places += [place] * len(near)
            made.stamps += [time if time > timestamp else timestamp for time in row.times[near.start : near.stop]]
            others = row.values[near.start : near.stop]
            made.pairs += [(other, value) for other in others] if side else [(value, other) for other in others]
            if other.emits and 0 in row.marks[near.start : near.stop]:
                row.marks[near.start : near.stop] = b"\1" * len(near)
                if key not in bucket.live:
                    bucket.live[key] = bucket.clean.pop(key)
        return found

    def _load(self, batch: Batch, sides: Sequence[int], limit: int) -> None:
        """Bring every row that the batch may touch into memory, with one call of the store for each slice."""
        slice_ms = self._slice_ms
        for side, item in enumerate(self._sides):
            missing = {number for number, bucket in item.slices.items() if not bucket.complete}
            if not missing:
                continue
            wanted: dict[int, list[bytes]] = {}
            for key, timestamp, of in zip(batch.keys, batch.timestamps, sides, strict=True):
                assert key is not None
                own = self._sides[of]
                first = timestamp if of == side else timestamp - own.back_ms
                last = timestamp if of == side else timestamp + own.ahead_ms
                for number in range(first // slice_ms, last // slice_ms + 1):
                    if number in missing:
                        wanted.setdefault(number, []).append(key)
            item.load(wanted)
        if self._unmatched is not None:
            self._load_due(limit)

    def _load_due(self, watermark: int) -> None:
        """Bring what expires before ``watermark`` into memory."""
        complete = all(bucket.complete for side in self._sides for bucket in side.slices.values())
        if self._unmatched is None or self._unmatched.due.soonest >= watermark or complete:
            return
        coming = self._unmatched.due.coming(watermark)
        for side, item in enumerate(self._sides):
            wanted: dict[int, list[bytes]] = {}
            for entry in coming:
                of, key, timestamp = _record(entry, self._unmatched)
                number = timestamp // self._slice_ms
                if of == side and not (number in item.slices and item.slices[number].complete):
                    wanted.setdefault(number, []).append(key)
            item.load(wanted)


def _expired(rows: Sequence[tuple[int, bytes, Any]], offsets: list[int], running: Any) -> Batch:
    stamps, keys, pairs = [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]
    return Batch(offsets, stamps, keys, pairs, None, running, running is not None)


def _record(entry: tuple[int, bytes], unmatched: Unmatched) -> tuple[int, bytes, int]:
    """Return side, key and time of a record that expires."""
    time, name = entry
    if name[:1] not in _SIDES:
        raise unreadable(unmatched.part(), "what expires is of no side")
    return name[0], name[1:], time - unmatched.hold_ms
