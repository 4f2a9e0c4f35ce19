"""Dropping records whose id was seen before within some event time.

A record is a repeat if one with the same key and id was let through whose timestamp is less than ``within`` away, and
which the watermark had not left behind by ``within`` when the record came. That speaks of event times alone, so the
answer does not depend on how the input was cut or on when old ids are forgotten.

State is one row per id, ``slice + key + id -> timestamp``, where a slice covers ``within`` of event time: a record
need be looked up in at most three slices, and ids are forgotten a slice at a time, without a timer or an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, repeat
from operator import add
from typing import Any, ClassVar

import msgspec

from headrace.operators.api import MAIN, Batch, Outputs, StepContext
from headrace.operators.selectors import Selector, select, selector_name
from headrace.record import MIN_WATERMARK
from headrace.state.cache import Bucket, Codec, WriteBehind
from headrace.state.keys import BYTES_END, decode_time, decode_times, encode_time, encode_times, escape_bytes

_TEXT_FOLLOWS = BYTES_END + b"s"
_MSGPACK_FOLLOWS = BYTES_END + b"m"
_encode_id = msgspec.msgpack.Encoder().encode
_STAMPS: Codec[int] = Codec(encode_times, decode_times)


@dataclass(frozen=True, slots=True)
class Deduplicate:
    """Lets through the first record of each key and id within some time."""

    by: Selector
    within_ms: int
    kind: ClassVar[str] = "deduplicate"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored ids depend on."""
        return {"by": selector_name(self.by), "within_ms": self.within_ms}

    def build(self, context: StepContext) -> DeduplicateOperator:
        """Make the operator of one task."""
        cache = WriteBehind(context.store, context.store_prefix("seen"), _STAMPS, budget=context.budget, cold=True)
        return DeduplicateOperator(self.by, self.within_ms, cache)


class DeduplicateOperator:
    """The running form of ``Deduplicate``."""

    def __init__(self, by: Selector, within_ms: int, cache: WriteBehind[int]) -> None:
        self._by = by
        self._within_ms = within_ms
        self._cache = cache
        self._watermark = MIN_WATERMARK
        self._slices: dict[int, Bucket[int]] = {decode_time(bucket.prefix): bucket for bucket in cache.buckets()}

    def process(self, batch: Batch) -> Outputs:
        """Let through what is not a repeat; nothing takes effect if an id cannot be had."""
        rows = seen_rows(batch.keys, select(self._by, batch.values))
        timestamps = batch.timestamps
        first, last = min(timestamps) // self._within_ms, max(timestamps) // self._within_ms
        # There are few slices, but one wild time can put any number between the first and the last.
        near = [bucket for number, bucket in self._slices.items() if first - 1 <= number <= last + 1]
        for bucket in near:
            bucket.load(rows)
        limit = batch.running.last if batch.running else self._watermark
        # While the watermark is within the slice, nothing in it can have been left behind by ``within``.
        alone = first == last and near in ([], [self._slices.get(first)]) and limit < (first + 1) * self._within_ms
        mask = self._mark_in_slice(first, rows, timestamps) if alone else self._mark(batch, rows)
        return [(MAIN, batch if all(mask) else batch.where(mask))]

    def on_watermark(self, watermark: int) -> Outputs:
        """Forget the slices that no record can repeat any more."""
        self._watermark = watermark
        for number in sorted(self._slices):
            if (number + 2) * self._within_ms > watermark:
                break
            self._cache.drop(self._slices.pop(number))
        return []

    def output_watermark(self, watermark: int) -> int:
        """Return the watermark: records go on at once."""
        return watermark

    def next_close(self) -> int | None:
        """Return None: no result is outstanding."""
        return None

    def close_at_end(self) -> int | None:
        """Return None: no result is outstanding."""
        return None

    def _slice(self, number: int) -> Bucket[int]:
        bucket = self._slices.get(number)
        if bucket is None:
            bucket = self._slices[number] = self._cache.bucket(encode_time(number))
        return bucket

    def _mark_in_slice(self, number: int, rows: list[bytes], timestamps: Sequence[int]) -> list[bool]:
        """Mark new ids of records that all lie in one slice, whose neighbours are empty.

        Any two times within a slice are less than ``within`` apart, so that being there is being a repeat.
        """
        bucket = self._slice(number)
        live, clean = bucket.live, bucket.clean
        unique = set(rows)
        repeats = (unique & live.keys()) | (unique & clean.keys())
        if len(unique) == len(rows):
            mask = [row not in repeats for row in rows] if repeats else [True] * len(rows)
            live.update(zip(compress(rows, mask), compress(timestamps, mask), strict=True))
            return mask
        mask = []
        for row, timestamp in zip(rows, timestamps, strict=True):
            mask.append(row not in repeats)
            if mask[-1]:
                repeats.add(row)
                live[row] = timestamp
        return mask

    def _mark(self, batch: Batch, rows: list[bytes]) -> list[bool]:
        within, slices = self._within_ms, self._slices
        running, watermark = batch.running, self._watermark
        mask = []
        for place, (row, timestamp) in enumerate(zip(rows, batch.timestamps, strict=True)):
            number = timestamp // within
            repeat = False
            for near in (number, number - 1, number + 1):
                bucket = slices.get(near)
                if bucket is None:
                    continue
                stamp = bucket.live.get(row)
                if stamp is None:
                    stamp = bucket.clean.get(row)
                if stamp is not None and -within < timestamp - stamp < within:
                    before = running.before(batch.offsets[place]) if running and timestamp < running.last else watermark
                    repeat = repeat or stamp + within > before
            if not repeat:
                self._slice(number).live[row] = timestamp
            mask.append(not repeat)
        return mask


def seen_rows(keys: Sequence[bytes | None], ids: list[Any]) -> list[bytes]:
    """Return one row key per record: its key, escaped so that it can be told from what follows, and its id.

    Raises:
        TypeError: an id is missing or of a type that cannot be compared byte by byte.
    """
    if None in ids:
        raise TypeError("the id to deduplicate by is missing")
    escaped: Sequence[bytes]
    if b"\0" in b"".join(keys):  # type: ignore[arg-type]
        escaped = list(map(escape_bytes, keys))  # type: ignore[arg-type]
    else:
        escaped = keys  # type: ignore[assignment]
    kinds = set(map(type, ids))
    if kinds == {str}:
        encoded = "\0".join(ids).encode().split(b"\0")
        if len(encoded) != len(ids):  # an id has a zero byte in it
            encoded = [id_.encode() for id_ in ids]
        return list(map(add, map(add, escaped, repeat(_TEXT_FOLLOWS)), encoded))
    if not kinds <= {str, int, bytes, bool, float, tuple}:
        raise TypeError("the id to deduplicate by must be text, a number, bytes or a tuple of them")
    return [
        key + _TEXT_FOLLOWS + id_.encode() if type(id_) is str else key + _MSGPACK_FOLLOWS + _encode_id(id_)
        for key, id_ in zip(escaped, ids, strict=True)
    ]
