"""Joining two tables where the rows of the left one name keys of the right one.

The two lie in different partitions, so it takes three steps with an internal topic between each two:

1. ``References``, where the left table is, sends every change of a left row to the partition of the right row that it
   refers to, and tells the one that it referred to before to forget it;
2. ``Lookup``, where the right table is, remembers who refers to each right row, and answers with that row: at once,
   and again whenever it changes;
3. ``Answers``, by the left key again, makes pairs of the answers.

An answer about an old reference can come after one about a newer, as they take different ways. So every change of a
left row has a number that grows, and an answer to a change before the latest one known is dropped.

State:

- ``References``: ``left key -> 0x00``, or ``0x01`` and the right key that the row refers to; and one row with an empty
  key, the number of the last change, eight bytes;
- ``Lookup``: ``right key -> right row``, and ``encode_bytes(right key) + left key -> number, eight bytes, left row``;
- ``Answers``: ``left key -> 2 * number``, and one more if there is a pair, eight bytes. It stays when the left row is
  deleted, so that no late answer brings the row back.

Left and right rows are as their serdes write them (see ``operators.stored``), in the state and in the messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

import msgspec

from headrace.errors import CorruptError
from headrace.operators.api import EMIT_RECORDS, MAIN, Batch, Outputs, StepContext
from headrace.operators.selectors import Selector, select, selector_name
from headrace.operators.stored import StoredValues, stored_shape
from headrace.operators.untimed import UntimedOperator
from headrace.serde.api import Serde
from headrace.state.api import WriteBatch
from headrace.state.cache import Codec, WriteBehind
from headrace.state.decoding import checked, reading_keys
from headrace.state.keys import (
    TIME_WIDTH,
    decode_times,
    encode_bytes,
    encode_time,
    encode_times,
    prefix_end,
)

_NOTHING = b"\0"
_RIGHT_KEY = b"\1"
_BYTES: Codec[bytes] = Codec(list, list)
_LIMIT = 1 << 62
"""No number of a change is as large."""


def _decode_numbers(rows: list[bytes]) -> list[int]:
    numbers = decode_times(rows)
    if max(numbers, default=0) >= _LIMIT:
        raise CorruptError("a change has a number that none can have")
    return numbers


_NUMBERS: Codec[int] = Codec(encode_times, _decode_numbers)


class Reference(msgspec.Struct, array_like=True, frozen=True):
    """What a change of a left row means for the right row whose key the message has."""

    left_key: bytes
    number: int
    """Grows with every change of the left row."""
    left: bytes | None
    """The left row; None if it was deleted, or if no answer is wanted."""
    refers: bool
    """Whether the left row refers to this right row from now on; if not, it no longer does."""
    answer: bool
    """Whether an answer is wanted; if not, another message brings one about the same change."""


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """Both rows of a pair, by the left key."""

    number: int
    """That of the change of the left row."""
    left: bytes | None
    right: bytes | None


@dataclass(frozen=True, slots=True)
class References:
    """Sends changes of left rows to the right rows that they refer to."""

    on: Selector
    left: Serde[Any]
    right_key: Serde[Any]
    how: str
    kind: ClassVar[str] = "join-references"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"on": selector_name(self.on), "key": self.right_key.name, "how": self.how}

    def build(self, context: StepContext) -> ReferencesOperator:
        """Make the operator of one task."""
        keys = WriteBehind(context.store, context.store_prefix("references"), _BYTES, budget=context.budget, width=0)
        last = WriteBehind(context.store, context.store_prefix("number"), _NUMBERS, budget=context.budget, width=0)
        return ReferencesOperator(self, StoredValues(self.left, context.step), keys, last)


class ReferencesOperator(UntimedOperator):
    """The running form of ``References``."""

    def __init__(
        self, spec: References, stored: StoredValues, keys: WriteBehind[bytes], last: WriteBehind[int]
    ) -> None:
        self._on = spec.on
        self._right_key = spec.right_key
        self._keeps_all = spec.how == "left"
        self._stored = stored
        self._cache = keys
        self._keys = keys.bucket(b"")
        self._last = last.bucket(b"")

    def process(self, batch: Batch) -> Outputs:
        """Tell right rows who refers to them; nothing takes effect if a reference cannot be had."""
        present = [value for value in batch.values if value is not None]
        encoded = iter(self._right_key.encode_many(select(self._on, present)))
        rows = iter(self._stored.encode_many(present))
        left_keys: Any = batch.keys
        self._keys.load(left_keys)
        number = self._last.peek(b"") or 0
        places: list[int] = []
        right_keys: list[bytes] = []
        messages: list[Any] = []
        for place, (key, value) in enumerate(zip(left_keys, batch.values, strict=True)):
            number += 1
            gone = value is None
            row, target = (None, None) if gone else (next(rows), next(encoded))
            for right_key, message in self._messages(key, number, row, target, gone):
                places.append(place)
                right_keys.append(right_key)
                messages.append(message)
        self._last.clean.pop(b"", None)
        self._last.live[b""] = number
        if not places:
            return []
        part = batch.pick(places)
        columns = part.offsets, part.timestamps, right_keys, messages, part.headers
        return [(MAIN, Batch(*columns, part.running, part.timed))]

    def _messages(
        self, key: bytes, number: int, row: bytes | None, target: bytes | None, gone: bool
    ) -> list[tuple[bytes, Reference]]:
        known = self._keys.get(key)
        before = known[1:] if known is not None and known[:1] == _RIGHT_KEY else None
        if target is not None:
            self._keys.live[key] = _RIGHT_KEY + target
            here = (target, Reference(key, number, row, True, True))
            if before is None or before == target:
                return [here]
            return [(before, Reference(key, number, None, False, False)), here]
        if self._keeps_all and not gone:
            self._keys.live[key] = _NOTHING
        elif known is not None:
            self._cache.discard(self._keys, key)
        if before is None and not (self._keeps_all and (known is not None or not gone)):
            return []
        # What refers to nothing has its answer through any partition: that of its last reference, or of its own key.
        return [(key if before is None else before, Reference(key, number, row, False, True))]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Remembers who refers to each right row, and answers with it; the references come first, then the right table."""

    left: Serde[Any]
    right: Serde[Any]
    kind: ClassVar[str] = "join-lookup"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = True
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"left": stored_shape(self.left), "right": stored_shape(self.right)}

    def build(self, context: StepContext) -> LookupOperator:
        """Make the operator of one task."""
        rows = WriteBehind(context.store, context.store_prefix("rows"), _BYTES, budget=context.budget, width=0)
        referring = WriteBehind(
            context.store, context.store_prefix("referring"), _BYTES, budget=context.budget, width=0, cold=True
        )
        return LookupOperator(StoredValues(self.right, context.step), rows, referring)


