"""Pure decisions about checkpoints: from what was seen in the checkpoint store to what must be done.

Why one owner cannot harm another: every manifest is written under the number after the one it continues, and only if
no manifest has that number. So a new owner's first manifest and whatever an old owner writes compete for one name, the
loser learns of it, and the manifest that a new owner continues is the last one of the old owner, whose files the old
owner keeps. A number may be free again because its manifest was pruned; then later manifests exist, and whoever wrote
under it finds them when it looks afterwards.

Why a starting owner never misses a file: it claims first, by a manifest that repeats what it continues, and fetches
files afterwards. From its claim on, older owners can commit nothing more, and what one of them is still pruning is
what it chose before: everything but its last checkpoint and the one before that. So those two are all that a new owner
may go on from, whatever is damaged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Vanished:
    """What stood under the number is gone: it was pruned, or the store only said that somebody else was writing."""


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


def taken(
    epoch: int, number: int, same_bytes: bool, found: Manifest | Damage | None
) -> Write | Written | Fenced | Vanished:
    """Decide what it means that the number under which the owner with ``epoch`` writes is taken.

    An answer that got lost makes an owner write twice; nobody else writes under its epoch.

    Args:
        epoch: Of the owner.
        number: That is taken.
        same_bytes: Whether what stands there is what the owner writes.
        found: What stands there; None if it is gone again.
    """
    if same_bytes:
        return Written()
    if found is None:
        return Vanished()
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


def fallback(
    current: Manifest, seen: Seen, failed: Sequence[Manifest], damaged: Collection[str] = ()
) -> Manifest | Fenced | None:
    """Decide which older checkpoint the owner of ``current`` may go on from, when its files turn out to be damaged.

    Only one that no earlier owner can be about to delete: of the checkpoints that an earlier owner saved, the last,
    the one before it, and what was written since. A claim is no such checkpoint, for whoever claims has not pruned yet.

    Args:
        current: The last manifest of the owner that asks.
        seen: All manifests.
        failed: Those that were tried; what has the same files is not tried again.
        damaged: Objects known to be missing or damaged.

    Returns:
        The newest that may serve, or None if there is none.
    """
    fenced = _fenced(current, seen)
    if fenced is not None:
        return fenced
    tried = {_objects(manifest) for manifest in (current, *failed)}
    for manifest in _out_of_danger(current, seen):
        # Without positions, it is the claim of a task that never saved anything: that would be to begin anew.
        usable = manifest.positions and not _objects(manifest).intersection(damaged)
        if usable and _objects(manifest) not in tried:
            return manifest
    return None


def _out_of_danger(current: Manifest, seen: Seen) -> list[Manifest]:
    """Return the manifests before ``current`` whose files no prune can be deleting, newest first."""
    found: list[Manifest] = []
    behind_the_last_saved = False
    for number, manifest in sorted(seen.items(), reverse=True):
        if number >= current.number or not isinstance(manifest, Manifest):
            continue
        found.append(manifest)
        if behind_the_last_saved:
            break
        before = seen.get(number - 1)
        claimed = isinstance(before, Manifest) and before.epoch != manifest.epoch
        behind_the_last_saved = manifest.epoch < current.epoch and not claimed
    return found


def _fenced(current: Manifest, seen: Seen) -> Fenced | None:
    # What lies behind it under its own epoch was written by a call whose answer got lost.
    for number, manifest in sorted(seen.items(), reverse=True):
        if number > current.number and not (isinstance(manifest, Manifest) and manifest.epoch == current.epoch):
            return Fenced(number)
    return None


def _objects(manifest: Manifest) -> frozenset[str]:
    return frozenset(ref.object for ref in manifest.files)


@dataclass(frozen=True, slots=True)
class Pruning:
    """What to delete: first the manifests, oldest first, then the files."""

    manifests: tuple[int, ...]
    files: tuple[str, ...]


def prune(current: Manifest, seen: Seen, keep: int, doomed: Iterable[str] = ()) -> Pruning | Fenced:
    """Decide what the owner of ``current`` may delete.

    Args:
        current: Its last manifest.
        seen: All manifests.
        keep: How many readable manifests stay, ``current`` among them.
        doomed: Files that this owner has no use for, because calls failed half-way; those that no manifest names are
            deleted too, unless a manifest cannot be read.
    """
    fenced = _fenced(current, seen)
    if fenced is not None:
        return fenced
    kept = [current, *(m for n, m in seen.items() if n > current.number and isinstance(m, Manifest))]
    left = keep - 1
    dropped: list[Manifest] = []
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
            dropped.append(manifest)
    needed = {ref.object for manifest in kept for ref in manifest.files}
    files = {ref.object for manifest in dropped for ref in manifest.files}
    if all(isinstance(manifest, Manifest) for manifest in seen.values()):
        files.update(doomed)
    files -= needed
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
