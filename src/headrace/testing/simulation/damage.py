"""Bytes that are not what they were: on the disks of workers, and in the checkpoint store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from headrace.checkpoint import decide
from headrace.checkpoint.manifest import Manifest, decode, manifest_number, manifest_path, manifests_path
from headrace.errors import CorruptError
from headrace.testing.simulation.checks import Checks
from headrace.testing.simulation.draws import Draws
from headrace.testing.simulation.objects import SharedObjects
from headrace.testing.simulation.stores import write_file

_LOST = 0.3
"""How often a file or an object is lost, and not changed."""


def damage_file(path: Path, share: float, moments: Iterator[int]) -> int:
    """Change one bit of a file, and return the place of its byte."""
    data = path.read_bytes()
    path.unlink()  # another directory may link to the same file
    write_file(path, _flipped(data, share), next(moments))
    return int(share * len(data))


def spoil(directory: Path, draws: Draws, name: str, moments: Iterator[int]) -> str | None:
    """Damage a file below a directory, or lose it; return what was done, None if there is no file."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.suffix != ".lock")
    if not files:
        return None
    path = draws.one(f"{name}/file", files)
    if draws.unit(f"{name}/lost") < _LOST:
        path.unlink()
        return f"loses {path.relative_to(directory)}"
    return f"damages {path.relative_to(directory)} at {damage_file(path, draws.unit(f'{name}/at'), moments)}"


def rot(objects: SharedObjects, checks: Checks, draws: Draws, name: str, topology: str, task: str) -> str | None:
    """Damage the newest checkpoint of a task, or lose a part of it, if the task can do without.

    Nobody may be at work on the checkpoints of the task, nor have files of them on a disk.

    Returns:
        What was done; None if that checkpoint was the only one, or shares every file with the one before.
    """
    seen = _manifests(objects, topology, task)
    newest = checks.newest(task)
    if newest is None or newest.number not in seen or any(ref.object in checks.rotten for ref in newest.files):
        return None
    path = manifest_path(topology, task, newest.number)
    older = seen.get(newest.number - 1)
    whole = older is not None and older.positions and checks.rotten.isdisjoint(ref.object for ref in older.files)
    if whole and draws.unit(f"{name}/{task}/manifest") < _LOST:
        checks.passed_over(task, newest.number)
        objects.rows[path] = _flipped(objects.rows[path], draws.unit(f"{name}/{task}/at"))
        return f"damages {path}"
    claimed = dataclasses.replace(newest, epoch=newest.epoch + 1, number=newest.number + 1)
    known: decide.Seen = {**seen, claimed.number: claimed}
    spare = [
        ref.object for ref in newest.files
        if isinstance(decide.fallback(claimed, known, [claimed], {ref.object, *checks.rotten}), Manifest)
    ]  # fmt: skip
    if not spare:
        return None
    path = draws.one(f"{name}/{task}/object", spare)
    checks.damaged(task, path)
    data = objects.rows.pop(path)
    if draws.unit(f"{name}/{task}/lost") < _LOST:
        return f"loses {path}"
    objects.rows[path] = _flipped(data, draws.unit(f"{name}/{task}/at"))
    return f"damages {path}"


def _manifests(objects: SharedObjects, topology: str, task: str) -> dict[int, Manifest]:
    start = f"{manifests_path(topology, task)}/"
    found: dict[int, Manifest] = {}
    for path, data in objects.rows.items():
        number = manifest_number(path) if path.startswith(start) else None
        if number is not None:
            try:
                found[number] = decode(data, path)
            except CorruptError:
                continue
    return found


def _flipped(data: bytes, share: float) -> bytes:
    at = int(share * len(data))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
