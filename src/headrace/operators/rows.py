"""Steps on the changes of a table: a value of None is the deletion of its key's row, which user code never sees."""

from __future__ import annotations

from typing import Any

from headrace.operators.api import MAIN, Batch, Outputs
from headrace.operators.stateless import Function, Stateless


def mapping_rows(function: Function) -> Stateless:
    """Describe a step that makes a row of each row, and passes on that a row was deleted."""

    def process(batch: Batch) -> Outputs:
        return [(MAIN, batch.with_values([None if row is None else function(row) for row in batch.values]))]

    return Stateless("map_values", process)


def filtering_rows(predicate: Function) -> Stateless:
    """Describe a step that deletes the rows for which ``predicate`` is false."""

    def process(batch: Batch) -> Outputs:
        kept = [None if row is None or not predicate(row) else row for row in batch.values]
        return [(MAIN, batch.with_values(kept))]

    return Stateless("filter", process)


def combining(function: Any) -> Stateless:
    """Describe a step that makes one value of each pair that a join found, and passes on that a row was deleted."""

    def process(batch: Batch) -> Outputs:
        return [(MAIN, batch.with_values([None if pair is None else function(*pair) for pair in batch.values]))]

    return Stateless("combine", process)
