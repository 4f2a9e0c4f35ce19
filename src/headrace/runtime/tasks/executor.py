"""The chain of a task: its operators wired up, from the sources to the edges. Pure but for the store below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from headrace.errors import FatalError, HeadraceError
from headrace.operators.api import (
    MAIN,
    Batch,
    ClockOperator,
    Operator,
    Outputs,
    RecordsFailedError,
    RunningWatermark,
    StepContext,
)
from headrace.operators.async_map import AsyncMapOperator, Caller
from headrace.operators.interval_join import LATE_RIGHT
from headrace.operators.retrying import ErrorPolicy, Retry, final_policy
from headrace.operators.windowed import LATE
from headrace.record import Progress, RecordBatch, TopicPartition
from headrace.runtime.tasks.edges import DEFAULT_HASH, NO_LIMITS, Append, Edge, Hash, edge_of
from headrace.runtime.tasks.failures import Failure, Failures, is_letters
from headrace.runtime.tasks.outbox import Outbox
from headrace.runtime.tasks.parking import Pause, Work
from headrace.runtime.tasks.tally import Tally
from headrace.runtime.tasks.times import ChainTime, Mark, meet
from headrace.runtime.tasks.ways import Way, by_port, interleave, taking_sides
from headrace.topology.graph import Node, Repartition, Sink, Step
from headrace.topology.plan import Plan, SubTopology, TaskId, must_stop_for_time


class Chain:
    """The operators of one task.

    Args:
        plan: The plan that the task is part of.
        sub: Its sub-topology.
        task: Its id.
        partitions: How many partitions each output topic has.
        context: Makes the context of a step's operator.
        outbox: Takes what has to wait for a checkpoint.
        caller: Makes the calls of asynchronous steps.
        hash_key: By whose remainder keys go to partitions.
        limits: The largest record that output topics take, in bytes, where there is a limit.
    """

    def __init__(
        self,
        plan: Plan,
        sub: SubTopology,
        task: TaskId,
        partitions: Mapping[str, int],
        context: Callable[[str], StepContext],
        outbox: Outbox,
        caller: Caller | None = None,
        hash_key: Hash = DEFAULT_HASH,
        limits: Mapping[str, int] = NO_LIMITS,
    ) -> None:
        self._failures = _failures(plan, sub, task, partitions)
        self._outbox = outbox
        self._letters_wait = sub.name in plan.waiting_letters
        self._caller = caller
        self._steps: list[tuple[Step, Operator]] = []
        self._operators: dict[str, Operator] = {}
        self._edges: dict[str, Edge] = {}
        self._nodes: dict[str, Node] = {node.name: node for node in sub.nodes}
        self._children: dict[tuple[str, str], list[tuple[str, int]]] = {}
        """By node and port, who reads it, and as which of its inputs."""
        self._sources = sorted(sub.sources)
        self._time = ChainTime(self._sources)
        self._entered = self._sources[0]
        """The source whose records are worked on."""
        self._gathered: dict[str, list[Way]] = {}
        """For each step with several inputs what has come for it."""
        self._on_clock: dict[str, ClockOperator] = {}
        self._in_parts = must_stop_for_time(plan.graph, sub)
        """Whether time must move between the records of a batch for the whole chain: see ``_stop``."""
        self._has_timers = any(
            isinstance(n, Step) and n.spec.kind == "process" and n.spec.timed_ports for n in sub.nodes
        )
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
                self._time.add(node.name, [port.node for port in node.inputs], operator)
                if len(node.inputs) > 1:
                    self._gathered[node.name] = []
            elif isinstance(node, Sink | Repartition):
                self._edges[node.name] = edge_of(plan, sub, task, node, partitions, hash_key, limits)

    @property
    def tally(self) -> Tally:
        """Return what is counted until ``take_tally``."""
        return self._failures.tally

    def take_tally(self) -> Tally:
        """Return what happened since the last call."""
        tally, self._failures.tally = self._failures.tally, Tally()
        return tally

    def take_input(self, partition: TopicPartition, records: RecordBatch) -> None:
        """Learn which records are worked on from now on: those that fail may have to be kept as they are."""
        self._failures.take_input(partition, records)

    def process(self, node: str, batch: Batch) -> Work[None]:
        """Run a batch of records that enter at ``node`` through everything below it.

        Raises:
            RecordError: a record failed in a step whose policy is to stop.
        """
        self._entered = node
        running = batch.running if self._in_parts else None
        start = 0
        while running is not None and (stop := self._stop(node, batch, running, start)) < len(batch):
            yield from self._enter(node, batch.part(start, stop))
            yield from self.advance({node: Mark(running.before(batch.offsets[stop]), False)})
            start = stop
        yield from self._enter(node, batch.part(start) if start else batch)

    def _enter(self, node: str, batch: Batch) -> Work[None]:
        yield from self._forward(node, [(MAIN, batch)])
        for name in self._gathered:
            yield from self._merge(name)

    def _stop(self, node: str, batch: Batch, running: RunningWatermark, start: int) -> int:
        """Return the place in a batch up to which time makes nothing, if the records from ``start`` on are taken.

        Some steps act on time between the records of a batch and others behind it. Where what they make meets in
        state, time must make it before the records that come later, or it would be behind the watermark there.
        """
        offsets, timestamps, count = batch.offsets, batch.timestamps, len(batch)
        watermark = running.before(offsets[start])
        if running.last <= watermark:
            return count
        soonest = self._time.next_close(node)
        for place in range(start + 1, count):
            # no record makes anything due before its own time, but for a timer
            soonest = min(soonest, watermark + 1 if self._has_timers else max(timestamps[place - 1], watermark) + 1)
            reached = running.before(offsets[place])
            if reached >= soonest and reached > watermark:
                return place
        return count

    def advance(self, marks: Mapping[str, Mark]) -> Work[None]:
        """Let every step know the event time of the sources above it, upstream before downstream.

        Raises:
            RecordError: what time makes fails in a step whose policy is to stop.
        """
        self._time.take(marks)
        for node, operator in self._steps:
            if node.name in self._gathered:
                yield from self._merge(node.name)
            reached = self._time.reach(node.name)
            if reached is not None:
                yield from self._forward(node.name, self._on_time(node, operator.on_watermark, reached))

    def tick(self, now_ms: int) -> Work[bool]:
        """Let the steps that act on processing time know it; return whether any of them did.

        Raises:
            RecordError: what one makes fails in a step whose policy is to stop.
        """
        acted = False
        for name, operator in self._on_clock.items():
            node = self._nodes[name]
            assert isinstance(node, Step)
            outputs = self._on_time(node, operator.on_clock, now_ms, "processing time")
            acted = acted or bool(outputs)
            yield from self._forward(name, outputs)
        if acted:
            for name in self._gathered:
                yield from self._merge(name)
        return acted

    @property
    def uses_clock(self) -> bool:
        """Return whether any step acts on processing time."""
        return bool(self._on_clock)

    @property
    def internal_partitions(self) -> int:
        """Return how many partitions of internal topics the edges write to."""
        return sum(edge.partitions for edge in self._edges.values() if edge.internal)

    def is_due(self, marks: Mapping[str, Mark]) -> bool:
        """Return whether anything would close if the sources had these times."""
        return self._time.is_due(marks)

    def close_at_end(self) -> tuple[int, list[str]] | None:
        """Return the watermark that would close what is open nearest to the sources, and which sources it needs.

        Returns:
            None if nothing is open.
        """
        for node, operator in self._steps:
            mark = operator.close_at_end()
            if mark is not None:
                return mark + self._time.held(node.name), self._time.sources_of(node.name)
        return None

    def pack(self, topic: str, at_rest: bool, end: int) -> list[Append]:
        """Return what the edges have gathered, as appends; what has to wait goes into the outbox."""
        appends: list[Append] = []
        for name, edge in self._edges.items():
            for append in edge.pack(topic, self._progress(name, self._time.marks, at_rest, end)):
                if edge.outbox:
                    self._outbox.add(append)
                else:
                    self.tally.left(edge.topic, name, len(append[1]))
                    appends.append(append)
        letters = self._failures.pack()
        if not self._letters_wait:
            return appends + letters
        for letter in letters:
            self._outbox.add(letter)
        return appends

    def report(self, at_rest: bool, end: int, ahead: Mapping[str, Mark] | None, *, changed: bool) -> list[Append]:
        """Return control batches for internal partitions that have not heard how far this task is.

        Args:
            at_rest: Whether its input has ended.
            end: The bound up to which it is finished, or -1.
            ahead: Where the clock has the sources, if that closes nothing here.
            changed: Whether the task has done anything since its last flush, which what waits must tell of first.
        """
        marks = self._time.marks if ahead is None else self._time.ahead(ahead)
        appends: list[Append] = []
        for name, edge in self._edges.items():
            for append in edge.report(self._progress(name, marks, at_rest, end)):
                appends += self._outbox.tell(append, changed=changed) if edge.outbox else [append]
        return appends

    def times(self) -> dict[str, int]:
        """Return the event time that each step knows of, for the checkpoint."""
        return self._time.state()

    def sequences(self) -> dict[str, int]:
        """Return the next positions of all edges, for the checkpoint."""
        positions = {source: n for edge in self._edges.values() for source, n in edge.sequences.items()}
        return positions | self._failures.sequences()

    def restore(self, sequences: Mapping[str, int], checkpoint: int) -> None:
        """Take the positions that a checkpoint of that number kept."""
        own = {source: n for source, n in sequences.items() if not is_letters(source)}
        for edge in self._edges.values():
            edge.restore(own, checkpoint)
        self._failures.restore(sequences)

    def restore_times(self, times: Mapping[str, int]) -> None:
        """Take the event times that a checkpoint kept; ``advance`` tells the steps."""
        self._time.restore(times)

    def fail(self, step: str, policy: ErrorPolicy, offset: int, error: Exception) -> None:
        """Deal with a record that could not be read.

        Args:
            step: Where.
            policy: What the step does with such records.
            offset: Its offset in the input.
            error: What was raised.

        Raises:
            RecordError: the policy is to stop.
        """
        self._failures.fail(Failure(step, final_policy(policy), error, offset), self._watermark)

    def _progress(self, name: str, marks: Mapping[str, Mark], at_rest: bool, end: int) -> Progress:
        mark = meet(marks[port.node] for port in self._nodes[name].inputs)
        return Progress(mark.watermark, at_rest or mark.idle, end)

    @property
    def _watermark(self) -> int:
        return self._time.at(self._sources).watermark

    def _forward(self, node: str, outputs: Outputs) -> Work[None]:
        for port, batch in outputs:
            if not len(batch):
                continue
            if port in (LATE, LATE_RIGHT):
                self.tally.late[node] += len(batch)
            for child, side in self._children.get((node, port), ()):
                if child in self._gathered:
                    self._gathered[child].append((side, self._time.hold(node), batch))
                else:
                    yield from self._run(child, batch)

    def _merge(self, name: str) -> Work[None]:
        """Run a step of several inputs on what they had for it, in an order that does not depend on the batches."""
        ways = self._gathered[name]
        if ways:
            self._gathered[name] = []
            held = self._time.held(name) if name in self._operators else 0
            for batch, sides in interleave(ways, held):
                yield from self._run(name, batch, sides)

    def _run(self, name: str, batch: Batch, sides: Sequence[int] = ()) -> Work[None]:
        edge = self._edges.get(name)
        if edge is not None:
            self._leave(name, edge, batch)
            return
        node = self._nodes[name]
        assert isinstance(node, Step)
        operator = self._operators[name]
        if isinstance(operator, AsyncMapOperator):
            outputs = yield from self._call(name, operator, batch)
        elif isinstance(node.on_error, Retry) and not node.spec.stateful:
            outputs = yield from self._retrying(node, operator, node.on_error, batch)
        else:
            outputs = self._apply(node, operator, batch, sides)
        yield from self._forward(name, outputs)

    def _apply(self, node: Step, operator: Operator, batch: Batch, sides: Sequence[int]) -> Outputs:
        if batch.running is not None and node.spec.stateful:
            batch = batch.with_running(self._time.seen_by(node.name, batch.running, self._entered))
        process = taking_sides(operator, sides) if node.spec.sided else operator.process
        try:
            return process(batch)
        except RecordsFailedError as failed:
            self._fail_all(node, batch, failed)
            return failed.done
        except HeadraceError:
            raise
        except Exception:  # noqa: BLE001  # user code may raise anything
            return self._one_by_one(node, batch, sides)

    def _one_by_one(self, node: Step, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Run a batch of which nothing has taken effect record by record, to find those that fail."""
        operator = self._operators[node.name]
        outputs: Outputs = []
        for i in range(len(batch)):
            part = batch.part(i, i + 1)
            try:
                outputs += taking_sides(operator, sides[i : i + 1])(part) if sides else operator.process(part)
            except RecordsFailedError as failed:
                self._fail_all(node, part, failed)
                outputs += failed.done
            except HeadraceError:
                raise
            except Exception as error:  # noqa: BLE001  # user code may raise anything
                self._fail(node, part, error)
        return outputs if node.spec.stateful else by_port(outputs, node.spec.ports)

    def _retrying(self, node: Step, operator: Operator, retry: Retry, batch: Batch) -> Work[Outputs]:
        """Run a batch record by record, so that every call of the user's function is one that counts."""
        outputs: Outputs = []
        for i in range(len(batch)):
            part = batch.part(i, i + 1)
            tries = 1
            while True:
                try:
                    outputs += operator.process(part)
                    break
                except HeadraceError:
                    raise
                except Exception as error:  # noqa: BLE001  # user code may raise anything
                    delay_ms = retry.again(error, tries)
                    if delay_ms is None:
                        self._fail(node, part, error, tries)
                        break
                yield Pause(delay_ms)
                self.tally.retries[node.name] += 1
                tries += 1
        return by_port(outputs, node.spec.ports)

    def _call(self, name: str, operator: AsyncMapOperator, batch: Batch) -> Work[Outputs]:
        """Let the calls of a batch be made, and go on when all of them have ended."""
        if self._caller is None:
            raise FatalError(f"step {name!r} makes asynchronous calls, but nothing was given that makes them")
        node = self._nodes[name]
        calls = operator.calls(batch)
        flight = self._caller.begin(calls)
        yield flight
        answers = flight.answers()
        self.tally.retries[name] += sum(tries - 1 for tries in answers.tries.values())
        for place, error in sorted(answers.failures.items()):
            tries = None if calls.retry is None else answers.tries.get(place, 1)
            self._fail(node, batch.part(place, place + 1), error, tries)
        return operator.results(batch, answers)

    def _on_time(self, node: Step, act: Callable[[int], Outputs], time: int, passed: str = "event time") -> Outputs:
        """Let a step act because time has passed."""
        try:
            return act(time)
        except RecordsFailedError as failed:
            self._fail_all(node, None, failed, passed)
            return failed.done
        except HeadraceError:
            raise
        except Exception as error:  # user code may raise anything
            # What took effect nobody knows, so it cannot be left out.
            self._failures.fail(Failure(node.name, "stop", error, cause=passed), self._watermark)
            raise

    def _leave(self, name: str, edge: Edge, batch: Batch) -> None:
        try:
            edge.add(edge.process(batch))
            return
        except HeadraceError:
            raise
        except Exception as error:  # noqa: BLE001  # values of any type may come here
            if len(batch) == 1:
                self._fail(self._nodes[name], batch, error)
                return
        for i in range(len(batch)):
            self._leave(name, edge, batch.part(i, i + 1))

    def _fail_all(
        self, node: Step, batch: Batch | None, failed: RecordsFailedError, passed: str = "event time"
    ) -> None:
        policy = final_policy(node.on_error)
        for place, error in failed.failures:
            if batch is None or place < 0:
                self._failures.fail(Failure(node.name, policy, error, cause=passed), self._watermark)
            else:
                self._fail(node, batch.part(place, place + 1), error)

    def _fail(self, node: Node, record: Batch, error: Exception, tries: int | None = None) -> None:
        """Deal with one record that a step or an edge failed on."""
        policy = final_policy(node.on_error)
        made = record if record.timed or record.offsets[0] < 0 else None
        offset = record.offsets[0] if made is None else -1
        self._failures.fail(Failure(node.name, policy, error, offset, made, tries), self._watermark)


def _failures(plan: Plan, sub: SubTopology, task: TaskId, partitions: Mapping[str, int]) -> Failures:
    topic = plan.dead_letter_topic()
    writes = any(final_policy(node.on_error) == "dead-letter" for node in sub.nodes)
    letters = (topic, partitions[topic]) if topic is not None and writes else None
    return Failures(plan.graph.name, task, TopicPartition(sub.inputs[0].topic, task.partition), letters)


def step_of(frame: FrameType | None) -> str:
    """Return the name of the step or edge that a stack, of this or another thread, is in; "" if it is in none."""
    while frame is not None:
        if frame.f_code is Chain._run.__code__:
            return str(frame.f_locals["name"])
        if frame.f_code is Chain._on_time.__code__:
            return str(frame.f_locals["node"].name)
        frame = frame.f_back
    return ""
