"""Pure decisions about checkpoints: from what was seen in the checkpoint store to what must be done.

Why one owner cannot harm another: every manifest is written under the number after the one it continues, and only if
no manifest has that number. So a new owner's first manifest and whatever an old owner writes compete for one name, the
loser learns of it, and the manifest that a new owner continues is the last one of the old owner, whose files the old
owner keeps. A number may be free again because its manifest was pruned; then later manifests exist, and whoever wrote
under it finds them when it looks afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from headrace.checkpoint.manifest import FileRef, Manifest, file_epoch


@dataclass(frozen=True, slots=True)
class Write:
    """Write the manifest under this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Written:
    """An earlier attempt of this very owner wrote these bytes already."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another owner has the task."""

    number: int
    """Of the manifest that shows it."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The manifest to continue is not the newest any more."""

    number: int
    """Of the newest."""


class Damage(Enum):
    """Stands for a manifest that cannot be read."""

    DAMAGED = "damaged"


Seen = Mapping[int, Manifest | Damage]
"""What stands under the numbers that were listed."""


def newest(seen: Seen) -> Manifest | None:
    """Return the manifest that counts: the readable one with the highest number."""
    readable = (manifest for _, manifest in sorted(seen.items(), reverse=True) if isinstance(manifest, Manifest))
    return next(readable, None)


def claim(epoch: int, base: Manifest | None, seen: Seen) -> Write | Fenced | Stale:
    """Decide under which number the owner with ``epoch`` may continue ``base``.

    Args:
        epoch: Of the new owner.
        base: What ``newest`` said before; None if the task has no checkpoint.
        seen: All manifests after ``base``, or all if there is none.
    """
    if base is not None and base.epoch >= epoch:
        return Fenced(base.number)
    for number, manifest in sorted(seen.items(), reverse=True):
        if isinstance(manifest, Manifest) and (base is None or number > base.number):
            return Fenced(number) if manifest.epoch >= epoch else Stale(number)
    return Write(max([*seen, 0 if base is None else base.number]) + 1)


def taken(epoch: int, number: int, same_bytes: bool, found: Manifest | Damage) -> Write | Written | Fenced:
    """Decide what it means that the number under which the owner with ``epoch`` saves is taken.

    An answer that got lost makes an owner write twice; nobody else writes under its epoch.
    """
    if same_bytes:
        return Written()
    if isinstance(found, Manifest) and found.epoch == epoch:
        return Write(number + 1)
    return Fenced(number)


def overtaken(number: int, listed: Iterable[int]) -> Fenced | None:
    """Decide, after ``number`` was written, whether its name was only free because it had been pruned."""
    last = max(listed, default=number)
    return Fenced(last) if last > number else None


def uploads(files: Sequence[tuple[str, int, str]], previous: Manifest) -> tuple[list[FileRef], list[str]]:
    """Decide which files the checkpoint store lacks.

    Args:
        files: Name, size and checksum of each.
        previous: The manifest that the new one continues; only what it names is known to be kept.

    Returns:
        References to what is there already, and the names to upload.
    """
    known = {(ref.size, ref.checksum): ref for ref in previous.files}
    kept: list[FileRef] = []
    missing: list[str] = []
    for name, size, checksum in files:
        ref = known.get((size, checksum))
        if ref is None:
            missing.append(name)
        else:
            kept.append(FileRef(name, ref.object, size, checksum))
    return kept, missing


@dataclass(frozen=True, slots=True)
class Pruning:
    """What to delete: first the manifests, oldest first, then the files."""

    manifests: tuple[int, ...]
    files: tuple[str, ...]


def prune(current: Manifest, seen: Seen, keep: int) -> Pruning | Fenced:
    """Decide what the owner of ``current`` may delete.

    Args:
        current: Its last manifest.
        seen: All manifests.
        keep: How many readable manifests stay, ``current`` among them.
    """
    for number, manifest in sorted(seen.items(), reverse=True):
        if number > current.number and not (isinstance(manifest, Manifest) and manifest.epoch == current.epoch):
            return Fenced(number)
    kept = [current, *(m for n, m in seen.items() if n > current.number and isinstance(m, Manifest))]
    left = keep - 1
    doomed: list[Manifest] = []
    numbers: list[int] = []
    for number, manifest in sorted(seen.items(), reverse=True):
        if number >= current.number:
            continue
        if left > 0:
            if isinstance(manifest, Manifest):
                kept.append(manifest)
                left -= 1
            continue
        numbers.append(number)
        if isinstance(manifest, Manifest):
            doomed.append(manifest)
    needed = {ref.object for manifest in kept for ref in manifest.files}
    files = {ref.object for manifest in doomed for ref in manifest.files} - needed
    return Pruning(tuple(sorted(numbers)), tuple(sorted(files)))


def orphans(current: Manifest, seen: Seen, objects: Iterable[str]) -> list[str] | Fenced:
    """Decide which files earlier owners left behind: uploaded, but named by no manifest.

    Args:
        current: The last manifest of the owner that asks.
        seen: All manifests; if one cannot be read, nothing is an orphan.
        objects: Paths of all files.
    """
    last = max(seen, default=current.number)
    if last > current.number:
        return Fenced(last)
    manifests = [current]
    for manifest in seen.values():
        if not isinstance(manifest, Manifest):
            return []
        manifests.append(manifest)
    needed = {ref.object for manifest in manifests for ref in manifest.files}
    return sorted(
        path
        for path in objects
        if path not in needed and (epoch := file_epoch(path)) is not None and epoch < current.epoch
    )
