"""What is simulated: a topology, its plan, and the records of its sources, encoded and given their partitions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple
from zlib import crc32

from headrace.dsl.builder import Topology
from headrace.errors import NotFoundError
from headrace.operators.async_map import AsyncMap
from headrace.operators.selectors import select
from headrace.record import JoinedBytes, RecordBatch, TopicPartition
from headrace.testing.events import Event
from headrace.topology.graph import Source, Step
from headrace.topology.plan import Plan, at_least_once, plan, source_topics, why_not_deterministic, written

Inputs = Mapping[str, Iterable[Any]]
"""By topic, the values in the order of their arrival, or ``Event``s where keys and timestamps matter."""


class Input(NamedTuple):
    """One record of a source."""

    partition: TopicPartition
    key: bytes | None
    value: bytes | None
    timestamp: int

    def batch(self) -> RecordBatch:
        """Return it as a batch to append."""
        return RecordBatch([self.timestamp], [self.key], JoinedBytes.of([self.value]))


@dataclass(frozen=True)
class Scenario:
    """A topology with its input, ready to run."""

    topology: Topology
    plan: Plan
    inputs: Mapping[str, tuple[Input, ...]]
    """By topic, in the order of arrival."""
    partitions: Mapping[str, int]
    """Of every topic."""
    weak: Mapping[str, str] = field(default_factory=dict)
    """The edges that repeat themselves otherwise after a crash, and why."""
    tainted: frozenset[str] = frozenset()
    """The edges that are made of what a weak edge wrote, so that repeats may count there."""
    strict: frozenset[str] = frozenset()
    """The edges whose content follows from the records of sources in their own order, whatever comes beside them."""

    @property
    def asynchronous(self) -> bool:
        """Return whether a step makes calls."""
        return any(isinstance(node, Step) and isinstance(node.spec, AsyncMap) for node in self.plan.graph.nodes)

    @property
    def idle_after_ms(self) -> int:
        """Return the least time after which a stream without records is taken as idle."""
        return min(
            (node.idle_after_ms for node in self.plan.graph.nodes if isinstance(node, Source) and not node.table),
            default=30_000,
        )

    @property
    def records(self) -> int:
        """Return how many records come in."""
        return sum(map(len, self.inputs.values()))

    def shortened(self, records: int) -> Scenario:
        """Return the scenario with at most so many of the first records of each topic."""
        inputs = {topic: rows[:records] for topic, rows in self.inputs.items()}
        return replace(self, inputs=inputs)


def prepare(
    topology: Topology,
    inputs: Inputs,
    *,
    partitions: int,
    repartition_partitions: int = 0,
    guarantee: str = "at-least-once",
) -> Scenario:
    """Plan a topology and encode its input.

    Raises:
        TopologyError: the topology cannot run as it is written.
        NotFoundError: it does not read a topic of the input.
    """
    graph = topology.graph()
    counts = dict.fromkeys(source_topics(graph), partitions)
    planned = plan(graph, counts, repartition_partitions, guarantee=guarantee)
    sources = {node.topic: node for node in graph.nodes if isinstance(node, Source)}
    unknown = sorted(set(inputs) - set(sources))
    if unknown:
        raise NotFoundError(
            f"the topology does not read {unknown[0]!r}", remedy=f"It reads {', '.join(sorted(sources))}"
        )
    all_partitions = {**counts, **planned.internal_topics()}
    for sink in planned.sinks():
        all_partitions.setdefault(sink.topic, sink.partitions or partitions)
    if (letters := planned.dead_letter_topic()) is not None:
        all_partitions.setdefault(letters, partitions)
    weak = at_least_once(planned)
    tainted = frozenset(
        edge.name
        for sub in planned.subtopologies
        if any(item.node in weak for item in sub.inputs)
        for edge in written(sub)
    )
    strict = frozenset(
        edge.name
        for sub in planned.subtopologies
        if sub.level == 0 and not any(item.broadcast for item in sub.inputs)
        for edge in written(sub)
        if why_not_deterministic(graph, sub, edge) is None
    )
    encoded = {topic: tuple(_encoded(sources[topic], rows, partitions)) for topic, rows in inputs.items()}
    return Scenario(topology, planned, encoded, all_partitions, weak, tainted, strict)


def _encoded(source: Source, rows: Iterable[Any], partitions: int) -> Iterable[Input]:
    events = [row if isinstance(row, Event) else Event(row) for row in rows]
    values = [event.value for event in events]
    keys = [event.key for event in events]
    if source.keyed_by is not None and values:
        selected = select(source.keyed_by, values)
        keys = [own if given is None else given for given, own in zip(keys, selected, strict=True)]
    known = [key for key in keys if key is not None]
    encoded_keys = iter(source.key.encode_many(known))
    encoded_values = source.value.encode_many(values)
    for place, (event, key, value) in enumerate(zip(events, keys, encoded_values, strict=True)):
        encoded = None if key is None else next(encoded_keys)
        number = place % partitions if encoded is None else crc32(encoded) % partitions
        yield Input(TopicPartition(source.topic, number), encoded, value, event.timestamp)
