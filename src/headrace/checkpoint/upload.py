"""Carries the files of a snapshot to the checkpoint store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from headrace.checkpoint import decide, manifest
from headrace.checkpoint.manifest import FileRef, Manifest
from headrace.checkpoint.store import Objects, new_checksum
from headrace.errors import FatalError

THREADS = 4

_CHUNK_BYTES = 1024**2

T = TypeVar("T")
R = TypeVar("R")


class Checksums:
    """Remembers the checksums of files that never change, so that each is read once.

    A snapshot is made of hard links, so the same inode with the same size and time of change is the same file.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[tuple[int, ...], str]] = {}

    def of(self, task: str, directory: Path) -> list[tuple[str, int, str]]:
        """Return name, size and checksum of every file in ``directory``, by name; forget other files of ``task``."""
        known = self._known.get(task, {})
        seen: dict[tuple[int, ...], str] = {}
        files: list[tuple[str, int, str]] = []
        for path in sorted(directory.iterdir()):
            status = path.stat()
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            checksum = seen[identity] = known.get(identity) or file_checksum(path)
            files.append((path.name, status.st_size, checksum))
        self._known[task] = seen
        return files


def file_checksum(path: Path) -> str:
    """Return the checksum of a file."""
    digest = new_checksum()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def upload(objects: Objects, previous: Manifest, directory: Path, checksums: Checksums) -> tuple[FileRef, ...]:
    """Upload the files of ``directory`` that ``previous`` does not name, and return references to all of them."""
    try:
        files = checksums.of(previous.task, directory)
    except OSError as error:
        raise FatalError(f"the snapshot of task {previous.task} in {directory} cannot be read: {error}") from error
    kept, missing = decide.uploads(files, previous)
    wanted = set(missing)
    fresh = [
        FileRef(name, manifest.file_path(previous.topology, previous.task, previous.epoch, checksum), size, checksum)
        for name, size, checksum in files
        if name in wanted
    ]
    # Files with the same bytes are one object.
    sources = {ref.object: directory / ref.name for ref in fresh}
    in_threads(lambda item: objects.upload(*item), sources.items())
    return tuple(sorted([*kept, *fresh], key=lambda ref: ref.name))


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do ``work`` on every item in a few threads; the first error is raised when all threads are done."""
    todo = list(items)
    if len(todo) < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(min(THREADS, len(todo)), thread_name_prefix="checkpoint") as pool:
        futures = [pool.submit(work, item) for item in todo]
        try:
            return [future.result() for future in futures]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
