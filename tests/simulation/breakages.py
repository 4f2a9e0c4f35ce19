"""Deliberate breakages of the real code. The simulation must find every one of them, or it is too weak.

To add one: write a function that takes a ``pytest.MonkeyPatch`` and breaks something, and put it into ``BREAKAGES``
with a topology that depends on what it breaks. What undisturbed runs make is known before anything is broken, so that
it shows even if every run is wrong.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from headrace.checkpoint import decide
from headrace.checkpoint.checkpoints import Checkpoints
from headrace.checkpoint.manifest import Manifest, file_epoch
from headrace.log import groups, membership
from headrace.runtime.tasks.executor import Chain
from headrace.runtime.tasks.inputs import TaskInput
from headrace.runtime.tasks.task import Task
from headrace.runtime.tasks.watermarks import InternalTime
from headrace.runtime.workers import checkpointing
from headrace.runtime.workers.checkpointing import Pending
from headrace.state.cache import Budget
from headrace.testing import Faults

Patch = pytest.MonkeyPatch


class Breakage(NamedTuple):
    apply: Callable[[Patch], None]
    topology: str
    checks: frozenset[str]
    """The checks of which one must find it; any if empty."""
    faults: Faults = Faults()
    tardy: float = 0.12
    settings: Mapping[str, Any] = MappingProxyType({})


def everywhere(patch: Patch, original: Any, broken: Any) -> None:
    """Replace a function in every module of the runtime that imported it."""
    name = original.__name__
    for module in [m for key, m in sorted(sys.modules.items()) if key.startswith("headrace.")]:
        if vars(module).get(name) is original:
            patch.setattr(module, name, broken)


def outputs_not_flushed(patch: Patch) -> None:
    """Step 2 of a checkpoint is left out."""
    original = checkpointing.complete

    class Unflushed:
        def __init__(self, log: Any) -> None:
            self._log = log

        def __getattr__(self, name: str) -> Any:
            return getattr(self._log, name)

        def flush(self) -> None:
            return

    everywhere(patch, original, lambda pending, *, log, **rest: original(pending, log=Unflushed(log), **rest))


def epochs_ignored(patch: Patch) -> None:
    """Whoever saves or claims a checkpoint never learns of a later owner."""

    def claim(epoch: int, base: Manifest | None, seen: decide.Seen) -> decide.Write:
        return decide.Write(max([*seen, 0 if base is None else base.number]) + 1)

    patch.setattr(decide, "claim", claim)
    patch.setattr(decide, "taken", lambda epoch, number, same, found: decide.Write(number + 1))
    patch.setattr(decide, "overtaken", lambda number, listed: None)


def offsets_committed_first(patch: Patch) -> None:
    """Offsets go to the group before the manifest is there."""
    original = checkpointing.complete

    def complete(pending: Pending, *, membership: Any, lease: Any, **rest: Any) -> Any:
        membership.commit(lease, {p: checkpointing.Committed(at, "") for p, at in pending.owned.items()})
        return original(pending, membership=membership, lease=lease, **rest)

    everywhere(patch, original, complete)


def repeats_counted(patch: Patch) -> None:
    """A repartition's reader takes what comes again."""
    patch.setattr(TaskInput, "without_repeats", lambda self, records: records)


def snapshot_before_flush(patch: Patch) -> None:
    """The snapshot is taken before the caches are written."""
    original = checkpointing.begin

    def begin(task: Task, store: Any, snapshot: Any) -> Pending:
        class Early:
            def snapshot(self, directory: Any) -> None:
                return

        store.snapshot(snapshot)
        pending = original(task, Early(), snapshot.with_name("nowhere"))
        return dataclasses.replace(pending, snapshot=snapshot)

    everywhere(patch, original, begin)


def positions_ahead_of_state(patch: Patch) -> None:
    """A checkpoint says that a record was read which is not in the state."""
    original = TaskInput.state

    def state(self: TaskInput) -> list[Any]:
        kept = original(self)
        return [kept[0] + 1, *kept[1:]] if kept[0] and kept[0] % 7 == 0 else kept

    patch.setattr(TaskInput, "state", state)


def sequences_forgotten(patch: Patch) -> None:
    """The positions on the edges are not in the checkpoint."""
    patch.setattr(Chain, "sequences", lambda self: {})


