"""Joining a stream with a table of which every task has the whole.

State is one row per key of the table: ``key -> the row`` as its serde writes it (see ``operators.stored``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from headrace.operators.api import MAIN, Batch, Outputs, StepContext
from headrace.operators.selectors import Selector, select
from headrace.operators.stored import StoredValues, stored_shape
from headrace.operators.untimed import UntimedOperator
from headrace.serde.api import Serde
from headrace.state.cache import Codec, WriteBehind


@dataclass(frozen=True, slots=True)
class GlobalJoin:
    """Pairs each record of the first input with the row that the second has for it at that moment."""

    on: Selector | None
    """Gives the key to look up; the record's own if None."""
    key: Serde[Any]
    value: Serde[Any]
    how: str
    kind: ClassVar[str] = "global-join"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = True
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"rows": stored_shape(self.value)}

    def build(self, context: StepContext) -> GlobalJoinOperator:
        """Make the operator of one task."""
        stored = StoredValues(self.value, context.step)
        codec = Codec(stored.encode_many, stored.decode_many)
        prefix = context.store_prefix("rows")
        cache: WriteBehind[Any] = WriteBehind(context.store, prefix, codec, budget=context.budget, width=0)
        return GlobalJoinOperator(self.on, self.key, self.how, cache)


class GlobalJoinOperator(UntimedOperator):
    """The running form of ``GlobalJoin``."""

    def __init__(self, on: Selector | None, key: Serde[Any], how: str, cache: WriteBehind[Any]) -> None:
        self._on = on
        self._key = key
        self._inner = how == "inner"
        self._cache = cache
        self._rows = cache.bucket(b"")

    def process(self, batch: Batch) -> Outputs:
        """Look up the rows of the records' keys; nothing takes effect if a key cannot be had."""
        keys = batch.keys if self._on is None else self._key.encode_many(select(self._on, batch.values))
        self._rows.load([key for key in keys if key is not None])
        live, clean = self._rows.live, self._rows.clean
        rows = [live[key] if key in live else clean.get(key) for key in keys]  # type: ignore[arg-type]
        if self._inner and None in rows:
            found = [row is not None for row in rows]
            batch = batch.where(found)
            rows = [row for row in rows if row is not None]
        return [(MAIN, batch.with_values(list(zip(batch.values, rows, strict=True))))] if rows else []

    def process_sides(self, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Take records and changes of the table in their order."""
        outputs: Outputs = []
        start = 0
        for side, run in groupby(sides):
            stop = start + sum(1 for _ in run)
            part = batch if stop - start == len(batch) else batch.part(start, stop)
            if side == 0:
                outputs += self.process(part)
            else:
                self._change(part)
            start = stop
        return outputs

    def _change(self, batch: Batch) -> None:
        live, clean = self._rows.live, self._rows.clean
        for key, row in zip(batch.keys, batch.values, strict=True):
            assert key is not None
            if row is None:
                self._cache.discard(self._rows, key)
            else:
                clean.pop(key, None)
                live[key] = row
