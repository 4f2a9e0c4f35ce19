"""Makes a task of what a restore brought, and begins to read where it left off."""

from __future__ import annotations

from headrace.runtime.tasks.meta import META_KEY, read_meta
from headrace.runtime.tasks.task import Task
from headrace.runtime.workers.changing import resets
from headrace.runtime.workers.parts import Parts
from headrace.runtime.workers.placement import placement_of
from headrace.runtime.workers.positions import first_offsets, leave_out
from headrace.runtime.workers.recovery import Restored
from headrace.runtime.workers.slot import Slot
from headrace.runtime.workers.topics import check_topics


def open_task(parts: Parts, slot: Slot, restored: Restored, *, cache_bytes: int) -> None:
    """Open the store, make the task on it, check that the log has what it will read, and give it to its slot.

    Args:
        parts: What the worker works with.
        slot: Of a task that is being restored, which knows its manifest already.
        restored: What the restore brought.
        cache_bytes: Memory for the task's write-behind caches.

    Raises:
        HeadraceError: the task cannot go on from this checkpoint; the store is closed again.
    """
    check_topics(restored.manifest, parts.plan, parts.layouts)
    starts = {p: parts.log.start_offset(p) for p in slot.sub.reads(slot.id.partition)}
    manifest = restored.manifest
    store = parts.stores.open(restored.directory)
    try:
        stored = read_meta(store.get(META_KEY), slot.id).get("shapes", {})
        reset = resets(parts.plan, restored.manifest, stored, parts.settings.resets)
        task = Task(
            parts.plan, slot.sub, slot.id, store,
            partitions=parts.partitions, limits=parts.limits, cache_bytes=cache_bytes, starts=starts,
            caller=parts.calls, reset=reset, checkpoint=restored.manifest.number, hash_key=parts.log.hash_key,
            life=f"{manifest.epoch}.{manifest.number}.{manifest.created_ms}",
        )  # fmt: skip
        firsts = first_offsets(
            str(slot.id), task.positions, parts.log,
            internal=frozenset(parts.plan.internal_topics()), lost_records=parts.settings.lost_records,
        )  # fmt: skip
    except BaseException:
        store.close()
        raise
    # It may be further than was told: what had not left when it was told so need not be in the store.
    task.saved_end = int(manifest.info.get("finished", -1))
    slot.open(parts.log, task, store, placement_of(parts.plan, slot.sub, slot.id, parts.log.hash_key))
    leave_out(slot, firsts)