def caches_not_written(patch: Patch) -> None:
    """A checkpoint leaves out what changed in the caches."""
    patch.setattr(Budget, "flush", lambda self, batch: None)


def pruned_too_much(patch: Patch) -> None:
    """Pruning deletes files that later checkpoints still name."""
    original = decide.prune

    def prune(current: Manifest, seen: decide.Seen, *rest: Any, **more: Any) -> Any:
        decision = original(current, seen, *rest, **more)
        if isinstance(decision, decide.Fenced):
            return decision
        gone = [m for n, m in seen.items() if n in decision.manifests and isinstance(m, Manifest)]
        return decide.Pruning(decision.manifests, tuple(sorted({ref.object for m in gone for ref in m.files})))

    patch.setattr(decide, "prune", prune)


def second_newest_restored(patch: Patch) -> None:
    """A new owner continues the last but one checkpoint."""
    original = Checkpoints.newest

    def newest(self: Checkpoints, task: str, *rest: Any) -> Manifest | None:
        found = self.manifests(task)
        return found[-2] if len(found) > 1 else original(self, task, *rest)

    def claim(epoch: int, base: Manifest | None, seen: decide.Seen) -> decide.Write:
        return decide.Write(max([*seen, 0 if base is None else base.number]) + 1)

    patch.setattr(Checkpoints, "newest", newest)
    patch.setattr(decide, "claim", claim)


def upstream_not_waited_for(patch: Patch) -> None:
    """A restored task takes all that write to its input as idle."""
    original = InternalTime.restore

    def restore(self: InternalTime, state: Any) -> None:
        watermark, progress = state
        highest = max([watermark, *(mark for mark, _, _ in progress.values())])
        original(self, [highest + 3_600_000, {name: [mark, True, end] for name, (mark, _, end) in progress.items()}])

    patch.setattr(InternalTime, "restore", restore)


def lease_without_epoch(patch: Patch) -> None:
    """A unit that changes hands keeps its epoch."""
    original = groups.acquired

    def acquired(state: groups.GroupState, token: int, chosen: Any) -> groups.GroupState:
        after = original(state, token, chosen)
        leases = {
            unit: lease if unit not in state.leases else dataclasses.replace(lease, epoch=state.leases[unit].epoch)
            for unit, lease in after.leases.items()
        }
        return dataclasses.replace(after, leases=leases)

    everywhere(patch, original, acquired)
    patch.setattr(membership, "acquired", acquired)


def orphans_still_needed(patch: Patch) -> None:
    """The sweep after a claim deletes all files of earlier owners."""

    def orphans(current: Manifest, seen: decide.Seen, objects: Any) -> list[str]:
        return sorted(path for path in objects if (file_epoch(path) or 0) < current.epoch)

    patch.setattr(decide, "orphans", orphans)


def closed_without_checkpoint(patch: Patch) -> None:
    """What the clock closes leaves before a checkpoint says that it will."""
    original = Task.tick

    def tick(self: Task, now_ms: int, at_end: Any) -> Any:
        appends = original(self, now_ms, at_end)
        return appends + self.settle() if self.closing and self.parked is None else appends

    patch.setattr(Task, "tick", tick)


def jobs_after_drop(patch: Patch) -> None:
    """A checkpoint is taken as saved though its manifest could not be written."""
    original = Checkpoints.save

    def save(self: Checkpoints, previous: Manifest, *rest: Any, **more: Any) -> Manifest:
        made = original(self, previous, *rest, **more)
        if made.number % 3 == 0:
            self._objects.delete([f"{made.topology}/{made.task}/manifests/{made.number:010d}.json"])
        return made

    patch.setattr(Checkpoints, "save", save)


def upload_forgotten(patch: Patch) -> None:
    """A file that changed is taken for one that the checkpoint store has."""
    original = decide.uploads

    def uploads(files: Any, previous: Manifest, *rest: Any, **more: Any) -> Any:
        kept, missing = original(files, previous, *rest, **more)
        return kept, missing[:-1] if len(missing) > 1 else missing

    patch.setattr(decide, "uploads", uploads)


def nothing_retried(patch: Patch) -> None:
    """Outputs that the log refused are dropped."""
    from headrace.runtime.workers import sending

    original = sending.send

    def send(slot: Any, appends: Any, *rest: Any, **more: Any) -> Any:
        before = len(slot.unsent)
        result = original(slot, appends, *rest, **more)
        if len(slot.unsent) > before:
            slot.unsent.clear()
        return result

    everywhere(patch, original, send)


