"""Prometheus metrics: every family declared once, handles that are cheap enough to be used once per batch.

A worker owns one :class:`Metrics`; each task, step and input gets a handle with its labels filled in. Labels are
bounded by the topology and its partitions and never hold a record's key. A gauge appears with its first value, so that
what nobody knows yet does not show as zero; a counter appears with its handle, so that its first step is seen. Both go
when their task goes.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from headrace.record import MIN_WATERMARK, TopicPartition

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of an exposition."""

_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0)
_DURATION = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_RECORDS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0)

_TASK = ("topology", "task")
_INPUT = (*_TASK, "topic", "partition")
_STEP = ("topology", "step")
_STORE = (*_TASK, "store")


class Family(NamedTuple):
    """The declaration of a metric: its name without ``headrace_``, help text, kind and labels."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("counter", "records_in_total", "Records that a task took from an input.", _INPUT),
        Family("counter", "records_out_total", "Records that a step sent to a topic or sink.", _STEP),
        Family("counter", "record_errors_total", "Records that failed, by what became of them.", (*_STEP, "policy")),
        Family("counter", "retries_total", "Calls that a step made again after they had failed.", _STEP),
        Family("counter", "late_records_total", "Records that came after their window had closed.", _STEP),
        Family("gauge", "lag_records", "Records between a task's position in an input and the input's end.", _INPUT),
        Family("gauge", "lag_seconds", "Age of the record that a task read last from an input.", _INPUT),
        Family("gauge", "watermark_timestamp_seconds", "Event time up to which a task's input is complete.", _TASK),
        Family("gauge", "watermark_lag_seconds", "How far a task's watermark is behind the clock.", _TASK),
        Family("gauge", "watermark_holder_info", "Is 1 for the input that holds a task's watermark back.", _INPUT),
        Family("histogram", "batch_duration_seconds", "Time a task took for one batch.", _TASK, _LATENCY),
        Family("histogram", "batch_records", "Records in one batch of a task.", _TASK, _RECORDS),
        Family("counter", "slow_steps_total", "Steps that took longer for a batch than slow_step.", _TASK),
        Family("gauge", "slow_step_seconds", "How long a slow step has been at its batch; 0 once it is back.", _TASK),
        Family("counter", "blocked_seconds_total", "Time a task waited for the log to take its outputs.", _TASK),
        Family("histogram", "checkpoint_duration_seconds", "Time from start to commit.", _TASK, _DURATION),
        Family("counter", "checkpoint_uploaded_bytes_total", "Bytes that checkpoints uploaded.", _TASK),
        Family("gauge", "checkpoint_size_bytes", "Bytes that the last checkpoint consists of.", _TASK),
        Family("gauge", "checkpoint_timestamp_seconds", "When the last checkpoint was committed.", _TASK),
        Family("gauge", "checkpoint_age_seconds", "Time since the last checkpoint was committed.", _TASK),
        Family("counter", "checkpoint_failures_total", "Checkpoints that failed.", _TASK),
        Family("gauge", "restore_duration_seconds", "Time the last restore of a task's state took.", _TASK),
        Family("gauge", "restore_bytes", "Bytes that the last restore of a task's state had to bring.", _TASK),
        Family("gauge", "restore_left_bytes", "Bytes that a restore has yet to bring.", _TASK),
        Family("counter", "restore_fetched_bytes_total", "Bytes that restores took from the checkpoint store.", _TASK),
        Family("counter", "restore_reused_bytes_total", "Bytes that restores found on this machine.", _TASK),
        Family("counter", "restore_fallbacks_total", "Checkpoints that were damaged and passed over.", _TASK),
        Family("counter", "restore_discards_total", "Local states that were damaged and fetched anew.", _TASK),
        Family("counter", "records_lost_total", "Records left out because retention had deleted them.", _INPUT),
        Family("gauge", "unsaved_seconds", "Age of the oldest change that no checkpoint holds.", _TASK),
        Family("gauge", "task_blocked", "Is 1 while a task waits for this.", (*_TASK, "reason")),
        Family("gauge", "state_bytes", "Bytes of a task's state on disk.", _TASK),
        Family("gauge", "standby_bytes", "Bytes of the copy of another worker's task that a worker keeps.", _TASK),
        Family("gauge", "standby_lag_checkpoints", "Checkpoints of the task that such a copy has not got yet.", _TASK),
        Family("gauge", "standby_age_seconds", "Age of the checkpoint that such a copy holds.", _TASK),
        Family("gauge", "outbox_records", "Outputs of a task that wait for a checkpoint before they leave.", _TASK),
        Family("gauge", "outbox_bytes", "Bytes of a task's outputs that wait for a checkpoint.", _TASK),
        Family("counter", "cache_hits_total", "Lookups that the cache of a store answered.", _STORE),
        Family("counter", "cache_misses_total", "Lookups that went past the cache of a store.", _STORE),
        Family("gauge", "cache_hit_ratio", "Share of all lookups so far that the cache answered.", _STORE),
        Family("gauge", "cache_bytes", "Memory that the cache of a store takes.", _STORE),
        Family("counter", "rebalances_total", "Changes of the tasks that a worker owns.", ("topology",)),
        Family("gauge", "tasks_owned", "Tasks that a worker owns.", ("topology",)),
        Family("gauge", "worker_up", "Is 1 while a worker runs.", ("topology",)),
        Family("gauge", "build_info", "Is 1, labelled with what runs.", ("version", "python")),
    )
}
"""Every metric, by its name without the prefix."""

_Instrument = Counter | Gauge | Histogram


class Metrics:
    """The metrics of one worker, in a registry of their own.

    Args:
        version: The version of headrace that ``headrace_build_info`` shows.

    Example:
        >>> metrics = Metrics("0.1.0")
        >>> metrics.step("card-spend", "spend").sent(4096)
        >>> b'headrace_records_out_total{step="spend",topology="card-spend"} 4096.0' in metrics.exposition()
        True
    """

    def __init__(self, version: str = "") -> None:
        self._registry = CollectorRegistry()
        self.instruments: dict[str, _Instrument] = {name: _make(f, self._registry) for name, f in FAMILIES.items()}
        self._tasks: dict[tuple[str, str], TaskMetrics] = {}
        self._copies: dict[tuple[str, str], CopyMetrics] = {}
        self._steps: dict[tuple[str, str], StepMetrics] = {}
        self._workers: dict[str, WorkerMetrics] = {}
        if version:
            self.instruments["build_info"].labels(version=version, python=platform.python_version()).inc()  # type: ignore[union-attr]

    def task(self, topology: str, task: str) -> TaskMetrics:
        """Return the handle of a task, the same one until the task is forgotten."""
        handle = self._tasks.get((topology, task))
        if handle is None:
            handle = self._tasks[topology, task] = TaskMetrics(self, {"topology": topology, "task": task})
        return handle

    def step(self, topology: str, step: str) -> StepMetrics:
        """Return the handle of a step, which all tasks of the worker share."""
        handle = self._steps.get((topology, step))
        if handle is None:
            handle = self._steps[topology, step] = StepMetrics(self, {"topology": topology, "step": step})
        return handle

    def worker(self, topology: str) -> WorkerMetrics:
        """Return the handle of the worker itself."""
        handle = self._workers.get(topology)
        if handle is None:
            handle = self._workers[topology] = WorkerMetrics(self, {"topology": topology})
        return handle

    def forget_task(self, topology: str, task: str) -> None:
        """Remove every series of a task that moved away; its old handle does nothing from now on."""
        handle = self._tasks.pop((topology, task), None)
        if handle is not None:
            handle.forget()

    def copy(self, topology: str, task: str) -> CopyMetrics:
        """Return the handle of the copy of another worker's task, the same one until it is forgotten."""
        handle = self._copies.get((topology, task))
        if handle is None:
            handle = self._copies[topology, task] = CopyMetrics(self, {"topology": topology, "task": task})
        return handle

    def forget_copy(self, topology: str, task: str) -> None:
        """Remove every series of a copy that is not kept any more."""
        handle = self._copies.pop((topology, task), None)
        if handle is not None:
            handle.forget()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format, without the ``_created`` series."""
        return generate_latest(_Families(map(_without_created, self._registry.collect())))


class _Handle:
    """Series with the same labels; all but the counters are made when they get their first value."""

    __slots__ = ("_forgotten", "_instruments", "_labels", "_metrics", "_series")
    _counters: ClassVar[tuple[str, ...]] = ()

    def __init__(self, metrics: Metrics, labels: Mapping[str, str], *, forgotten: bool = False) -> None:
        self._metrics = metrics
        self._instruments = metrics.instruments
        self._labels = labels
        self._series: dict[str, _Instrument] = {}
        self._forgotten = forgotten
        for name in self._counters:
            self._make(name)

    def _add(self, name: str, amount: float) -> None:
        series = self._series.get(name) or self._make(name)
        if series is not None:
            series.inc(amount)  # type: ignore[union-attr]

    def _set(self, name: str, value: float) -> None:
        series = self._series.get(name) or self._make(name)
        if series is not None:
            series.set(value)  # type: ignore[union-attr]

    def _observe(self, name: str, value: float) -> None:
        series = self._series.get(name) or self._make(name)
        if series is not None:
            series.observe(value)  # type: ignore[union-attr]

    def _make(self, name: str) -> _Instrument | None:
        if self._forgotten:
            return None
        series = self._series[name] = self._instruments[name].labels(**self._labels)
        return series

    def _remove(self, name: str) -> None:
        if self._series.pop(name, None) is not None:
            family = FAMILIES[name]
            self._instruments[name].remove(*(self._labels[label] for label in family.labels))

    def forget(self) -> None:
        """Remove the series; what is reported later is dropped."""
        self._forgotten = True
        for name in list(self._series):
            self._remove(name)


class TaskMetrics(_Handle):
    """What a task reports, at most once per batch or checkpoint."""

    __slots__ = ("_holder", "_inputs", "_reasons", "_stores")
    _counters = (
        "blocked_seconds_total", "checkpoint_failures_total", "checkpoint_uploaded_bytes_total",
        "restore_fetched_bytes_total", "restore_reused_bytes_total", "restore_fallbacks_total",
        "restore_discards_total", "slow_steps_total",
    )  # fmt: skip

    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        super().__init__(metrics, labels)
        self._inputs: dict[TopicPartition, InputMetrics] = {}
        self._stores: dict[str, StoreMetrics] = {}
        self._reasons: dict[str, _Handle] = {}
        self._holder: TopicPartition | None = None

    def input(self, topic: str, partition: int) -> InputMetrics:
        """Return the handle of one partition that the task reads."""
        key = TopicPartition(topic, partition)
        handle = self._inputs.get(key)
        if handle is None:
            labels = {**self._labels, "topic": topic, "partition": str(partition)}
            handle = self._inputs[key] = InputMetrics(self._metrics, labels, forgotten=self._forgotten)
        return handle

    def store(self, store: str) -> StoreMetrics:
        """Return the handle of one of the task's stores."""
        handle = self._stores.get(store)
        if handle is None:
            labels = {**self._labels, "store": store}
            handle = self._stores[store] = StoreMetrics(self._metrics, labels, forgotten=self._forgotten)
        return handle

    def batch(self, records: int, seconds: float) -> None:
        """Report a batch that the task is through with."""
        self._observe("batch_records", records)
        self._observe("batch_duration_seconds", seconds)

    def slowed(self) -> None:
        """Count a step that is slow."""
        self._add("slow_steps_total", 1)

    def step_lasts(self, seconds: float) -> None:
        """Report how long a slow step has been at its batch."""
        self._set("slow_step_seconds", seconds)

    def blocked(self, seconds: float) -> None:
        """Report time spent waiting for the log to take outputs."""
        self._add("blocked_seconds_total", seconds)

    def watermark(self, watermark_ms: int, now_ms: int, held_by: TopicPartition | None = None) -> None:
        """Report the watermark, and the input that holds it back; an unknown watermark shows no value."""
        if watermark_ms == MIN_WATERMARK:
            self._remove("watermark_timestamp_seconds")
            self._remove("watermark_lag_seconds")
        else:
            self._set("watermark_timestamp_seconds", watermark_ms / 1000)
            self._set("watermark_lag_seconds", max(0, now_ms - watermark_ms) / 1000)
        if held_by != self._holder:
            if self._holder is not None:
                self.input(*self._holder)._remove("watermark_holder_info")
            if held_by is not None:
                self.input(*held_by)._set("watermark_holder_info", 1)
            self._holder = held_by

    def checkpointed(self, at_ms: int, seconds: float, uploaded_bytes: int, size_bytes: int) -> None:
        """Report a checkpoint that was committed at ``at_ms``."""
        self._observe("checkpoint_duration_seconds", seconds)
        self._add("checkpoint_uploaded_bytes_total", uploaded_bytes)
        self._set("checkpoint_size_bytes", size_bytes)
        self._set("checkpoint_timestamp_seconds", at_ms / 1000)
        self._set("checkpoint_age_seconds", 0)

    def checkpoint_age(self, seconds: float) -> None:
        """Report how old the last checkpoint is by now."""
        self._set("checkpoint_age_seconds", seconds)

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that failed."""
        self._add("checkpoint_failures_total", 1)

    def restoring(self, left_bytes: int, size_bytes: int) -> None:
        """Report how far the restore of the task's state is."""
        self._set("restore_bytes", size_bytes)
        self._set("restore_left_bytes", left_bytes)

    def restored(self, seconds: float, fetched_bytes: int = 0, reused_bytes: int = 0, fallbacks: int = 0) -> None:
        """Report how long the restore of the task's state took, where the bytes came from, and what was damaged."""
        self._set("restore_duration_seconds", seconds)
        self._set("restore_bytes", fetched_bytes + reused_bytes)
        self._set("restore_left_bytes", 0)
        self._add("restore_fetched_bytes_total", fetched_bytes)
        self._add("restore_reused_bytes_total", reused_bytes)
        self._add("restore_fallbacks_total", fallbacks)

    def discarded(self, states: int = 1) -> None:
        """Count local states that were damaged."""
        self._add("restore_discards_total", states)

    def unsaved(self, seconds: float) -> None:
        """Report how old the oldest change is that no checkpoint holds."""
        self._set("unsaved_seconds", seconds)

    def waits(self, reason: str, waiting: bool) -> None:
        """Report whether the task waits for something."""
        handle = self._reasons.get(reason)
        if handle is None:
            labels = {**self._labels, "reason": reason}
            handle = self._reasons[reason] = _Handle(self._metrics, labels, forgotten=self._forgotten)
        handle._set("task_blocked", int(waiting))

    def state_bytes(self, size_bytes: int) -> None:
        """Report the size of the task's state on disk."""
        self._set("state_bytes", size_bytes)

    def outbox(self, records: int, size_bytes: int) -> None:
        """Report the outputs that wait for a checkpoint."""
        self._set("outbox_records", records)
        self._set("outbox_bytes", size_bytes)

    def forget(self) -> None:
        """Remove the series of the task, its inputs and its stores."""
        super().forget()
        for handle in (*self._inputs.values(), *self._stores.values(), *self._reasons.values()):
            handle.forget()


