"""The chain of a task: its operators wired up, from the sources to the edges. Pure but for the store below."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import HeadraceError, RecordError
from headrace.operators.api import (
    MAIN,
    Batch,
    ClockOperator,
    Operator,
    Outputs,
    RecordsFailedError,
    SidedOperator,
    StepContext,
)
from headrace.operators.windowed import LATE
from headrace.record import MIN_WATERMARK, TIMESTAMP_LIMIT, Progress, TopicPartition
from headrace.runtime.edges import Append, Edge
from headrace.runtime.watermarks import held_back
from headrace.topology.graph import ErrorPolicy, Node, Repartition, Sink, Step
from headrace.topology.plan import Plan, SubTopology, TaskId, internal_topic

_PACKAGE = __file__.removesuffix("runtime/executor.py")
_Way = tuple[int, int, Batch]
"""Which input of a step a batch came by, how far behind its watermark is, and the batch."""

_LIBRARY = traceback.__file__.removesuffix("traceback.py")
_PACKAGES = "/site-packages/"


@dataclass(slots=True)
class Tally:
    """What happened since somebody last took the tally."""

    records_in: Counter[str] = field(default_factory=Counter)
    """By topic."""
    records_out: Counter[str] = field(default_factory=Counter)
    """By topic."""
    sent: Counter[str] = field(default_factory=Counter)
    """By the step that wrote them."""
    late: Counter[str] = field(default_factory=Counter)
    """By step."""
    errors: Counter[str] = field(default_factory=Counter)
    """By step; only those that were skipped."""
    repeats: int = 0
    """Records of internal topics that were there before."""


class Chain:
    """The operators of one task.

    Args:
        plan: The plan that the task is part of.
        sub: Its sub-topology.
        task: Its id.
        partitions: How many partitions each output topic has.
        context: Makes the context of a step's operator.
    """

    def __init__(
        self,
        plan: Plan,
        sub: SubTopology,
        task: TaskId,
        partitions: Mapping[str, int],
        context: Callable[[str], StepContext],
    ) -> None:
        self.tally = Tally()
        self._partition = TopicPartition(sub.inputs[0].topic, task.partition)
        """The input that is being worked on, for messages."""
        self._steps: list[tuple[Step, Operator]] = []
        self._operators: dict[str, Operator] = {}
        self._edges: dict[str, Edge] = {}
        self._nodes: dict[str, Node] = {node.name: node for node in sub.nodes}
        self._children: dict[tuple[str, str], list[tuple[str, int]]] = {}
        """By node and port, who reads it, and as which of its inputs."""
        self._sources = sorted(sub.sources)
        self._watermarks: dict[str, int] = dict.fromkeys(self._sources, MIN_WATERMARK)
        self._holds: dict[str, int] = dict.fromkeys(self._sources, 0)
        """How far behind the task's watermark the one that leaves each step is."""
        self._gathered: dict[str, list[_Way]] = {}
        """For each step with several inputs what has come for it."""
        self._on_clock: dict[str, ClockOperator] = {}
        for node in sub.nodes:
            if node.name in sub.sources:
                continue
            for side, port in enumerate(node.inputs):
                self._children.setdefault((port.node, port.port), []).append((node.name, side))
            if isinstance(node, Step):
                operator: Any = node.spec.build(context(node.name))
                if node.spec.uses_clock:
                    self._on_clock[node.name] = operator
                self._operators[node.name] = operator
                self._steps.append((node, operator))
                self._watermarks[node.name] = MIN_WATERMARK
                own = TIMESTAMP_LIMIT - operator.output_watermark(TIMESTAMP_LIMIT)
                self._holds[node.name] = own + self._held(node)
                if len(node.inputs) > 1:
                    self._gathered[node.name] = []
            elif isinstance(node, Sink | Repartition):
                self._edges[node.name] = _edge(plan, sub, task, node, partitions)

    def process(self, node: str, batch: Batch, where: TopicPartition) -> None:
        """Run a batch of records that enter at ``node`` through everything below it.

        Raises:
            RecordError: a record failed in a step whose policy is to stop.
        """
        self._partition = where
        self._forward(node, [(MAIN, batch)])
        for name in self._gathered:
            self._merge(name)

    def advance(self, watermark: int) -> None:
        """Let every step know the task's watermark, upstream before downstream.

        Raises:
            RecordError: what a window made fails in a step whose policy is to stop.
        """
        marks = self._watermarks
        marks.update(dict.fromkeys(self._sources, watermark))
        for node, operator in self._steps:
            if node.name in self._gathered:
                self._merge(node.name)
            reached = min(marks[port.node] for port in node.inputs)
            self._forward(node.name, operator.on_watermark(reached))
            marks[node.name] = operator.output_watermark(reached)

    def tick(self, now_ms: int) -> bool:
        """Let the steps that act on processing time know it; return whether any of them did.

        Raises:
            RecordError: what one makes fails in a step whose policy is to stop.
        """
        acted = False
        for name, operator in self._on_clock.items():
            outputs = operator.on_clock(now_ms)
            acted = acted or bool(outputs)
            self._forward(name, outputs)
        if acted:
            for name in self._gathered:
                self._merge(name)
        return acted

    @property
    def uses_clock(self) -> bool:
        """Return whether any step acts on processing time."""
        return bool(self._on_clock)

    @property
    def internal_partitions(self) -> int:
        """Return how many partitions of internal topics the edges write to."""
        return sum(edge.partitions for edge in self._edges.values() if edge.internal)

    def next_close(self) -> int | None:
        """Return the watermark at which something closes next; None if nothing is open."""
        marks = [(operator.next_close(), node) for node, operator in self._steps]
        return min((mark + self._held(node) for mark, node in marks if mark is not None), default=None)

    def close_at_end(self) -> int | None:
        """Return the watermark that would close what is open nearest to the sources, None if nothing is."""
        for node, operator in self._steps:
            mark = operator.close_at_end()
            if mark is not None:
                return mark + self._held(node)
        return None

    def pack(self, topic: str, idle: bool, end: int) -> list[Append]:
        """Return what the edges have gathered, as appends."""
        appends: list[Append] = []
        for name, edge in self._edges.items():
            for append in edge.pack(topic, self._progress(name, idle, end)):
                self.tally.records_out[edge.topic] += len(append[1])
                self.tally.sent[name] += len(append[1])
                appends.append(append)
        return appends

    def report(self, idle: bool, end: int) -> list[Append]:
        """Return control batches for internal partitions that have not heard how far this task is."""
        return [a for name, edge in self._edges.items() for a in edge.report(self._progress(name, idle, end))]

    def sequences(self) -> dict[str, int]:
        """Return the next positions of all edges, for the checkpoint."""
        return {source: n for edge in self._edges.values() for source, n in edge.sequences.items()}

    def restore(self, sequences: Mapping[str, int]) -> None:
        """Take the positions that a checkpoint kept."""
        for edge in self._edges.values():
            edge.sequences = {s: n for s, n in sequences.items() if s.split("/")[1] == edge.step}

    def fail(self, step: str, policy: ErrorPolicy, partition: TopicPartition, offset: int, error: Exception) -> None:
        """Deal with one record that failed.

        Args:
            step: Where.
            policy: What the step does with such records.
            partition: The input that the record came from.
            offset: Its offset there; negative if a closing window made it.
            error: What was raised.

        Raises:
            RecordError: the policy is to stop.
        """
        if policy == "skip":
            self.tally.errors[step] += 1
            return
        place = f"the record at partition {partition}, offset {offset}"
        if offset < 0:
            place = f"the result of a window that a record of partition {partition} closed"
        failure = RecordError(
            f"step {step!r} failed on {place}: {describe_failure(error)}",
            remedy='Fix the step or the data and start again; nothing is lost. on_error="skip" leaves such records out',
        )
        if frames := user_frames(error):
            failure.add_note("".join(["Traceback (most recent call last):\n", *traceback.format_list(frames)]).rstrip())
        raise failure from error

    def _held(self, node: Step) -> int:
        return max(self._holds[port.node] for port in node.inputs)

    def _progress(self, name: str, idle: bool, end: int) -> Progress:
        return Progress(min(self._watermarks[port.node] for port in self._nodes[name].inputs), idle, end)

    def _forward(self, node: str, outputs: Outputs) -> None:
        for port, batch in outputs:
            if not len(batch):
                continue
            if port == LATE:
                self.tally.late[node] += len(batch)
            for child, side in self._children.get((node, port), ()):
                if child in self._gathered:
                    self._gathered[child].append((side, self._holds[node], batch))
                else:
                    self._run(child, batch)

    def _merge(self, name: str) -> None:
        """Run a step of several inputs on what they had for it, in an order that does not depend on the batches."""
        batches = self._gathered[name]
        if batches:
            self._gathered[name] = []
            self._run(name, *_interleave(batches))

    def _run(self, name: str, batch: Batch, sides: Sequence[int] = ()) -> None:
        edge = self._edges.get(name)
        if edge is not None:
            self._leave(name, edge, batch)
            return
        node = self._nodes[name]
        assert isinstance(node, Step)
        if batch.running is not None and node.spec.stateful and self._held(node):
            batch = batch.with_running(held_back(batch.running, self._held(node)))
        process = _process(self._operators[name], sides) if node.spec.sided else self._operators[name].process
        try:
            outputs = process(batch)
        except RecordsFailedError as failed:
            self._fail_all(name, batch, failed)
            outputs = failed.done
        except HeadraceError:
            raise
        except Exception:  # noqa: BLE001  # user code may raise anything
            outputs = self._one_by_one(name, batch, sides)
        self._forward(name, outputs)

    def _one_by_one(self, name: str, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Run a batch of which nothing has taken effect record by record, to find those that fail."""
        operator = self._operators[name]
        outputs: Outputs = []
        for i in range(len(batch)):
            part = batch.part(i, i + 1)
            try:
                outputs += _process(operator, sides[i : i + 1])(part) if sides else operator.process(part)
            except RecordsFailedError as failed:
                self._fail_all(name, part, failed)
                outputs += failed.done
            except HeadraceError:
                raise
            except Exception as error:  # noqa: BLE001  # user code may raise anything
                self.fail(name, self._nodes[name].on_error, self._partition, batch.offsets[i], error)
        return outputs

    def _leave(self, name: str, edge: Edge, batch: Batch) -> None:
        try:
            edge.add(edge.process(batch))
            return
        except HeadraceError:
            raise
        except Exception as error:  # noqa: BLE001  # values of any type may come here
            if len(batch) == 1:
                self.fail(name, self._nodes[name].on_error, self._partition, batch.offsets[0], error)
                return
        for i in range(len(batch)):
            self._leave(name, edge, batch.part(i, i + 1))

    def _fail_all(self, name: str, batch: Batch, failed: RecordsFailedError) -> None:
        for place, error in failed.failures:
            self.fail(name, self._nodes[name].on_error, self._partition, batch.offsets[place], error)


def user_frames(error: Exception) -> list[traceback.FrameSummary]:
    """Return the frames of an error that are not this package's own."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if not f.filename.startswith((_PACKAGE, "<headrace"))]


def _interleave(ways: list[_Way]) -> tuple[Batch, list[int]]:
    """Put what came by several ways into the order of the input, or, if windows made it, of their closing.

    Of one input record, or one moment, it stays in the order of the ways. Returns with it which input each came by.
    """
    if len(ways) == 1:
        side, _, batch = ways[0]
        return batch, [side] * len(batch)
    whole = Batch.concatenate([batch for _, _, batch in ways])
    sides = [side for side, _, batch in ways for _ in range(len(batch))]
    order: Sequence[int] = whole.offsets
    if order[0] < 0:
        order = [timestamp + hold for _, hold, batch in ways for timestamp in batch.timestamps]
    rows = sorted(range(len(whole)), key=lambda row: (order[row], sides[row]))
    return whole.pick(rows), [sides[row] for row in rows]


def _process(operator: Any, sides: Sequence[int]) -> Callable[[Batch], Outputs]:
    """Return what takes a batch whose records came by ``sides``."""
    sided: SidedOperator = operator
    return lambda batch: sided.process_sides(batch, sides)


def describe_failure(error: Exception) -> str:
    """Say what was raised and at which line of the user's, without what the user's exception says: it may hold data.

    Messages of decoding errors and of this package name fields and types only, and are kept.
    """
    frames = user_frames(error)
    if frames:
        frames = [f for f in frames if not f.filename.startswith(_LIBRARY) and _PACKAGES not in f.filename] or frames
        return f"{type(error).__name__} at {frames[-1].filename}:{frames[-1].lineno}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return f"{type(error).__name__}: {text}" if text and _names_no_data(error) else type(error).__name__


def _names_no_data(error: Exception) -> bool:
    """Return whether the message of an error that no line of the user's raised speaks of fields and types only.

    A builtin that the user passed as a function, such as ``int``, says in its own what it could not take.
    """
    last = traceback.extract_tb(error.__traceback__)[-1]
    if type(error).__module__ == "msgspec" or (last.line or "").startswith("raise "):
        return True
    return isinstance(error, TypeError | AttributeError) or (
        isinstance(error, KeyError) and last.filename.startswith("<headrace")
    )


def _edge(plan: Plan, sub: SubTopology, task: TaskId, node: Sink | Repartition, partitions: Mapping[str, int]) -> Edge:
    if isinstance(node, Repartition):
        topic, key_of, key = internal_topic(plan.graph, node), node.selector, node.key
    else:
        topic, key_of, key = node.topic, None, None
    return Edge(
        topology=plan.graph.name,
        step=node.name,
        task=str(task),
        inputs=len(sub.inputs),
        topic=topic,
        partitions=partitions[topic],
        value=node.value,
        key_of=key_of,
        key=key,
    )
