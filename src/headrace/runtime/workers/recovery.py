"""Bringing a task to where its last owner left it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest
from headrace.checkpoint.restore import DamagedFilesError, RestoreStats
from headrace.errors import (
    CorruptError,
    FatalError,
    FencedError,
    HeadraceError,
    InvalidError,
    RetriableError,
    SettingsError,
)
from headrace.log.api import Lease
from headrace.runtime.workers.setbacks import Setback, Way

_ATTEMPTS = 5
_KEPT = ".kept"
_NO_OTHER = (
    "There is no other checkpoint that is whole (`headrace checkpoints verify`): restore them from a backup, or begin "
    "anew with others (--checkpoints)"
)
_NOTHING = RestoreStats(0, 0, 0, 0)
_NO_SETBACK = Setback()
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Restored:
    """A store directory with the task's last checkpoint in it."""

    directory: Path
    manifest: Manifest
    fetched_bytes: int
    reused_bytes: int
    """Of files that were on this machine and whole."""
    problems: tuple[str, ...]
    """What was damaged and passed over, in sentences."""
    fallbacks: int
    """How many checkpoints had to be passed over because files of them are damaged."""


def restore(
    checkpoints: Checkpoints,
    lease: Lease,
    home: Path,
    now_ms: Callable[[], int],
    on_progress: Callable[[int, int], None] | None = None,
    log_identity: str = "",
    copies: Sequence[Path] = (),
    setback: Setback = _NO_SETBACK,
) -> Restored:
    """Claim a task under its lease and fetch its last checkpoint. Blocks; runs in a job.

    What crashes and earlier owners left in ``home`` is deleted. Another worker on this machine may use the same home:
    one that has the task no more, which does no harm any longer, or a later one, whose files are left alone.

    Args:
        checkpoints: Those of the topology.
        lease: The right to do so; its epoch fences earlier owners.
        home: The task's directory on this machine; each epoch has a directory of its own in it, and files that an
            earlier one left there are not fetched again.
        now_ms: Tells the time.
        on_progress: Called with bytes done and bytes in all; what it raises ends the restore.
        log_identity: That of the log whose positions the checkpoint must speak of; not checked if empty.
        copies: Directories elsewhere on this disk with files of earlier checkpoints, which are not fetched again.
        setback: What is known of the task's state if it proved damaged before.

    Raises:
        InvalidError: the checkpoint belongs to another log.
        FencedError: another worker has a later lease.
        CorruptError: files are damaged or missing, and there is no other checkpoint to go back to.
        RetriableError: the checkpoint store cannot be reached, or the disk is full.
        SettingsError: the home cannot be written.
    """
    try:
        return _restore(checkpoints, lease, home, now_ms, on_progress, log_identity, copies, setback)
    except FatalError as error:
        if isinstance(error.__cause__, OSError):
            raise _storage_error(error.__cause__, lease, home) from error.__cause__
        raise
    except OSError as error:
        raise _storage_error(error, lease, home) from error


def snapshot_directory(home: Path, lease: Lease) -> Path:
    """Return where the owner with this lease puts its snapshots; the next restore deletes what a crash leaves there."""
    return home / f"{lease.epoch:010d}-snapshot"


def kept_directory(snapshot: Path) -> Path:
    """Return where a snapshot goes that counts.

    It stays until the next one counts, so that a warm restart fetches nothing, though the store deletes files of the
    last checkpoint while it runs. It consists of links, and takes the room of what the store has deleted since.
    """
    return snapshot.with_name(snapshot.name + _KEPT)


def keep(snapshot: Path) -> None:
    """Put a snapshot that counts in the place of the one before it."""
    kept = kept_directory(snapshot)
    shutil.rmtree(kept, ignore_errors=True)
    try:
        snapshot.rename(kept)
    except OSError:
        shutil.rmtree(snapshot, ignore_errors=True)  # a restart fetches what it misses


def _restore(
    checkpoints: Checkpoints,
    lease: Lease,
    home: Path,
    now_ms: Callable[[], int],
    on_progress: Callable[[int, int], None] | None,
    log_identity: str,
    copies: Sequence[Path],
    setback: Setback,
) -> Restored:
    problems: list[str] = []
    manifest = _claim(checkpoints, lease, now_ms, problems, log_identity)
    home.mkdir(parents=True, exist_ok=True)
    directory = _free_directory(home, lease, manifest) / "db"
    left = sorted(path for path in home.iterdir() if path.name < directory.parent.name)
    kept = kept_directory(snapshot_directory(home, lease))
    if setback.way is not Way.REUSE:
        _delete([*left, kept])
    reuse = [*_earlier(left, kept), *copies] if setback.way is Way.REUSE else []
    directory.parent.mkdir()
    try:
        found = _fetch(checkpoints, manifest, directory, reuse, setback, now_ms, on_progress, problems)
    except BaseException:
        _delete([directory.parent])
        raise
    _delete(left)
    if found.manifest.files and not kept.exists():
        _keep_links(directory, snapshot_directory(home, lease))
    checkpoints.sweep(found.manifest)
    return found


