"""The write-behind cache: values stay Python objects in dicts, and the store sees a row once per flush.

An operator changes values in place in ``Bucket.live``; being in there *is* the mark of having changed, so that a
record costs no bookkeeping. A flush encodes what is live into one write batch and makes it clean; clean values may
leave memory at any time, because the store has them.
"""

from __future__ import annotations

import sys
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar

from headrace.state.api import Store, WriteBatch
from headrace.state.decoding import checked, unreadable
from headrace.state.keyfilter import KeyFilter
from headrace.state.keys import TIME_WIDTH, prefix_end
from headrace.state.sizes import deep_size

V = TypeVar("V")

_CHUNK_ROWS = 1024
_SAMPLE_ROWS = 16
_SLOT_BYTES = 104
"""What an entry takes in a dict that is filled to its usual half."""
_KEPT_SHARE = 0.5
"""How full a budget is after relief; evicting only down to the limit would mean relief after every step."""


@dataclass(frozen=True, slots=True)
class Codec(Generic[V]):
    """Turns values into the bytes of rows and back, many per call, in their order."""

    encode_many: Callable[[list[V]], list[bytes]]
    decode_many: Callable[[list[bytes]], list[V]]


class Bucket(Generic[V]):
    """The rows of one key prefix, for example of one window of one step.

    Keys are what follows the prefix. Values are never None. ``live`` and ``clean`` are the same two dicts for the
    life of the bucket. The hot path of an operator is::

        bucket.load(keys)                      # once per batch
        live = bucket.live
        for key in keys:
            try:
                value = live[key]
            except KeyError:
                value = bucket.get(key)
                if value is None:
                    value = live[key] = new_value()
            value.change()
    """

    __slots__ = (
        "_absent",
        "_asked",
        "_base",
        "_cache",
        "_dead",
        "_stored_keys",
        "_written",
        "clean",
        "complete",
        "live",
        "prefix",
    )

    def __init__(self, cache: WriteBehind[V], prefix: bytes, *, stored: bool) -> None:
        self.prefix = prefix
        self.live: dict[bytes, V] = {}
        """Changed since the last flush; operators change the values in place, and may add and replace them."""
        self.clean: dict[bytes, V] = {}
        """In memory and equal to the store; the longest unchanged come first."""
        self.complete = not stored
        """True if every row is in memory, so that a miss is a true miss."""
        self._cache = cache
        self._base = cache.prefix + prefix
        self._written = stored
        self._dead: set[bytes] = set()
        self._stored_keys: KeyFilter | None = None
        """Knows the keys that left memory, if the bucket was whole before; other keys are not in the store."""
        self._asked: list[bytes] = []
        """What the last load asked the store for; where it is not in memory, it does not exist."""
        self._absent: set[bytes] | None = None
        """The same as a set, made when first needed."""

    def get(self, key: bytes) -> V | None:
        """Return the value of ``key`` for changing it, or None; the value counts as changed from here on."""
        value = self.peek(key)
        if value is not None:
            self.clean.pop(key, None)
            self.live[key] = value
        return value

    def peek(self, key: bytes) -> V | None:
        """Return the value of ``key`` for reading only, or None."""
        value = self.live.get(key)
        if value is None:
            value = self.clean.get(key)
            if value is None and not self.complete and not self._is_absent(key):
                self.load([key])
                value = self.clean.get(key)
        return value

    def load(self, keys: Collection[bytes]) -> None:
        """Bring those of ``keys`` that are not in memory into ``clean``, with one call of the store for all of them.

        Until the next call, those that do not exist are known not to.
        """
        if self.complete:
            self._cache.hits += len(keys)
            return
        live, clean, cache, base = self.live, self.clean, self._cache, self._base
        missing = [key for key in keys if key not in live and key not in clean]
        if self._dead:
            missing = [key for key in missing if key not in self._dead]
        if self._stored_keys is not None:
            missing = self._stored_keys.pick(missing)
        cache.hits += len(keys) - len(missing)
        cache.misses += len(missing)
        self._asked, self._absent = missing, None
        if not missing:
            return
        rows = cache.store.get_many([base + key for key in missing])
        if rows.count(None) == len(rows):
            return
        found = [key for key, row in zip(missing, rows, strict=True) if row is not None]
        values = cache.decode_many([row for row in rows if row is not None])
        clean.update(zip(found, values, strict=True))

    def load_all(self) -> None:
        """Bring every row into memory, after which the store is not asked again until rows are evicted."""
        if self.complete:
            return
        for keys, rows in self._stored():
            wanted = [i for i, key in enumerate(keys) if key not in self.live and key not in self.clean]
            values = self._cache.decode_many([rows[i] for i in wanted])
            self.clean.update(zip([keys[i] for i in wanted], values, strict=True))
        self.complete = True
        self._asked, self._absent = [], None

    def _is_absent(self, key: bytes) -> bool:
        """Return whether the store is known not to have ``key``, or to lose it with the next flush."""
        if self._absent is None:
            self._absent = set(self._asked)
        return key in self._absent or key in self._dead

    def filter_bytes(self) -> int:
        """Return how much memory goes to knowing which keys the store has."""
        return 0 if self._stored_keys is None else self._stored_keys.size_bytes

    def __len__(self) -> int:
        """Return how many rows are in memory."""
        return len(self.live) + len(self.clean)

    def _stored(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Yield keys and rows that the store has and no discard took away, in chunks; the scan begins at once."""
        scan = self._cache.store.scan(self._base, prefix_end(self._base))
        return self._chunks(scan, self._dead.copy())

    def _chunks(
        self, scan: Iterator[tuple[bytes, bytes]], dead: set[bytes]
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        skipped = len(self._base)
        while chunk := list(islice(scan, _CHUNK_ROWS)):
            keys = [key[skipped:] for key, _ in chunk]
            rows = [row for _, row in chunk]
            if dead:
                alive = [i for i, key in enumerate(keys) if key not in dead]
                keys, rows = [keys[i] for i in alive], [rows[i] for i in alive]
            yield keys, rows

    def _rows(self) -> Iterator[tuple[bytes, V]]:
        memory = {**self.clean, **self.live}
        keys = sorted(memory)
        if self.complete:
            return zip(keys, map(memory.__getitem__, keys), strict=True)
        return self._merged(memory, keys, self._stored())

    def _merged(
        self, memory: dict[bytes, V], order: list[bytes], stored: Iterator[tuple[list[bytes], list[bytes]]]
    ) -> Iterator[tuple[bytes, V]]:
        decode_many = self._cache.decode_many
        done = 0
        for keys, rows in stored:
            if not keys:
                continue
            until = bisect_right(order, keys[-1], done)
            fresh = [i for i, key in enumerate(keys) if key not in memory]
            values = dict(zip([keys[i] for i in fresh], decode_many([rows[i] for i in fresh]), strict=True))
            values.update((key, memory[key]) for key in order[done:until])
            done = until
            yield from sorted(values.items(), key=_first)
        for key in order[done:]:
            yield key, memory[key]

    def _flush(self, batch: WriteBatch) -> None:
        live, base = self.live, self._base
        if self._dead:
            batch.deletes.extend(base + key for key in sorted(self._dead))
            self._dead.clear()
        if live:
            keys = sorted(live)
            rows = self._cache.codec.encode_many(list(map(live.__getitem__, keys)))
            batch.keys.extend(map(base.__add__, keys))
            batch.values.extend(rows)
            self._written = True
            self.clean.update(live)
            live.clear()

    def _discard(self, key: bytes) -> None:
        self.live.pop(key, None)
        self.clean.pop(key, None)
        if self._written:
            self._dead.add(key)

    def _evict(self, count: int) -> int:
        clean = self.clean
        gone = list(islice(clean, count))
        if not gone:
            return 0
        if self.complete:
            self._stored_keys = self._cache.new_filter(len(self))
        if self._stored_keys is not None:
            self._stored_keys.add(gone)
            if not self._stored_keys.useful:
                self._stored_keys = None
        if len(gone) == len(clean):
            clean.clear()
        else:
            deque(map(clean.__delitem__, gone), 0)
        self.complete = False
        self._asked, self._absent = [], None
        return len(gone)


class WriteBehind(Generic[V]):
    """The cache of one step: buckets over one prefix of a store.

    The buckets that the store has are found when the cache is made. After a failed write of a flushed batch the cache
    and the store differ: write the batch again, or forget both.

    Args:
        store: Where rows go to.
        prefix: What every key of this cache begins with; nobody else writes there.
        codec: How values become rows.
        budget: Memory that this cache shares with others of its task.
        width: Bytes of each bucket's own prefix; 0 makes one bucket, with the prefix ``b""``.
        cold: True if a value is rarely needed again; such values leave memory first.
    """

    __slots__ = (
        "_buckets",
        "_entry_bytes",
        "_filter_bytes",
        "_order",
        "_ranges",
        "_width",
        "codec",
        "cold",
        "decode_many",
        "hits",
        "misses",
        "part",
        "prefix",
        "store",
    )

    def __init__(
        self,
        store: Store,
        prefix: bytes,
        codec: Codec[V],
        *,
        budget: Budget,
        width: int = TIME_WIDTH,
        cold: bool = False,
    ) -> None:
        if prefix_end(prefix) is None:
            raise ValueError(f"the prefix of a cache must have a key behind it: {prefix!r}")
        self.store = store
        self.prefix = prefix
        self.codec = codec
        self.part = partial(budget.name_of, prefix)
        """Names the part of the state that is kept here, for messages."""
        self.decode_many = checked(codec.decode_many, self.part)
        self.hits = 0
        """Keys that ``load`` need not ask the store for."""
        self.misses = 0
        """Keys that ``load`` had to ask the store for."""
        self.cold = cold
        self._filter_bytes = budget.limit_bytes // 4
        self._width = width
        self._buckets: dict[bytes, Bucket[V]] = {}
        self._order: list[bytes] = []
        self._ranges: list[tuple[bytes, bytes]] = []
        self._entry_bytes = 0
        self._find_buckets()
        budget.add(self)

    def bucket(self, prefix: bytes) -> Bucket[V]:
        """Return the bucket of ``prefix``, which is what follows the cache's own prefix; it is made if need be."""
        bucket = self._buckets.get(prefix)
        return self._add(prefix, stored=False) if bucket is None else bucket

    def buckets(self) -> list[Bucket[V]]:
        """Return all buckets in the order of their prefixes, whether their rows are in memory or in the store."""
        return [self._buckets[prefix] for prefix in self._order]

    def rows(self, bucket: Bucket[V]) -> Iterator[tuple[bytes, V]]:
        """Return all rows of ``bucket`` in key order, as of the time of the call; those in the store stay there."""
        return bucket._rows()

    def columns(self, bucket: Bucket[V], size: int) -> Iterator[tuple[Sequence[bytes], Sequence[V]]]:
        """Return all rows of ``bucket`` in key order, as keys and values of at most ``size`` rows at a time."""
        if bucket.complete:
            memory = {**bucket.clean, **bucket.live} if bucket.clean else bucket.live
            keys = sorted(memory)
            parts = (keys[start : start + size] for start in range(0, len(keys), size))
            return ((part, list(map(memory.__getitem__, part))) for part in parts)
        rows = bucket._rows()
        chunks = iter(lambda: list(islice(rows, size)), [])
        return (([key for key, _ in chunk], [value for _, value in chunk]) for chunk in chunks)

    def drop(self, bucket: Bucket[V]) -> None:
        """Delete all rows of ``bucket``, which must not be used any more."""
        if self._buckets.pop(bucket.prefix, None) is None:
            return
        self._order.remove(bucket.prefix)
        if bucket._written:
            end = prefix_end(bucket._base)
            assert end is not None
            self._ranges.append((bucket._base, end))

    def discard(self, bucket: Bucket[V], key: bytes) -> None:
        """Delete one row of ``bucket``, if there is one."""
        bucket._discard(key)

    def warm(self, limit_bytes: int) -> None:
        """Load whole buckets, the latest first, until about ``limit_bytes`` are used.

        Rows that are not loaded are read when they are asked for.
        """
        for bucket in reversed(self.buckets()):
            if self.used_bytes() >= limit_bytes:
                return
            bucket.load_all()

    def flush(self, batch: WriteBatch) -> None:
        """Append every change since the last flush to ``batch``, sorted by key, and take it for written."""
        batch.ranges.extend(self._ranges)
        self._ranges = []
        self._sample()
        for prefix in self._order:
            self._buckets[prefix]._flush(batch)

    def evict(self, count_bytes: int | None = None) -> None:
        """Let clean values of the first buckets go until about ``count_bytes`` (all if None) are free.

        The first buckets close next and are then read once; the last ones are hot.
        """
        rows = sys.maxsize if count_bytes is None else -(-count_bytes // max(self._entry_bytes, 1))
        for prefix in self._order:
            if rows <= 0:
                return
            rows -= self._buckets[prefix]._evict(rows)

    def take_lookups(self) -> tuple[int, int]:
        """Return hits and misses since the last call."""
        hits, misses = self.hits, self.misses
        self.hits = self.misses = 0
        return hits, misses

    def used_bytes(self) -> int:
        """Return about how much memory the values take: their number times the size of some of them."""
        count = sum(map(len, self._buckets.values()))
        if count and not self._entry_bytes:
            self._sample()
        return count * self._entry_bytes

    def new_filter(self, keys: int) -> KeyFilter | None:
        """Return a filter for about so many keys, None if the filters there are take all that they may."""
        left = self._filter_bytes - sum(bucket.filter_bytes() for bucket in self._buckets.values())
        return KeyFilter(keys, left) if left > 0 else None

    def _sample(self) -> None:
        """Estimate what an entry takes from some in the latest buckets.

        They are spread evenly: the first keys to come are those that come often, whose values may be large.
        """
        sizes: list[int] = []
        for prefix in reversed(self._order):
            bucket = self._buckets[prefix]
            for rows in (bucket.live, bucket.clean):
                wanted = max(_SAMPLE_ROWS - len(sizes), 1)
                step = -(-len(rows) // wanted) or 1
                picked = islice(rows.items(), step // 2, None, step)
                sizes += [sys.getsizeof(key) + deep_size(value, _SAMPLE_ROWS) + _SLOT_BYTES for key, value in picked]
            if len(sizes) >= _SAMPLE_ROWS:
                break
        if sizes:
            self._entry_bytes = sum(sizes) // len(sizes)

    def _add(self, prefix: bytes, *, stored: bool) -> Bucket[V]:
        if len(prefix) != self._width:
            raise ValueError(f"the prefix of a bucket must have {self._width} bytes: {prefix!r}")
        bucket = self._buckets[prefix] = Bucket(self, prefix, stored=stored)
        insort(self._order, prefix)
        return bucket

    def _find_buckets(self) -> None:
        start, end = self.prefix, prefix_end(self.prefix)
        skipped = len(self.prefix)
        while (row := next(self.store.scan(start, end), None)) is not None:
            if len(row[0]) < skipped + self._width:
                raise unreadable(self.part(), "a key is cut short")
            bucket = self._add(row[0][skipped : skipped + self._width], stored=True)
            after = prefix_end(bucket._base)
            if after is None or after == end:
                return
            start = after


class Budget:
    """Memory that the caches of one task share.

    Args:
        limit_bytes: How much; with 0, everything leaves memory at every relief.
        name_of: Names the part of the state that has a prefix, for messages.
    """

    def __init__(self, limit_bytes: int, name_of: Callable[[bytes], str] = bytes.hex) -> None:
        self.limit_bytes = limit_bytes
        self.name_of = name_of
        self._caches: list[WriteBehind[Any]] = []

    def add(self, cache: WriteBehind[Any]) -> None:
        """Let ``cache`` draw on this budget."""
        self._caches.append(cache)
        self._caches.sort(key=lambda c: c.prefix)

    def caches(self) -> list[WriteBehind[Any]]:
        """Return the caches, by prefix."""
        return list(self._caches)

    def used_bytes(self) -> int:
        """Return about how much memory all caches take."""
        return sum(cache.used_bytes() for cache in self._caches)

    def over(self) -> bool:
        """Return whether the caches take more than the limit; cheap enough to ask after every step."""
        return self.used_bytes() > self.limit_bytes

    def flush(self, batch: WriteBatch) -> None:
        """Append every change of every cache to ``batch``, sorted by key, and take it for written."""
        for cache in self._caches:
            cache.flush(batch)

    def evict(self) -> None:
        """Let clean values go until half of the limit is free: cold caches first, then each in proportion."""
        for caches in ([c for c in self._caches if c.cold], [c for c in self._caches if not c.cold]):
            excess = self.used_bytes() - int(self.limit_bytes * _KEPT_SHARE)
            used = [cache.used_bytes() for cache in caches]
            total = sum(used)
            if excess > 0 and total > 0:
                for cache, part in zip(caches, used, strict=True):
                    cache.evict(-(-excess * part // total))

    def relieve(self, store: Store) -> None:
        """Write every change into ``store`` and let values go; call it between two steps when ``over``.

        Rows that reach the store before a checkpoint do no harm: only a snapshot counts.

        Raises:
            RetriableError: the disk is full; the caches must be forgotten with the store.
        """
        batch = WriteBatch()
        self.flush(batch)
        store.write(batch)
        self.evict()


def _first(row: tuple[bytes, Any]) -> bytes:
    return row[0]
