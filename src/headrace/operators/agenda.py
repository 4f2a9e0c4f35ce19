"""When to look at which key.

A time is noted for a key in a slot of time, which is a bucket of the store with the keys to look at in it. A slot that
event time draws near to is opened: its keys are looked up, and their exact times are kept in memory in order. So
noting a key costs one entry of a dict, and keys are found in the order of their times and not only slot by slot.

A note is a hint: whoever made it must tell, from a key's own row, which times are outstanding. So a time that has
moved on needs no second note, and notes that are lost or repeated with a crash do no harm.

The rows are ``slot + key``, where a slot is its number in eight bytes, and have no value.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush

from headrace.state.cache import Bucket, Codec, WriteBehind
from headrace.state.keys import decode_time, encode_time

MARKS: Codec[bool] = Codec(lambda marks: [b""] * len(marks), lambda rows: [True] * len(rows))
"""Rows that only have to be there."""


class Agenda:
    """Keys by the time at which something is to be done for them.

    Args:
        cache: Where notes are kept.
        slot_ms: How much time a slot covers.
        outstanding: Gives, for keys, every time that is outstanding for any of them, with the key.
    """

    def __init__(
        self,
        cache: WriteBehind[bool],
        slot_ms: int,
        outstanding: Callable[[Sequence[bytes]], Iterable[tuple[int, bytes]]],
    ) -> None:
        self._cache = cache
        self._slot_ms = slot_ms
        self._outstanding = outstanding
        self._closed: dict[int, Bucket[bool]] = {decode_time(bucket.prefix): bucket for bucket in cache.buckets()}
        self._order = list(self._closed)
        """The slots that were not opened, in order."""
        self._opened: dict[int, Bucket[bool]] = {}
        self._near: list[tuple[int, bytes]] = []
        self._queued: set[tuple[int, bytes]] = set()
        """What is in ``_near``, so that it is in there once."""

    def note(self, due: int, key: bytes) -> None:
        """Remember to look at a key at the watermark ``due``."""
        slot = due // self._slot_ms
        bucket = self._opened.get(slot)
        if bucket is not None:
            bucket.live[key] = True
            self._queue(due, key)
            return
        bucket = self._closed.get(slot)
        if bucket is None:
            bucket = self._closed[slot] = self._cache.bucket(encode_time(slot))
            insort(self._order, slot)
        bucket.live[key] = True

    def first(self) -> tuple[int, bytes] | None:
        """Return the first key and when to look at it; nothing of what is outstanding comes before that."""
        while self._order and (not self._near or self._order[0] < self._near[0][0] // self._slot_ms):
            self._open()
        return self._near[0] if self._near else None

    def next_due(self) -> int | None:
        """Return the time of the first key; the key may turn out to have nothing outstanding by then."""
        first = self.first()
        return None if first is None else first[0]

    def pop(self) -> tuple[int, bytes]:
        """Take the first key away."""
        entry = heappop(self._near)
        self._queued.discard(entry)
        return entry

    def take(self, watermark: int) -> list[tuple[int, bytes]]:
        """Take away the keys that are due at ``watermark``, in the order of their times and then of the keys."""
        while self._order and self._order[0] * self._slot_ms <= watermark:
            self._open()
        taken = []
        near = self._near
        while near and near[0][0] <= watermark:
            taken.append(heappop(near))
        self._queued.difference_update(taken)
        for slot in [slot for slot in self._opened if (slot + 1) * self._slot_ms <= watermark]:
            self._cache.drop(self._opened.pop(slot))
        return taken

    def _queue(self, due: int, key: bytes) -> None:
        entry = (due, key)
        queued = self._queued
        if entry not in queued:
            queued.add(entry)
            heappush(self._near, entry)

    def _open(self) -> None:
        slot = self._order.pop(0)
        bucket = self._opened[slot] = self._closed.pop(slot)
        for due, key in self._outstanding([key for key, _ in self._cache.rows(bucket)]):
            self.note(due, key)