class CopyMetrics(_Handle):
    """What is known of the copy that a worker keeps of another's task."""

    __slots__ = ()

    def followed(self, size_bytes: int, lag_checkpoints: int, age_seconds: float) -> None:
        """Report what it holds, and how far that is behind the task."""
        self._set("standby_bytes", size_bytes)
        self._set("standby_lag_checkpoints", lag_checkpoints)
        self._set("standby_age_seconds", age_seconds)


class InputMetrics(_Handle):
    """What is known of one partition that a task reads."""

    __slots__ = ()
    _counters = ("records_in_total", "records_lost_total")

    def read(self, records: int) -> None:
        """Count the records of a batch."""
        self._add("records_in_total", records)

    def lost(self, records: int) -> None:
        """Count records that were left out because they are gone."""
        self._add("records_lost_total", records)

    def lag(self, records: int, seconds: float | None = None) -> None:
        """Report how far the task is behind the end, in records and in age of what it read last."""
        self._set("lag_records", records)
        if seconds is not None:
            self._set("lag_seconds", seconds)


class StoreMetrics(_Handle):
    """What the cache of a store reports."""

    __slots__ = ("_hits", "_lookups")
    _counters = ("cache_hits_total", "cache_misses_total")

    def __init__(self, metrics: Metrics, labels: Mapping[str, str], *, forgotten: bool = False) -> None:
        super().__init__(metrics, labels, forgotten=forgotten)
        self._hits = self._lookups = 0

    def looked_up(self, hits: int, misses: int) -> None:
        """Count lookups since the last report."""
        self._hits += hits
        self._lookups += hits + misses
        if self._lookups:
            self._add("cache_hits_total", hits)
            self._add("cache_misses_total", misses)
            self._set("cache_hit_ratio", self._hits / self._lookups)

    def cached(self, size_bytes: int) -> None:
        """Report the memory that the cache takes."""
        self._set("cache_bytes", size_bytes)


