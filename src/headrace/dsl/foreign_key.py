"""Joining two tables by a reference: three steps and the internal topics between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.dsl.definition import check_fields, check_selector, user_location
from headrace.dsl.internal import send
from headrace.dsl.table import combined
from headrace.errors import TopologyError
from headrace.operators.foreign_key_join import Answer, Answers, Lookup, Reference, References
from headrace.operators.selectors import Selector, selector_name
from headrace.operators.stateless import Stateless
from headrace.serde.msgpack import Msgpack
from headrace.topology.graph import ErrorPolicy, Graph, Port, Step
from headrace.topology.plan import depends_on

if TYPE_CHECKING:
    from headrace.dsl.keyed import KeyedStream


def join_foreign(
    left: KeyedStream[Any],
    right: KeyedStream[Any],
    combine: Any,
    on: Selector,
    how: str,
    name: str | None,
    on_error: ErrorPolicy | None,
) -> KeyedStream[Any]:
    """Append the steps of a foreign-key join and return the changes of the joined rows.

    Raises:
        TopologyError: ``on`` is no selector, or ``how`` is neither ``"inner"`` nor ``"left"``.
    """
    check_selector(on, "on= of join")
    check_fields(getattr(left._value, "kind", None), on, "on= of join")
    if how not in ("inner", "left"):
        raise TopologyError(
            f'how must be "inner" or "left" in a join with on=, not {how!r} ({user_location()})',
            remedy="A row that nothing refers to has no key of the left table that it could have in the result",
        )
    name = name or f"{left._anchor}-join-{right._anchor}-on-{selector_name(on)}"
    definition = left._definition
    graph = Graph("", tuple(definition.nodes))
    changes, rows = left._port, right._port
    if not _repeats(graph, changes):
        # Changes are numbered in their order, which must be the same after a crash: in a topic it is.
        changes = send(left, changes, f"{name}-left", left._key, left._value)
    if depends_on(graph, left._port.node, right._port.node):
        # What is made of the right table cannot send references back to where it came from.
        rows = send(left, rows, f"{name}-right", right._key, right._value)
    references = f"{name}-references"
    left._add_step(References(on, left._value, right._key, how), references, (changes,), on_error)
    sent = send(left, Port(references), f"{name}-sent", right._key, Msgpack(Reference))
    lookup = f"{name}-lookup"
    left._add_step(Lookup(left._value, right._value), lookup, (sent, rows), on_error)
    answers = send(left, Port(lookup), f"{name}-answers", left._key, Msgpack(Answer))
    left._add_step(Answers(left._value, right._value, how), name, (answers,), on_error)
    return combined(left, name, combine, on_error)


def _repeats(graph: Graph, port: Port) -> bool:
    """Return whether what passes ``port`` follows from one topic, record by record, so that a replay repeats it."""
    node = graph.by_name[port.node]
    while isinstance(node, Step):
        if not isinstance(node.spec, Stateless) or len(node.inputs) != 1:
            return False
        node = graph.by_name[node.inputs[0].node]
    return True
