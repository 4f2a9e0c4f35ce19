"""Joining each record of a stream at once with the row of a table as it is known when the record comes.

State is one row per key, as ``stored`` writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from headrace.operators.api import MAIN, Batch, Outputs, StepContext
from headrace.operators.as_of_join import AsOfHow
from headrace.operators.stored import StoredValues, stored_shape
from headrace.serde.api import Serde
from headrace.state.cache import Codec, WriteBehind


@dataclass(frozen=True, slots=True)
class LatestJoin:
    """Pairs each left record with the row that its key has at that moment."""

    right: Serde[Any]
    how: AsOfHow = "inner"
    kind: ClassVar[str] = "join"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = True
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"right": stored_shape(self.right)}

    def build(self, context: StepContext) -> LatestJoinOperator:
        """Make the operator of one task."""
        stored = StoredValues(self.right, context.step)
        codec: Codec[Any] = Codec(stored.encode_many, stored.decode_many)
        rows = WriteBehind(context.store, context.store_prefix("rows"), codec, budget=context.budget, width=0)
        return LatestJoinOperator(self.how, stored, rows)


class LatestJoinOperator:
    """The running form of ``LatestJoin``."""

    def __init__(self, how: AsOfHow, stored: StoredValues, cache: WriteBehind[Any]) -> None:
        self._inner = how == "inner"
        self._stored = stored
        self._cache = cache
        self._rows = cache.bucket(b"")

    def process(self, batch: Batch) -> Outputs:
        """Take records of the left side."""
        return self.process_sides(batch, [0] * len(batch))

    def process_sides(self, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Look up the row of each left record, and take each change of the table."""
        self._stored.check([value for value, side in zip(batch.values, sides, strict=True) if side])
        keys: Any = batch.keys
        self._rows.load(sorted(set(keys)))
        live, clean = self._rows.live, self._rows.clean
        pairs: list[Any] = []
        for key, value, side in zip(keys, batch.values, sides, strict=True):
            if not side:
                row = live.get(key)
                row = clean.get(key) if row is None else row
                pairs.append(None if self._inner and row is None else (value, row))
                continue
            pairs.append(None)
            if value is None:
                self._cache.discard(self._rows, key)
            else:
                clean.pop(key, None)
                live[key] = value
        if None not in pairs:
            return [(MAIN, batch.with_values(pairs))]
        return [(MAIN, batch.with_values(pairs).where([pair is not None for pair in pairs]))]

    def on_watermark(self, watermark: int) -> Outputs:
        """Return nothing: results leave at once."""
        return []

    def output_watermark(self, watermark: int) -> int:
        """Return the watermark: results leave at once."""
        return watermark

    def next_close(self) -> int | None:
        """Return None: no result is outstanding."""
        return None

    def close_at_end(self) -> int | None:
        """Return None: no result is outstanding."""
        return None