class StepMetrics(_Handle):
    """What a step reports; the tasks of a worker add to the same series."""

    __slots__ = ("_policies",)
    _counters = ("records_out_total", "late_records_total", "retries_total")

    def __init__(self, metrics: Metrics, labels: Mapping[str, str]) -> None:
        super().__init__(metrics, labels)
        self._policies: dict[str, _Handle] = {}

    def sent(self, records: int) -> None:
        """Count records that the step sent to a topic or sink."""
        self._add("records_out_total", records)

    def late(self, records: int) -> None:
        """Count records that came after their window had closed."""
        self._add("late_records_total", records)

    def retried(self, calls: int) -> None:
        """Count calls that were made again."""
        self._add("retries_total", calls)

    def failed(self, policy: str, records: int = 1) -> None:
        """Count records that failed and were treated by ``policy``; 0 makes the series appear."""
        handle = self._policies.get(policy)
        if handle is None:
            handle = self._policies[policy] = _Handle(self._metrics, {**self._labels, "policy": policy})
        handle._add("record_errors_total", records)


class WorkerMetrics(_Handle):
    """What a worker reports of itself."""

    __slots__ = ()
    _counters = ("rebalances_total",)

    def up(self, running: bool) -> None:
        """Report whether the worker runs."""
        self._set("worker_up", int(running))

    def rebalanced(self) -> None:
        """Count a change of the owned tasks."""
        self._add("rebalances_total", 1)

    def owned(self, tasks: int) -> None:
        """Report how many tasks the worker owns."""
        self._set("tasks_owned", tasks)


