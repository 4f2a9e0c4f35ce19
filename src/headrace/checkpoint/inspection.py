"""Looking through checkpoints that nobody needs to own: what is there, what is damaged, what may go."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from headrace.checkpoint.manifest import (
    FileRef,
    Manifest,
    check_place,
    decode,
    file_epoch,
    files_path,
    manifest_number,
    manifest_path,
    manifests_path,
    task_path,
)
from headrace.checkpoint.store import Objects
from headrace.checkpoint.upload import THREADS, in_threads
from headrace.errors import CorruptError, HeadraceError, RetriableError

Progress = Callable[[int, int], None]
"""Told the bytes that were read and the bytes of all files, from several threads but one at a time."""


class Fault(StrEnum):
    """What can be wrong with an object."""

    MISSING = "missing"
    DAMAGED = "damaged"
    FOREIGN = "foreign"
    """A manifest that belongs to another task or number."""
    UNREFERENCED = "unreferenced"
    """No manifest names the file; the next owner of the task deletes it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One object with which something is wrong."""

    task: str
    path: str
    fault: Fault
    size_bytes: int
    checkpoints: tuple[int, ...]
    """The numbers of those that cannot be used because of it."""


@dataclass(frozen=True, slots=True)
class Kept:
    """All checkpoints of one task."""

    task: str
    manifests: Mapping[int, Manifest]
    """Those that can be read, by number."""
    unreadable: Mapping[int, Fault]


@dataclass(frozen=True, slots=True)
class Deletion:
    """What a deletion takes away, in this order."""

    manifests: tuple[str, ...]
    files: tuple[str, ...]
    size_bytes: int


def read_kept(objects: Objects, topology: str, task: str) -> Kept:
    """Return the checkpoints of a task, whatever state they are in.

    Raises:
        FatalError: a later version of headrace wrote one.
    """
    manifests: dict[int, Manifest] = {}
    unreadable: dict[int, Fault] = {}
    for path in objects.list(manifests_path(topology, task)):
        number = manifest_number(path)
        data = None if number is None else objects.read(path)
        if number is None or data is None:
            continue
        try:
            found = decode(data, path)
        except CorruptError:
            unreadable[number] = Fault.DAMAGED
            continue
        if is_foreign(found, manifest_path(topology, task, number)):
            unreadable[number] = Fault.FOREIGN
        else:
            manifests[number] = found
    return Kept(task, manifests, unreadable)


def is_foreign(manifest: Manifest, path: str) -> bool:
    """Tell whether a manifest was copied to ``path`` from elsewhere."""
    try:
        check_place(manifest, path)
    except HeadraceError:
        return True
    return False


def verify(
    objects: Objects, topology: str, kept: Kept, on_progress: Progress | None = None, threads: int = THREADS
) -> list[Finding]:
    """Read every file that a checkpoint of the task names, and compare it with what the checkpoint says.

    Args:
        objects: Where they are.
        topology: Its name.
        kept: The task's checkpoints.
        on_progress: Is told after each file.
        threads: How many files are read at a time.

    Returns:
        What is wrong, by path.

    Raises:
        RetriableError: the checkpoint store cannot be reached, or there is no room for a file.
    """
    users: dict[FileRef, list[int]] = {}
    for number, manifest in sorted(kept.manifests.items()):
        for ref in manifest.files:
            # The name within the store directory says nothing about the bytes.
            one = FileRef("", ref.object, ref.size, ref.checksum)
            users.setdefault(one, []).append(number)
    whole, done, lock = sum(ref.size for ref in users), 0, threading.Lock()

    with tempfile.TemporaryDirectory(prefix="headrace-verify-") as folder:

        def check(item: tuple[int, FileRef]) -> Finding | None:
            nonlocal done
            place, ref = Path(folder) / str(item[0]), item[1]
            try:
                found = objects.download(ref.object, place)
            except OSError as error:
                raise RetriableError(
                    f"a file cannot be read to {folder} to be checked: {error.strerror or error}",
                    remedy="Free space there, or name another place with TMPDIR",
                ) from error
            place.unlink(missing_ok=True)
            with lock:
                done += ref.size
                if on_progress is not None:
                    on_progress(done, whole)
            if found == (ref.size, ref.checksum):
                return None
            fault = Fault.MISSING if found is None else Fault.DAMAGED
            return Finding(kept.task, ref.object, fault, ref.size, tuple(users[ref]))

        checked = in_threads(check, enumerate(users), threads)
    findings = [finding for finding in checked if finding is not None]
    for number, fault in kept.unreadable.items():
        findings.append(Finding(kept.task, manifest_path(topology, kept.task, number), fault, 0, (number,)))
    return sorted([*findings, *unreferenced(objects.list(files_path(topology, kept.task)), kept)], key=_path)


def unreferenced(files: Mapping[str, int], kept: Kept) -> list[Finding]:
    """Return the files that no checkpoint names; none if one cannot be read, since it might.

    A running task uploads files before the manifest that names them.
    """
    if kept.unreadable:
        return []
    named = {ref.object for manifest in kept.manifests.values() for ref in manifest.files}
    return [
        Finding(kept.task, path, Fault.UNREFERENCED, size, ())
        for path, size in files.items()
        if path not in named and file_epoch(path) is not None
    ]


def deletion(topology: str, kept: Kept, numbers: Collection[int]) -> Deletion:
    """Decide what to delete so that the checkpoints with ``numbers`` are gone and the others stay whole."""
    staying = [manifest for number, manifest in kept.manifests.items() if number not in numbers]
    needed = {ref.object for manifest in staying for ref in manifest.files}
    files: dict[str, int] = {}
    for number in numbers:
        if number in kept.manifests:
            files |= {ref.object: ref.size for ref in kept.manifests[number].files if ref.object not in needed}
    if kept.unreadable.keys() - set(numbers):
        files = {}  # what stays may need them
    paths = tuple(manifest_path(topology, kept.task, number) for number in sorted(numbers))
    return Deletion(paths, tuple(sorted(files)), sum(files.values()))


def everything(objects: Objects, topology: str, tasks: Iterable[str]) -> Deletion:
    """Return all objects of these tasks."""
    manifests: list[str] = []
    files: dict[str, int] = {}
    for task in tasks:
        below = manifests_path(topology, task) + "/"
        found = objects.list(task_path(topology, task))
        manifests += [path for path in found if path.startswith(below)]
        files |= {path: size for path, size in found.items() if not path.startswith(below)}
    return Deletion(tuple(manifests), tuple(files), sum(files.values()))


def carry_out(objects: Objects, chosen: Deletion) -> None:
    """Delete: the manifests first, oldest first, so that none of them ever lacks a file."""
    objects.delete([*chosen.manifests, *chosen.files])


def _path(finding: Finding) -> str:
    return finding.path
