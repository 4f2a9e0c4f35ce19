"""The contract of a task's store: ordered bytes.

Windows, sessions, deduplication and timers are key layouts (``state.keys``) over one store per task, not kinds of
store. A store is used by one thread, except that ``snapshot`` directories may be read by others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(slots=True)
class WriteBatch:
    """Changes that become visible together: first the deleted ranges, then the deleted keys, then the puts."""

    ranges: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Half-open ranges ``[start, end)`` of keys to delete."""
    deletes: list[bytes] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    """Keys to put; in ascending order where the caller can do it cheaply, which halves the cost of writing them."""
    values: list[bytes] = field(default_factory=list)
    """What each of ``keys`` gets."""

    @classmethod
    def of(
        cls,
        rows: Iterable[tuple[bytes, bytes]],
        *,
        ranges: Sequence[tuple[bytes, bytes]] = (),
        deletes: Sequence[bytes] = (),
    ) -> WriteBatch:
        """Return a batch that puts ``rows``, each a key and its value.

        Example:
            >>> WriteBatch.of([(b"a", b"1")]).keys
            [b'a']
        """
        batch = cls(list(ranges), list(deletes))
        for key, value in rows:
            batch.put(key, value)
        return batch

    def put(self, key: bytes, value: bytes) -> None:
        """Put one row."""
        self.keys.append(key)
        self.values.append(value)


class Store(Protocol):
    """Keys and values of bytes, ordered by key as unsigned bytes."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None where there is none; ascending keys are cheaper."""
        ...

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with ``start <= key < end`` (to the end if None) in key order, as of the time of the call.

        Writes made while iterating do not show.
        """
        ...

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` as one.

        Raises:
            RetriableError: the disk is full; nothing of the batch was applied.
        """
        ...

    def snapshot(self, directory: Path) -> None:
        """Write an image of the store as of now into ``directory``, which must not exist, as files that never change.

        Opening a store on a copy of that directory gives the same rows.
        """
        ...

    def size_bytes(self) -> int:
        """Return about how many bytes the rows take on disk or in memory."""
        ...

    def close(self) -> None:
        """Release files; idempotent. Rows that no snapshot holds may be lost."""
        ...


class StoreFactory(Protocol):
    """Opens stores; one per worker, so that stores can share memory."""

    def open(self, directory: Path) -> Store:
        """Open the store in ``directory``, which is made if it does not exist.

        Raises:
            CorruptError: the files make no sense.
        """
        ...
