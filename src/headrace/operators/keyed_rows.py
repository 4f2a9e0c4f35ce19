"""The rows of a step that keeps state per key: one for each key, with all its states and timers.

A row is stored as a MessagePack array, whose missing tail is nil::

    [states, wake, timers, clock wake, clock timers]

``states`` is a map from name to ``[version, ...]``: for a value ``[version, value]``, for a list ``[version, items]``,
for a map ``[version, keys, values]``, and behind that, if the state has a time to live, the time of the last write or
an array of those of the items. ``wake`` is the earliest time at which the row must be looked at, for which there is a
note (see ``notes``). ``timers`` is a map from name to time; a clock timer that was set when the time was not
known has how long it waits, as a negative number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from headrace.errors import TopologyError
from headrace.operators.notes import NEVER
from headrace.operators.versioned import encoder


class _Mark:
    """An object that is only ever compared."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


ABSENT: Any = _Mark("ABSENT")
"""Stands where a row has nothing."""
GONE: Any = _Mark("GONE")
"""Stands where a map's entry was until the record that deleted it has succeeded."""
LENGTH: Any = _Mark("LENGTH")
"""Says that a list was only added to."""


class Row:
    """Everything that one key keeps."""

    __slots__ = ("cells", "clock_timers", "clock_wake", "timers", "wake")

    def __init__(self, cells: list[Any]) -> None:
        self.cells = cells
        """One for each state of the step."""
        self.wake = NEVER
        self.timers: dict[str, int] = {}
        self.clock_wake = NEVER
        self.clock_timers: dict[str, int] = {}

    @property
    def empty(self) -> bool:
        """Return whether nothing would be lost without the row."""
        return not self.timers and not self.clock_timers and all(cell is ABSENT for cell in self.cells)


class Turn:
    """One call of user code: the row that it works on, and what it did to it."""

    __slots__ = ("cells", "clock_earliest", "earliest", "gone", "now", "shrunk", "undo")

    def __init__(self) -> None:
        self.cells: list[Any] = []
        self.now = 0
        """Event time for what lives for a time."""
        self.undo: list[tuple[Any, Any, Any]] = []
        """Where something was written, and what was there before."""
        self.gone: list[tuple[int, Any]] = []
        """Entries to delete in the end, by the place of their map: until then, they keep their own places in it."""
        self.shrunk = False
        """True if something was taken out, so that nothing may be left."""
        self.earliest = NEVER
        """The earliest time at which something that was written is due."""
        self.clock_earliest = NEVER

    def succeed(self) -> None:
        """Let what was written stand."""
        self.undo.clear()
        if self.gone:
            for slot, key in self.gone:
                cell = self.cells[slot]
                if cell is not ABSENT and cell.get(key) is GONE:
                    del cell[key]
                    self.cells[slot] = cell or ABSENT
            self.gone.clear()
        self.shrunk = False
        self.earliest = self.clock_earliest = NEVER

    def fail(self) -> None:
        """Undo what was written."""
        for target, key, old in reversed(self.undo):
            if key is LENGTH:
                del target[old:]
            elif old is ABSENT and type(target) is dict:
                del target[key]
            else:
                target[key] = old
        self.gone.clear()
        self.succeed()


class StoredState(Protocol):
    """One state of the row."""

    def freeze(self, cell: Any) -> tuple[Any, ...]:
        """Return what is stored of a cell: its version, and the rest."""
        ...

    def thaw(self, data: bytes) -> Any:
        """Return the cell that was stored.

        Raises:
            TopologyError: it has an older version, and a migration fails.
        """
        ...


class _StoredRow(msgspec.Struct, array_like=True):
    """A row as it is stored."""

    cells: dict[str, msgspec.Raw]
    wake: int | None = None
    timers: dict[str, int] | None = None
    clock_wake: int | None = None
    clock_timers: dict[str, int] | None = None


class RowCodec:
    """Turns rows into bytes and back.

    Args:
        step: The step's name, for messages.
        states: By name; handles or declarations.
    """

    def __init__(self, step: str, states: Mapping[str, StoredState]) -> None:
        self._step = step
        self._states = [(name, slot, state) for slot, (name, state) in enumerate(states.items())]
        self._encode = encoder().encode
        self._decode = msgspec.msgpack.Decoder(_StoredRow).decode

    def encode_many(self, rows: list[Row]) -> list[bytes]:
        """Encode rows.

        Raises:
            TopologyError: a state holds what cannot be stored.
        """
        return list(map(self._encoded, rows))

    def decode_many(self, rows: list[bytes]) -> list[Row]:
        """Decode rows; what was stored of a state that is not declared any more is left out."""
        return list(map(self._decoded, rows))

    def _encoded(self, row: Row) -> bytes:
        cells = row.cells
        frozen = {name: state.freeze(cells[slot]) for name, slot, state in self._states if cells[slot] is not ABSENT}
        parts: list[Any] = [frozen]
        if row.wake < NEVER or row.clock_timers:
            parts += [row.wake if row.wake < NEVER else None, row.timers or None]
        if row.clock_timers:
            parts += [row.clock_wake if row.clock_wake < NEVER else None, row.clock_timers]
        try:
            return self._encode(parts)
        except (TypeError, ValueError, OverflowError) as error:
            raise self._cannot_be_stored(frozen, error) from error

    def _decoded(self, data: bytes) -> Row:
        stored = self._decode(data)
        cells = stored.cells
        row = Row([state.thaw(cells[name]) if name in cells else ABSENT for name, _, state in self._states])
        row.wake = NEVER if stored.wake is None else stored.wake
        row.timers = stored.timers or {}
        row.clock_wake = NEVER if stored.clock_wake is None else stored.clock_wake
        row.clock_timers = stored.clock_timers or {}
        return row

    def _cannot_be_stored(self, frozen: dict[str, Any], error: Exception) -> TopologyError:
        for name, parts in frozen.items():
            try:
                self._encode(parts)
            except (TypeError, ValueError, OverflowError) as found:
                return TopologyError(
                    f"state {name!r} of step {self._step!r} holds what cannot be stored: {found}",
                    remedy="Keep plain values, msgspec.Structs, dataclasses or TypedDicts of them",
                )
        return TopologyError(f"a row of step {self._step!r} cannot be stored: {error}")
