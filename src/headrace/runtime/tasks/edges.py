"""Where records leave a task: encoding, partitioning, and the positions by which a repeat is known. Pure."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any
from zlib import crc32

from headrace.errors import TopologyError
from headrace.log.limits import largest, record_bytes
from headrace.operators.api import Batch
from headrace.operators.selectors import Selector, select
from headrace.record import (
    ID_HEADER,
    Headers,
    JoinedBytes,
    Origin,
    Progress,
    RecordBatch,
    TopicPartition,
    control_batch,
)
from headrace.serde.api import Serde, changed_type
from headrace.topology.graph import Repartition, Sink
from headrace.topology.plan import Plan, SubTopology, TaskId, internal_topic, topics_above

_CHUNK = struct.Struct(">I")

Append = tuple[TopicPartition, RecordBatch]
Hash = Callable[[bytes], int]
DEFAULT_HASH: Hash = crc32
"""The one of a log that no other producers write to."""
NO_LIMITS: Mapping[str, int] = MappingProxyType({})
"""Of a log that takes records of any size."""

_BY_OUTBOX = "/+outbox"
"""Ends the source of what left through an outbox; no topic can be called that."""

_CHECKPOINT_BITS = 26
"""What leaves through an outbox is numbered from here on in each checkpoint; no checkpoint contains so many records."""


def first_in(checkpoint: int) -> int:
    """Return the first number of what leaves through an outbox behind a checkpoint: greater than all before it."""
    return checkpoint << _CHECKPOINT_BITS


def left_by_outbox(source: str) -> bool:
    """Return whether records of an origin left through an outbox, so that each position has one content for ever.

    That stands beside the records and not in the plan: a run with another guarantee may have written what comes before
    or behind them.
    """
    return source.endswith(_BY_OUTBOX)


class OutputTooLargeError(ValueError):
    """A record is larger than the topic that it is for takes."""


class Edge:
    """One output of one task.

    Records get positions in the order in which they leave. After a crash the task makes them again from its last
    checkpoint with the same positions, as long as they follow from the records of one input; so there is a sequence
    for each input. What leaves through an outbox is not made again, and has one.
    """

    def __init__(
        self,
        *,
        topology: str,
        step: str,
        task: str,
        inputs: int,
        alone: str | None = None,
        topic: str,
        partitions: int,
        value: Serde[Any],
        key_of: Selector | None = None,
        key: Serde[Any] | None = None,
        hash_key: Hash = DEFAULT_HASH,
        outbox: bool = False,
        limit: int | None = None,
        location: str = "",
    ) -> None:
        self.step = step
        self.outbox = outbox
        """Whether what leaves here has to wait for a checkpoint."""
        self.topic = topic
        self.partitions = partitions
        self.internal = key is not None
        self.sequences: dict[str, int] = {}
        """The next position, by source."""
        self.sent: dict[int, Progress] = {}
        """What was reported last to each partition of an internal topic."""
        self._source = f"{topology}/{step}/{task}"
        self._inputs = inputs
        self._alone = alone
        """The only topic that records of this edge follow from, if there is one: another may only move its time."""
        self._value = value
        self._key_of = key_of
        self._key = key
        self._hash_key = hash_key
        self._limit = limit
        """The largest record that the topic takes, in bytes."""
        self._location = location
        self._overhead_bytes = record_bytes(None, None, ((ID_HEADER, bytes(20 + 4 * len(self._source))),))
        """At most what a record takes beside key, value and headers of its own."""
        self._waiting: list[Batch] = []

    def process(self, batch: Batch) -> Batch:
        """Encode a batch for this edge; the same for a part of it, so that a bad record can be found.

        Raises:
            Exception: a key or value cannot be had or encoded, or is too large; nothing of the batch leaves.
        """
        keys = batch.keys
        if self._key is not None:
            if self._key_of is not None:
                keys = self._key.encode_many(select(self._key_of, batch.values))
            if None in keys:
                raise TypeError("the key to repartition by is missing")
            self._check_readable(batch.values)
        values: list[Any] = self._value.encode_many(batch.values)
        if self._limit is not None:
            self._check_sizes(self._limit, keys, values, batch.headers)
        return Batch(batch.offsets, batch.timestamps, keys, values, batch.headers)

    def _check_sizes(
        self, limit: int, keys: Sequence[bytes | None], values: list[Any], headers: Sequence[Headers] | None
    ) -> None:
        if headers is None and largest(keys, values) + self._overhead_bytes <= limit:
            return
        for i, value in enumerate(values):
            size = record_bytes(keys[i], value, () if headers is None else headers[i]) + self._overhead_bytes
            if size > limit:
                raise OutputTooLargeError(
                    f"its output for topic {self.topic} takes about {size:,} bytes, and the topic takes at most "
                    f"{limit:,} (max.message.bytes){self._location and f', at {self._location}'}"
                )

    def add(self, encoded: Batch) -> None:
        """Let what ``process`` returned leave with the next ``pack``."""
        self._waiting.append(encoded)

    def restore(self, sequences: Mapping[str, int], checkpoint: int) -> None:
        """Take the positions that a checkpoint kept.

        Args:
            sequences: Those of all edges.
            checkpoint: Its number. Numbers only grow, also when damage makes an owner go back to an older checkpoint:
                what he makes then is other records, and so gets positions that none of those had that may have left.
        """
        self.sequences = {source: n for source, n in sequences.items() if source.split("/")[1] == self.step}
        if self.outbox:
            source = self._sequence("")
            self.sequences[source] = max(self.sequences.get(source, 0), first_in(checkpoint))

    def pack(self, topic: str, progress: Progress) -> list[Append]:
        """Return what is to be appended, by partition.

        Args:
            topic: The input that the records come from.
            progress: How far the task has got; goes with every batch to an internal topic.
        """
        if not self._waiting:
            return []
        batch = self._waiting[0] if len(self._waiting) == 1 else Batch.concatenate(self._waiting)
        self._waiting = []
        source = self._sequence(topic)
        start = self.sequences.get(source, 0)
        self.sequences[source] = start + len(batch)
        appends = []
        for partition, part, positions in self._partition(batch, start):
            record_batch = RecordBatch(
                part.timestamps,
                part.keys,
                JoinedBytes.of(part.values),
                part.headers,
                Origin(source, positions),
                progress if self.internal else None,
            )
            if self.internal:
                self.sent[partition] = progress
            appends.append((TopicPartition(self.topic, partition), record_batch))
        return appends

    def _sequence(self, topic: str) -> str:
        """Return the source in which the records of an input are numbered."""
        if self.outbox:
            return f"{self._source}{_BY_OUTBOX}"
        return self._source if self._inputs == 1 else f"{self._source}/{self._alone or topic}"

    def report(self, progress: Progress) -> list[Append]:
        """Return control batches for the partitions of an internal topic that have not heard of ``progress``."""
        if not self.internal:
            return []
        appends = []
        for partition in range(self.partitions):
            if self.sent.get(partition) != progress:
                self.sent[partition] = progress
                batch = control_batch(progress)
                batch.origin = Origin(self._source, [0])
                appends.append((TopicPartition(self.topic, partition), batch))
        return appends

    def _partition(self, batch: Batch, start: int) -> list[tuple[int, Batch, Sequence[int]]]:
        count = self.partitions
        if count == 1:
            return [(0, batch, range(start, start + len(batch)))]
        if None in batch.keys:
            keys = [_CHUNK.pack((start + i) // 256 % 2**32) if key is None else key for i, key in enumerate(batch.keys)]
            goals = [hashed % count for hashed in map(self._hash_key, keys)]
        else:
            goals = [hashed % count for hashed in map(self._hash_key, batch.keys)]  # type: ignore[arg-type]
        if goals.count(goals[0]) == len(goals):
            return [(goals[0], batch, range(start, start + len(batch)))]
        places: list[list[int]] = [[] for _ in range(count)]
        adders: list[Callable[[int], None]] = [place.append for place in places]
        for i, goal in enumerate(goals):
            adders[goal](i)
        parts: list[tuple[int, Batch, Sequence[int]]] = []
        for partition, rows in enumerate(places):
            if rows:
                parts.append((partition, batch.pick(rows), array("q", [start + i for i in rows])))
        return parts

    def _check_readable(self, values: list[Any]) -> None:
        changed = changed_type(self._value, values)
        if changed is not None:
            name, others = changed
            raise TopologyError(
                f"step {self.step!r} sends {name} objects through an internal topic, "
                f"behind which they would be {others}",
                remedy=f"Annotate the function that makes them with -> {name}, or make dicts",
            )


def edge_of(
    plan: Plan,
    sub: SubTopology,
    task: TaskId,
    node: Sink | Repartition,
    partitions: Mapping[str, int],
    hash_key: Hash,
    limits: Mapping[str, int],
) -> Edge:
    """Return the edge that a node of the plan stands for.

    Args:
        plan: The plan that the task is part of.
        sub: Its sub-topology.
        task: Its id.
        node: Where records leave.
        partitions: How many partitions each output topic has.
        hash_key: By whose remainder keys go to partitions.
        limits: The largest record that output topics take, in bytes, where there is a limit.
    """
    if isinstance(node, Repartition):
        topic, key_of, key = internal_topic(plan.graph, node), node.selector, node.key
    else:
        topic, key_of, key = node.topic, None, None
    above = topics_above(plan.graph, sub, node)
    return Edge(
        topology=plan.graph.name,
        step=node.name,
        task=str(task),
        inputs=len(sub.inputs),
        alone=above[0] if len(above) == 1 else None,
        topic=topic,
        partitions=partitions[topic],
        value=node.value,
        key_of=key_of,
        key=key,
        hash_key=hash_key,
        outbox=node.name in plan.outbox,
        limit=limits.get(topic),
        location=str(node.location) if node.location.file else "",
    )
