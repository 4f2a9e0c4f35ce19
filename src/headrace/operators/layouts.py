"""Where the record key stands in the rows of each step, so that a store can be split by key. Pure.

The rows of a step lie in parts, each with a prefix of its own. What is said here of a part is where in its row keys,
behind that prefix, the record key is; or that its one row is about the whole task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from headrace.errors import CorruptError
from headrace.operators.aggregation import WindowedAggregate
from headrace.operators.api import Spec
from headrace.operators.as_of_join import AsOfJoin
from headrace.operators.custom import CustomWindows
from headrace.operators.deduplicate import Deduplicate
from headrace.operators.foreign_key_join import Answers, Lookup, References
from headrace.operators.global_join import GlobalJoin
from headrace.operators.in_order import InOrder
from headrace.operators.interval_join import IntervalJoin
from headrace.operators.latest_join import LatestJoin
from headrace.operators.process import ProcessRecords
from headrace.operators.running import RunningAggregate, RunningReduce
from headrace.operators.table_join import TableJoin
from headrace.operators.windows import AlignedWindows, CountingWindows, SessionWindows, SlidingWindows
from headrace.state.keys import TIME_WIDTH, decode_bytes


class Place(NamedTuple):
    """A row that is about the whole task."""

    part: str
    row: bytes = b""


@dataclass(frozen=True, slots=True)
class ByKey:
    """Each row is that of one record key."""

    skip: int = 0
    """Bytes in front of it."""
    escaped: bool = False
    """Whether something follows; then the key is written with an end."""
    over_before: Place | None = None
    """Where a time is: rows for which something was due earlier have been dealt with. Their own time stands behind that
    of their slot."""

    def record_key(self, row: bytes) -> bytes:
        """Return the record key of a row.

        Args:
            row: Its key in the store, without the prefix of the part.

        Raises:
            CorruptError: there is none in it.

        Example:
            >>> ByKey(skip=8).record_key(bytes(8) + b"ada"), ByKey(escaped=True).record_key(b"ada" + bytes(2) + b"s17")
            (b'ada', b'ada')
        """
        return decode_bytes(row, self.skip)[0] if self.escaped else row[self.skip :]


@dataclass(frozen=True, slots=True)
class Waiting:
    """Each row is a record that waits, under ``slot + time + number``; its key is the first thing in the value."""

    over_before: Place

    def record_key(self, value: bytes) -> bytes:
        """Return the record key of a row from its value.

        Raises:
            CorruptError: there is none in it.
        """
        unpacked = msgpack.unpackb(value, use_list=False)
        if type(unpacked) is not tuple or not unpacked or type(unpacked[0]) is not bytes:
            raise CorruptError("a record that waits has no key")
        return unpacked[0]


@dataclass(frozen=True, slots=True)
class Numbers:
    """The part has rows about the whole task, numbers of eight bytes; what several tasks had becomes one number."""

    merges: Mapping[bytes, Callable[[list[bytes]], bytes]]
    """How, by row."""
    spaced: bytes | None = None
    """The row with the next number of records that wait: those of several tasks get numbers that do not meet."""


@dataclass(frozen=True, slots=True)
class Whole:
    """Every task has all rows."""


Layout = ByKey | Waiting | Numbers | Whole

_PLAIN = ByKey()
_IN_SLOTS = ByKey(TIME_WIDTH)
_AT_TIMES = ByKey(2 * TIME_WIDTH)

_LEFT = Place("progress", b"left")
_ROOM: Mapping[str, Layout] = {
    "waiting": Waiting(_LEFT), "progress": Numbers({b"left": min, b"next": max}, spaced=b"next")
}  # fmt: skip

_LAYOUTS: dict[type[Any], Mapping[str, Layout]] = {
    Deduplicate: {"seen": ByKey(TIME_WIDTH, escaped=True)},
    ProcessRecords: {"rows": _PLAIN, "notes": _AT_TIMES, "clock": _AT_TIMES},
    RunningAggregate: {"rows": _PLAIN},
    RunningReduce: {"rows": _PLAIN},
    TableJoin: {"rows": _PLAIN},
    LatestJoin: {"rows": _PLAIN},
    GlobalJoin: {"rows": Whole()},
    IntervalJoin: {
        "left": _IN_SLOTS, "right": _IN_SLOTS,
        "due": ByKey(2 * TIME_WIDTH + 1, over_before=Place("released")), "released": Numbers({b"": min}),
    },
    References: {"references": _PLAIN, "number": Numbers({b"": max})},
    Lookup: {"rows": _PLAIN, "referring": ByKey(escaped=True)},
    Answers: {"known": _PLAIN},
    InOrder: _ROOM,
    AsOfJoin: {**_ROOM, "versions": _PLAIN, "due": ByKey(2 * TIME_WIDTH, over_before=_LEFT)},
    SessionWindows: {"sessions": _PLAIN, "slots": _IN_SLOTS, "changed": _IN_SLOTS},
    SlidingWindows: {"panes": _PLAIN, "slots": _IN_SLOTS},
    CountingWindows: {"windows": _PLAIN, "slots": _IN_SLOTS},
    AlignedWindows: {"windows": _IN_SLOTS, "changed": _AT_TIMES},
    CustomWindows: {"windows": _AT_TIMES, "changed": ByKey(3 * TIME_WIDTH)},
}  # fmt: skip


def layouts(spec: Spec) -> Mapping[str, Layout] | None:
    """Return the layout of every part of a step's state, by name; None if it cannot be split by key.

    Example:
        >>> from headrace.operators.deduplicate import Deduplicate
        >>> layouts(Deduplicate("id", 1000))
        {'seen': ByKey(skip=8, escaped=True, over_before=None)}
    """
    if isinstance(spec, WindowedAggregate):
        return _LAYOUTS[type(spec.windows)]
    return _LAYOUTS.get(type(spec))
