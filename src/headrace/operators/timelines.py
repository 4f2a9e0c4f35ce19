"""What joins keep: values in the order of time, and the times at which something is due.

``Timeline`` is one row of the store, MessagePack of ``[times, marks, values]``: the times in order, one byte per value
that the step gives a meaning, and each value as ``stored`` writes it. ``DueTimes`` keeps empty rows under
``slot + time + key``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import accumulate, chain, pairwise
from typing import Any

import msgspec

from headrace.errors import CorruptError
from headrace.operators.stored import StoredValues
from headrace.operators.times import Time, check_order
from headrace.state.cache import Bucket, Codec, WriteBehind
from headrace.state.decoding import reading_keys, unreadable
from headrace.state.keys import TIME_WIDTH, decode_time, encode_time

NEVER = 1 << 63
"""A time that no watermark passes."""

MARKS: Codec[bool] = Codec(lambda marks: [b""] * len(marks), lambda rows: [True] * len(rows))
"""Rows that only have to be there."""


@dataclass(slots=True)
class Timeline:
    """Values of one key, by time; those of one time stay in the order in which they came."""

    times: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    marks: bytearray = field(default_factory=bytearray)

    def add(self, time: int, value: Any, mark: int = 0) -> None:
        """Put a value behind all whose time is not later."""
        times = self.times
        if not times or times[-1] <= time:
            times.append(time)
            self.values.append(value)
            self.marks.append(mark)
            return
        place = bisect_right(times, time)
        times.insert(place, time)
        self.values.insert(place, value)
        self.marks.insert(place, mark)

    def between(self, low: int, high: int) -> range:
        """Return the places of the values whose times lie between the two, which count themselves."""
        times = self.times
        start = 0 if times[0] >= low else bisect_left(times, low)
        return range(start, len(times) if times[-1] <= high else bisect_right(times, high))

    def forget(self, count: int) -> None:
        """Drop the first values."""
        del self.times[:count], self.values[:count], self.marks[:count]


def timeline_codec(stored: StoredValues) -> Codec[Timeline]:
    """Return how rows are written whose values ``stored`` encodes, all values of all rows in one call."""

    def encode_many(rows: list[Timeline]) -> list[bytes]:
        values = stored.encode_many(list(chain.from_iterable(row.values for row in rows)))
        ends = pairwise(accumulate((len(row.values) for row in rows), initial=0))
        encode = msgspec.msgpack.encode
        return [encode((row.times, row.marks, values[start:end])) for row, (start, end) in zip(rows, ends, strict=True)]

    def decode_many(data: list[bytes]) -> list[Timeline]:
        rows = list(map(_decoder.decode, data))
        for times, marks, encoded in rows:
            check_order(times)
            if not len(times) == len(marks) == len(encoded):
                raise CorruptError("a row does not have as many marks and values as times")
        values = stored.decode_many(list(chain.from_iterable(encoded for _, _, encoded in rows)))
        ends = pairwise(accumulate((len(times) for times, _, _ in rows), initial=0))
        return [
            Timeline(times, values[start:end], bytearray(marks))
            for (times, marks, _), (start, end) in zip(rows, ends, strict=True)
        ]

    return Codec(encode_many, decode_many)


_decoder = msgspec.msgpack.Decoder(tuple[list[Time], bytes, list[bytes]])


class DueTimes:
    """Keys to look at when the watermark has passed a time: in the store, and exact to the millisecond.

    They lie in slots of time. Those of the slot that the watermark is in are in memory too, in a heap, so that a
    look at whether something is due costs one comparison. What was due leaves the store with its whole slot; until
    then ``done`` says that it is over, which the owner must remember.

    Args:
        cache: Rows of ``slot + time + key``, with buckets by slot.
        slot_ms: What a slot covers.
        done: Everything due before this is over.
    """

    def __init__(self, cache: WriteBehind[bool], slot_ms: int, done: int) -> None:
        self._cache = cache
        self._slot_ms = slot_ms
        self._done = done
        self._slots: dict[int, Bucket[bool]] = {decode_time(bucket.prefix): bucket for bucket in cache.buckets()}
        self._ahead = sorted(self._slots)
        """Slots that are not in the heap yet."""
        self._reached = -1
        """The last slot that is in the heap."""
        self._heap: list[tuple[int, bytes]] = []
        self.soonest = self._ahead[0] * slot_ms if self._ahead else NEVER
        """Nothing is due before this."""

    def note(self, time: int, key: bytes) -> None:
        """Have ``key`` come up when ``time`` has passed; it must not have passed yet."""
        slot = time // self._slot_ms
        bucket = self._slots.get(slot)
        if bucket is None:
            bucket = self._slots[slot] = self._cache.bucket(encode_time(slot))
            if slot > self._reached:
                insort(self._ahead, slot)
        bucket.live[encode_time(time) + key] = True
        if slot <= self._reached:
            heappush(self._heap, (time, key))
        self.soonest = min(self.soonest, time)

    def due(self, watermark: int) -> list[tuple[int, bytes]]:
        """Return what is due before ``watermark`` and take it for done: by time and key, each once."""
        due: list[tuple[int, bytes]] = []
        if self.soonest < watermark:
            self._reach(watermark)
            heap = self._heap
            while heap and heap[0][0] < watermark:
                entry = heappop(heap)
                if not due or entry != due[-1]:
                    due.append(entry)
            self._settle()
        self._done = max(self._done, watermark)
        return due

    def coming(self, watermark: int) -> list[tuple[int, bytes]]:
        """Return what ``due`` would, in no order, and leave it."""
        if self.soonest >= watermark:
            return []
        self._reach(watermark)
        return [entry for entry in self._heap if entry[0] < watermark]

    def first(self) -> tuple[int, bytes] | None:
        """Return what is due first, or None."""
        while not self._heap and self._ahead:
            self._reach((self._ahead[0] + 1) * self._slot_ms)
        return self._heap[0] if self._heap else None

    def skip(self) -> None:
        """Take what is due first for done."""
        heappop(self._heap)
        self._settle()

    def last_first(self) -> Iterator[tuple[int, bytes]]:
        """Yield everything that is not done, the last first."""
        for slot in sorted(self._slots, reverse=True):
            yield from (entry for entry in reversed(self._entries(slot)) if entry[0] >= self._done)

    def drop(self, watermark: int) -> None:
        """Take the slots that the watermark has passed, and that are done, out of the store."""
        for slot in sorted(self._slots):
            if (slot + 1) * self._slot_ms > watermark:
                break
            self._cache.drop(self._slots.pop(slot))

    def _reach(self, watermark: int) -> None:
        """Bring the slots that begin before ``watermark`` into the heap."""
        while self._ahead and self._ahead[0] * self._slot_ms < watermark:
            slot = self._ahead.pop(0)
            self._heap += [entry for entry in self._entries(slot) if entry[0] >= self._done]
            heapify(self._heap)
        self._reached = max(self._reached, (watermark - 1) // self._slot_ms)

    def _entries(self, slot: int) -> list[tuple[int, bytes]]:
        """Return what is in a slot, by time and key."""
        rows = self._cache.rows(self._slots[slot])
        with reading_keys(self._cache.part):
            entries = [(decode_time(row), row[TIME_WIDTH:]) for row, _ in rows]
        if any(time // self._slot_ms != slot for time, _ in entries):
            raise unreadable(self._cache.part(), "a time is in a slot that is not its own")
        return entries

    def _settle(self) -> None:
        ahead = self._ahead[0] * self._slot_ms if self._ahead else NEVER
        self.soonest = min(self._heap[0][0] if self._heap else NEVER, ahead)
