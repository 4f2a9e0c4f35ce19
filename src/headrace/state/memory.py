"""A store that lives in memory, for tests and small topologies."""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import google_crc32c

from headrace.errors import CorruptError, FatalError
from headrace.state.api import WriteBatch

SNAPSHOT_NAME = "rows.v1"
"""The one file of a snapshot."""

_MAGIC = b"HRMS"
_VERSION = 1
_HEADER = struct.Struct("<4sBIQ")
"""Magic, version, CRC-32C of all that follows it in the file, rows."""
_CRC_END = _HEADER.size - 8


class MemoryStores:
    """Opens stores in memory; a directory matters only if it is a copy of a snapshot."""

    def open(self, directory: Path) -> MemoryStore:
        """Return a store with the rows of the snapshot in ``directory``, or an empty one.

        Raises:
            CorruptError: the snapshot is damaged.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / SNAPSHOT_NAME
        return MemoryStore(decode_snapshot(path.read_bytes(), str(path)) if path.exists() else {})


class MemoryStore:
    """Rows in a dict, and their keys in a list that is sorted when somebody needs the order."""

    def __init__(self, rows: dict[bytes, bytes] | None = None) -> None:
        self._rows: dict[bytes, bytes] = rows if rows is not None else {}
        self._sorted: list[bytes] = sorted(self._rows)
        self._added: list[bytes] = []
        self._removed: set[bytes] = set()

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None."""
        return self._rows.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None where there is none."""
        return list(map(self._rows.get, keys))

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with ``start <= key < end`` in key order, as of the time of the call."""
        rows = self._rows
        return iter([(key, rows[key]) for key in self._range(start, end)])

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` as one."""
        rows = self._rows
        for start, end in batch.ranges:
            for key in self._range(start, end):
                del rows[key]
                self._removed.add(key)
        for key in batch.deletes:
            if rows.pop(key, None) is not None:
                self._removed.add(key)
        for key, value in zip(batch.keys, batch.values, strict=True):
            if key not in rows:
                self._added.append(key)
            rows[key] = value

    def snapshot(self, directory: Path) -> None:
        """Write all rows as one file into ``directory``, which must not exist."""
        make_snapshot_directory(directory)
        (directory / SNAPSHOT_NAME).write_bytes(encode_snapshot([(key, self._rows[key]) for key in self._order()]))

    def size_bytes(self) -> int:
        """Return the bytes of all keys and values."""
        return sum(map(len, self._rows)) + sum(map(len, self._rows.values()))

    def close(self) -> None:
        """Forget the rows."""
        self._rows, self._sorted, self._added, self._removed = {}, [], [], set()

    def _range(self, start: bytes, end: bytes | None) -> list[bytes]:
        order = self._order()
        return order[bisect_left(order, start) : len(order) if end is None else bisect_left(order, end)]

    def _order(self) -> list[bytes]:
        if self._removed:
            self._sorted = [key for key in self._sorted if key not in self._removed]
        if self._added:
            # A key can be added, removed and added again between two looks.
            self._sorted += [key for key in dict.fromkeys(self._added) if key in self._rows]
            self._sorted.sort()
        self._added, self._removed = [], set()
        return self._sorted


def make_snapshot_directory(directory: Path) -> None:
    """Make ``directory`` for a snapshot.

    Raises:
        FatalError: it exists already.
    """
    try:
        directory.mkdir(parents=True)
    except FileExistsError:
        raise FatalError(
            f"the directory for a snapshot exists already: {directory}",
            remedy="Give each snapshot a directory of its own",
        ) from None


def encode_snapshot(rows: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of a snapshot of ``rows``: a header, the lengths of keys and of values, the keys, the values."""
    keys, values = [key for key, _ in rows], [value for _, value in rows]
    body = b"".join([_lengths(keys), _lengths(values), *keys, *values])
    count = struct.pack("<Q", len(rows))
    crc = google_crc32c.value(count + body)
    return _MAGIC + struct.pack("<BI", _VERSION, crc) + count + body


def decode_snapshot(data: bytes, path: str) -> dict[bytes, bytes]:
    """Return the rows of a snapshot.

    Raises:
        CorruptError: the bytes are damaged; the message names ``path``.
        FatalError: a later version wrote them.
    """
    if len(data) < _HEADER.size or data[:4] != _MAGIC:
        raise CorruptError(f"not a snapshot of a memory store: {path}")
    _, version, crc, count = _HEADER.unpack_from(data)
    if version != _VERSION:
        raise FatalError(
            f"a snapshot of version {version} cannot be read: {path}",
            remedy="Run the version of headrace that wrote it, or a later one",
        )
    if google_crc32c.value(data[_CRC_END:]) != crc:
        raise CorruptError(f"a snapshot fails its checksum: {path}")
    sizes = array("I", data[_HEADER.size : _HEADER.size + 8 * count])
    if sys.byteorder == "big":
        sizes.byteswap()
    ends = list(accumulate(sizes, initial=_HEADER.size + 8 * count))
    parts = [data[start:end] for start, end in pairwise(ends)]
    return dict(zip(parts[:count], parts[count:], strict=True))


def _lengths(values: Sequence[bytes]) -> bytes:
    sizes = array("I", map(len, values))
    if sys.byteorder == "big":
        sizes.byteswap()
    return sizes.tobytes()
