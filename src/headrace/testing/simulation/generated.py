"""Input for topologies of which nobody gave any: values made from the types of the sources."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
from msgspec import inspect

from headrace.errors import InvalidError
from headrace.testing.events import Event
from headrace.testing.simulation.scenario import Inputs
from headrace.topology.graph import Graph, Source

_STEP_MS = 400
_DISORDER_MS = 1_000
_KEYS = 6
_OTHERS = 60
_TIMES = ("at", "time", "timestamp", "ts")


def check_typed(graph: Graph) -> None:
    """Refuse a graph with sources whose values cannot be made up.

    Raises:
        InvalidError: a source has no type; the message says what can be given instead.
    """
    for node in graph.nodes:
        if isinstance(node, Source) and not _can_make(node):
            raise InvalidError(
                f"there is no input for topic {node.topic!r}, and its values have no type from which some could be "
                f"made ({node.location})",
                remedy=f"Give --input {node.topic}=FILE with lines of JSON, define simulation_input(random) in the "
                "module, which returns values by topic, or give the source a type: "
                f"topology.stream({node.topic!r}, value=...)",
            )


def generated(graph: Graph, rng: Random, records: int) -> Inputs:
    """Make input for every source: few keys, times that grow with some disorder.

    Args:
        graph: Its sources have types.
        rng: Decides.
        records: How many records each topic gets.
    """
    return {
        node.topic: [_event(node, rng, number) for number in range(records)]
        for node in graph.nodes
        if isinstance(node, Source)
    }


def _kind(source: Source) -> Any:
    return getattr(source.value, "kind", None)


def _can_make(source: Source) -> bool:
    kind = _kind(source)
    if kind in (None, Any):
        return source.value.name in _PLAIN
    try:
        made = _made(inspect.type_info(kind), "", Random(0), 1, frozenset())
        msgspec.convert(made, kind)
    except (msgspec.MsgspecError, TypeError, KeyError):
        return False
    return True


_PLAIN: dict[str, Callable[[Random, int], Any]] = {
    "str": lambda rng, at: f"word-{rng.randrange(_KEYS)}",
    "int": lambda rng, at: rng.randrange(100),
    "float": lambda rng, at: rng.randrange(1000) / 8,
    "bytes": lambda rng, at: b"%d" % rng.randrange(_KEYS),
}


def _event(source: Source, rng: Random, number: int) -> Event:
    at = number * _STEP_MS + rng.randrange(_DISORDER_MS) + 1
    kind = _kind(source)
    if kind in (None, Any):
        value = _PLAIN[source.value.name](rng, at)
    else:
        keys = frozenset(name for name in (source.keyed_by,) if isinstance(name, str))
        times = source.time if isinstance(source.time, str) else ""
        value = msgspec.convert(_made(inspect.type_info(kind), times, rng, at, keys), kind)
    key = None
    if source.table and source.key.name == "str":
        key = f"key-{rng.randrange(_KEYS)}"
    return Event(value, key, at)


def _made(kind: inspect.Type, name: str, rng: Random, at: int, keys: frozenset[str], field: str = "") -> Any:
    """Return a value of a type as plain data."""
    if isinstance(kind, inspect.StructType | inspect.DataclassType | inspect.TypedDictType | inspect.NamedTupleType):
        return {one.encode_name: _made(one.type, name, rng, at, keys, one.name) for one in kind.fields}
    is_time = field == name or (field and (field in _TIMES or field.endswith(("_at", "_ms"))))
    if isinstance(kind, inspect.IntType):
        return at if is_time else rng.randrange(max(0, int(kind.ge or 0)), min(100, int(kind.le or 100)) + 1)
    if isinstance(kind, inspect.StrType):
        return f"{field or 'word'}-{rng.randrange(_KEYS if field in keys else _OTHERS)}"
    if isinstance(kind, inspect.UnionType):
        known = [one for one in kind.types if not isinstance(one, inspect.NoneType)]
        optional = len(known) < len(kind.types)
        return None if optional and rng.random() < 0.2 else _made(known[0], name, rng, at, keys, field)
    if isinstance(kind, inspect.ListType):
        return [_made(kind.item_type, name, rng, at, keys, field) for _ in range(rng.randrange(3))]
    if isinstance(kind, inspect.DateTimeType):
        return f"2024-01-01T{at // 3_600_000 % 24:02d}:{at // 60_000 % 60:02d}:{at // 1000 % 60:02d}+00:00"
    return _SIMPLE[type(kind)](rng, kind)


_SIMPLE: dict[type, Any] = {
    inspect.FloatType: lambda rng, kind: rng.randrange(1000) / 8,
    inspect.BoolType: lambda rng, kind: rng.random() < 0.5,
    inspect.BytesType: lambda rng, kind: b"%d" % rng.randrange(_KEYS),
    inspect.EnumType: lambda rng, kind: rng.choice([one.value for one in kind.cls]),
    inspect.LiteralType: lambda rng, kind: rng.choice(list(kind.values)),
    inspect.DictType: lambda rng, kind: {},
    inspect.AnyType: lambda rng, kind: rng.randrange(100),
}
