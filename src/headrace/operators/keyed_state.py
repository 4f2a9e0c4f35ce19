"""State that user code keeps per key: values, lists and maps, each with an optional time to live.

A state is declared once and used through the same class: while user code runs, its handles work on the row of the
current key. Something with a time to live is there as long as ``stamp + ttl`` is later than the record's timestamp and
than the watermark before it, where the stamp is what was later of the two when it was written.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping
from datetime import timedelta
from typing import Any, Generic, TypeVar, overload

import msgspec

from headrace.errors import CorruptError, TopologyError
from headrace.operators.keyed_rows import ABSENT, GONE, LENGTH, Turn
from headrace.operators.notes import NEVER
from headrace.operators.versioned import Migration, Versioned, decoder
from headrace.settings import duration_ms

T = TypeVar("T")
U = TypeVar("U")
K = TypeVar("K")


class KeyedState(ABC):
    """What all kinds of state have in common."""

    form = ""

    def __init__(
        self,
        kind: Any,
        ttl: str | timedelta | None,
        version: int,
        migrations: Mapping[int, Migration] | None,
    ) -> None:
        self._versioned = Versioned(kind, version, migrations)
        self._ttl_ms = 0 if ttl is None else duration_ms(ttl, "ttl of a state")
        self._never_kept = ttl is not None and self._ttl_ms == 0
        self._what = f"a state of {self._versioned.name}"
        self._turn: Turn | None = None
        self._slot = -1
        self._typed: msgspec.msgpack.Decoder[Any] | None = None

    @property
    def ttl_ms(self) -> int:
        """Return how long something lives in event time, 0 if forever."""
        return self._ttl_ms

    def check(self, what: str) -> None:
        """Refuse what cannot work, once the state's name is known.

        Raises:
            TopologyError: names ``what``.
        """
        if self._never_kept:
            raise TopologyError(f"the ttl of {what} is 0, so that it would keep nothing")
        self._versioned.check(what)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"form": self.form, "ttl": self._ttl_ms > 0, "type": self._versioned.shape()}

    def bound(self, turn: Turn, slot: int, what: str) -> Any:
        """Return a handle that works on the cell at ``slot`` of the row of the current key."""
        handle = copy.copy(self)
        handle._turn, handle._slot, handle._what = turn, slot, what
        return handle

    def clear(self) -> None:
        """Forget what the current key has."""
        turn = self._turn or self._at_work()
        if turn.cells[self._slot] is not ABSENT:
            self._swap(turn, ABSENT)
            turn.shrunk = True

    def freeze(self, cell: Any) -> tuple[Any, ...]:
        """Return what is stored of a cell."""
        return (self._versioned.version, *cell) if self._ttl_ms else (self._versioned.version, cell)

    def thaw(self, data: bytes) -> Any:
        """Return the cell that was stored.

        Raises:
            TopologyError: it has an older version, and a migration fails.
        """
        version = self._versioned.version
        data = bytes(data)
        if data[1] == version:  # behind the array's header, and less than 128
            if self._typed is None:
                self._typed = self._decoder(self._versioned.kind)
            return self._cell(*self._typed.decode(data)[1:])
        stored, *parts = self._decoder(Any).decode(data)
        return self._cell(*self._upgraded(stored, parts))

    @abstractmethod
    def sweep(self, cell: Any, time: int) -> tuple[Any, int]:
        """Return the cell without what is no longer alive at ``time``, and when to look again."""
        ...

    @abstractmethod
    def _decoder(self, kind: Any) -> msgspec.msgpack.Decoder[Any]: ...

    def _cell(self, *parts: Any) -> Any:
        return parts if self._ttl_ms else parts[0]

    @abstractmethod
    def _upgraded(self, version: int, parts: list[Any]) -> list[Any]: ...

    def _at_work(self) -> Turn:
        """Return the call of user code that is going on."""
        if self._turn is None:
            raise TopologyError(
                f"{self._what} was used outside of on_record and on_timer",
                remedy="Declare states on the class or pass them to process(), and use them while a record is there",
            )
        return self._turn

    def _swap(self, turn: Turn, cell: Any) -> None:
        """Put another cell in place of the one that is there."""
        cells, slot = turn.cells, self._slot
        turn.undo.append((cells, slot, cells[slot]))
        cells[slot] = cell

    def _stamp(self, turn: Turn) -> None:
        """Note that what is written now will have to be swept out.

        An eighth of its life later than it could be, so that what was written one by one goes in few sweeps.
        """
        turn.earliest = min(turn.earliest, self._due(turn.now))

    def _due(self, stamp: int) -> int:
        return stamp + self._ttl_ms + self._ttl_ms // 8


class ValueState(KeyedState, Generic[T]):
    """One value per key.

    Assign what you changed: a value that was changed in place is not restored if the record fails, and lives no longer
    for it.

    Args:
        kind: Its type: a plain type, a ``msgspec.Struct``, dataclass or ``TypedDict``, or a collection of them.
        default: What a key has that was never given a value, or whose value has expired.
        ttl: How long after it was last assigned a value is forgotten, in event time; never if None.
        version: The version of the type. Raise it with every change of the type that stored values cannot follow.
        migrations: For an older version ``n`` the function that makes version ``n + 1`` of its plain data: dicts,
            lists and scalars.

    Example:
        >>> total = ValueState(float, default=0.0, ttl="1h")
    """

    form = "value"

    @overload
    def __init__(
        self: ValueState[U], kind: type[U], *, default: U, ttl: str | timedelta | None = None, version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: ValueState[U | None], kind: type[U], *, default: None = None, ttl: str | timedelta | None = None,
        version: int = 1, migrations: Mapping[int, Migration] | None = None,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: ValueState[Any], kind: Any, *, default: Any = None, ttl: str | timedelta | None = None,
        version: int = 1, migrations: Mapping[int, Migration] | None = None,
    ) -> None: ...  # fmt: skip
    def __init__(
        self,
        kind: Any,
        *,
        default: Any = None,
        ttl: str | timedelta | None = None,
        version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None:
        super().__init__(kind, ttl, version, migrations)
        self._default = default
        self._fresh: Callable[[], Any] = lambda: default

    @property
    def value(self) -> T:
        """The value of the current key, or the default."""
        turn = self._turn or self._at_work()
        cell = turn.cells[self._slot]
        if cell is ABSENT:
            return self._fresh()  # type: ignore[no-any-return]
        if not self._ttl_ms:
            return cell  # type: ignore[no-any-return]
        value, stamp = cell
        return value if stamp + self._ttl_ms > turn.now else self._fresh()  # type: ignore[no-any-return]

    @value.setter
    def value(self, value: T) -> None:
        turn = self._turn or self._at_work()
        if value is None and self._default is None:
            self.clear()
            return
        if type(value) not in self._versioned.sure:
            value = self._versioned.accept(value, self._what)
        cells, slot = turn.cells, self._slot
        turn.undo.append((cells, slot, cells[slot]))
        if self._ttl_ms:
            cells[slot] = (value, turn.now)
            self._stamp(turn)
        else:
            cells[slot] = value

    def check(self, what: str) -> None:
        """Refuse what cannot work, once the state's name is known."""
        super().check(what)
        if self._default is not None:
            self._default = self._versioned.accept(self._default, f"the default of {what}")
            self._fresh = self._versioned.fresh(self._default)

    def sweep(self, cell: Any, time: int) -> tuple[Any, int]:
        """Return the cell, or nothing if it is no longer alive, and when to look again."""
        return (cell, self._due(cell[1])) if cell[1] + self._ttl_ms > time else (ABSENT, NEVER)

    def _decoder(self, kind: Any) -> msgspec.msgpack.Decoder[Any]:
        return decoder(tuple[int, kind, int] if self._ttl_ms else tuple[int, kind])

    def _upgraded(self, version: int, parts: list[Any]) -> list[Any]:
        return [self._versioned.upgrade(version, parts[0], self._what), *parts[1:]]