class LookupOperator(UntimedOperator):
    """The running form of ``Lookup``."""

    def __init__(self, stored: StoredValues, rows: WriteBehind[bytes], referring: WriteBehind[bytes]) -> None:
        self._stored = stored
        self._rows_cache = rows
        self._rows = rows.bucket(b"")
        self._referring_cache = referring
        self._referring = referring.bucket(b"")

    def process(self, batch: Batch) -> Outputs:
        """Take references alone."""
        return self.process_sides(batch, [0] * len(batch))

    def process_sides(self, batch: Batch, sides: Sequence[int]) -> Outputs:
        """Take references and changes of right rows in their order."""
        outputs: Outputs = []
        start = 0
        for side, run in groupby(sides):
            stop = start + sum(1 for _ in run)
            part = batch.part(start, stop)
            outputs += self._refer(part) if side == 0 else self._change(part)
            start = stop
        return outputs

    def _refer(self, batch: Batch) -> Outputs:
        right_keys: Any = batch.keys
        self._rows.load(right_keys)
        referring, find = self._referring, self._rows.peek
        places: list[int] = []
        answers: list[Any] = []
        for place, (right_key, message) in enumerate(zip(right_keys, batch.values, strict=True)):
            row_key = encode_bytes(right_key) + message.left_key
            if message.refers:
                referring.clean.pop(row_key, None)
                referring.live[row_key] = encode_time(message.number) + message.left
            else:
                self._referring_cache.discard(referring, row_key)
            if message.answer:
                places.append(place)
                answers.append(Answer(message.number, message.left, find(right_key) if message.refers else None))
        return self._answers(batch, places, [batch.values[place].left_key for place in places], answers)

    def _change(self, batch: Batch) -> Outputs:
        rows = iter(self._stored.encode_many([value for value in batch.values if value is not None]))
        right_keys: Any = batch.keys
        self._rows.load(right_keys)
        cache = self._referring_cache
        written = WriteBatch()
        cache.flush(written)  # so that one scan finds all that refer to a row
        cache.store.write(written)
        places: list[int] = []
        left_keys: list[bytes] = []
        answers: list[Any] = []
        for place, (right_key, value) in enumerate(zip(right_keys, batch.values, strict=True)):
            row: bytes | None = None
            if value is not None:
                row = next(rows)
                self._rows.clean.pop(right_key, None)
                self._rows.live[right_key] = row
            elif self._rows.peek(right_key) is None:
                continue
            else:
                self._rows_cache.discard(self._rows, right_key)
            prefix = cache.prefix + encode_bytes(right_key)
            for key, stored in cache.store.scan(prefix, prefix_end(prefix)):
                with reading_keys(cache.part):
                    (number,) = _decode_numbers([stored[:TIME_WIDTH]])
                places.append(place)
                left_keys.append(key[len(prefix) :])
                answers.append(Answer(number, stored[TIME_WIDTH:], row))
        return self._answers(batch, places, left_keys, answers)

    @staticmethod
    def _answers(batch: Batch, places: list[int], left_keys: list[bytes], answers: list[Any]) -> Outputs:
        outputs: Outputs = []
        for start in range(0, len(places), EMIT_RECORDS):
            cut = slice(start, start + EMIT_RECORDS)
            part = batch.pick(places[cut])
            columns = part.offsets, part.timestamps, left_keys[cut], answers[cut]
            outputs.append((MAIN, Batch(*columns, part.headers, part.running, part.timed)))
        return outputs


