"""Aggregates of a key over all of its records, with a new row after every record.

State is one row per key: ``key -> accumulators`` as in ``operators.compiled``, or for ``reduce`` ``key -> value`` as
the value's serde writes it (see ``operators.stored``).

The loop over the records is generated, as for windows, so that a record costs no call but those of the user's own
functions. What they return may be in a row that has left already when they are called again; they are given a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

from headrace.operators.aggregates import COUNT_INLINE, Aggregate
from headrace.operators.api import MAIN, Batch, Outputs, RecordsFailedError, StepContext
from headrace.operators.compiled import (
    Accumulators,
    RowCodec,
    RowFailedError,
    check_aggregates,
    execute,
    value_expression,
)
from headrace.operators.selectors import decode_keys
from headrace.operators.stored import StoredValues, stored_shape
from headrace.operators.untimed import UntimedOperator
from headrace.serde.api import Serde
from headrace.serde.schema import schema_of
from headrace.state.cache import Codec, WriteBehind

RESERVED = ("key",)
"""The field of a row that no aggregate may be called."""

_ATOMS = frozenset([int, float, str, bytes, bool])

Rows = Callable[..., None]
"""(live, clean, names, keys, values, times, add): calls ``add`` with the row after each record."""


@dataclass(frozen=True, slots=True)
class RunningAggregate:
    """Aggregates per key, over all of its records."""

    aggregates: Mapping[str, Aggregate]
    key: Serde[Any]
    kind: ClassVar[str] = "aggregate"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"aggregates": [[name, item.name, schema_of(item.kind)] for name, item in self.aggregates.items()]}

    def build(self, context: StepContext) -> RunningAggregateOperator:
        """Make the operator of one task."""
        rows = RowCodec(context.step, self.aggregates)
        codec = Codec(rows.encode_many, rows.decode_many)
        cache = WriteBehind(context.store, context.store_prefix("rows"), codec, budget=context.budget, width=0)
        return RunningAggregateOperator(compile_running(self.aggregates), self.key, cache)


class RunningAggregateOperator(UntimedOperator):
    """The running form of ``RunningAggregate``."""

    def __init__(self, compiled: tuple[Rows, Rows], key: Serde[Any], cache: WriteBehind[Accumulators]) -> None:
        self._objects, self._mappings = compiled
        self._key = key
        self._rows = cache.bucket(b"")

    def process(self, batch: Batch) -> Outputs:
        """Add each record to its key's accumulators and return the row that it makes."""
        keys: Any = batch.keys
        values, times = batch.values, batch.timestamps
        names = decode_keys(self._key, keys)
        self._rows.load(keys)
        live, clean = self._rows.live, self._rows.clean
        made: list[Any] = []
        failures: list[tuple[int, Exception]] = []
        start = 0
        while start < len(values):
            loop = self._mappings if isinstance(values[start], Mapping) else self._objects
            try:
                loop(live, clean, names[start:], keys[start:], values[start:], times[start:], made.append)
                break
            except RowFailedError as failed:
                start += failed.index
                if failed.index:
                    continue  # this record may only be of another kind than the one that the loop was chosen by
                cause = failed.__cause__
                failures.append((start, cause if isinstance(cause, Exception) else failed))
                start += 1
        if not failures:
            return [(MAIN, batch.with_values(made))]
        raise RecordsFailedError(failures, _of_good(batch, failures, made))


@dataclass(frozen=True, slots=True)
class RunningReduce:
    """Combines the values of each key, one after the other, into one."""

    function: Callable[[Any, Any], Any]
    value: Serde[Any]
    kind: ClassVar[str] = "reduce"
    stateful: ClassVar[bool] = True
    sided: ClassVar[bool] = False
    uses_clock: ClassVar[bool] = False
    timed_ports: ClassVar[tuple[str, ...]] = ()
    ports: ClassVar[tuple[str, ...]] = (MAIN,)

    def shape(self) -> dict[str, Any]:
        """Describe what stored rows depend on."""
        return {"value": stored_shape(self.value)}

    def build(self, context: StepContext) -> RunningReduceOperator:
        """Make the operator of one task."""
        stored = StoredValues(self.value, context.step)
        codec = Codec(stored.encode_many, stored.decode_many)
        cache: WriteBehind[Any] = WriteBehind(
            context.store, context.store_prefix("rows"), codec, budget=context.budget, width=0
        )
        return RunningReduceOperator(self.function, stored, cache)


