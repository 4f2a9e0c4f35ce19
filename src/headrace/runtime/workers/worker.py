"""The shell around tasks: it finds out what to run, feeds it, and makes it durable.

A worker does nothing by itself: whoever owns it calls ``turn`` again and again, and each turn does a bounded piece of
work. Only heartbeats come from another thread, so that slow user code in a turn costs no membership, and what takes
long (fetching and uploading checkpoints) runs in jobs, whose ends a turn collects.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from headrace.errors import CorruptError, FencedError, HeadraceError, NotFoundError, RetriableError
from headrace.log.api import Committed, Lease, Membership
from headrace.runtime.tasks.edges import Append
from headrace.runtime.workers.assignment import assign
from headrace.runtime.workers.bounds import Bounds, metadata
from headrace.runtime.workers.checkpointing import Pending, Saved, begin, complete
from headrace.runtime.workers.ending import all_finished
from headrace.runtime.workers.lifecycle import Phase
from headrace.runtime.workers.opening import open_task
from headrace.runtime.workers.parts import Blame, Parts
from headrace.runtime.workers.positions import pass_over
from headrace.runtime.workers.pressure import is_held
from headrace.runtime.workers.recovery import Restored, snapshot_directory
from headrace.runtime.workers.reporting import Reporter, Totals
from headrace.runtime.workers.restoring import after_damage, begin_restore, took
from headrace.runtime.workers.sending import send
from headrace.runtime.workers.slot import Slot
from headrace.runtime.workers.standby import Copies
from headrace.runtime.workers.transacting import transact
from headrace.topology.plan import TaskId

_log = logging.getLogger("headrace")

_POLL_MS = 200
"""How often the group is looked at."""
_MOVING_POLL_MS = 40
"""The same while tasks move, which pause until their next worker sees that they are free."""
_TICK_MS = 100
"""How often tasks learn the time, report progress downstream and are looked at for checkpoints."""
_IDLE_MS = 10
"""How long to wait when there was nothing to do."""
_PARKED_MS = 1
"""The same while a task waits for calls, which may end at any time."""
_RETRY_MS = 500
"""How long to wait before a job that failed begins anew."""
_LONGEST_RETRY_MS = 30_000
"""What that grows to for jobs that fail again and again."""


class Worker:
    """Runs tasks of one topology.

    Args:
        parts: What it works with.
        member_id: Its name in the group, which no other living worker has.
        bounds: Where the input ends, for a run that does.
    """

    def __init__(self, parts: Parts, member_id: str, bounds: Bounds | None = None) -> None:
        self.done = False
        """True once it has left the group, after ``drain`` or at the end of a bounded run."""
        self._parts = parts
        self._member_id = member_id
        self._bounds = bounds
        self._tasks = {str(task): (task, sub) for task, sub in parts.plan.tasks().items()}
        self._slots: dict[str, Slot] = {}
        self._internal = frozenset(parts.plan.internal_topics())
        self._draining = self._moving = False
        self._drained_ms = 0
        """When it was told to drain."""
        self._patience_ms = 0 if parts.copies is None else parts.settings.handoff_timeout_ms
        """How long a task that is to move waits for its next worker to have a copy of its state."""
        self._drain_patience_ms = parts.settings.drain_timeout_ms // 3
        self._current: TaskId | None = None
        """The task that is being worked on: the one to blame if a turn fails."""
        self._generation = -1
        self._polled_ms = self._ticked_ms = -_POLL_MS
        self._reporter = Reporter(parts.metrics, parts.plan.graph.name, parts.settings)
        self._copies = Copies(parts, member_id, self._home)
        self.membership: Membership = self._join()

    @property
    def totals(self) -> Totals:
        """Return what was counted since the worker began."""
        return self._reporter.totals

    @property
    def current(self) -> TaskId | None:
        """Return the task that is being worked on, if any; another thread may ask."""
        return self._current

    def slots(self) -> list[Slot]:
        """Return the tasks that this worker has, for status and metrics."""
        return list(self._slots.values())

    def turn(self) -> int:
        """Do a bounded piece of work and return how many milliseconds to wait before the next turn.

        Raises:
            HeadraceError: the worker cannot go on; call ``abandon`` and drain what is left.
        """
        monotonic = self._parts.clock.monotonic_ms()
        self._current = None
        if monotonic - self._polled_ms >= (_MOVING_POLL_MS if self._moving else _POLL_MS):
            self._polled_ms = monotonic
            try:
                self._follow_group()
            except RetriableError as error:
                _log.warning("%s", error)
        self._copies.turn(self.membership)
        if self._draining and monotonic - self._drained_ms >= min(self._patience_ms, self._drain_patience_ms):
            self._hand_over()
        self._collect_jobs()
        self._start_restores()
        worked = self._run_tasks()
        if monotonic - self._ticked_ms >= _TICK_MS:
            self._ticked_ms = monotonic
            self._tick()
        if self._draining and not self._slots and not self.done:
            self._leave()
        if worked or self.done:
            return 0
        return _PARKED_MS if any(slot.parked for slot in self._slots.values()) else _IDLE_MS

    def drain(self) -> None:
        """Hand every task over, after a last checkpoint, and then leave.

        A task goes on here until the worker that will have it has a copy of its state, if that does not take long.
        """
        self._draining, self._drained_ms, self._polled_ms = True, self._parts.clock.monotonic_ms(), -_POLL_MS
        try:
            self.membership.retire()
        except HeadraceError as error:
            _log.warning("the others learn only task by task that this worker leaves: %s", error)
            self._drain_patience_ms = 0
        for slot in list(self._slots.values()):
            if slot.phase is Phase.RESTORING or not self._patience_ms:
                self._begin_leaving(slot)

    def abandon(self) -> Blame:
        """Drop the task that a failed turn may have left half done, without a trace, so that the rest can drain."""
        slot = None if self._current is None else self._slots.get(str(self._current))
        if slot is None:
            return Blame.WORKER
        self._drop(slot)
        if self._holds(slot.lease):
            return Blame.TASK
        self._polled_ms = -_POLL_MS
        return Blame.NOBODY

    def close(self) -> None:
        """Drop everything at once; what was not checkpointed will be done again."""
        for slot in list(self._slots.values()):
            self._drop(slot)
        self._leave()

    # --- the group

    def _join(self) -> Membership:
        units = {unit: sub.owns(task.partition) for unit, (task, sub) in self._tasks.items()}
        settings = self._parts.settings
        copies = 0 if self._parts.copies is None else settings.standby_copies
        return self._parts.group.join(
            self._member_id, units, assign, session_timeout_ms=settings.session_timeout_ms,
            handoff_timeout_ms=self._patience_ms, standby_copies=copies,
        )  # fmt: skip

    def _leave(self) -> None:
        self.done = True
        self._copies.close()
        try:
            self.membership.leave()
        except HeadraceError as error:
            _log.warning("the others learn only later that this worker is gone: %s", error)

    def _holds(self, lease: Lease) -> bool:
        try:
            assignment = self.membership.poll()
            return assignment.confirmed and assignment.leases.get(lease.unit) == lease
        except FencedError:
            return False
        except HeadraceError:
            return True

    def _follow_group(self) -> None:
        try:
            assignment = self.membership.poll()
        except FencedError:
            _log.warning("this worker was taken for dead and lost its tasks; it joins again")
            for slot in list(self._slots.values()):
                self._drop(slot)
            self.membership.leave()
            self.membership = self._join()
            return
        if assignment.generation != self._generation:
            self._generation = assignment.generation
            self._reporter.rebalanced()
        for unit, slot in list(self._slots.items()):
            if assignment.leases.get(unit) != slot.lease:
                self._drop(slot)
            elif unit in assignment.revoked or (unit in assignment.outgoing and slot.phase is Phase.RESTORING):
                self._begin_leaving(slot)
        for unit, lease in assignment.leases.items():
            if unit in self._slots:
                continue
            if self._draining or unit in assignment.outgoing:
                self.membership.release(unit)
            elif assignment.confirmed:
                self._begin_restoring(lease)
        self._moving = bool(assignment.incoming or assignment.outgoing)
        restoring = [unit for unit, slot in self._slots.items() if slot.phase is Phase.RESTORING]
        self._copies.want(assignment.copies, assignment.incoming, restoring)

    def _hand_over(self) -> None:
        for slot in list(self._slots.values()):
            self._begin_leaving(slot)

    def _begin_restoring(self, lease: Lease) -> Slot:
        task, sub = self._tasks[lease.unit]
        slot = Slot(task, sub, lease, self._parts.metrics.task(self._parts.plan.graph.name, lease.unit))
        slot.job_started_ms = self._parts.clock.monotonic_ms()
        self._slots[lease.unit] = slot
        return slot

    def _begin_leaving(self, slot: Slot) -> None:
        """Stop feeding a task; it goes after its last checkpoint, or at once if it has nothing to keep."""
        if slot.phase is Phase.RUNNING:
            slot.move(Phase.LEAVING)
            slot.leaving_ms = self._parts.clock.monotonic_ms()
            slot.failures = slot.job_retry_ms = 0  # its last checkpoint must not wait for longer than a drain may take
        elif slot.phase is Phase.RESTORING:
            self._release(slot)

    def _begin_again(self, slot: Slot, error: RetriableError | CorruptError) -> None:
        """Drop a task and restore it later: what failed passes or will be replaced, but the task is half done."""
        setback = slot.setback
        if isinstance(error, CorruptError):
            setback = after_damage(slot, error, self._parts.clock.monotonic_ms())
        else:
            _log.warning("task %s goes back to its last checkpoint: %s", slot.id, error)
        self._drop(slot)
        fresh = self._begin_restoring(slot.lease)
        fresh.failures, fresh.after, fresh.setback = slot.failures, slot.job or slot.after, setback
        fresh.metrics.discarded(int(isinstance(error, CorruptError)))
        self._put_off(fresh)

    def _put_off(self, slot: Slot) -> None:
        """Let the next job of a task wait, the longer the more of them failed."""
        delay_ms = min(_RETRY_MS << min(slot.failures, 10), _LONGEST_RETRY_MS)
        slot.failures += 1
        slot.job_retry_ms = self._parts.clock.monotonic_ms() + delay_ms

    def _drop(self, slot: Slot) -> None:
        del self._slots[slot.lease.unit]
        self._reporter.take(slot)
        slot.close()
        self._parts.metrics.forget_task(self._parts.plan.graph.name, slot.lease.unit)

    def _release(self, slot: Slot) -> None:
        self._drop(slot)
        try:
            self.membership.release(slot.lease.unit)
        except RetriableError as error:
            _log.warning("task %s is released later: %s", slot.id, error)

    # --- jobs

    def _collect_jobs(self) -> None:
        for slot in list(self._slots.values()):
            if slot.job is not None and slot.job.done():
                job, slot.job = slot.job, None
                with self._working_on(slot):
                    try:
                        result = job.result()
                    except RetriableError as error:
                        self._job_failed(slot, error)
                        continue
                    if isinstance(result, Restored):
                        self._restored(slot, result)
                    elif isinstance(result, Saved):
                        self._saved(slot, result)
        for slot in [s for s in self._slots.values() if s.phase is Phase.LEAVING and s.job is None]:
            assert slot.task is not None
            if slot.parked:
                self._leave_behind(slot)
            elif slot.task.has_news or slot.unsent:
                with self._working_on(slot):
                    self._checkpoint(slot)
            else:
                self._release(slot)

    def _leave_behind(self, slot: Slot) -> None:
        """Let a task that waits go without a last checkpoint if it has waited for too long."""
        waited_ms = self._parts.clock.monotonic_ms() - slot.leaving_ms
        if waited_ms < self._parts.settings.drain_timeout_ms // 2:
            return
        _log.warning(
            "task %s leaves without a last checkpoint, as calls of its steps did not end within %d ms: its records "
            "since the one before will be processed again", slot.id, waited_ms,
        )  # fmt: skip
        self._release(slot)

    def _start_restores(self) -> None:
        now_ms = self._parts.clock.monotonic_ms()
        for slot in self._slots.values():
            waits = now_ms < slot.job_retry_ms or not (slot.after is None or slot.after.done())
            if slot.phase is not Phase.RESTORING or slot.job is not None or waits:
                continue
            begin_restore(self._parts, slot, self._home(slot.lease.unit), self._copies.of(slot.lease.unit))

    def _home(self, unit: str) -> Path:
        group = self._parts.settings.group or self._parts.plan.graph.name
        return Path(self._parts.settings.state_dir) / group / unit

    def _job_failed(self, slot: Slot, error: RetriableError) -> None:
        """Try a restore again soon, a checkpoint when the next one is due."""
        if slot.phase is Phase.RESTORING:
            self._begin_again(slot, error)
            return
        if not slot.unsaved_failures & (slot.unsaved_failures + 1):  # the first, second, fourth, ... in a row
            _log.warning("task %s: its checkpoint failed and will be tried again: %s", slot.id, error)
        slot.metrics.checkpoint_failed()
        assert slot.task is not None
        slot.task.changed = True
        slot.unsaved_failures += 1
        self._put_off(slot)

    def _restored(self, slot: Slot, restored: Restored) -> None:
        parts = self._parts
        took(slot, restored, parts.clock.monotonic_ms())
        if self._draining:
            self._release(slot)
            return
        cache_bytes = parts.settings.cache_bytes // max(1, len(self._tasks) // parts.settings.workers)
        open_task(parts, slot, restored, cache_bytes=cache_bytes)
        assert slot.task is not None
        slot.checkpointed_ms = slot.saved_ms = parts.clock.monotonic_ms()
        slot.saved_end = slot.task.saved_end
        slot.local = True
        slot.move(Phase.RUNNING)
        if restored.manifest.positions:
            # The last owner may have died between its manifest and its commit.
            note = metadata(slot.saved_end)
            positions = {p: Committed(position, note) for p, position in slot.task.owned.items()}
            self.membership.commit(slot.lease, positions)
        self._send(slot, slot.task.saved())
        self._settle(slot)

    def _saved(self, slot: Slot, saved: Saved) -> None:
        slot.manifest = saved.manifest
        slot.saved_end = saved.finished
        slot.failures = slot.unsaved_failures = 0
        slot.saved_ms = self._parts.clock.monotonic_ms()
        assert slot.task is not None
        slot.unsaved_ms = slot.job_started_ms if slot.task.changed else None
        now_ms, seconds = self._parts.clock.now_ms(), (slot.saved_ms - slot.job_started_ms) / 1000
        slot.metrics.checkpointed(now_ms, seconds, saved.uploaded_bytes, saved.manifest.size_bytes)
        self._send(slot, slot.task.saved())
        if saved.closing and slot.phase is Phase.RUNNING:
            self._settle(slot)

    def _settle(self, slot: Slot) -> None:
        """Close what a checkpoint says will be closed; whoever has the task does, before it takes another record."""
        assert slot.task is not None
        self._send(slot, slot.task.settle())

    def _checkpoint(self, slot: Slot) -> None:
        """Begin a checkpoint, unless one is under way or failed just now, or outputs wait to be sent."""
        parts = self._parts
        monotonic = parts.clock.monotonic_ms()
        assert slot.task is not None
        if slot.job is not None or slot.unsent or slot.task.outbox.departing or monotonic < slot.job_retry_ms:
            return
        assert slot.store is not None
        assert slot.manifest is not None
        slot.job_started_ms = slot.checkpointed_ms = monotonic
        pending: Pending = begin(slot.task, slot.store, snapshot_directory(self._home(slot.lease.unit), slot.lease))
        slot.job = parts.jobs.submit(
            partial(
                complete, pending, previous=slot.manifest, log=parts.log, checkpoints=parts.checkpoints,
                membership=self.membership, lease=slot.lease, internal=self._internal, now_ms=parts.clock.now_ms(),
                layouts=parts.layouts,
            )
        )  # fmt: skip

    # --- tasks

    def _run_tasks(self) -> bool:
        """Give each task one batch, those that read internal topics first, so that these stay short."""
        worked = False
        for slot in sorted(self._slots.values(), key=lambda s: -s.sub.level):
            with self._working_on(slot):
                transact(slot, self._parts)
                if slot.unsent:
                    self._send(slot, [])
                elif slot.parked:
                    worked |= self._resume(slot)
                elif slot.phase is Phase.RUNNING:
                    worked |= self._feed(slot)
        return worked

    @contextmanager
    def _working_on(self, slot: Slot) -> Iterator[None]:
        """Name the task to blame for what fails in the block; from what passes, it recovers by itself."""
        self._current = slot.id
        try:
            yield
        except FencedError as error:
            _log.warning("task %s was dropped: %s", slot.id, error)
            self._drop(slot)
        except (RetriableError, CorruptError) as error:
            self._begin_again(slot, error)

    def _feed(self, slot: Slot) -> bool:
        assert slot.task is not None
        if slot.task.closing or slot.task.outbox.filling:
            self._checkpoint(slot)
        if slot.task.closing or slot.task.outbox.full or self._is_held(slot):
            return False
        try:
            found = slot.read(self._parts.settings.batch_records, self._bounds)
        except NotFoundError:
            if not pass_over(slot, self._parts.log, self._internal, self._parts.settings.lost_records):
                raise
            return True
        if found is None:
            if self._bounds is not None and slot.finishes(self._bounds):
                slot.task.finish(self._bounds.number)
                return True
            return False
        slot.batch_ms = self._parts.clock.monotonic_ms()
        partition, batch = found
        slot.batch_records = len(batch)
        slot.read_time_ms[partition] = batch.timestamps[-1]
        self._send(slot, slot.task.step(partition, batch))
        self._stepped(slot)
        return True

    def _is_held(self, slot: Slot) -> bool:
        settings = self._parts.settings
        return settings.unsaved_limit_ms > 0 and is_held(slot.facts(settings, self._parts.clock.monotonic_ms()))

    def _resume(self, slot: Slot) -> bool:
        """Let a task that waits go on if it can; return whether it has done what it was at."""
        assert slot.task is not None
        self._send(slot, slot.task.resume(self._parts.clock.monotonic_ms()))
        self._stepped(slot)
        return not slot.parked

    def _stepped(self, slot: Slot) -> None:
        if slot.task is None or slot.parked:
            return
        slot.task.relieve()
        if slot.batch_records:
            slot.metrics.batch(slot.batch_records, (self._parts.clock.monotonic_ms() - slot.batch_ms) / 1000)
            slot.batch_records = 0

    def _send(self, slot: Slot, appends: list[Append]) -> None:
        send(slot, appends, self._parts.log, self._parts.clock)

    def _tick(self) -> None:
        now_ms, monotonic = self._parts.clock.now_ms(), self._parts.clock.monotonic_ms()
        for slot in list(self._slots.values()):
            if slot.phase is Phase.RUNNING and not slot.unsent and not slot.parked:
                with self._working_on(slot):
                    self._tick_task(slot, now_ms, monotonic)
        self._current = None
        self._reporter.report(self.slots(), now_ms, monotonic)
        parts, tasks = self._parts, self._tasks.values()
        if self._bounds is None or self._draining:
            return
        if all_finished(self._bounds, self.slots(), parts.group, parts.checkpoints, tasks):
            self._draining = True
            self._hand_over()

    def _tick_task(self, slot: Slot, now_ms: int, monotonic: int) -> None:
        assert slot.task is not None
        if slot.task.changed and slot.unsaved_ms is None:
            slot.unsaved_ms = monotonic
        if slot.task.closing:
            return
        if self._bounds is None:
            self._send(slot, slot.task.tick(now_ms, slot.at_end()))
            if slot.parked:
                slot.batch_ms = monotonic
                return
        if monotonic - slot.reported_ms >= max(_TICK_MS, slot.task.report_interval_ms):
            slot.reported_ms = monotonic
            self._send(slot, slot.task.report())
        finished = self._bounds is not None and slot.task.finished >= self._bounds.number
        due = finished or monotonic - slot.checkpointed_ms >= self._parts.settings.checkpoint_interval_ms
        if slot.task.has_news and due:
            self._checkpoint(slot)