def merge_expositions(expositions: Mapping[int, bytes | None]) -> bytes:
    r"""Merge what several workers expose into one exposition whose series carry a ``worker`` label.

    Args:
        expositions: Each worker's own exposition by its index; None for a worker that did not answer, which shows
            as ``headrace_worker_up`` 0.

    Example:
        >>> text = b'# HELP up Up.\n# TYPE up gauge\nup 1.0\n'
        >>> print(merge_expositions({0: text, 1: text}).decode(), end="")
        # HELP up Up.
        # TYPE up gauge
        up{worker="0"} 1.0
        up{worker="1"} 1.0
    """
    merged: dict[str, Metric] = {}
    for worker, exposition in sorted(expositions.items()):
        for family in text_string_to_metric_families((exposition or b"").decode()):
            target = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                target.samples.append(sample._replace(labels={**sample.labels, "worker": str(worker)}))
    up = merged.setdefault("headrace_worker_up", Metric("headrace_worker_up", FAMILIES["worker_up"].help, "gauge"))
    topologies = sorted({sample.labels.get("topology", "") for sample in up.samples}) or [""]
    for worker in sorted(worker for worker, exposition in expositions.items() if exposition is None):
        for topology in topologies:
            up.add_sample(up.name, {"topology": topology, "worker": str(worker)}, 0)
    return generate_latest(_Families(family for family in merged.values() if family.samples))


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _without_created(family: Metric) -> Metric:
    family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
    return family


def _make(family: Family, registry: CollectorRegistry) -> _Instrument:
    name = f"headrace_{family.name}"
    if family.kind == "counter":
        return Counter(name, family.help, family.labels, registry=registry)
    if family.kind == "gauge":
        return Gauge(name, family.help, family.labels, registry=registry)
    return Histogram(name, family.help, family.labels, registry=registry, buckets=family.buckets)
