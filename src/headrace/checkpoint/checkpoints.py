"""The checkpoints of one topology: the thin shell around the decisions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from headrace.checkpoint import decide
from headrace.checkpoint.manifest import (
    Manifest,
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
from headrace.checkpoint.upload import Checksums, upload
from headrace.errors import CorruptError, FencedError, RetriableError

_ATTEMPTS = 8


class Checkpoints:
    """Reads and writes the checkpoints of one topology.

    Every call blocks. Calls for different tasks may run in different threads; those for one task follow each other.

    Args:
        objects: Where checkpoints go.
        topology: Its name.
    """

    def __init__(self, objects: Objects, topology: str) -> None:
        self._objects = objects
        self._topology = topology
        self._checksums = Checksums()

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
        if not self._objects.create(manifest_path(self._topology, task, number), encode(manifest)):
            self._may_claim(task, epoch, base)
            raise RetriableError(
                f"another owner wrote checkpoint {number} of task {task} just now", remedy="Read the newest one again"
            )
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
        task = previous.task
        files = upload(self._objects, previous, directory, self._checksums)
        number = previous.number + 1
        for _ in range(_ATTEMPTS):
            manifest = Manifest(
                self._topology, task, previous.epoch, number, created_ms, files, dict(positions), dict(info)
            )
            data = encode(manifest)
            path = manifest_path(self._topology, task, number)
            if not self._objects.create(path, data):
                there = self._objects.read(path)
                match decide.taken(previous.epoch, number, there == data, _decoded(there, path)):
                    case decide.Fenced(other):
                        raise self._fenced(task, other)
                    case decide.Write(following):
                        number = following
                        continue
            self._check_overtaken(task, number)
            return manifest
        raise RetriableError(f"checkpoint {previous.number} of task {task} has too many successors")

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
        decision = decide.prune(current, self._seen_beside(current), keep)
        if isinstance(decision, decide.Fenced):
            raise self._fenced(current.task, decision.number)
        # A manifest must never outlive its files.
        paths = [manifest_path(self._topology, current.task, number) for number in decision.manifests]
        self._objects.delete([*paths, *decision.files])
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
        reuse: Path | None = None,
        on_progress: Progress | None = None,
    ) -> RestoreStats:
        """Put the files of ``manifest`` into ``directory``; see ``restore.restore``."""
        return restore(self._objects, manifest, directory, reuse, on_progress)

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


def _decoded(data: bytes | None, path: str) -> Manifest | decide.Damage:
    if data is None:
        return decide.Damage.DAMAGED
    try:
        return decode(data, path)
    except CorruptError:
        return decide.Damage.DAMAGED
