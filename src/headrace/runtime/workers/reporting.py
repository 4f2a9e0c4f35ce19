"""What a worker tells about itself: counts, lags and watermarks, gathered about once a second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from headrace.metrics import Metrics
from headrace.record import MIN_WATERMARK
from headrace.runtime.workers.lifecycle import Phase
from headrace.runtime.workers.pressure import WAITS, waits
from headrace.runtime.workers.slot import Slot
from headrace.settings import Settings

_REPORT_MS = 500


@dataclass(slots=True)
class Totals:
    """Counts since the worker began, and what was last measured."""

    records_in: Counter[str] = field(default_factory=Counter)
    """By topic."""
    records_out: Counter[str] = field(default_factory=Counter)
    """By topic."""
    late: int = 0
    errors: int = 0
    lag_records: int = 0
    watermark_ms: int | None = None
    tasks: int = 0
    restoring: int = 0


class Reporter:
    """Moves what tasks tallied into totals and metrics."""

    def __init__(self, metrics: Metrics, topology: str, settings: Settings) -> None:
        self.totals = Totals()
        self._metrics = metrics
        self._topology = topology
        self._settings = settings
        self._worker = metrics.worker(topology)
        self._worker.up(True)
        self._reported_ms = -_REPORT_MS

    def rebalanced(self) -> None:
        """Count a change in the group."""
        self._worker.rebalanced()

    def report(self, slots: Iterable[Slot], now_ms: int, monotonic_ms: int) -> None:
        """Take the tallies, and measure what changes slowly."""
        slots = list(slots)
        totals = self.totals
        for slot in slots:
            self.take(slot)
        totals.tasks = len(slots)
        totals.restoring = sum(slot.phase is Phase.RESTORING for slot in slots)
        if monotonic_ms - self._reported_ms < _REPORT_MS:
            return
        self._reported_ms = monotonic_ms
        self._worker.owned(len(slots))
        totals.lag_records = 0
        for slot in slots:
            self._tell_waits(slot, monotonic_ms)
            self._measure(slot, now_ms, monotonic_ms)
        marks = [slot.task.watermark for slot in slots if slot.task is not None]
        known = [mark for mark in marks if mark > MIN_WATERMARK]
        totals.watermark_ms = min(known) if known else None

    def take(self, slot: Slot) -> None:
        """Take the tally of one task; for the last time before it goes."""
        if slot.task is None:
            return
        tally, totals = slot.task.take_tally(), self.totals
        totals.records_out += tally.records_out
        totals.late += tally.late.total()
        totals.errors += tally.errors.total() + tally.dead_letters.total()
        for partition, count in tally.records_in.items():
            totals.records_in[partition.topic] += count
            slot.metrics.input(*partition).read(count)
        for step, count in tally.sent.items():
            self._metrics.step(self._topology, step).sent(count)
        for step, count in tally.late.items():
            self._metrics.step(self._topology, step).late(count)
        for step, count in tally.errors.items():
            self._metrics.step(self._topology, step).failed("skip", count)
        for step, count in tally.dead_letters.items():
            self._metrics.step(self._topology, step).failed("dead-letter", count)
        for step, count in tally.retries.items():
            self._metrics.step(self._topology, step).retried(count)

    def _tell_waits(self, slot: Slot, monotonic_ms: int) -> None:
        if slot.phase is Phase.RESTORING:
            slot.metrics.restoring(slot.restore_bytes - slot.restored_bytes, slot.restore_bytes)
            return
        facts = slot.facts(self._settings, monotonic_ms)
        slot.metrics.unsaved(facts.unsaved_ms / 1000)
        found = waits(facts)
        for wait in WAITS:
            slot.metrics.waits(wait, wait in found)

    def _measure(self, slot: Slot, now_ms: int, monotonic_ms: int) -> None:
        task = slot.task
        if task is None or slot.phase is Phase.GONE:
            return
        for partition, lag in slot.lag().items():
            self.totals.lag_records += lag
            behind = (now_ms - slot.read_time_ms.get(partition, now_ms)) / 1000 if lag else 0.0
            slot.metrics.input(*partition).lag(lag, behind)
        if task.watermark > MIN_WATERMARK:
            slot.metrics.watermark(task.watermark, now_ms, task.held_back_by())
        slot.metrics.checkpoint_age((monotonic_ms - slot.saved_ms) / 1000)
        slot.metrics.state_bytes(task.state_bytes())
        if task.outbox.in_use:
            slot.metrics.outbox(task.outbox.waiting_records, task.outbox.waiting_bytes)
        for name, used, hits, misses in task.cache_statistics():
            store = slot.metrics.store(name)
            store.cached(used)
            store.looked_up(hits, misses)
