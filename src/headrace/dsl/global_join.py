"""Joining a stream with a global table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from headrace.dsl.definition import check_fields, check_function, check_selector, serde_of_results, user_location
from headrace.errors import TopologyError
from headrace.operators.global_join import GlobalJoin
from headrace.operators.rows import combining
from headrace.operators.selectors import Selector
from headrace.topology.graph import ErrorPolicy, Port

if TYPE_CHECKING:
    from headrace.dsl.stream import Stream
    from headrace.dsl.table import GlobalTable

V = TypeVar("V")
U = TypeVar("U")


def join_global(
    stream: Stream[V],
    table: GlobalTable[U],
    combine: Any,
    *,
    on: Selector | None,
    how: str,
    name: str | None,
    on_error: ErrorPolicy | None,
) -> Stream[Any]:
    """Append the steps that look a row up for each record; return the results, keyed if the stream is.

    Args:
        stream: The records.
        table: The rows.
        combine: The user's function of a record's value and its row.
        on: What to look up; the record's key if None.
        how: ``"inner"`` or ``"left"``.
        name: The step's name.
        on_error: What happens with a record on which ``on`` or ``combine`` fails.

    Raises:
        TopologyError: the join makes no sense as it is written.
    """
    from headrace.dsl.keyed import KeyedStream
    from headrace.dsl.stream import Stream

    check_function(combine, "join")
    if how not in ("inner", "left"):
        raise TopologyError(
            f'how must be "inner" or "left" in a join with a global table, not {how!r} ({user_location()})'
        )
    if table._definition is not stream._definition:
        raise TopologyError(f"join needs a table of the same topology ({user_location()})")
    if on is not None:
        check_selector(on, "on= of join")
        check_fields(getattr(stream._value, "kind", None), on, "on= of join")
    elif not isinstance(stream, KeyedStream):
        raise TopologyError(
            f"join with a global table needs on=: the stream has no key to look up ({user_location()})",
            remedy='Say which field is the key of the table, such as on="product_id"',
        )
    elif stream._key.name != table._key.name:
        raise TopologyError(
            f"join looks up keys that are {stream._key.name} in a global table whose keys are {table._key.name} "
            f"({user_location()})",
            remedy="Say with on= what to look up, or give global_table() the key= that its topic has",
        )
    name = name or f"{stream._anchor}-join-{table._source}"
    spec = GlobalJoin(on, table._key, table._value, how)
    stream._add_step(spec, name, (stream._port, Port(table._source)), on_error)
    last = stream._definition.free_name(f"{name}-combine")
    stream._add_step(combining(combine), last, (Port(name),), on_error)
    kind = KeyedStream if isinstance(stream, KeyedStream) else Stream
    return kind(stream._definition, Port(last), name, serde_of_results(combine), stream._key)