def inputs_not_durable(patch: Patch) -> None:
    """Readers hand out records that the log may lose with the power."""
    from headrace.testing.simulation.logs import WorkerReader

    patch.setattr(WorkerReader, "_read", lambda self, max_records: self._reader.read(max_records))


def no_way_back(patch: Patch) -> None:
    """Whoever finds that files of a checkpoint are damaged does not look for another one."""
    patch.setattr(Checkpoints, "fall_back", lambda self, *arguments, **more: None)


def back_without_state(patch: Patch) -> None:
    """Who goes back to an older checkpoint keeps the positions of the newer one."""
    original = decide.fallback

    def fallback(current: Manifest, *rest: Any) -> Any:
        found = original(current, *rest)
        return dataclasses.replace(found, positions=current.positions) if isinstance(found, Manifest) else found

    patch.setattr(decide, "fallback", fallback)


def files_lost_by_a_claim(patch: Patch) -> None:
    """The store drops a file of a checkpoint that was claimed just now, and tells nobody."""
    original = Checkpoints.claim

    def claim(self: Checkpoints, *arguments: Any) -> Manifest:
        claimed = original(self, *arguments)
        if claimed.files:
            del self._objects._shared.rows[claimed.files[-1].object]  # type: ignore[attr-defined]
        return claimed

    patch.setattr(Checkpoints, "claim", claim)


_POWER = Faults(power=3, crashes=1)

BREAKAGES: dict[str, Breakage] = {
    "outputs are not flushed": Breakage(outputs_not_flushed, "stateless", frozenset(), _POWER),
    "epochs are ignored": Breakage(
        epochs_ignored, "stateless", frozenset({"one owner per epoch", "epochs grow"}), Faults(pauses=4, silences=4)
    ),
    "offsets are committed first": Breakage(
        offsets_committed_first, "sessions", frozenset({"offsets follow checkpoints"})
    ),
    "repeats are counted": Breakage(repeats_counted, "windows", frozenset()),
    "the snapshot comes before the flush": Breakage(snapshot_before_flush, "sessions", frozenset()),
    "positions are ahead of the state": Breakage(positions_ahead_of_state, "sessions", frozenset()),
    "sequences are forgotten": Breakage(sequences_forgotten, "stateless", frozenset({"repeats are the same"})),
    "caches are not written": Breakage(caches_not_written, "deduplicated", frozenset()),
    "pruning deletes what is needed": Breakage(pruned_too_much, "sessions", frozenset({"checkpoints are whole"})),
    "the second newest is restored": Breakage(second_newest_restored, "sessions", frozenset({"positions grow"})),
    "upstream is not waited for": Breakage(upstream_not_waited_for, "windows", frozenset()),
    "a lease keeps its epoch": Breakage(lease_without_epoch, "stateless", frozenset({"one owner per epoch"})),
    "the sweep deletes what is needed": Breakage(
        orphans_still_needed, "sessions", frozenset({"checkpoints are whole"})
    ),
    "the clock closes without a checkpoint": Breakage(
        closed_without_checkpoint,
        "impatient",
        frozenset({"repeats are the same"}),
        Faults(crashes=2),
        tardy=1.0,
        settings={"checkpoint_interval_ms": 30_000},
    ),
    "a manifest vanishes": Breakage(jobs_after_drop, "stateless", frozenset({"checkpoints stay"})),
    "an upload is forgotten": Breakage(upload_forgotten, "sessions", frozenset()),
    "readers see what the power may take": Breakage(
        inputs_not_durable, "running", frozenset(), Faults(power=3), tardy=0.0
    ),
    "a claim loses files": Breakage(
        files_lost_by_a_claim, "sessions", frozenset({"restores find their files"}), Faults(rot=4, crashes=3)
    ),
    "there is no way back": Breakage(no_way_back, "windows", frozenset({"no worker stops"}), Faults(rot=8)),
    "who goes back takes positions along": Breakage(back_without_state, "windows", frozenset(), Faults(rot=8)),
    "refused outputs are dropped": Breakage(nothing_retried, "stateless", frozenset(), Faults(log=3)),
}
