"""A table that knows of most keys that the store does not have them, without asking it."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from itertools import compress, repeat

_SLOTS_PER_KEY = 64
"""Slots for each key that there are at first; more keys may come, and make wrong guesses likelier."""
_LEAST_SLOTS = 1024


class KeyFilter:
    """A Bloom filter with one hash: a byte for each slot, so that asking it is one look-up.

    It may take a key for added that was not, never the other way round. The hash differs from process to process;
    nothing of it is stored.

    Args:
        keys: How many keys are expected at first.
        limit_bytes: The most memory that it may take.
    """

    __slots__ = ("_added", "_mask", "_table")

    def __init__(self, keys: int, limit_bytes: int) -> None:
        slots = min(max(keys * _SLOTS_PER_KEY, _LEAST_SLOTS), limit_bytes)
        self._table = bytearray(1 << slots.bit_length() - 1)
        self._mask = len(self._table) - 1
        self._added = 0

    @property
    def size_bytes(self) -> int:
        """Return how much memory it takes."""
        return len(self._table)

    @property
    def useful(self) -> bool:
        """Return whether it is right about at least half of the keys that were not added."""
        return self._added * 2 <= len(self._table)

    def add(self, keys: Collection[bytes]) -> None:
        """Add keys."""
        slots = map(self._mask.__and__, map(hash, keys))
        deque(map(self._table.__setitem__, slots, repeat(1)), 0)
        self._added += len(keys)

    def pick(self, keys: list[bytes]) -> list[bytes]:
        """Return the keys that may have been added.

        Example:
            >>> some = KeyFilter(1000, 1_000_000)
            >>> some.add([b"a"])
            >>> b"a" in some.pick([b"a", b"b"])
            True
        """
        slots = map(self._mask.__and__, map(hash, keys))
        return list(compress(keys, map(self._table.__getitem__, slots)))
