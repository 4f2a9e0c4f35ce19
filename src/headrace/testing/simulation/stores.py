"""Stores of tasks: rows in memory, and files beside them as a log-structured store would leave them.

A snapshot consists of several files. Those of which no row changed since the snapshot before are the same files,
linked, so that uploads, reuse and deletion of files work as with RocksDB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

from headrace.errors import FatalError, RetriableError
from headrace.state.api import WriteBatch
from headrace.state.keys import store_prefix
from headrace.state.memory import MemoryStore, decode_snapshot, encode_snapshot, make_snapshot_directory
from headrace.testing.simulation import faults
from headrace.testing.simulation.objects import Operator

BUCKETS = 4
_META = store_prefix(0)


def bucket_of(key: bytes) -> int:
    """Return in which file a row stands; the task's own row has a file to itself."""
    return 0 if key.startswith(_META) else 1 + crc32(key) % BUCKETS


class SimulatedStores:
    """Opens stores of one worker.

    Args:
        operator: Carries operations out, or lets them fail.
        moments: Times of change for files, each later than the one before.
    """

    def __init__(self, operator: Operator, moments: Iterator[int]) -> None:
        self._operator = operator
        self._moments = moments

    def open(self, directory: Path) -> SimulatedStore:
        """Open the store in ``directory``."""
        told = directory.parent.name
        return self._operator.operate("open", lambda: SimulatedStore(directory, self._operator, self._moments), told)


class SimulatedStore:
    """Rows in memory over files in a directory; see ``state.api.Store``."""

    def __init__(self, directory: Path, operator: Operator, moments: Iterator[int]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        rows: dict[bytes, bytes] = {}
        self._files: dict[int, Path] = {}
        for path in sorted(directory.iterdir()):
            rows.update(decode_snapshot(path.read_bytes(), str(path)))
            self._files[int(path.name[:2])] = path
        self._directory = directory
        self._operator = operator
        self._moments = moments
        self._rows = MemoryStore(rows)
        self._changed: set[int] = set()
        self._serial = 1 + max((int(path.name[3:9]) for path in self._files.values()), default=0)

    def get(self, key: bytes) -> bytes | None:
        """Return the value of ``key``, or None."""
        return self._rows.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of ``keys`` in their order, None where there is none."""
        return self._rows.get_many(keys)

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """Yield rows with ``start <= key < end`` in key order, as of the time of the call."""
        return self._rows.scan(start, end)

    def write(self, batch: WriteBatch) -> None:
        """Apply ``batch`` as one."""
        if self._operator.strike("write", f"{len(batch.keys)} rows") == faults.FAIL:
            raise RetriableError("simulated: the disk is full")
        for start, end in batch.ranges:
            self._changed.update(bucket_of(key) for key, _ in self._rows.scan(start, end))
        self._changed.update(map(bucket_of, batch.deletes))
        self._changed.update(map(bucket_of, batch.keys))
        self._rows.write(batch)
        self._operator.finish()

    def snapshot(self, directory: Path) -> None:
        """Link what did not change and write what did into ``directory``, which must not exist."""
        if self._operator.strike("snapshot", directory.name) == faults.FAIL:
            raise RetriableError("simulated: the disk is full")
        try:
            self._settle()
            make_snapshot_directory(directory)
            for path in self._files.values():
                os.link(path, directory / path.name)
        except OSError as error:
            # Another worker on this machine, which has the task by now, deleted the directory.
            raise FatalError(f"the store in {self._directory} failed: {error}") from error
        self._operator.finish()

    def size_bytes(self) -> int:
        """Return the bytes of all keys and values."""
        return self._rows.size_bytes()

    def close(self) -> None:
        """Forget the rows; the files stay."""
        self._rows.close()

    def _settle(self) -> None:
        """Bring the files up to date."""
        if not self._changed:
            return
        contents: dict[int, list[tuple[bytes, bytes]]] = {bucket: [] for bucket in sorted(self._changed)}
        for key, value in self._rows.scan(b""):
            place = contents.get(bucket_of(key))
            if place is not None:
                place.append((key, value))
        for bucket, rows in contents.items():
            before = self._files.pop(bucket, None)
            if before is not None:
                before.unlink(missing_ok=True)
            if rows:
                path = self._directory / f"{bucket:02d}-{self._serial:06d}"
                write_file(path, encode_snapshot(rows), next(self._moments))
                self._files[bucket] = path
        self._serial += 1
        self._changed = set()


def write_file(path: Path, data: bytes, moment: int) -> None:
    """Write a file, and give it a time of its own: those of a real disk are further apart than those simulated."""
    path.write_bytes(data)
    os.utime(path, ns=(moment, moment))
