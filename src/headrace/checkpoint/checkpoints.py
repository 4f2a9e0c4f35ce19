"""The checkpoints of one topology: the thin shell around the decisions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headrace.checkpoint import decide
from headrace.checkpoint.manifest import (
    Manifest,
    check_place,
    decode,
    encode,
    files_path,
    manifest_number,
    manifest_path,
    manifests_path,
    task_path,
)
from headrace.checkpoint.restore import Progress, RestoreStats, restore
from headrace.checkpoint.store import Objects
from headrace.checkpoint.upload import THREADS, Checksums, upload
from headrace.errors import CorruptError, FencedError, RetriableError

_ATTEMPTS = 8


@dataclass(slots=True)
class _Unnamed:
    """Files of this owner that no manifest names, as far as it knows."""

    uploaded: set[str] = field(default_factory=set)
    """For the checkpoint that is being saved, by attempts that failed."""
    doomed: set[str] = field(default_factory=set)
    """That no checkpoint will name any more."""


class Checkpoints:
    """Reads and writes the checkpoints of one topology.

    Every call blocks. Calls for different tasks may run in different threads; those for one task follow each other.

    Args:
        objects: Where checkpoints go.
        topology: Its name.
        threads: How many files are transferred at a time.
    """

    def __init__(self, objects: Objects, topology: str, threads: int = THREADS) -> None:
        self._objects = objects
        self._topology = topology
        self._threads = threads
        self._checksums = Checksums()
        self._unnamed: dict[str, _Unnamed] = {}

    def newest(self, task: str, problems: list[str] | None = None) -> Manifest | None:
        """Return the last checkpoint of ``task`` whose manifest is whole, or None.

        Args:
            task: Its name.
            problems: Gets one sentence for each damaged manifest that was passed over.
        """
        for _ in range(_ATTEMPTS):
            vanished = False
            passed_over: list[str] = []
            for number in reversed(self._numbers(task)):
                found = self._read(task, number, passed_over)
                if isinstance(found, Manifest) and not vanished:
                    if problems is not None:
                        problems += passed_over
                    return found
                vanished = vanished or found is None
            if not vanished:
                if problems is not None:
                    problems += passed_over
                return None
            # Its owner pruned while this looked, so there is a later one.
        raise RetriableError(f"the checkpoints of task {task} change faster than they can be read")

    def claim(self, task: str, epoch: int, base: Manifest | None, created_ms: int) -> Manifest:
        """Make ``epoch`` the owner of ``task``: write a manifest that repeats ``base``, so that older owners fail.

        Args:
            task: Its name.
            epoch: Higher than that of every owner before.
            base: What ``newest`` returned.
            created_ms: Now.

        Raises:
            FencedError: an owner with this epoch or a later one exists.
            RetriableError: a checkpoint was written after ``base``: ask ``newest`` again and claim that.
        """
        number = self._may_claim(task, epoch, base)
        manifest = Manifest(self._topology, task, epoch, number, created_ms)
        if base is not None:
            manifest = dataclasses.replace(manifest, files=base.files, positions=base.positions, info=base.info)
        path, data = manifest_path(self._topology, task, number), encode(manifest)
        # An answer that got lost on the way makes a client try again, and find what it wrote itself.
        if not self._objects.create(path, data) and self._objects.read(path) != data:
            self._may_claim(task, epoch, base)
            raise RetriableError(
                f"another owner wrote checkpoint {number} of task {task} just now", remedy="Read the newest one again"
            )
        self._unnamed.pop(task, None)
        self._check_overtaken(task, number)
        return manifest

    def save(
        self,
        previous: Manifest,
        directory: Path,
        positions: dict[str, int],
        info: dict[str, Any],
        created_ms: int,
    ) -> Manifest:
        """Upload a snapshot and commit it by writing its manifest.

        Args:
            previous: What ``claim`` or the last ``save`` returned.
            directory: Files that do not change; they may be deleted afterwards.
            positions: ``topic/partition`` and the next offset to read.
            info: JSON for the reader of the checkpoint.
            created_ms: Now.

        Raises:
            FencedError: another owner has the task; nothing was committed.
            RetriableError: the checkpoint store cannot be reached. Whether it was committed is not known; saving again
                with the same ``previous`` is right either way.
        """
        unnamed = self._unnamed.setdefault(previous.task, _Unnamed())
        files = upload(
            self._objects, previous, directory, self._checksums, uploaded=unnamed.uploaded, threads=self._threads
        )
        number = previous.number + 1
        manifest = self._commit(
            Manifest(self._topology, previous.task, previous.epoch, number, created_ms, files, {**positions}, {**info})
        )
        unnamed.doomed |= unnamed.uploaded.difference(ref.object for ref in files)
        unnamed.uploaded.clear()
        return manifest

    def fall_back(
        self, current: Manifest, failed: Sequence[Manifest], created_ms: int, damaged: Collection[str] = ()
    ) -> Manifest | None:
        """Go on from an older checkpoint, because files of ``current`` are damaged: write a manifest that repeats it.

        Args:
            current: What ``claim`` or the last ``fall_back`` returned; the task has not gone on from it.
            failed: All manifests that were tried since the claim; what has the same files is not offered again.
            created_ms: Now.
            damaged: What ``restore`` found missing or damaged; checkpoints that need one of these are not offered.

        Returns:
            The manifest to restore, under the epoch of ``current``; None if there is no other checkpoint that no
            earlier owner may still be deleting. That is the one before the last that was saved, and not more: internal
            records are kept for that one only.

        Raises:
            FencedError: another owner has the task; nothing was written.
            RetriableError: the checkpoint store cannot be reached; calling again is right either way.
        """
        decision = decide.fallback(current, self._seen_beside(current), failed, damaged)
        match decision:
            case None:
                return None
            case decide.Fenced(number):
                raise self._fenced(current.task, number)
        return self._commit(
            dataclasses.replace(decision, epoch=current.epoch, number=current.number + 1, created_ms=created_ms)
        )

    def prune(self, current: Manifest, keep: int = 2) -> int:
        """Delete all but the last checkpoints, and the files that only deleted ones name.

        Args:
            current: What the last ``save`` returned.
            keep: How many stay, with ``current``. With 1, there is nothing to fall back on.

        Returns:
            How many objects were deleted.

        Raises:
            FencedError: another owner has the task; nothing was deleted.
        """
        doomed = self._unnamed.setdefault(current.task, _Unnamed()).doomed
        decision = decide.prune(current, self._seen_beside(current), keep, doomed)
        if isinstance(decision, decide.Fenced):
            raise self._fenced(current.task, decision.number)
        # A manifest must never outlive its files.
        paths = [manifest_path(self._topology, current.task, number) for number in decision.manifests]
        # Should this fail half-way, no manifest names them any more.
        doomed.update(decision.files)
        self._objects.delete([*paths, *decision.files])
        doomed.difference_update(decision.files)
        return len(paths) + len(decision.files)

    def sweep(self, current: Manifest) -> int:
        """Delete the files that earlier owners uploaded and no manifest names; for after a ``claim``.

        Returns:
            How many objects were deleted.

        Raises:
            FencedError: another owner has the task; nothing was deleted.
        """
        objects = self._objects.list(files_path(self._topology, current.task))
        decision = decide.orphans(current, self._seen_beside(current), objects)
        if isinstance(decision, decide.Fenced):
            raise self._fenced(current.task, decision.number)
        self._objects.delete(decision)
        return len(decision)

    def restore(
        self,
        manifest: Manifest,
        directory: Path,
        reuse: Sequence[Path] = (),
        on_progress: Progress | None = None,
    ) -> RestoreStats:
        """Put the files of ``manifest`` into ``directory``; see ``restore.restore``."""
        stats = restore(self._objects, manifest, directory, reuse, on_progress, self._threads)
        with contextlib.suppress(OSError):  # then they are read once more
            self._checksums.learn(manifest.task, directory, manifest.files)
        return stats

    def tasks(self) -> list[str]:
        """Return the names of all tasks that have checkpoints."""
        return list(self._objects.names(self._topology))

    def manifests(self, task: str, problems: list[str] | None = None) -> list[Manifest]:
        """Return all checkpoints of ``task`` whose manifests are whole, oldest first."""
        found = [self._read(task, number, problems) for number in self._numbers(task)]
        return [manifest for manifest in found if isinstance(manifest, Manifest)]

    def total_bytes(self, task: str | None = None) -> int:
        """Return what the objects of ``task``, or of all tasks, take."""
        path = self._topology if task is None else task_path(self._topology, task)
        return sum(self._objects.list(path).values())

    def _may_claim(self, task: str, epoch: int, base: Manifest | None) -> int:
        numbers = self._numbers(task)
        after = [number for number in numbers if base is None or number > base.number]
        match decide.claim(epoch, base, self._seen(task, after)):
            case decide.Fenced(number):
                raise self._fenced(task, number)
            case decide.Stale(number):
                raise RetriableError(
                    f"checkpoint {number} of task {task} was written since the newest was read",
                    remedy="Read the newest one again and claim that",
                )
            case decide.Write(number):
                return number

    def _commit(self, manifest: Manifest) -> Manifest:
        """Write ``manifest`` under its number, or a later one if this owner wrote that already."""
        for _ in range(_ATTEMPTS):
            data = encode(manifest)
            path = manifest_path(self._topology, manifest.task, manifest.number)
            if not self._objects.create(path, data):
                there = self._objects.read(path)
                found = None if there is None else _decoded(there, path)
                match decide.taken(manifest.epoch, manifest.number, there == data, found):
                    case decide.Fenced(other):
                        raise self._fenced(manifest.task, other)
                    case decide.Write(following):
                        manifest = dataclasses.replace(manifest, number=following)
                        continue
                    case decide.Vanished():
                        self._check_overtaken(manifest.task, manifest.number)
                        raise RetriableError(f"{path} could neither be written nor read", remedy="Try again")
            self._check_overtaken(manifest.task, manifest.number)
            return manifest
        raise RetriableError(f"task {manifest.task} has too many checkpoints that nobody knows of")

    def _check_overtaken(self, task: str, number: int) -> None:
        fenced = decide.overtaken(number, self._numbers(task))
        if fenced is not None:
            raise self._fenced(task, fenced.number)

    def _numbers(self, task: str) -> list[int]:
        found = (manifest_number(path) for path in self._objects.list(manifests_path(self._topology, task)))
        return sorted(number for number in found if number is not None)

    def _seen(self, task: str, numbers: Iterable[int]) -> decide.Seen:
        found = {number: self._read(task, number) for number in numbers}
        return {number: manifest for number, manifest in found.items() if manifest is not None}

    def _seen_beside(self, current: Manifest) -> decide.Seen:
        return self._seen(current.task, (n for n in self._numbers(current.task) if n != current.number))

    def _read(self, task: str, number: int, problems: list[str] | None = None) -> Manifest | decide.Damage | None:
        path = manifest_path(self._topology, task, number)
        data = self._objects.read(path)
        if data is None:
            return None
        found = _decoded(data, path)
        if problems is not None and not isinstance(found, Manifest):
            problems.append(f"the manifest {path} is damaged and was passed over")
        return found

    def _fenced(self, task: str, number: int) -> FencedError:
        return FencedError(f"task {task} of topology {self._topology} has another owner, see checkpoint {number}")


def _decoded(data: bytes, path: str) -> Manifest | decide.Damage:
    try:
        found = decode(data, path)
    except CorruptError:
        return decide.Damage.DAMAGED
    check_place(found, path)
    return found
