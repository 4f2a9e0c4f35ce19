"""One input partition as a task sees it: where it is, how far its time has got, and what of it came before. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.record import RecordBatch
from headrace.runtime.tasks.edges import left_by_outbox
from headrace.runtime.tasks.watermarks import InputTime, InternalTime, SourceTime
from headrace.topology.graph import Repartition, Source
from headrace.topology.plan import Input


@dataclass(slots=True)
class TaskInput:
    """One input partition."""

    input: Input
    node: Source | Repartition
    time: InputTime
    position: int
    seen: dict[str, int]
    """Highest position taken from each upstream edge."""

    @classmethod
    def of(cls, item: Input, node: Source | Repartition, start: int, kept: Sequence[Any] | None) -> TaskInput:
        """Return an input as a checkpoint kept it, or from its start.

        Args:
            item: What the plan says of it.
            node: The source or repartition.
            start: Where to begin if nothing was kept.
            kept: What ``state`` returned.
        """
        time: InputTime
        if isinstance(node, Source):
            time = SourceTime(node.out_of_orderness_ms, node.idle_after_ms)
        else:
            time = InternalTime(item.upstream)
        if kept is None:
            return cls(item, node, time, start, {})
        time.restore(kept[1])
        return cls(item, node, time, kept[0], dict(kept[2]))

    def state(self) -> list[Any]:
        """Return what a checkpoint keeps."""
        return [self.position, self.time.state(), self.seen]

    def without_repeats(self, records: RecordBatch) -> RecordBatch | None:
        """Drop the records that an upstream task wrote again after a crash; return None if nothing is left.

        Those of an edge that neither is deterministic nor left through an outbox cannot be told, and stay.
        """
        origin = records.origin
        if origin is None or not (self.input.deterministic or left_by_outbox(origin.source)):
            return records
        highest = self.seen.get(origin.source, -1)
        if origin.positions[-1] > highest:
            self.seen[origin.source] = origin.positions[-1]
        start = bisect_right(origin.positions, highest) if origin.positions[0] <= highest else 0
        return None if start == len(records) else records.tail(start)