@dataclass(frozen=True, slots=True)
class Answers:
    """Makes pairs of answers, or None where there is no longer one."""

    left: Serde[Any]
    right: Serde[Any]
    how: str
    kind: ClassVar[str] = "foreign-key-join"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"how": self.how}

    def build(self, context: StepContext) -> AnswersOperator:
        """Make the operator of one task."""
        known = WriteBehind(context.store, context.store_prefix("known"), _NUMBERS, budget=context.budget, width=0)
        stored = StoredValues(self.left, context.step), StoredValues(self.right, context.step)
        return AnswersOperator(*stored, self.how, known)


class AnswersOperator(UntimedOperator):
    """The running form of ``Answers``."""

    def __init__(self, left: StoredValues, right: StoredValues, how: str, known: WriteBehind[int]) -> None:
        # Both rows are as some task wrote them into its state, so that no record is to blame if they make no sense.
        self._read_left = checked(left.decode_many, partial(str, "a left row that was joined"))
        self._read_right = checked(right.decode_many, partial(str, "a right row that was joined"))
        self._inner = how == "inner"
        self._known = known.bucket(b"")

    def process(self, batch: Batch) -> Outputs:
        """Drop answers to changes that are not the latest of their left row, and pass the others on."""
        left_keys: Any = batch.keys
        self._known.load(left_keys)
        live, clean = self._known.live, self._known.clean
        places: list[int] = []
        pairs: list[Answer | None] = []
        for place, (key, answer) in enumerate(zip(left_keys, batch.values, strict=True)):
            known = live.get(key)
            if known is None:
                known = clean.pop(key, 0)
            if answer.number < known >> 1:
                live[key] = known
                continue
            exists = answer.left is not None and not (self._inner and answer.right is None)
            live[key] = 2 * answer.number + exists
            if exists or known & 1:
                places.append(place)
                pairs.append(answer if exists else None)
        return [(MAIN, batch.pick(places).with_values(self._decoded(pairs)))] if places else []

    def _decoded(self, pairs: list[Answer | None]) -> list[Any]:
        lefts = iter(self._read_left([p.left for p in pairs if p is not None and p.left is not None]))
        rights = iter(self._read_right([p.right for p in pairs if p is not None and p.right is not None]))
        return [None if pair is None else (next(lefts), None if pair.right is None else next(rights)) for pair in pairs]