class ListState(KeyedState, Generic[T]):
    """A list of items per key, in the order in which they were appended.

    Args:
        kind: The type of an item.
        ttl: How long after it was appended an item is forgotten, in event time; never if None.
        version: The version of an item's type.
        migrations: For an older version ``n`` the function that makes version ``n + 1`` of an item's plain data.

    Example:
        >>> recent = ListState(float, ttl="10m")
    """

    form = "list"

    @overload
    def __init__(
        self: ListState[T], kind: type[T], *, ttl: str | timedelta | None = None, version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: ListState[Any], kind: Any, *, ttl: str | timedelta | None = None, version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None: ...  # fmt: skip
    def __init__(
        self,
        kind: Any,
        *,
        ttl: str | timedelta | None = None,
        version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None:
        super().__init__(kind, ttl, version, migrations)

    def append(self, item: T) -> None:
        """Add an item at the end."""
        self.extend((item,))

    def extend(self, items: Iterable[T]) -> None:
        """Add items at the end."""
        turn = self._turn or self._at_work()
        accept, what = self._versioned.accept, self._what
        added = [accept(item, what) for item in items]
        if not added:
            return
        cell = turn.cells[self._slot]
        if cell is ABSENT:
            cell = ([], []) if self._ttl_ms else []
            self._swap(turn, cell)
        if self._ttl_ms:
            values, stamps = cell
            turn.undo.append((stamps, LENGTH, len(stamps)))
            stamps += [turn.now] * len(added)
            self._stamp(turn)
        else:
            values = cell
        turn.undo.append((values, LENGTH, len(values)))
        values += added

    def replace(self, items: Iterable[T]) -> None:
        """Put other items in place of those that are there; all count as written now."""
        made = list(items)
        self.clear()
        self.extend(made)

    def __iter__(self) -> Iterator[T]:
        return iter(self._alive())

    def __len__(self) -> int:
        return len(self._alive())

    def _alive(self) -> list[T]:
        turn = self._turn or self._at_work()
        cell = turn.cells[self._slot]
        if cell is ABSENT:
            return []
        if not self._ttl_ms:
            return cell.copy()  # type: ignore[no-any-return]
        least = turn.now - self._ttl_ms
        return [value for value, stamp in zip(*cell, strict=True) if stamp > least]

    def sweep(self, cell: Any, time: int) -> tuple[Any, int]:
        """Return the cell without the items that are no longer alive, and when to look again."""
        least = time - self._ttl_ms
        rest = [(value, stamp) for value, stamp in zip(*cell, strict=True) if stamp > least]
        if not rest:
            return ABSENT, NEVER
        values, stamps = map(list, zip(*rest, strict=True))
        return (values, stamps), self._due(min(stamps))

    def _decoder(self, kind: Any) -> msgspec.msgpack.Decoder[Any]:
        items = list[kind]
        return decoder(tuple[int, items, list[int]] if self._ttl_ms else tuple[int, items])

    def _cell(self, *parts: Any) -> Any:
        if len(set(map(len, parts))) > 1:
            raise CorruptError(f"{self._what} does not have as many times as items")
        return super()._cell(*parts)

    def _upgraded(self, version: int, parts: list[Any]) -> list[Any]:
        return [[self._versioned.upgrade(version, item, self._what) for item in parts[0]], *parts[1:]]


class MapState(KeyedState, MutableMapping[K, T], Generic[K, T]):
    """A dict per key, with the methods of one.

    Args:
        key: The type of an entry's key: ``str``, ``int`` or another that can be a key of a dict.
        kind: The type of an entry's value.
        ttl: How long after it was last set an entry is forgotten, in event time; never if None.
        version: The version of a value's type.
        migrations: For an older version ``n`` the function that makes version ``n + 1`` of a value's plain data.

    Example:
        >>> per_shop = MapState(str, int, ttl="1d")
    """

    form = "map"

    @overload
    def __init__(
        self: MapState[K, T], key: type[K], kind: type[T], *, ttl: str | timedelta | None = None, version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None: ...  # fmt: skip
    @overload
    def __init__(
        self: MapState[K, Any], key: type[K], kind: Any, *, ttl: str | timedelta | None = None, version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None: ...  # fmt: skip
    def __init__(
        self,
        key: Any,
        kind: Any,
        *,
        ttl: str | timedelta | None = None,
        version: int = 1,
        migrations: Mapping[int, Migration] | None = None,
    ) -> None:
        super().__init__(kind, ttl, version, migrations)
        self._key = Versioned(key, 1, None)

    def __getitem__(self, key: K) -> T:
        found = self.get(key, ABSENT)
        if found is ABSENT:
            raise KeyError(key)
        return found  # type: ignore[no-any-return]

    def get(self, key: K, default: Any = None) -> Any:
        """Return the value of an entry, or ``default``."""
        turn = self._turn or self._at_work()
        cell = turn.cells[self._slot]
        if cell is ABSENT:
            return default
        found = cell.get(key, GONE)
        if found is GONE:
            return default
        if not self._ttl_ms:
            return found
        return found[0] if found[1] + self._ttl_ms > turn.now else default

    def __setitem__(self, key: K, value: T) -> None:
        turn = self._turn or self._at_work()
        key = self._key.accept(key, self._what)
        value = self._versioned.accept(value, self._what)
        cell = turn.cells[self._slot]
        if cell is ABSENT:
            cell = {}
            self._swap(turn, cell)
        turn.undo.append((cell, key, cell.get(key, ABSENT)))
        if self._ttl_ms:
            cell[key] = (value, turn.now)
            self._stamp(turn)
        else:
            cell[key] = value

    def __delitem__(self, key: K) -> None:
        if key not in self:
            raise KeyError(key)
        turn = self._turn or self._at_work()
        cell = turn.cells[self._slot]
        turn.undo.append((cell, key, cell[key]))
        cell[key] = GONE
        turn.gone.append((self._slot, key))
        turn.shrunk = True

    def __contains__(self, key: object) -> bool:
        return self.get(key, ABSENT) is not ABSENT  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[K]:
        return iter(self._alive())

    def __len__(self) -> int:
        return len(self._alive())

    def items(self) -> ItemsView[K, T]:
        """Return the entries as of now."""
        return self._alive().items()

    def check(self, what: str) -> None:
        """Refuse what cannot work, once the state's name is known."""
        super().check(what)
        self._key.check(f"the key of {what}")

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {**super().shape(), "key": self._key.shape()["type"]}

    def freeze(self, cell: Any) -> tuple[Any, ...]:
        """Return what is stored of a cell."""
        if not self._ttl_ms:
            return self._versioned.version, list(cell), list(cell.values())
        return self._versioned.version, list(cell), [v for v, _ in cell.values()], [s for _, s in cell.values()]

    def sweep(self, cell: Any, time: int) -> tuple[Any, int]:
        """Return the cell without the entries that are no longer alive, and when to look again."""
        least = time - self._ttl_ms
        rest = {key: entry for key, entry in cell.items() if entry[1] > least}
        if not rest:
            return ABSENT, NEVER
        return rest, self._due(min(stamp for _, stamp in rest.values()))

    def _alive(self) -> dict[K, T]:
        turn = self._turn or self._at_work()
        cell = turn.cells[self._slot]
        if cell is ABSENT:
            return {}
        if self._ttl_ms:
            least = turn.now - self._ttl_ms
            return {key: entry[0] for key, entry in cell.items() if entry is not GONE and entry[1] > least}
        if turn.gone:
            return {key: value for key, value in cell.items() if value is not GONE}
        return cell.copy()  # type: ignore[no-any-return]

    def _decoder(self, kind: Any) -> msgspec.msgpack.Decoder[Any]:
        keys, values = list[self._key.kind], list[kind]  # type: ignore[name-defined]
        return decoder(
            tuple[int, keys, values, list[int]] if self._ttl_ms else tuple[int, keys, values]  # type: ignore[valid-type]
        )

    def _cell(self, *parts: Any) -> Any:
        keys, values, *stamps = parts
        return dict(zip(keys, zip(values, *stamps, strict=True) if stamps else values, strict=True))

    def _upgraded(self, version: int, parts: list[Any]) -> list[Any]:
        keys, values, *stamps = parts
        return [keys, [self._versioned.upgrade(version, value, self._what) for value in values], *stamps]
