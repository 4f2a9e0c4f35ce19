"""Internal topics that the language puts in by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headrace.dsl.definition import user_location
from headrace.serde.api import Serde, internal_serde
from headrace.topology.graph import Graph, Port, Repartition
from headrace.topology.plan import depends_on

if TYPE_CHECKING:
    from headrace.dsl.stream import Stream


def send(stream: Stream[Any], port: Port, name: str, key: Serde[Any], value: Serde[Any]) -> Port:
    """Append an internal topic for records that have their keys already.

    Args:
        stream: Any stream of the topology.
        port: Where the records leave.
        name: What the topic is called after.
        key: How their keys are written.
        value: How their values are.
    """
    stream._definition.add(
        Repartition(
            name=name,
            inputs=(port,),
            selector=None,
            key=key,
            value=internal_serde(value),
            on_error=stream._policy(None),
            location=user_location(),
        )
    )
    return Port(name)


def uncircled(left: Stream[Any], right: Stream[Any], name: str) -> tuple[Port, Port]:
    """Return the ports by which a step called ``name`` reads two streams so that no task waits for what it sends.

    Where one of them was made, behind an internal topic, of what lies beside the other, the other goes through an
    internal topic too.
    """
    graph = Graph("", tuple(left._definition.nodes))
    follows = depends_on(graph, left._port.node, right._port.node)
    if follows == depends_on(graph, right._port.node, left._port.node):
        return left._port, right._port
    if follows:
        return left._port, send(right, right._port, f"{name}-right", right._key, right._value)
    return send(left, left._port, f"{name}-left", left._key, left._value), right._port
