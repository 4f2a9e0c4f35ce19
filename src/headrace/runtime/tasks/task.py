"""A task: one sub-topology on one partition, as a synchronous state machine.

Batches go in, appends come out. It reads no clock and opens nothing; its store, and the time where that matters, are
given to it. ``flush`` puts everything that a successor needs into the store: the operators' state, the positions in
the inputs, the watermarks, and the positions on the edges. A task that is built on a copy of that store and fed from
those positions does what this one would have done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgpack

from headrace.operators.api import Batch, StepContext
from headrace.operators.async_map import Caller
from headrace.record import MIN_WATERMARK, RecordBatch, TopicPartition
from headrace.runtime.tasks.edges import DEFAULT_HASH, NO_LIMITS, Append, Hash, left_by_outbox
from headrace.runtime.tasks.executor import Chain
from headrace.runtime.tasks.ingest import decode, ingest
from headrace.runtime.tasks.inputs import TaskInput
from headrace.runtime.tasks.meta import FORMAT, META_KEY, WITHOUT_OUTBOX, read_meta
from headrace.runtime.tasks.outbox import Outbox
from headrace.runtime.tasks.parking import Parked, Wait, Work, start
from headrace.runtime.tasks.tally import Tally
from headrace.runtime.tasks.times import Mark, meet
from headrace.runtime.tasks.watermarks import InternalTime, Running, SourceTime
from headrace.state.api import Store, WriteBatch
from headrace.state.cache import Budget
from headrace.state.decoding import unreadable
from headrace.state.keys import store_prefix
from headrace.topology.change import described
from headrace.topology.graph import Repartition, Source, Step
from headrace.topology.plan import Input, Plan, SubTopology, TaskId
from headrace.topology.shapes import carry_over

_CLOCK_STEP_MS = 1_000
"""While its input is idle, a task moves its watermark no more often than this: each move is written downstream."""
_REPORT_MS_PER_PARTITION = 10


class _Closing(NamedTuple):
    """What a task will close when a checkpoint says that it will."""

    watermarks: dict[str, int]
    """Where the clock has the watermark of each input, by source, if ``end`` is negative."""
    end: int
    """The bound of an input that has ended, or -1."""


class Task:
    """The state machine.

    Args:
        plan: The plan that it is part of.
        sub: Its sub-topology.
        task_id: Its id.
        store: Its store, as a checkpoint left it, or empty.
        partitions: How many partitions each output topic has.
        cache_bytes: Memory for its write-behind caches.
        starts: Where to begin in each input if the store does not say.
        caller: Makes the calls of asynchronous steps; None if there are none.
        reset: Steps whose state is forgotten.
        checkpoint: The number of the checkpoint that the store holds.
        hash_key: By whose remainder keys go to partitions.
        limits: The largest record that output topics take, in bytes, where there is a limit.
        life: See ``Outbox``.

    Raises:
        CorruptError: the store was written by a newer version, or makes no sense.
        InvalidError: it belongs to another task.
    """

    def __init__(
        self,
        plan: Plan,
        sub: SubTopology,
        task_id: TaskId,
        store: Store,
        *,
        partitions: Mapping[str, int],
        cache_bytes: int,
        starts: Mapping[TopicPartition, int],
        caller: Caller | None = None,
        reset: frozenset[str] = frozenset(),
        checkpoint: int = 0,
        hash_key: Hash = DEFAULT_HASH,
        limits: Mapping[str, int] = NO_LIMITS,
        life: str = "",
    ) -> None:
        self.id = task_id
        self.budget = Budget(cache_bytes, self._part)
        self.changed = False
        """True if anything was done since the last flush."""
        self._store = store
        meta = _without(store, read_meta(store.get(META_KEY), task_id), reset)
        self._store_ids: dict[str, int] = meta.get("stores", {})
        self._inputs: dict[TopicPartition, TaskInput] = {}
        by_topic = {item.topic: item for item in sub.inputs}
        for partition in sub.reads(task_id.partition):
            self._inputs[partition] = self._input(plan, by_topic[partition.topic], partition, meta, starts)
        self._owned = {p: self._inputs[p] for p in sub.owns(task_id.partition)}
        """The inputs whose event time counts: those that other tasks read too are there at all times."""
        self.outbox = Outbox(cache_bytes // 2, plan.transacted(sub), life)
        """What waits for a checkpoint before it may leave."""
        self.outbox.restore(store, checkpoint)
        self._chain = Chain(plan, sub, task_id, partitions, self._context, self.outbox, caller, hash_key, limits)
        self._parked: Parked[list[Append]] | None = None
        self._sequences: dict[str, int] = meta.get("sequences", {})
        """Kept for edges that are not there at present, too: what they wrote was seen downstream."""
        self._chain.restore(self._sequences, checkpoint)
        self._end: int = meta.get("end", -1)
        self.saved_end = self.left_end
        """The ``left_end`` that its last checkpoint tells others of."""
        self._at_rest = self._end >= 0
        """True from the end of a bounded input to the next record."""
        self._closing: _Closing | None = None
        self._ahead: dict[str, Mark] | None = None
        """Where the clock has the inputs, if downstream may know: it closes nothing here."""
        self._shapes = {n.name: n.spec.shape() for n in sub.nodes if isinstance(n, Step) and n.spec.stateful}
        if meta:
            lines = {node.name: node.location for node in sub.nodes}
            try:
                self._shapes = carry_over(str(task_id), meta["shapes"], self._shapes, lines)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                raise unreadable(f"task {task_id}", "what it says of its steps makes no sense") from error
        self.shape = described(plan, sub, self._shapes)
        """What the state depends on, for checkpoints."""
        self._begin(meta)
        self.changed = bool(reset)

    @property
    def parked(self) -> Wait | None:
        """Return what the task waits for, None if for nothing.

        As long as it waits it must be given no records and not be told the time, and there is nothing to report or
        to checkpoint: it is in the middle of something, which ``resume`` goes on with.
        """
        return None if self._parked is None else self._parked.wait

    def resume(self, now_ms: int) -> list[Append]:
        """Go on with what waits, if it can; return what is to be appended because of it once it is done.

        Args:
            now_ms: The time by a clock that never goes back.

        Raises:
            RecordError: a record failed and the policy is to stop; the task must be dropped.
        """
        if self._parked is None or not self._parked.wait.over(now_ms):
            return []
        parked, self._parked = self._parked, None
        return self._keep(parked.resume())

    @property
    def positions(self) -> dict[TopicPartition, int]:
        """Return the next offset to read of every input."""
        return {partition: item.position for partition, item in self._inputs.items()}

    @property
    def owned(self) -> dict[TopicPartition, int]:
        """Return the next offset to read of every input that no other task reads."""
        return {partition: item.position for partition, item in self._owned.items()}

    @property
    def watermark(self) -> int:
        """Return the least watermark of the inputs that are waited for."""
        return meet(item.time.mark for item in self._owned.values()).watermark

    @property
    def idle(self) -> bool:
        """Return whether every input has run dry."""
        return all(item.time.idle for item in self._owned.values())

    @property
    def finished(self) -> int:
        """Return the bound up to which the task is finished, -1 if it never was."""
        return self._end

    @property
    def left_end(self) -> int:
        """Return the bound up to which the task is finished and all that it made has left, -1 if there is none."""
        return -1 if self.outbox.waiting else self._end

    @property
    def has_news(self) -> bool:
        """Return whether a checkpoint would say something new, or let something leave."""
        return self.changed or self.outbox.has_news or self.left_end != self.saved_end

    def take_tally(self) -> Tally:
        """Return what happened since the last call."""
        return self._chain.take_tally()

    def held_back_by(self) -> TopicPartition:
        """Return the input that holds the watermark back."""
        times = {partition: item.time for partition, item in self._owned.items()}
        return min(times, key=lambda partition: (times[partition].idle, times[partition].watermark))

    def inputs_by_time(self) -> list[TopicPartition]:
        """Return the inputs: first those that every task reads, then that whose event time is furthest behind."""
        if len(self._inputs) == 1:
            return list(self._inputs)
        return sorted(self._inputs, key=lambda p: self._inputs[p].time.watermark if p in self._owned else -2)

    def step(self, partition: TopicPartition, records: RecordBatch) -> list[Append]:
        """Take a batch of one input and return what is to be appended because of it; see also ``parked``.

        Raises:
            RecordError: a record failed and the policy is to stop; the task must be dropped.
        """
        return self._do(self._step(partition, records))

    def _step(self, partition: TopicPartition, records: RecordBatch) -> Work[list[Append]]:
        item = self._inputs[partition]
        self.changed = True
        self._chain.tally.records_in[partition] += 0 if records.control else len(records)
        self._chain.take_input(partition, records)
        if isinstance(item.time, InternalTime):
            yield from self._take_internal(item, item.time, records)
        elif not records.control:
            yield from self._take_source(item, item.time, partition, records)
        item.position = records.next_offset
        self._at_rest = self._at_rest and records.control
        self._ahead = None
        return (yield from self._advance(partition.topic))

    def tick(self, now_ms: int, at_end: Mapping[TopicPartition, bool]) -> list[Append]:
        """Learn the time, and which inputs were read to their end; return what is to be appended because of it.

        What the clock closes must not leave before it is sure to leave in the same way after a crash. So a task that
        has state proposes to close it (``closing``), and closes it in ``settle``. What closes nothing here may close
        something downstream, which is told of it.
        """
        return self._do(self._tick(now_ms, at_end))

    def _tick(self, now_ms: int, at_end: Mapping[TopicPartition, bool]) -> Work[list[Append]]:
        for partition, item in self._owned.items():
            item.time.tick(now_ms, at_end[partition])
        if self._chain.uses_clock and not self.closing:
            acted = yield from self._chain.tick(now_ms)
            self.changed |= acted
        if not self.closing:
            before = self._chain.times()
            yield from self._chain.advance(self._marks())  # an input that ran dry no longer holds back others
            self.changed |= self._chain.times() != before
            ahead = {item.node.name: item.time.ahead for item in self._owned.values()}
            if self._shapes and self._chain.is_due(ahead):
                self._closing = _Closing({name: mark.watermark for name, mark in ahead.items()}, -1)
                self.changed = True
            elif self._chain.internal_partitions and self._is_news(ahead):
                self._ahead = ahead
        return self._pack(next(iter(self._inputs)).topic)

    def _is_news(self, ahead: Mapping[str, Mark]) -> bool:
        """Return whether the clock has moved an input far enough for downstream to be told."""
        known = self._ahead or self._marks()
        return any(
            mark.watermark - known[name].watermark >= _CLOCK_STEP_MS or mark.idle != known[name].idle
            for name, mark in ahead.items()
        )

    @property
    def closing(self) -> bool:
        """Return whether something waits for a checkpoint before it is closed; until ``settle``, give it no records."""
        return self._closing is not None

    def settle(self) -> list[Append]:
        """Close what was proposed, once a checkpoint says so; return what is to be appended because of it."""
        work, before = self._settle(), self._parked
        if before is not None:
            work, self._parked = _one_after_the_other(before, work), None
        return self._do(work)

    def _settle(self) -> Work[list[Append]]:
        closing, self._closing = self._closing, None
        if closing is None:
            return []
        self.changed = True
        self._ahead = None
        topic = next(iter(self._inputs)).topic
        if closing.end < 0:
            for item in self._owned.values():
                item.time.move(closing.watermarks.get(item.node.name, MIN_WATERMARK))
            yield from self._chain.advance(self._marks())
            return self._pack(topic)
        appends: list[Append] = []
        before: tuple[int, list[str]] | None = None
        while (found := self._chain.close_at_end()) is not None:
            if found == before:
                raise unreadable(f"task {self.id}", "something is open that nothing closes")
            before = found
            mark, sources = found
            for item in self._owned.values():
                if item.node.name in sources:
                    item.time.move(mark)
            yield from self._chain.advance(self._marks())
            appends += self._pack(topic)
        # Whoever reads that this task is finished must have everything that it made before that.
        self._end = closing.end
        self._at_rest = True
        return appends + self.report()

    @property
    def report_interval_ms(self) -> int:
        """Return how long to wait between two reports: every task reports to every partition, so it adds up."""
        return self._chain.internal_partitions * _REPORT_MS_PER_PARTITION

    def report(self) -> list[Append]:
        """Return control batches for internal partitions that have not heard how far this task is."""
        return self._chain.report(self._at_rest, self._end, self._ahead, changed=self.changed)

    def upstream_finished(self, bound: int) -> bool:
        """Return whether everything that writes to this task's internal inputs is finished up to ``bound``."""
        times = [item.time for item in self._inputs.values()]
        return all(time.ended(bound) for time in times if isinstance(time, InternalTime))

    def finish(self, bound: int) -> None:
        """Propose to close everything that is open, as the input has ended at ``bound``; ``settle`` does it.

        The watermark will move just as far as that needs. Records that come in a later run are late only for what was
        closed.
        """
        self._closing = _Closing({}, bound)
        self.changed = True

    def flush(self) -> None:
        """Write everything that changed into the store as one; a snapshot of it is then a checkpoint.

        To be called only when the log has taken everything that the task wanted appended. If the checkpoint comes to
        count, call ``saved``.

        Raises:
            RetriableError: the disk is full; the task must be dropped and restored.
        """
        assert self._parked is None, "a task that waits is in the middle of something"
        batch = WriteBatch()
        self.outbox.flush(batch)
        meta = {
            "format": FORMAT if self.outbox.kept else WITHOUT_OUTBOX,
            "task": str(self.id),
            "stores": self._store_ids,
            "times": self._chain.times(),
            "end": self._end,
            "closing": self._closing,
            "shapes": self._shapes,
            "sequences": {**self._sequences, **self._chain.sequences()},
            "inputs": {str(partition): item.state() for partition, item in self._inputs.items()},
        }
        batch.put(META_KEY, msgpack.packb(meta))
        self.budget.flush(batch)
        self._store.write(batch)
        self.changed = False
        self.saved_end = self.left_end

    def saved(self) -> list[Append]:
        """Learn that the checkpoint of the last flush counts, or that which the task was made from.

        Returns:
            What waited for that, and is to be appended now.
        """
        released = self.outbox.saved()
        for partition, batch in [*released, *(row.append for row in self.outbox.departing)]:
            if batch.origin is not None and left_by_outbox(batch.origin.source):
                self._chain.tally.left(partition.topic, batch.origin.source.split("/")[1], len(batch))
        return released

    def relieve(self) -> None:
        """Write what is cached into the store and let it go, if the caches take more than they may."""
        if self.budget.over():
            self.budget.relieve(self._store)

    def state_bytes(self) -> int:
        """Return about how many bytes the store takes."""
        return self._store.size_bytes()

    def cache_statistics(self) -> list[tuple[str, int, int, int]]:
        """Return for each part of the state: name, bytes in memory, and look-ups hit and missed since the last call."""
        names = self._parts()
        return [(names[cache.prefix], cache.used_bytes(), *cache.take_lookups()) for cache in self.budget.caches()]

    def close(self) -> None:
        """Give up what waits and close the store; what was not flushed is gone."""
        if self._parked is not None:
            self._parked.drop()
        self._store.close()

    def _do(self, work: Work[list[Append]]) -> list[Append]:
        """Do work as far as it goes now; ``resume`` does the rest."""
        assert self._parked is None, "a task that waits does nothing else"
        return self._keep(start(work))

    def _keep(self, outcome: list[Append] | Parked[list[Append]]) -> list[Append]:
        if isinstance(outcome, Parked):
            self._parked = outcome
            return []
        return outcome

    def _begin(self, meta: Mapping[str, Any]) -> None:
        """Tell the steps the event times that a checkpoint kept, and take what it was to close."""
        names = list(self._marks())
        if meta.get("format") == 1:
            self._do(self._advance_to(dict.fromkeys(names, Mark(meta["watermark"], False))))
        self._chain.restore_times(meta.get("times", {}))
        self._do(self._advance_to(self._marks()))
        if meta.get("closing"):
            watermarks, end = meta["closing"]
            if not isinstance(watermarks, dict):
                watermarks = dict.fromkeys(names, watermarks)
            self._closing = _Closing(watermarks, end)

    def _advance_to(self, marks: Mapping[str, Mark]) -> Work[list[Append]]:
        yield from self._chain.advance(marks)
        return []

    def _marks(self) -> dict[str, Mark]:
        """Return the event time of every input; nobody waits for what every task reads."""
        marks = {item.node.name: Mark(MIN_WATERMARK, True) for item in self._inputs.values()}
        return marks | {item.node.name: item.time.mark for item in self._owned.values()}

    def _pack(self, topic: str) -> list[Append]:
        return self._chain.pack(topic, self._at_rest, self._end)

    def _take_source(
        self, item: TaskInput, time: SourceTime, partition: TopicPartition, records: RecordBatch
    ) -> Work[None]:
        source = item.node
        assert isinstance(source, Source)
        batch = ingest(source, records, lambda offset, error: self._fail(source, offset, error))
        if batch is None:
            return
        if not source.broadcast:
            batch.running = Running(batch.timestamps, batch.offsets, time)
        yield from self._chain.process(source.name, batch)
        time.observe(max(batch.timestamps))

    def _take_internal(self, item: TaskInput, time: InternalTime, records: RecordBatch) -> Work[None]:
        if not records.control:
            fresh = item.without_repeats(records)
            self._chain.tally.repeats += len(records) - (0 if fresh is None else len(fresh))
            batch: Batch | None = None
            if fresh is not None:
                node = item.node
                batch = decode(node.value, fresh, lambda offset, error: self._fail(node, offset, error))
            if batch is not None:
                yield from self._chain.process(item.node.name, batch)
        if records.progress is not None and records.origin is not None:
            time.observe(records.origin.source.split("/")[2], records.progress)

    def _advance(self, topic: str) -> Work[list[Append]]:
        yield from self._chain.advance(self._marks())
        return self._pack(topic)

    def _fail(self, node: Source | Repartition, offset: int, error: Exception) -> None:
        self._chain.fail(node.name, node.on_error, offset, error)

    def _input(
        self,
        plan: Plan,
        item: Input,
        partition: TopicPartition,
        meta: dict[str, Any],
        starts: Mapping[TopicPartition, int],
    ) -> TaskInput:
        node = plan.graph.by_name[item.node]
        assert isinstance(node, Source | Repartition)
        kept = meta.get("inputs", {}).get(str(partition))
        return TaskInput.of(item, node, starts.get(partition, 0), kept)

    def _parts(self) -> dict[bytes, str]:
        """Return the names of the parts of the state, by their prefixes in the store."""
        return {store_prefix(number): name for name, number in self._store_ids.items()}

    def _part(self, prefix: bytes) -> str:
        return f"task {self.id}, {self._parts().get(prefix, prefix.hex())}"

    def _context(self, step: str) -> StepContext:
        def prefix(part: str) -> bytes:
            name = f"{step}/{part}"
            number = self._store_ids.setdefault(name, max(self._store_ids.values(), default=0) + 1)
            return store_prefix(number)

        return StepContext(step, self._store, prefix, self.budget)


def _one_after_the_other(first: Parked[list[Append]], second: Work[list[Append]]) -> Work[list[Append]]:
    outcome: list[Append] | Parked[list[Append]] = first
    while isinstance(outcome, Parked):
        yield outcome.wait
        outcome = outcome.resume()
    return outcome + (yield from second)


def _without(store: Store, meta: dict[str, Any], reset: frozenset[str]) -> dict[str, Any]:
    """Delete what steps keep, and return what is left to know beside the rows."""
    if meta and reset:
        numbers = [number for name, number in meta["stores"].items() if name.partition("/")[0] in reset]
        store.write(WriteBatch(ranges=[(store_prefix(number), store_prefix(number + 1)) for number in numbers]))
        meta["shapes"] = {name: shape for name, shape in meta["shapes"].items() if name not in reset}
    return meta
