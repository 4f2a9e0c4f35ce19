"""The generated loop that applies several aggregates to a batch.

Calling one function per aggregate and record would cost more than all the rest of a step. So the loop is written out
as Python source once per step, with the aggregates as expressions in it, and compiled. For
``total=agg.sum("total"), payments=agg.count()`` over objects it reads::

    for key, value in rows:
        acc = get(key)
        if acc is None and clean and (acc := pop(key, None)) is not None:
            live[key] = acc
        x0 = value.total
        if acc is None:
            live[key] = [x0, 1]
            continue
        a0 = acc[0] + x0
        acc[0] = a0
        acc[1] += 1

Everything that can fail on a record is computed before anything is stored, so a record that fails leaves no trace.
"""

from __future__ import annotations

import keyword
import linecache
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.errors import CorruptError, TopologyError
from headrace.operators.aggregates import COUNT_INLINE, Aggregate
from headrace.record import JoinedBytes
from headrace.serde.msgpack import Msgpack

Accumulators = list[Any]
"""One accumulator per aggregate."""

RESERVED = ("key", "window_start", "window_end", "final")
"""Fields of a window result that no aggregate may be called."""

_PLAIN = frozenset([dict, list, str, int, float, bool, bytes, type(None)])


class RowFailedError(Exception):
    """User code failed on one row of an update; those before it took effect."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


Update = Callable[
    [dict[bytes, Accumulators], dict[bytes, Accumulators], Sequence[bytes], Sequence[Any], Sequence[int]], None
]


@dataclass(frozen=True, slots=True)
class Compiled:
    """Aggregates made ready to run."""

    update_objects: Update
    """(live, clean, keys, values, timestamps): aggregate values whose fields are attributes."""
    update_mappings: Update
    """The same for values whose fields are keys."""
    results: Callable[[Sequence[Any], Sequence[Accumulators], int, int], list[dict[str, Any]]]
    """(keys, accumulators, window start, window end) -> window results."""
    merge: Callable[[Accumulators, Accumulators], Accumulators]
    """Combine two groups, the earlier first; only if ``check_mergeable`` finds nothing wrong."""

    def update(
        self,
        live: dict[bytes, Accumulators],
        clean: dict[bytes, Accumulators],
        keys: Sequence[bytes],
        values: Sequence[Any],
        timestamps: Sequence[int],
    ) -> None:
        """Add every value to its key's accumulators in ``live``, moving them there from ``clean`` first.

        Raises:
            RowFailedError: user code or a field failed; the cause says how.
        """
        if values:
            chosen = self.update_mappings if isinstance(values[0], Mapping) else self.update_objects
            chosen(live, clean, keys, values, timestamps)


def compile_aggregates(aggregates: Mapping[str, Aggregate]) -> Compiled:
    """Generate the loops for ``aggregates``, by the name of their result.

    Raises:
        TopologyError: there are none, one is not an aggregate, or has a reserved name.
    """
    check_aggregates(aggregates)
    items = list(aggregates.values())
    scope: dict[str, Any] = {"RowFailedError": RowFailedError}
    for i, item in enumerate(items):
        scope |= {
            f"first{i}": item.first,
            f"step{i}": item.step,
            f"select{i}": item.selector,
            f"result{i}": item.result,
        }
    source = "\n".join(
        [
            _update_source("update_objects", items, mappings=False),
            _update_source("update_mappings", items, mappings=True),
            _results_source(list(aggregates), items),
        ]
    )
    execute(source, scope)
    merges: list[Any] = [item.merge for item in items]
    return Compiled(
        scope["update_objects"],
        scope["update_mappings"],
        scope["results"],
        lambda a, b: [merge(x, y) for merge, x, y in zip(merges, a, b, strict=True)],
    )


def check_aggregates(aggregates: Mapping[str, Any], reserved: Sequence[str] = RESERVED) -> None:
    """Refuse what cannot be compiled, before anything starts.

    Args:
        aggregates: Aggregates by name.
        reserved: What else a result has, so that no aggregate can be called so.

    Raises:
        TopologyError: there are none, one is none, or has a reserved name.
    """
    if not aggregates:
        raise TopologyError("aggregate() needs at least one aggregate", remedy='For example total=agg.sum("total")')
    for name, item in aggregates.items():
        if not isinstance(item, Aggregate):
            raise TopologyError(
                f"{name}= must be an aggregate, not {type(item).__name__}", remedy="Write agg.count(), not agg.count"
            )
        if item.selector is not None and not isinstance(item.selector, str) and not callable(item.selector):
            raise TopologyError(f"{name}= needs a field or a function, not {type(item.selector).__name__}")
        if name in reserved:
            raise TopologyError(f"an aggregate cannot be called {name!r}: every result has a field of that name")


def check_mergeable(aggregates: Mapping[str, Aggregate], what: str) -> None:
    """Refuse aggregates that cannot make one group of two, where that may be asked of them.

    Args:
        aggregates: Aggregates by name.
        what: What joins groups, such as ``"session windows"``.

    Raises:
        TopologyError: names the first that cannot.
    """
    for name, item in aggregates.items():
        if item.merge is None:
            raise TopologyError(
                f"{name}= cannot be used in {what}, which join groups, because {item.name} has no merge",
                remedy="Give it merge=, a function of two accumulators",
            )


class RowCodec:
    """Accumulators as MessagePack arrays, encoded and decoded by the column."""

    def __init__(self, step: str, aggregates: Mapping[str, Aggregate]) -> None:
        self._step = step
        self._names = list(aggregates)
        kinds = [Any if item.kind is None else item.kind for item in aggregates.values()]
        self._plain = [item.kind is None for item in aggregates.values()]
        self._plain_parts = [
            (i, j)
            for i, item in enumerate(aggregates.values())
            for j, part in enumerate(item.parts)
            if item.kind is not None and part.kind is None
        ]
        """Where plain values stand beside others of a type in one accumulator."""
        typed = not all(self._plain)
        self._serde = Msgpack(tuple[tuple(kinds)] if typed else list)  # type: ignore[misc]
        self._typed = typed

    def encode_many(self, rows: Sequence[Accumulators]) -> list[bytes]:
        """Encode rows.

        Raises:
            TopologyError: an accumulator could not be read back as what it is.
        """
        self._check(rows)
        try:
            return self._serde.encode_many(rows)  # type: ignore[return-value]
        except OverflowError as error:
            raise TopologyError(
                f"step {self._step}: an aggregate has grown beyond a whole number of 64 bits",
                remedy="Aggregate floats, or smaller units",
            ) from error

    def decode_many(self, rows: Sequence[bytes]) -> list[Accumulators]:
        """Decode rows.

        Raises:
            CorruptError: a row does not have one accumulator per aggregate.
        """
        decoded = self._serde.decode_many(JoinedBytes.of(rows))
        if self._typed:
            return list(map(list, decoded))
        if set(map(len, decoded)) - {len(self._names)}:
            raise CorruptError(f"a row does not hold {len(self._names)} accumulators")
        return decoded

    def _check(self, rows: Sequence[Accumulators]) -> None:
        for i, plain in enumerate(self._plain):
            strange = {type(row[i]) for row in rows} - _PLAIN if plain else set()
            if strange:
                self._refuse(i, min(kind.__name__ for kind in strange))
        for i, j in self._plain_parts:
            found = [row[i][j] for row in rows if row[i] is not None]
            if found and not _comes_back(found[0]):
                self._refuse(i, type(found[0]).__name__)
        if rows:
            for i, value in enumerate(rows[0]):
                if self._plain[i] and not _comes_back(value):
                    self._refuse(i, f"{type(value).__name__} with parts")

    def _refuse(self, i: int, kind: str) -> None:
        raise TopologyError(
            f"step {self._step}: aggregate {self._names[i]!r} keeps values of a type that would come back from "
            f"the store as another: {kind}",
            remedy="Give the aggregate kind=, or select plain fields (numbers, text, lists, dicts)",
        )


def _comes_back(value: Any) -> bool:
    """Return whether MessagePack gives ``value`` back with parts of the same types."""
    try:
        return _alike(value, msgspec.msgpack.decode(msgspec.msgpack.encode(value)))
    except TypeError:
        return False


def _alike(value: Any, again: Any) -> bool:
    if type(value) is not type(again):
        return False
    if isinstance(value, dict):
        parts = [*zip(value, again, strict=True), *zip(value.values(), again.values(), strict=True)]
        return all(_alike(part, other) for part, other in parts)
    if isinstance(value, list):
        return all(map(_alike, value, again))
    return True


def value_expression(i: int, item: Aggregate, mappings: bool) -> str:
    """Return the source of what the aggregate at place ``i`` takes of ``value``."""
    if item.selector is None:
        return "value"
    if not isinstance(item.selector, str):
        return f"select{i}(value)"
    if mappings or not item.selector.isidentifier() or keyword.iskeyword(item.selector):
        return f"value[{item.selector!r}]" if mappings else f"getattr(value, {item.selector!r})"
    return f"value.{item.selector}"


def _update_source(name: str, items: Sequence[Aggregate], mappings: bool) -> str:
    timed = any("{t}" in "".join(item.inline or ("{t}",)) for item in items)
    select: list[str] = []
    firsts: list[str] = []
    compute: list[tuple[bool, str]] = []
    store: list[str] = []
    for i, item in enumerate(items):
        counts = item.inline == COUNT_INLINE
        if not counts:
            select.append(f"x{i} = {value_expression(i, item, mappings)}")
        time = "time" if timed else "0"
        if item.inline is None:
            firsts.append(f"first{i}(x{i}, {time})")
            compute.append((item.in_place, f"a{i} = step{i}(acc[{i}], x{i}, {time})"))
        else:
            parts = {"a": f"acc[{i}]", "x": f"x{i}", "t": "time"}
            firsts.append(item.inline[0].format(**parts))
            if counts:
                store.append(f"acc[{i}] += 1")
                continue
            compute.append((item.in_place, f"a{i} = {item.inline[1].format(**parts)}"))
        store.append(f"acc[{i}] = a{i}")
    compute.sort(key=lambda line: line[0])
    columns = "keys, values, times" if timed else "keys, values"
    lines = [
        f"def {name}(live, clean, keys, values, times):",
        "    get, pop = live.get, clean.pop",
        f"    rows = iter(zip({columns}))",
        "    try:",
        f"        for {'key, value, time' if timed else 'key, value'} in rows:",
        "            acc = get(key)",
        "            if acc is None and clean and (acc := pop(key, None)) is not None:",
        "                live[key] = acc",
        *[f"            {line}" for line in select],
        "            if acc is None:",
        f"                live[key] = [{', '.join(firsts)}]",
        "                continue",
        *[f"            {line}" for _, line in compute],
        *[f"            {line}" for line in store],
        "    except Exception as error:",
        "        raise RowFailedError(len(values) - 1 - sum(1 for _ in rows)) from error",
    ]
    return "\n".join(lines)


def _results_source(names: Sequence[str], items: Sequence[Aggregate]) -> str:
    fields = ["'key': key, 'window_start': start, 'window_end': end"]
    for i, (name, item) in enumerate(zip(names, items, strict=True)):
        fields.append(f"{name!r}: " + (f"acc[{i}]" if item.result is None else f"result{i}(acc[{i}])"))
    return f"def results(keys, rows, start, end):\n    return [{{{', '.join(fields)}}} for key, acc in zip(keys, rows)]"


def execute(source: str, scope: dict[str, Any]) -> None:
    """Run generated source under a name of its own, so that tracebacks show its lines."""
    name = f"<headrace aggregates {zlib.crc32(source.encode()):08x}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), scope)
