"""When to look at which key: the index behind timers and expiry.

A note says that something is due for a key at a time. Notes lie in slots of time, each one bucket of rows
``slot start + time + key -> nothing``. A slot near the present covers about a second, one further off 64 times as much
for each step in distance, so that there are few of them however far ahead notes reach. When time comes to a slot, it is
opened: its near notes go into a heap, the others into finer slots. So a note costs a few rows in its life, wherever it
lies, and of all notes only those of the slot that time is in are in memory.

Notes are never taken back. Whoever acts on one first asks the row of its key whether it still holds.
"""

from __future__ import annotations

from bisect import insort
from heapq import heappop, heappush

from headrace.state.cache import Bucket, Codec, WriteBehind
from headrace.state.decoding import reading_keys
from headrace.state.keys import TIME_WIDTH, decode_time, encode_time

NEVER = 2**63 - 1
"""Later than any time."""

FINE_MS = 1024
"""What the finest slots cover; slots of all sizes start at a multiple of it."""

_BITS = 6
"""A slot of each size is divided into ``2**_BITS`` of the next finer one."""

NOTES: Codec[bool] = Codec(lambda notes: [b""] * len(notes), lambda rows: [True] * len(rows))
"""Rows that only have to be there."""

Note = tuple[int, bytes]
"""A time and a key."""


class Notes:
    """Notes in the order of their times and, within a time, of their keys.

    Args:
        cache: Where they are kept; nobody else writes there.

    Example:
        >>> from headrace.state.cache import Budget
        >>> from headrace.state.memory import MemoryStore
        >>> notes = Notes(WriteBehind(MemoryStore(), b"p", NOTES, budget=Budget(2**20)))
        >>> notes.add(90_000, b"k")
        >>> notes.add(5_000, b"j")
        >>> notes.take(90_001, 10)
        [(5000, b'j'), (90000, b'k')]
    """

    def __init__(self, cache: WriteBehind[bool]) -> None:
        self._cache = cache
        self._buckets: dict[int, Bucket[bool]] = {decode_time(bucket.prefix): bucket for bucket in cache.buckets()}
        self._closed = sorted(self._buckets)
        """Starts of the slots that time has not reached."""
        self._open: list[int] = []
        """Starts of the slots whose notes are in the heap."""
        self._near: list[Note] = []
        self._reach = 0
        """Every slot that starts before this is open."""
        self.next = self._closed[0] if self._closed else NEVER
        """No note is for an earlier time."""

    def __bool__(self) -> bool:
        """Return whether there may be any notes."""
        return self.next < NEVER

    def add(self, at: int, key: bytes) -> None:
        """Remember to look at ``key`` at the time ``at``."""
        start = self._slot(at)
        bucket = self._buckets.get(start)
        if bucket is None:
            bucket = self._buckets[start] = self._cache.bucket(encode_time(start))
            insort(self._open if start < self._reach else self._closed, start)
        bucket.live[encode_time(at) + key] = True
        if start < self._reach:
            heappush(self._near, (at, key))
        self._update()

    def take(self, limit: int, count: int) -> list[Note]:
        """Return the first notes for times before ``limit``, at most ``count``, and forget them."""
        while self._closed and self._closed[0] < limit:
            self._open_slot(self._closed.pop(0))
        self._reach = max(self._reach, -(-limit // FINE_MS) * FINE_MS)
        near = self._near
        taken: list[Note] = []
        while len(taken) < count and near and near[0][0] < limit:
            taken.append(heappop(near))
        if len(taken) < count:
            self._drop_passed()
        self._update()
        return taken

    def take_before(self, note: Note) -> Note | None:
        """Return the first note if it comes before ``note``, which was taken, and forget it."""
        if not self._near or self._near[0] >= note:
            return None
        taken = heappop(self._near)
        self._update()
        return taken

    def _slot(self, at: int) -> int:
        """Return the start of the slot for a time: the coarser, the further off it is."""
        fine = at - at % FINE_MS
        away = (fine - self._reach) // FINE_MS
        if away < 1 << _BITS:
            return fine
        width = FINE_MS << (away.bit_length() - 1) // _BITS * _BITS
        start = at - at % width
        while start < self._reach:
            width >>= _BITS
            start = at - at % width
        return start

    def _open_slot(self, start: int) -> None:
        end = start + FINE_MS
        self._reach = max(self._reach, end)
        insort(self._open, start)
        rows = self._cache.rows(self._buckets[start])
        with reading_keys(self._cache.part):
            notes = [(decode_time(row), row[TIME_WIDTH:]) for row, _ in rows]
        for at, key in notes:
            if at < end:
                heappush(self._near, (at, key))
            else:
                self.add(at, key)

    def _drop_passed(self) -> None:
        """Delete the open slots of which no note is left."""
        first = min(self._near[0][0] if self._near else NEVER, self._reach)
        while self._open and self._open[0] + FINE_MS <= first:
            self._cache.drop(self._buckets.pop(self._open.pop(0)))

    def _update(self) -> None:
        near = self._near[0][0] if self._near else NEVER
        self.next = min(near, self._closed[0]) if self._closed else near
