"""Steps that keep no state: each is one function of a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, ClassVar

from headrace.operators.api import MAIN, Batch, Outputs, StepContext

Function = Callable[[Any], Any]


class StatelessOperator:
    """Applies one function to every batch."""

    def __init__(self, process: Callable[[Batch], Outputs]) -> None:
        self.process = process

    def on_watermark(self, watermark: int) -> Outputs:
        """Return nothing: there is nothing to close."""
        return []

    def output_watermark(self, watermark: int) -> int:
        """Return the watermark: results come at once."""
        return watermark

    def next_close(self) -> int | None:
        """Return None: nothing is ever open."""
        return None

    def close_at_end(self) -> int | None:
        """Return None: nothing is ever open."""
        return None


@dataclass(frozen=True, slots=True)
class Stateless:
    """The description of a step that keeps no state."""

    kind: str
    process: Callable[[Batch], Outputs]
    ports: tuple[str, ...] = (MAIN,)
    stateful: ClassVar[bool] = False
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()

    def shape(self) -> dict[str, Any]:
        """Describe nothing: no stored byte depends on this step."""
        return {}

    def build(self, context: StepContext) -> StatelessOperator:
        """Make the operator of one task."""
        return StatelessOperator(self.process)


def mapping(function: Function) -> Stateless:
    """Describe a step that makes one value of each value."""
    return Stateless("map", lambda batch: [(MAIN, batch.with_values(list(map(function, batch.values))))])


def filtering(predicate: Function) -> Stateless:
    """Describe a step that keeps the records for whose value ``predicate`` is true."""
    return Stateless("filter", lambda batch: [(MAIN, batch.where(list(map(predicate, batch.values))))])


def flat_mapping(function: Function) -> Stateless:
    """Describe a step that makes any number of values of each value; they keep its key, time and headers."""

    def process(batch: Batch) -> Outputs:
        made = [list(values) for values in map(function, batch.values)]
        counts = list(map(len, made))

        def spread(column: Any) -> list[Any]:
            return list(chain.from_iterable(map(repeat, column, counts)))

        return [(MAIN, Batch(
            spread(batch.offsets), spread(batch.timestamps), spread(batch.keys), list(chain.from_iterable(made)),
            batch.headers and spread(batch.headers), batch.running, batch.timed,
            batch.moments and spread(batch.moments),
        ))]  # fmt: skip

    return Stateless("flat_map", process)


def tapping(function: Function) -> Stateless:
    """Describe a step that shows each value to ``function`` and passes it on unchanged."""

    def process(batch: Batch) -> Outputs:
        for value in batch.values:
            function(value)
        return [(MAIN, batch)]

    return Stateless("tap", process)


def branching(predicates: tuple[tuple[str, Function], ...]) -> Stateless:
    """Describe a step that sends each record to the first branch whose predicate is true, and to none if none is."""

    def process(batch: Batch) -> Outputs:
        outputs: Outputs = []
        rest = batch
        for name, predicate in predicates:
            mask = [bool(predicate(value)) for value in rest.values]
            outputs.append((name, rest.where(mask)))
            rest = rest.where([not taken for taken in mask])
        return outputs

    return Stateless("branch", process, tuple(name for name, _ in predicates))


def merging() -> Stateless:
    """Describe a step that passes on what comes from several others."""
    return Stateless("merge", lambda batch: [(MAIN, batch)])
