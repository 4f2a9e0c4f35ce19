"""Bringing a task to where its last owner left it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest
from headrace.errors import FencedError, InvalidError, RetriableError
from headrace.log.api import Lease

_ATTEMPTS = 5


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
) -> Restored:
    """Claim a task under its lease and fetch its last checkpoint. Blocks; runs in a job.

    Args:
        checkpoints: Those of the topology.
        lease: The right to do so; its epoch fences earlier owners.
        home: The task's directory on this machine; each epoch has a directory of its own in it, and files that an
            earlier one left there are not fetched again.
        now_ms: Tells the time.
        on_progress: Called with bytes done and bytes in all.

    Raises:
        FencedError: another worker has a later lease.
        CorruptError: a file is damaged or missing.
        RetriableError: the checkpoint store cannot be reached.
    """
    problems: list[str] = []
    manifest = _claim(checkpoints, lease, now_ms, problems)
    directory = home / f"{lease.epoch:010d}-{manifest.number:010d}" / "db"
    if directory.parent.exists():
        shutil.rmtree(directory.parent)
    earlier = sorted(path for path in home.glob("*/db") if path.is_dir())
    directory.parent.mkdir(parents=True)
    fetched = 0
    if manifest.files:
        stats = checkpoints.restore(manifest, directory, earlier[-1] if earlier else None, on_progress)
        fetched = stats.fetched_bytes
    for path in earlier:
        shutil.rmtree(path.parent, ignore_errors=True)
    checkpoints.sweep(manifest)
    return Restored(directory, manifest, fetched, tuple(problems))


def _claim(checkpoints: Checkpoints, lease: Lease, now_ms: Callable[[], int], problems: list[str]) -> Manifest:
    for _ in range(_ATTEMPTS):
        base = checkpoints.newest(lease.unit, problems)
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
