"""Running a topology in a test: the real tasks, over memory, with a clock that the test moves.

There is no log, disk or thread. Whatever the test sends is processed before ``send`` returns, and what the topology
wrote is there to be read::

    driver = TopologyTestDriver(topology)
    driver.send("payments", {"customer_id": "c1", "total": 9.5, "at": 1_000})
    driver.end_input()
    assert [record.value["total"] for record in driver.read("spend-per-minute")] == [9.5]
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count, repeat
from typing import Any

from headrace.dsl.builder import Topology
from headrace.errors import NotFoundError
from headrace.operators.selectors import select
from headrace.record import Headers, JoinedBytes, Record, RecordBatch, TopicPartition
from headrace.runtime.tasks.edges import DEFAULT_HASH, Append
from headrace.runtime.tasks.task import Task
from headrace.serde.api import Serde
from headrace.settings import duration_ms
from headrace.state.memory import MemoryStore
from headrace.testing.interruptions import Interruptions
from headrace.testing.skipped_waits import SkippedWaits
from headrace.topology.graph import Graph, Node, Repartition, Source
from headrace.topology.plan import AT_LEAST_ONCE, Plan, plan

_TICK_MS = 1000


@dataclass(slots=True)
class _SourcePartition:
    """Records that the test sent; they can be read again in other batches, as from a real log."""

    timestamps: list[int] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    headers: list[Headers] = field(default_factory=list)

    @property
    def end(self) -> int:
        return len(self.values)

    def append(self, batch: RecordBatch) -> None:
        self.timestamps += batch.timestamps
        self.keys += batch.keys
        self.values += batch.values.split()
        self.headers += batch.headers or [()] * len(batch)

    def read(self, position: int, limit: int) -> RecordBatch:
        cut = slice(position, position + limit)
        offsets = range(position, min(position + limit, self.end))
        headers = self.headers[cut]
        return RecordBatch(
            self.timestamps[cut],
            self.keys[cut],
            JoinedBytes.of(self.values[cut]),
            headers if any(headers) else None,
            offsets=offsets,
        )


@dataclass(slots=True)
class _WrittenPartition:
    """Batches that tasks appended, as they were: those to internal topics carry positions and progress."""

    batches: list[RecordBatch] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    end: int = 0

    def append(self, batch: RecordBatch) -> RecordBatch:
        batch.offsets = range(self.end, self.end + len(batch))
        self.bases.append(self.end)
        self.batches.append(batch)
        self.end += len(batch)
        return batch

    def read(self, position: int, limit: int) -> RecordBatch:
        place = bisect_right(self.bases, position) - 1
        return self.batches[place].tail(position - self.bases[place])


class TopologyTestDriver:
    """Runs a topology inside a test.

    Args:
        topology: What to run.
        partitions: How many partitions every source topic has, or how many by topic.
        repartition_partitions: How many internal topics get; 0 for as many as the widest source.
        cache_bytes: Memory for the write-behind cache of each task; 0 makes every value go through the store.
        batch_records: The most records that a task takes in one step.
        guarantee: ``at-least-once`` or ``exactly-once``, as in ``headrace run --guarantee``. With the latter, outputs
            that are not deterministic leave with a checkpoint; one comes by itself, for tasks of which outputs wait,
            when everything that was sent is processed.

    Raises:
        TopologyError: the topology cannot run as it is written.

    Example:
        >>> from headrace import Topology, agg, tumbling
        >>> topology = Topology("page-views")
        >>> views = topology.stream("views", keyed_by="page", time="at")
        >>> views.window(tumbling("1m")).aggregate(views=agg.count()).to("views-per-minute")
        >>> driver = TopologyTestDriver(topology)
        >>> driver.send("views", {"page": "/", "at": 1_000})
        >>> driver.send("views", {"page": "/", "at": 59_999})
        >>> driver.send("views", {"page": "/", "at": 60_000})
        >>> [record.value for record in driver.read("views-per-minute")]
        [{'key': '/', 'window_start': 0, 'window_end': 60000, 'views': 2}]
        >>> driver.end_input()
        >>> [record.value["views"] for record in driver.read("views-per-minute")]
        [1]
    """

    def __init__(
        self,
        topology: Topology,
        *,
        partitions: int | Mapping[str, int] = 1,
        repartition_partitions: int = 0,
        cache_bytes: int = 64 * 1024**2,
        batch_records: int = 4096,
        guarantee: str = AT_LEAST_ONCE,
    ) -> None:
        self.now_ms = 0
        """The processing time; ``advance_time`` moves it. Records sent without a timestamp get it."""
        self.late: Counter[str] = Counter()
        """How many records came too late, by step."""
        self.skipped: Counter[str] = Counter()
        """How many records failed and were skipped, by step."""
        self.dead_letters: Counter[str] = Counter()
        """How many records failed and were kept as dead letters, by step; ``read`` gives them as they were: bytes."""
        self.repeats = 0
        """How many internal records were dropped because they had come before a crash already."""
        self._cache_bytes = cache_bytes
        self._batch_records = batch_records
        graph = topology.graph()
        counts = {node.topic: _count(partitions, node.topic) for node in graph.nodes if isinstance(node, Source)}
        self._plan: Plan = plan(graph, counts, repartition_partitions, guarantee=guarantee)
        widest = max(counts.values())
        self._sinks = {sink.name: (sink, _key_serde(graph, sink)) for sink in self._plan.sinks()}
        outputs = {sink.topic: sink.partitions or widest for sink, _ in self._sinks.values()}
        if (letters := self._plan.dead_letter_topic()) is not None:
            outputs.setdefault(letters, widest)
        self._sources = {node.topic: node for node in graph.nodes if isinstance(node, Source)}
        self._partitions = {**outputs, **counts, **self._plan.internal_topics()}
        self._sent = {_at(topic, p): _SourcePartition() for topic, n in counts.items() for p in range(n)}
        self._written = {
            _at(topic, p): _WrittenPartition()
            for topic, n in self._partitions.items()
            if topic not in counts or topic in outputs
            for p in range(n)
        }
        self._unread: dict[str, list[Append]] = {topic: [] for topic in outputs}
        self._interruptions = Interruptions()
        self._waits = SkippedWaits()
        weakref.finalize(self, self._waits.close)
        self._keyless = count()
        self._bound = 0
        self._ended = False
        self._checkpoints: dict[str, dict[bytes, bytes]] = {}
        self._tasks: dict[str, Task] = {}
        self._stores: dict[str, MemoryStore] = {}
        self._rebuild(str(task) for task in self._plan.tasks())

    @property
    def plan(self) -> Plan:
        """How the topology is cut into tasks."""
        return self._plan

    @property
    def tasks(self) -> list[str]:
        """The ids of all tasks, upstream ones first."""
        return list(self._tasks)

    @property
    def outputs(self) -> list[str]:
        """The topics that the topology writes to."""
        return sorted(self._unread)

    @property
    def waited_ms(self) -> int:
        """How long tasks would have waited to make calls again: a wait passes at once and does not move ``now_ms``."""
        return self._waits.waited_ms

    def send(
        self, topic: str, value: Any, key: Any = None, timestamp: int | None = None, *, partition: int | None = None
    ) -> None:
        """Write one record to a source topic and process it.

        Args:
            topic: A topic that the topology reads.
            value: The value, as the topology sees it; it is encoded with the source's serde.
            key: Its key; the ``keyed_by`` field of the value if None.
            timestamp: Milliseconds since the epoch; ``now_ms`` if None.
            partition: Where it goes; by its key if None, and in turn if it has no key.

        Raises:
            NotFoundError: the topology does not read ``topic``.
            RecordError: a step failed on the record, and its policy is to stop. The driver is of no use after that.
        """
        keys = None if key is None else [key]
        timestamps = None if timestamp is None else [timestamp]
        self.send_many(topic, [value], keys=keys, timestamps=timestamps, partition=partition)

    def send_many(
        self,
        topic: str,
        values: Iterable[Any],
        *,
        keys: Iterable[Any] | None = None,
        timestamps: Iterable[int] | None = None,
        partition: int | None = None,
    ) -> None:
        """Write records to a source topic and process them in batches; otherwise as ``send``, one by one.

        Args:
            topic: A topic that the topology reads.
            values: The values.
            keys: Their keys, as many as values; the ``keyed_by`` field of each value if None.
            timestamps: Their timestamps, as many as values.
            partition: Where all of them go.
        """
        source = self._sources.get(topic)
        if source is None:
            raise NotFoundError(
                f"the topology does not read {topic!r}", remedy=f"It reads {', '.join(sorted(self._sources))}"
            )
        made = list(values)
        given = select(source.keyed_by, made) if keys is None and source.keyed_by is not None else keys
        encoded_keys = [None] * len(made) if given is None else source.key.encode_many(list(given))
        stamps = repeat(self.now_ms, len(made)) if timestamps is None else timestamps
        for key, value, stamp in zip(encoded_keys, source.value.encode_many(made), stamps, strict=True):
            place = self._place(topic, key) if partition is None else partition
            sent = self._sent[_at(topic, place)]
            sent.append(RecordBatch([stamp], [key], JoinedBytes.of([value])))
        self._ended = False
        self._settle()

    def advance_time(self, duration: str | timedelta) -> None:
        """Let processing time pass; every input counts as read to its end meanwhile.

        A source that gets nothing for its ``idle_after`` no longer holds event time back; when all inputs of a task
        are idle, its event time moves on by the time that passes.
        """
        left = duration_ms(duration, "duration of advance_time")
        while left > 0:
            # Once everything is idle, nothing changes its course any more and one step is as good as many.
            step = left if all(task.idle for task in self._tasks.values()) else min(left, _TICK_MS)
            self.now_ms += step
            left -= step
            self._settle()

    def end_input(self) -> None:
        """Close every window, upstream before downstream, as a run with ``--until-end`` does at its end."""
        self._bound += 1
        self._ended = True
        self._finish()

    def read(self, topic: str) -> list[Record]:
        """Return what was written to a topic since the last call, with decoded keys and values.

        Records of one partition stand in their order; each carries the id header by which a repeat is known.

        Raises:
            NotFoundError: no step writes to ``topic``.
        """
        unread = self._unread.get(topic)
        if unread is None:
            raise NotFoundError(
                f"the topology does not write to {topic!r}", remedy=f"It writes to {', '.join(sorted(self._unread))}"
            )
        self._unread[topic] = []
        return [record for partition, batch in unread for record in self._decoded(partition, batch)]

    def checkpoint(self, *tasks: str) -> None:
        """Checkpoint tasks, by id; all of them if none is named. It is what ``crash`` goes back to.

        As in production, a task is also checkpointed before the clock or the end of the input closes a window.
        """
        for name in self._named(tasks):
            self._checkpoints[name] = self._image(name)
            self._append(self._tasks[name].saved())

    def restart(self, *tasks: str) -> None:
        """Hand tasks over cleanly: checkpoint them and go on with new ones made from that; all if none is named."""
        for name in self._named(tasks):
            self.checkpoint(name)
            if self._tasks[name].outbox.kept:
                self.checkpoint(name)  # which knows that it has left
        self._rebuild(self._named(tasks))
        self._settle()

    def crash(self, *tasks: str) -> None:
        """Lose tasks without warning and go on with new ones, made from their last checkpoints; all if none is named.

        What they had written stays written, and what they had read since is read again.
        """
        self._lose(self._named(tasks))
        self._settle()
        if self._ended:
            self._finish()

    def crash_after(self, *tasks: str, steps: int) -> None:
        """Let a crash as by ``crash`` come by itself, in the middle of whatever the driver does then.

        Args:
            tasks: Which are lost, by id; all of them if none is named.
            steps: After how many further steps of any task. A step is a batch taken (see ``batch_records``), or
                windows and timers closed because the clock or the end of the input says so.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("doubled")
            >>> topology.stream("numbers", value=int).map(lambda n: 2 * n).to("doubles")
            >>> driver = TopologyTestDriver(topology, batch_records=1)
            >>> driver.crash_after(steps=2)
            >>> driver.send_many("numbers", [1, 2, 3])
            >>> [record.value for record in driver.read("doubles")]
            [2, 4, 2, 4, 6]
        """
        self._interruptions.crash_after(steps, self._named(tasks))

    def checkpoint_every(self, *, steps: int) -> None:
        """Checkpoint all tasks by itself after every so many steps of any task; 0 for no longer."""
        self._interruptions.checkpoint_every(steps)

    @property
    def steps(self) -> list[str]:
        """The task that made each step so far; what a step is, ``crash_after`` says."""
        return list(self._interruptions.steps)

    def _named(self, tasks: Sequence[str]) -> list[str]:
        unknown = sorted(set(tasks).difference(self._tasks))
        if unknown:
            raise NotFoundError(f"there is no task {unknown[0]!r}", remedy=f"There are {', '.join(self._tasks)}")
        return list(tasks or self._tasks)

    def _image(self, name: str) -> dict[bytes, bytes]:
        task = self._tasks[name]
        task.flush()
        return dict(self._stores[name].scan(b""))

    def _rebuild(self, names: Iterable[str]) -> None:
        tasks = {str(task_id): (task_id, sub) for task_id, sub in self._plan.tasks().items()}
        for name in names:
            task_id, sub = tasks[name]
            self._stores[name] = MemoryStore(dict(self._checkpoints.get(name, {})))
            self._tasks[name] = Task(
                self._plan, sub, task_id, self._stores[name],
                partitions=self._partitions, cache_bytes=self._cache_bytes, starts={}, caller=self._waits.caller,
            )  # fmt: skip

    def _lose(self, names: Iterable[str]) -> None:
        self._rebuild(names)
        for task in self._tasks.values():
            self._finished(task, task.saved() + task.settle())

    def _stepped(self, name: str) -> None:
        """Let happen what is planned for after this step."""
        checkpoint, lost = self._interruptions.stepped(name)
        if checkpoint:
            for task in self._tasks:
                self._checkpoints[task] = self._image(task)
                if task not in lost:  # or it is lost before anything leaves that waited for the checkpoint
                    self._append(self._tasks[task].saved())
        if lost:
            self._lose(lost)

    def _settle(self) -> None:
        """Process everything that there is, and tell the tasks the time."""
        self._run()
        losses = self._interruptions.losses
        for name in self._tasks:
            task = self._tasks[name]
            self._finished(task, task.tick(self.now_ms, dict.fromkeys(task.positions, True)))
            self._close(name)
            self._append(self._tasks[name].report())
            self._run()
        if self._interruptions.losses > losses:
            self._settle()  # the new tasks do not know the time yet

    def _run(self) -> None:
        busy = True
        while busy:
            busy = False
            for name in self._tasks:  # a step may lose tasks, and new ones take their names
                while self._step(name):
                    busy = True
                self._append(self._tasks[name].report())
            busy = busy or self._let_leave()

    def _let_leave(self) -> bool:
        """Checkpoint the tasks of which outputs wait for it; return whether there were any."""
        waiting = [name for name, task in self._tasks.items() if task.outbox.waiting]
        for name in waiting:
            self.checkpoint(name)
        return bool(waiting)

    def _step(self, name: str) -> bool:
        """Give a task the next batch of the input that is furthest behind; return whether there was one."""
        task = self._tasks[name]
        for partition in task.inputs_by_time():
            log = self._sent.get(partition) or self._written[partition]
            position = task.positions[partition]
            if position < log.end:
                if task.outbox.full:
                    self.checkpoint(name)
                self._finished(task, task.step(partition, log.read(position, self._batch_records)))
                task.relieve()
                self._stepped(name)
                return True
        return False

    def _finish(self) -> None:
        self._run()
        while unfinished := [name for name, task in self._tasks.items() if task.finished < self._bound]:
            self._tasks[unfinished[0]].finish(self._bound)
            self._close(unfinished[0])
            self._run()
        self._settle()
        if any(task.finished < self._bound for task in self._tasks.values()):
            self._finish()  # a crash that was planned for the end

    def _close(self, name: str) -> None:
        """Close what the clock or the end of the input closes, which must be in a checkpoint first."""
        task = self._tasks[name]
        if task.closing:
            self.checkpoint(name)
            self._finished(task, task.settle())
            self._stepped(name)

    def _finished(self, task: Task, appends: list[Append]) -> None:
        """Let a task end what it is at, and take what comes of it."""
        self._waits.now = self.now_ms
        self._append(appends + self._waits.finish(task))
        tally = task.take_tally()
        self.late += tally.late
        self.skipped += tally.errors
        self.dead_letters += tally.dead_letters
        self.repeats += tally.repeats

    def _append(self, appends: Iterable[Append]) -> None:
        for partition, batch in appends:
            self._written[partition].append(batch)
            if partition.topic in self._unread:
                self._unread[partition.topic].append((partition, batch))
            if partition in self._sent:
                self._sent[partition].append(batch)

    def _decoded(self, partition: TopicPartition, batch: RecordBatch) -> Iterable[Record]:
        if partition.topic == self._plan.dead_letter_topic():
            yield from batch.records(*partition)
            return
        assert batch.origin is not None
        sink, key_serde = self._sinks[batch.origin.source.split("/")[1]]
        for record in batch.records(*partition):
            yield Record(
                record.topic,
                record.partition,
                record.offset,
                record.timestamp,
                key_serde.decode(record.key),
                sink.value.decode(record.value),
                record.headers,
            )

    def _place(self, topic: str, key: bytes | None) -> int:
        partitions = self._partitions[topic]
        return next(self._keyless) % partitions if key is None else DEFAULT_HASH(key) % partitions


def _at(topic: str, partition: int) -> TopicPartition:
    return TopicPartition(topic, partition)


def _count(partitions: int | Mapping[str, int], topic: str) -> int:
    return partitions if isinstance(partitions, int) else partitions.get(topic, 1)


def _key_serde(graph: Graph, node: Node) -> Serde[Any]:
    """Return the serde of the keys at a node: that of the source or repartition above it."""
    while not isinstance(node, Source | Repartition):
        node = graph.by_name[node.inputs[0].node]
    return node.key
