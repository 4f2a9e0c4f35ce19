"""Letting records go in the order of event time.

Every record has an effective time: its timestamp or, if it is late, the watermark when it came. It waits until the
watermark has passed that and leaves in the order of effective time and arrival. State is a ``Room``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from headrace.operators.api import EMIT_RECORDS, MAIN, Batch, Outputs, StepContext
from headrace.operators.stored import StoredValues, stored_shape
from headrace.operators.waiting import Room, Waiting, effective, open_room
from headrace.record import MIN_WATERMARK
from headrace.serde.api import Serde


@dataclass(frozen=True, slots=True)
class InOrder:
    """Holds each record back until everything before it has come."""

    value: Serde[Any]
    kind: ClassVar[str] = "in-order"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    ports: ClassVar[tuple[str, ...]] = (MAIN,)
    timed_ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored records depend on."""
        return {"value": stored_shape(self.value)}

    def build(self, context: StepContext) -> InOrderOperator:
        """Make the operator of one task."""
        stored = StoredValues(self.value, context.step)
        return InOrderOperator(stored, open_room(context, stored))


class InOrderOperator:
    """The running form of ``InOrder``."""

    def __init__(self, stored: StoredValues, room: Room) -> None:
        self._stored = stored
        self._room = room
        self._watermark = MIN_WATERMARK

    def process(self, batch: Batch) -> Outputs:
        """Let records wait."""
        marks, settled = effective(batch, self._watermark)
        self._watermark = marks[-1]
        self._stored.check(batch.values)
        headers = batch.headers or [()] * len(batch)
        keys: Any = batch.keys
        times = map(max, batch.timestamps, marks)
        self._room.enter(zip(times, keys, batch.values, headers, strict=True), settled)
        return []

    def on_watermark(self, watermark: int) -> Outputs:
        """Let go what the watermark has passed."""
        self._watermark = max(self._watermark, watermark)
        leaving = self._room.leave(watermark)
        self._room.remember()
        return [(MAIN, _batch(leaving[start : start + EMIT_RECORDS])) for start in range(0, len(leaving), EMIT_RECORDS)]

    def output_watermark(self, watermark: int) -> int:
        """Return the watermark: what it passes leaves at once."""
        return watermark

    def next_close(self) -> int | None:
        """Return the watermark at which the first record leaves."""
        first = self._room.first()
        return None if first is None else first + 1

    def close_at_end(self) -> int | None:
        """Return the watermark at which the last record leaves."""
        last = self._room.last()
        return None if last is None else last + 1


def _batch(leaving: list[Waiting]) -> Batch:
    headers = [record.headers for record in leaving] if any(record.headers for record in leaving) else None
    return Batch(
        [-1] * len(leaving),
        [record.time for record in leaving],
        [record.key for record in leaving],
        [record.value for record in leaving],
        headers,
    )
