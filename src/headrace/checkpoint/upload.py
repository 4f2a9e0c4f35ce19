"""Carries the files of a snapshot to the checkpoint store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from headrace.checkpoint import decide, manifest
from headrace.checkpoint.manifest import FileRef, Manifest
from headrace.checkpoint.store import Crc32c, Objects, new_checksum
from headrace.errors import FatalError

THREADS = 4

_CHUNK_BYTES = 1024**2

T = TypeVar("T")
R = TypeVar("R")


class Sums(NamedTuple):
    """The checksums of one file, as in ``FileRef``."""

    checksum: str
    crc32c: str


class Checksums:
    """Remembers the checksums of files that never change, so that each is read once.

    A snapshot is made of hard links, so the same inode with the same size and time of change is the same file.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[tuple[int, ...], Sums]] = {}

    def of(self, task: str, directory: Path) -> list[tuple[str, int, Sums]]:
        """Return name, size and checksums of every file in ``directory``, by name; forget other files of ``task``."""
        known = self._known.get(task, {})
        seen: dict[tuple[int, ...], Sums] = {}
        files: list[tuple[str, int, Sums]] = []
        for path in sorted(directory.iterdir()):
            status = path.stat()
            identity = _identity(status)
            sums = seen[identity] = known.get(identity) or file_checksum(path)
            files.append((path.name, status.st_size, sums))
        self._known[task] = seen
        return files

    def learn(self, task: str, directory: Path, files: Iterable[FileRef]) -> None:
        """Take in what was restored to ``directory`` and found whole; forget other files of ``task``."""
        self._known[task] = {
            _identity((directory / ref.name).stat()): Sums(ref.checksum, ref.crc32c) for ref in files if ref.crc32c
        }


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def file_checksum(path: Path) -> Sums:
    """Return the checksums of a file."""
    checksum, crc32c = new_checksum(), Crc32c()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum.update(chunk)
            crc32c.update(chunk)
    return Sums(checksum.hexdigest(), crc32c.hexdigest())


def upload(
    objects: Objects,
    previous: Manifest,
    directory: Path,
    checksums: Checksums,
    *,
    uploaded: set[str],
    threads: int = THREADS,
) -> tuple[FileRef, ...]:
    """Upload the files of ``directory`` that ``previous`` does not name, and return references to all of them.

    Args:
        objects: Where they go.
        previous: The manifest that the new one continues.
        directory: The snapshot.
        checksums: Those known.
        uploaded: Objects that an attempt before this one uploaded; those that this one uploads are added.
        threads: How many files go up at a time.
    """
    try:
        files = checksums.of(previous.task, directory)
    except OSError as error:
        raise FatalError(f"the snapshot of task {previous.task} in {directory} cannot be read: {error}") from error
    kept, missing = decide.uploads([(name, size, sums.checksum) for name, size, sums in files], previous)
    wanted = set(missing)
    fresh = [
        FileRef(name, _object(previous, sums.checksum), size, *sums) for name, size, sums in files if name in wanted
    ]
    crcs = {name: sums.crc32c for name, _, sums in files}
    kept = [FileRef(ref.name, ref.object, ref.size, ref.checksum, crcs[ref.name]) for ref in kept]
    # Files with the same bytes are one object.
    sources = {ref.object: directory / ref.name for ref in fresh if ref.object not in uploaded}

    def send(item: tuple[str, Path]) -> None:
        objects.upload(*item)
        uploaded.add(item[0])

    in_threads(send, sources.items(), threads)
    return tuple(sorted([*kept, *fresh], key=lambda ref: ref.name))


def _object(previous: Manifest, checksum: str) -> str:
    digest = new_checksum()
    digest.update(f"{previous.number + 1} {checksum}".encode())
    return manifest.file_path(previous.topology, previous.task, previous.epoch, digest.hexdigest())


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int = THREADS) -> list[R]:
    """Do ``work`` on every item in ``threads`` threads; the first error is raised when all threads are done."""
    todo = list(items)
    if len(todo) < 2 or threads < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(min(threads, len(todo)), thread_name_prefix="checkpoint") as pool:
        futures = [pool.submit(work, item) for item in todo]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
