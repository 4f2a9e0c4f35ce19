"""Joining two tables by their keys.

State is one row per key that either table has, ``key -> MessagePack array of two``: the row of each side as its serde
writes it (see ``operators.stored``), or nil.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from headrace.operators.api import MAIN, Batch, Outputs, StepContext
from headrace.operators.stored import StoredValues, stored_shape
from headrace.operators.untimed import UntimedOperator
from headrace.serde.api import Serde
from headrace.state.cache import Codec, WriteBehind

Sides = list[Any]
"""The rows that both tables have for one key, None where there is none."""


@dataclass(frozen=True, slots=True)
class TableJoin:
    """Pairs the rows of two tables by key; a change of either makes the pair anew, or None if it is no more."""

    left: Serde[Any]
    right: Serde[Any]
    how: str
    kind: ClassVar[str] = "table-join"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = True
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"left": stored_shape(self.left), "right": stored_shape(self.right)}

    def build(self, context: StepContext) -> TableJoinOperator:
        """Make the operator of one task."""
        stored = (StoredValues(self.left, context.step), StoredValues(self.right, context.step))
        codec = _SidesCodec(*stored)
        prefix = context.store_prefix("rows")
        cache = WriteBehind(
            context.store, prefix, Codec(codec.encode_many, codec.decode_many), budget=context.budget, width=0
        )
        return TableJoinOperator(self.how, stored, cache)


class TableJoinOperator(UntimedOperator):
    """The running form of ``TableJoin``."""

    def __init__(self, how: str, stored: tuple[StoredValues, StoredValues], cache: WriteBehind[Sides]) -> None:
        self._needs_left = how != "outer"
        self._needs_right = how == "inner"
        self._stored = stored
        self._cache = cache
        self._rows = cache.bucket(b"")

    def process(self, batch: Batch) -> Outputs:
        """Take changes of the left table alone."""
        return self.process_sides(batch, [0] * len(batch))

    def process_sides(self, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Take changes in their order and return those of the pairs that follow from them."""
        for number, stored in enumerate(self._stored):
            stored.check([value for value, side in zip(batch.values, sides, strict=True) if side == number])
        keys: Any = batch.keys
        self._rows.load(keys)
        live, find = self._rows.live, self._rows.get
        needs_left, needs_right = self._needs_left, self._needs_right
        places: list[int] = []
        pairs: list[Any] = []
        for place, (key, value, side) in enumerate(zip(keys, batch.values, sides, strict=True)):
            row = live.get(key) or find(key)
            if row is None:
                if value is None:
                    continue
                row = live[key] = [None, None]
            left, right = row
            existed = not ((needs_left and left is None) or (needs_right and right is None))
            row[side] = value
            left, right = row
            exists = not ((needs_left and left is None) or (needs_right and right is None))
            if left is None and right is None:
                exists = False
                self._cache.discard(self._rows, key)
            if exists or existed:
                places.append(place)
                pairs.append((left, right) if exists else None)
        if not places:
            return []
        part = batch if len(places) == len(batch) else batch.pick(places)
        return [(MAIN, part.with_values(pairs))]


class _SidesCodec:
    def __init__(self, left: StoredValues, right: StoredValues) -> None:
        self._sides = (left, right)

    def encode_many(self, rows: list[Sides]) -> list[bytes]:
        columns: list[list[bytes | None]] = []
        for side, stored in enumerate(self._sides):
            present = iter(stored.encode_many([row[side] for row in rows if row[side] is not None]))
            columns.append([None if row[side] is None else next(present) for row in rows])
        return list(map(msgspec.msgpack.encode, zip(*columns, strict=True)))

    def decode_many(self, rows: list[bytes]) -> list[Sides]:
        encoded = [msgspec.msgpack.decode(row, type=tuple[bytes | None, bytes | None]) for row in rows]
        columns: list[list[Any]] = []
        for side, stored in enumerate(self._sides):
            present = iter(stored.decode_many([data for pair in encoded if (data := pair[side]) is not None]))
            columns.append([None if pair[side] is None else next(present) for pair in encoded])
        return list(map(list, zip(*columns, strict=True)))
