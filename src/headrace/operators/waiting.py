"""Where records wait until the watermark has passed their effective time, to leave in the order of that.

They wait under ``second + effective time + number``, as MessagePack of ``[key, value, headers]``, where nobody need
look for them; they go a second at a time, and ``progress`` holds the watermark up to which they have left and the next
number.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from headrace.operators.api import Batch, StepContext, watermarks_before
from headrace.operators.stored import StoredValues
from headrace.record import MIN_WATERMARK, Headers
from headrace.state.cache import Bucket, Codec, WriteBehind
from headrace.state.decoding import reading_keys, unreadable
from headrace.state.keys import TIME_WIDTH, decode_time, decode_times, encode_time, encode_times

_SLOT_MS = 1000
_TIMES: Codec[int] = Codec(encode_times, decode_times)
_LEFT, _NEXT = b"left", b"next"


class Waiting(NamedTuple):
    """A record until it leaves; they sort in the order in which they do."""

    time: int
    number: int
    key: bytes
    value: Any
    headers: Headers


def waiting_codec(stored: StoredValues) -> Codec[Waiting]:
    """Return how waiting records are written; their times and numbers stand in their keys."""

    def encode_many(rows: list[Waiting]) -> list[bytes]:
        values = stored.encode_many([row.value for row in rows])
        encode = msgspec.msgpack.encode
        return [encode((row.key, value, row.headers)) for row, value in zip(rows, values, strict=True)]

    def decode_many(data: list[bytes]) -> list[Waiting]:
        rows = list(map(_decoder.decode, data))
        values = stored.decode_many([value for _, value, _ in rows])
        return [Waiting(0, 0, key, value, headers) for (key, _, headers), value in zip(rows, values, strict=True)]

    return Codec(encode_many, decode_many)


_decoder = msgspec.msgpack.Decoder(tuple[bytes, bytes, tuple[tuple[str, bytes], ...]])


def effective(batch: Batch, floor: int) -> tuple[list[int], int]:
    """Return the watermark before each record of a batch, and before which time all leave in the step of the batch.

    The effective time of a record is its timestamp or that watermark, whichever is later.

    Args:
        batch: Records.
        floor: The watermark that the operator knows of.
    """
    before = watermarks_before(batch, floor)
    marks = list(accumulate(map(before, range(len(batch))), max))
    return marks, max(batch.running.last if batch.running else MIN_WATERMARK, marks[-1])


class Room:
    """Where records wait: in memory until the end of the step in which they came, then in the store too."""

    def __init__(self, cache: WriteBehind[Waiting], progress: Bucket[int]) -> None:
        self._cache = cache
        self._progress = progress
        self._slots: dict[int, Bucket[Waiting]] = {decode_time(bucket.prefix): bucket for bucket in cache.buckets()}
        self.left = progress.peek(_LEFT) or 0
        """All records with an effective time before this have left."""
        self._ahead = sorted(self._slots)
        """Slots whose records are not in ``_next`` yet."""
        self._reached = -1
        self._next: list[Waiting] = []
        """The records of the slots that were reached, in order."""
        self._number = progress.peek(_NEXT) or 0

    def enter(self, arrivals: Iterable[tuple[int, bytes, Any, Headers]], settled: int) -> None:
        """Take records in the order in which they came.

        Args:
            arrivals: Effective time, key, value and headers.
            settled: What has a time before this leaves in the same step, so that the store need not see it.
        """
        for time, key, value, headers in arrivals:
            record = Waiting(time, self._number, key, value, headers)
            self._number += 1
            slot = time // _SLOT_MS
            if slot <= self._reached or time < settled:
                self._next.append(record)
            elif slot not in self._slots:
                insort(self._ahead, slot)
            if time >= settled:
                bucket = self._slots.get(slot)
                if bucket is None:
                    bucket = self._slots[slot] = self._cache.bucket(encode_time(slot))
                bucket.live[encode_time(time) + encode_time(record.number)] = record
        self._next.sort()
        self._progress.live[_NEXT] = self._number

    def reach(self, watermark: int) -> list[Waiting]:
        """Return what leaves at ``watermark`` and leave it."""
        if self._ahead and self._ahead[0] * _SLOT_MS < watermark:
            while self._ahead and self._ahead[0] * _SLOT_MS < watermark:
                self._next += self._stored(self._ahead.pop(0))
            self._next.sort()
        self._reached = max(self._reached, (watermark - 1) // _SLOT_MS)
        return self._next[: bisect_left(self._next, (watermark,))]

    def leave(self, watermark: int) -> list[Waiting]:
        """Take out what leaves at ``watermark``."""
        records = self.reach(watermark)
        del self._next[: len(records)]
        self.left = max(self.left, watermark)
        return records

    def remember(self) -> None:
        """Drop the slots that all have left, and note in the store how far the others have."""
        for slot in sorted(self._slots):
            if (slot + 1) * _SLOT_MS > self.left:
                break
            if self._ahead and self._ahead[0] <= slot:
                raise unreadable(self._cache.part(), "records have left for which it is not time yet")
            self._cache.drop(self._slots.pop(slot))
        self._progress.live[_LEFT] = self.left

    def first(self) -> int | None:
        """Return the time of the record that leaves first, None if nobody waits."""
        while not self._next and self._ahead:
            self.reach((self._ahead[0] + 1) * _SLOT_MS)
        return self._next[0].time if self._next else None

    def last(self) -> int | None:
        """Return the time of the record that leaves last, None if nobody waits."""
        for slot in reversed(self._ahead):
            if records := self._stored(slot):
                return max(record.time for record in records)
        return self._next[-1].time if self._next else None

    def _stored(self, slot: int) -> list[Waiting]:
        rows = list(self._cache.rows(self._slots[slot]))
        with reading_keys(self._cache.part):
            records = [
                record._replace(time=decode_time(row), number=decode_time(row, TIME_WIDTH)) for row, record in rows
            ]
        if any(record.time // _SLOT_MS != slot for record in records):
            raise unreadable(self._cache.part(), "a record waits in a slot that is not its own")
        return [record for record in records if record.time >= self.left]


def open_room(context: StepContext, stored: StoredValues) -> Room:
    """Return the room of a step, with the records that wait there already."""
    store, budget, prefix = context.store, context.budget, context.store_prefix
    progress = WriteBehind(store, prefix("progress"), _TIMES, budget=budget, width=0)
    waiting = WriteBehind(store, prefix("waiting"), waiting_codec(stored), budget=budget)
    return Room(waiting, progress.bucket(b""))