def _free_directory(home: Path, lease: Lease, manifest: Manifest) -> Path:
    """Return a directory for one attempt: what an earlier one brought is behind it in order, and is used again."""
    name = f"{lease.epoch:010d}-{manifest.number:010d}"
    return next(
        path for attempt in count() if not (path := home / (f"{name}-{attempt:04d}" if attempt else name)).exists()
    )


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _earlier(left: Sequence[Path], kept: Path) -> list[Path]:
    """Return the directories that may hold files of the checkpoint, the most likely ones first."""
    snapshots = [kept] * kept.is_dir() + sorted((p for p in left if p.name.endswith(_KEPT)), reverse=True)
    stores = [path / name for path in reversed(left) for name in ("db", "db.restoring")]
    return snapshots + [path for path in stores if path.is_dir()]


def _fetch(
    checkpoints: Checkpoints,
    manifest: Manifest,
    directory: Path,
    reuse: Sequence[Path],
    setback: Setback,
    now_ms: Callable[[], int],
    on_progress: Callable[[int, int], None] | None,
    problems: list[str],
) -> Restored:
    """Fetch a checkpoint or, if files of it are damaged, the one before it."""
    failed, damaged, fallbacks = list(setback.failed), frozenset[str](), 0
    while True:
        useless = next((f"it proved damaged as checkpoint {f.number}" for f in failed if f.files == manifest.files), "")
        error: CorruptError = CorruptError(
            f"checkpoint {manifest.number} of task {manifest.task} cannot be used: {useless}", remedy=_NO_OTHER
        )
        if not useless:
            try:
                if on_progress is not None:
                    on_progress(0, manifest.size_bytes)
                stats = checkpoints.restore(manifest, directory, reuse, on_progress) if manifest.files else _NOTHING
                return Restored(
                    directory, manifest, stats.fetched_bytes, stats.reused_bytes, tuple(problems), fallbacks
                )
            except DamagedFilesError as found:
                error, damaged = found, damaged | found.objects
                failed.append(manifest)
        older = checkpoints.fall_back(manifest, [*failed, manifest], now_ms(), damaged)
        if older is None:
            raise CorruptError(error.message, remedy=_NO_OTHER) from error
        problems.append(
            f"{error.message}; the task goes back to the checkpoint before it, and does again what came after that"
        )
        manifest, fallbacks = older, fallbacks + 1


def _keep_links(directory: Path, snapshot: Path) -> None:
    shutil.rmtree(snapshot, ignore_errors=True)
    try:
        snapshot.mkdir()
        for path in directory.iterdir():
            os.link(path, snapshot / path.name)
    except OSError:
        shutil.rmtree(snapshot, ignore_errors=True)  # not every disk has links; a restart fetches what it misses
    else:
        keep(snapshot)


def _storage_error(error: OSError, lease: Lease, home: Path) -> HeadraceError:
    told = f"the state of task {lease.unit} cannot be written to {home}: {error.strerror or error}"
    if error.errno in _FULL:
        return RetriableError(told, remedy="Free space, or put HEADRACE_STATE_DIR on a larger disk")
    return SettingsError(told, remedy="Look at HEADRACE_STATE_DIR: it must be a directory that this user can write")


def _check(lease: Lease, base: Manifest | None, problems: list[str], log_identity: str) -> None:
    """Refuse to begin anew over checkpoints that cannot be read, and to go on with those of another log."""
    if base is None:
        if problems:
            raise CorruptError(
                f"task {lease.unit} has checkpoints, but none that can be read: {'; '.join(problems)}",
                remedy="Restore the checkpoints from a backup, or begin anew with others (--checkpoints)",
            )
        return
    written_for = base.info.get("log")
    if log_identity and written_for and written_for != log_identity:
        raise InvalidError(
            f"the checkpoint of task {lease.unit} belongs to another log than this one",
            remedy="Use the log that belongs to these checkpoints, or other checkpoints (--checkpoints)",
        )


def _claim(
    checkpoints: Checkpoints, lease: Lease, now_ms: Callable[[], int], problems: list[str], log_identity: str
) -> Manifest:
    for _ in range(_ATTEMPTS):
        base = checkpoints.newest(lease.unit, problems)
        _check(lease, base, problems, log_identity)
        if base is not None and base.epoch == lease.epoch:
            return base  # given back and taken again by this worker, or a restore that failed half-way
        try:
            return checkpoints.claim(lease.unit, lease.epoch, base, now_ms())
        except RetriableError:
            continue  # the owner before us wrote one more checkpoint just now: take that
        except FencedError as error:
            if base is not None and base.epoch > lease.epoch:
                raise InvalidError(
                    f"the checkpoint of task {lease.unit} was written under epoch {base.epoch}, but the group of this "
                    f"log has only reached {lease.epoch}: the checkpoints belong to another log, or the log's group "
                    "was deleted, on Kafka perhaps while the clock of a machine was wrong",
                    remedy="Use the log that belongs to these checkpoints, or other checkpoints (--checkpoints); set "
                    "the clock",
                ) from error
            raise
    raise RetriableError(f"the checkpoints of task {lease.unit} change faster than they can be claimed")
