"""The steps of a checkpoint, in the order that makes it safe.

1. Between two steps, on the task's own thread: ``begin`` writes state, positions and sequences to the store as one,
   and takes a snapshot of it.
2. In a job: every output of the steps before is made durable in the log, and every input that it counts,
3. the snapshot is uploaded, and its manifest written: *that* commits the checkpoint,
   What waited for that in the outbox may leave from here on,
4. the positions are committed to the group, for lag and for tools,
5. old checkpoints are deleted, and internal records that no checkpoint needs any more are released.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest
from headrace.log.api import Committed, Layout, Lease, Log, Membership
from headrace.record import TopicPartition
from headrace.runtime.tasks.task import Task
from headrace.runtime.workers.bounds import metadata
from headrace.runtime.workers.recovery import keep
from headrace.runtime.workers.topics import ids_of
from headrace.state.api import Store

_UNKNOWN: Mapping[str, Layout] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Pending:
    """A checkpoint that has begun."""

    snapshot: Path
    positions: Mapping[TopicPartition, int]
    owned: Mapping[TopicPartition, int]
    """Of the inputs that no other task reads."""
    finished: int
    """The bound up to which the task was finished and everything that it made had left, or -1."""
    closing: bool
    """Whether the task waits for this checkpoint to close something."""
    shape: Mapping[str, Any]
    """What the state depends on."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that counts."""

    manifest: Manifest
    uploaded_bytes: int
    finished: int
    closing: bool


def begin(task: Task, store: Store, snapshot: Path) -> Pending:
    """Do step 1.

    Raises:
        RetriableError: the disk is full; the task must be dropped and restored.
    """
    task.flush()
    if snapshot.exists():
        shutil.rmtree(snapshot)
    store.snapshot(snapshot)
    return Pending(snapshot, task.positions, task.owned, task.left_end, task.closing, task.shape)


def complete(
    pending: Pending,
    *,
    previous: Manifest,
    log: Log,
    checkpoints: Checkpoints,
    membership: Membership,
    lease: Lease,
    internal: frozenset[str],
    now_ms: int,
    layouts: Mapping[str, Layout] = _UNKNOWN,
) -> Saved:
    """Do steps 2 to 5. Blocks; runs in a job.

    Args:
        pending: What ``begin`` returned.
        previous: The task's last manifest.
        log: Where outputs went.
        checkpoints: Those of the topology.
        membership: Of this worker.
        lease: The task's.
        internal: The topics whose records only this topology reads.
        now_ms: The time.
        layouts: What the topics are that the positions speak of.

    Raises:
        FencedError: another worker owns the task.
        RetriableError: the log or the checkpoint store cannot be reached.
    """
    try:
        log.flush()
        positions = {str(partition): position for partition, position in pending.positions.items()}
        info = {"finished": pending.finished, "log": log.identity, "shape": pending.shape}
        info["topics"] = ids_of({partition.topic for partition in pending.positions}, layouts)
        manifest = checkpoints.save(previous, pending.snapshot, positions, info, now_ms)
    except BaseException:
        shutil.rmtree(pending.snapshot, ignore_errors=True)
        raise
    keep(pending.snapshot)
    note = metadata(pending.finished)
    membership.commit(lease, {p: Committed(position, note) for p, position in pending.owned.items()})
    checkpoints.prune(manifest)
    for partition in pending.positions:
        # The checkpoint before this one may yet be fallen back to.
        kept = previous.positions.get(str(partition))
        if partition.topic in internal and kept is not None:
            log.trim(partition, kept)
    known = {ref.object for ref in previous.files}
    uploaded = sum(ref.size for ref in manifest.files if ref.object not in known)
    return Saved(manifest, uploaded, pending.finished, pending.closing)
