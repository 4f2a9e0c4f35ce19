"""Bringing a task to where its last owner left it."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest
from headrace.errors import (
    CorruptError,
    FatalError,
    FencedError,
    HeadraceError,
    InvalidError,
    RetriableError,
    SettingsError,
)
from headrace.log.api import Lease, Log
from headrace.runtime.task import Task

_ATTEMPTS = 5
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Restored:
    """A store directory with the task's last checkpoint in it."""

    directory: Path
    manifest: Manifest
    fetched_bytes: int
    problems: tuple[str, ...]
    """Damaged manifests that were passed over."""


def restore(
    checkpoints: Checkpoints,
    lease: Lease,
    home: Path,
    now_ms: Callable[[], int],
    on_progress: Callable[[int, int], None] | None = None,
    log_identity: str = "",
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

    Raises:
        InvalidError: the checkpoint belongs to another log.
        FencedError: another worker has a later lease.
        CorruptError: a file is damaged or missing.
        RetriableError: the checkpoint store cannot be reached, or the disk is full.
        SettingsError: the home cannot be written.
    """
    try:
        return _restore(checkpoints, lease, home, now_ms, on_progress, log_identity)
    except FatalError as error:
        if isinstance(error.__cause__, OSError):
            raise _storage_error(error.__cause__, lease, home) from error.__cause__
        raise
    except OSError as error:
        raise _storage_error(error, lease, home) from error


def snapshot_directory(home: Path, lease: Lease) -> Path:
    """Return where the owner with this lease puts its snapshots; the next restore deletes what a crash leaves there."""
    return home / f"{lease.epoch:010d}-snapshot"


def _restore(
    checkpoints: Checkpoints,
    lease: Lease,
    home: Path,
    now_ms: Callable[[], int],
    on_progress: Callable[[int, int], None] | None,
    log_identity: str,
) -> Restored:
    problems: list[str] = []
    manifest = _claim(checkpoints, lease, now_ms, problems, log_identity)
    directory = home / f"{lease.epoch:010d}-{manifest.number:010d}" / "db"
    home.mkdir(parents=True, exist_ok=True)
    if directory.parent.exists():
        shutil.rmtree(directory.parent)
    left = sorted(path for path in home.iterdir() if path.name < directory.parent.name)
    earlier = [path / "db" for path in left if (path / "db").is_dir()]
    directory.parent.mkdir()
    fetched = 0
    if manifest.files:
        stats = checkpoints.restore(manifest, directory, earlier[-1] if earlier else None, on_progress)
        fetched = stats.fetched_bytes
    for path in left:
        shutil.rmtree(path, ignore_errors=True)
    checkpoints.sweep(manifest)
    return Restored(directory, manifest, fetched, tuple(problems))


def _storage_error(error: OSError, lease: Lease, home: Path) -> HeadraceError:
    told = f"the state of task {lease.unit} cannot be written to {home}: {error.strerror or error}"
    if error.errno in _FULL:
        return RetriableError(told, remedy="Free space, or put HEADRACE_STATE_DIR on a larger disk")
    return SettingsError(told, remedy="Look at HEADRACE_STATE_DIR: it must be a directory that this user can write")


def check_positions(task: Task, log: Log, internal: frozenset[str]) -> None:
    """Refuse a checkpoint that speaks of records which the log does not have.

    An internal topic may have lost its tail with the power: what was lost there is written again by those who wrote
    it, and dropped as repeats.

    Args:
        task: The restored task.
        log: The log that it would go on with.
        internal: The topics whose records only this topology reads.

    Raises:
        FatalError: a source ends before the task's position, or keeps only what comes after it.
    """
    for partition, position in task.positions.items():
        start, end = log.start_offset(partition), log.end_offset(partition)
        if position > end and partition.topic not in internal:
            raise FatalError(
                f"the checkpoint of task {task.id} has read partition {partition} up to offset {position}, but the log "
                f"ends at {end}: it lost records, or is another log",
                remedy="Use the log that belongs to these checkpoints, or other checkpoints (--checkpoints)",
            )
        if position < start:
            raise FatalError(
                f"task {task.id} would go on at offset {position} of partition {partition}, but the log keeps only "
                f"what begins at {start}: {start - position} records are gone by retention",
                remedy="Restore the topic, or begin with other checkpoints (--checkpoints) if the gap may be left out",
            )


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
                    "was deleted",
                    remedy="Use the log that belongs to these checkpoints, or other checkpoints (--checkpoints)",
                ) from error
            raise
    raise RetriableError(f"the checkpoints of task {lease.unit} change faster than they can be claimed")