class RunningReduceOperator(UntimedOperator):
    """The running form of ``RunningReduce``."""

    def __init__(self, function: Callable[[Any, Any], Any], stored: StoredValues, cache: WriteBehind[Any]) -> None:
        self._function = function
        self._stored = stored
        self._cache = cache
        self._rows = cache.bucket(b"")

    def process(self, batch: Batch) -> Outputs:
        """Combine each record with its key's value and return what that makes."""
        keys: Any = batch.keys
        self._rows.load(keys)
        live, find, function = self._rows.live, self._rows.get, self._function
        made: list[Any] = []
        failures: list[tuple[int, Exception]] = []
        for place, (key, value) in enumerate(zip(keys, batch.values, strict=True)):
            row = find(key)
            try:
                if value is None:
                    raise TypeError("the record has no value to combine")
                row = value if row is None else function(copied(row), value)
            except Exception as error:  # noqa: BLE001  # user code may raise anything
                failures.append((place, error))
                continue
            made.append(row)
            if row is None:
                self._cache.discard(self._rows, key)
            else:
                live[key] = row
        self._stored.check(made)
        if not failures:
            return [(MAIN, batch.with_values(made))]
        raise RecordsFailedError(failures, _of_good(batch, failures, made))


def copied(value: Any) -> Any:
    """Return a copy of ``value``, all the way down, that a user's function may change."""
    return value if type(value) in _ATOMS else deepcopy(value)


def compile_running(aggregates: Mapping[str, Aggregate]) -> tuple[Rows, Rows]:
    """Generate the loops that return a row after each record: for values that are objects, and for mappings.

    Raises:
        TopologyError: there are no aggregates, one is none, or has a reserved name.
    """
    check_aggregates(aggregates, RESERVED)
    scope: dict[str, Any] = {"RowFailedError": RowFailedError, "copied": copied}
    for i, item in enumerate(aggregates.values()):
        scope |= {
            f"first{i}": item.first,
            f"step{i}": item.step,
            f"select{i}": item.selector,
            f"result{i}": item.result,
        }
    sources = [_source("objects", aggregates, mappings=False), _source("mappings", aggregates, mappings=True)]
    execute("\n".join(sources), scope)
    return scope["objects"], scope["mappings"]


def _source(name: str, aggregates: Mapping[str, Aggregate], *, mappings: bool) -> str:
    """Return the source of a loop: it computes everything that can fail before it stores anything."""
    items = sorted(enumerate(aggregates.values()), key=lambda numbered: numbered[1].in_place)
    select: list[str] = []
    firsts: list[str] = []
    steps: list[str] = []
    for i, item in items:
        if item.inline != COUNT_INLINE:
            select.append(f"x{i} = {value_expression(i, item, mappings)}")
        # In both cases what the aggregate shows comes at once: a change in place must be the last thing that can fail.
        if item.inline is None:
            before = f"copied(acc[{i}])" if item.result is None else f"acc[{i}]"
            firsts.append(f"a{i} = first{i}(x{i}, time)")
            steps.append(f"a{i} = step{i}({before}, x{i}, time)")
        else:
            parts = {"a": f"acc[{i}]", "x": f"x{i}", "t": "time"}
            firsts.append(f"a{i} = {item.inline[0].format(**parts)}")
            steps.append(f"a{i} = {item.inline[1].format(**parts)}")
        if item.result is not None:
            firsts.append(f"r{i} = result{i}(a{i})")
            steps.append(f"r{i} = result{i}(a{i})")
    fields = ["'key': name"]
    for i, (field, item) in enumerate(aggregates.items()):
        fields.append(f"{field!r}: " + (f"a{i}" if item.result is None else f"r{i}"))
    return "\n".join(
        [
            f"def {name}(live, clean, names, keys, values, times, add):",
            "    get, pop = live.get, clean.pop",
            "    rows = iter(zip(names, keys, values, times))",
            "    try:",
            "        for name, key, value, time in rows:",
            "            acc = get(key)",
            "            if acc is None and clean and (acc := pop(key, None)) is not None:",
            "                live[key] = acc",
            *[f"            {line}" for line in select],
            "            if acc is None:",
            *[f"                {line}" for line in firsts],
            "            else:",
            *[f"                {line}" for line in steps],
            f"            row = {{{', '.join(fields)}}}",
            f"            live[key] = [{', '.join(f'a{i}' for i in range(len(aggregates)))}]",
            "            add(row)",
            "    except Exception as error:",
            "        raise RowFailedError(len(values) - 1 - sum(1 for _ in rows)) from error",
        ]
    )


def _of_good(batch: Batch, failures: Sequence[tuple[int, Exception]], made: list[Any]) -> Outputs:
    """Return what the records made that did not fail."""
    failed = {place for place, _ in failures}
    good = batch.where([place not in failed for place in range(len(batch))])
    return [(MAIN, good.with_values(made))] if made else []
