"""Every rule that a topology must obey; all violations are reported at once, before anything starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from headrace.errors import TopologyError
from headrace.topology.graph import Graph, Node, Repartition, Sink, Source, Step

_NAME = re.compile(r"[A-Za-z0-9._-]{1,120}")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")

_READ_ONCE = {
    ("stream", "stream"): "keep the stream in a variable and use that twice",
    ("table", "table"): "keep the table in a variable and use that twice",
    ("global table", "global table"): "keep the table in a variable and use that twice",
    ("stream", "table"): "read it once: .to_table() makes a table of the keyed stream",
    ("table", "stream"): "read it once: .changes() makes a stream of the table",
}
"""What to do about a topic that is read in two ways."""
_READ_ONCE_GLOBAL = (
    "a topic that every task reads whole can be read in no other way: write it to a second topic for that"
)


def validate(name: str, nodes: Sequence[Node]) -> Graph:
    """Return the graph of ``nodes`` if it breaks no rule.

    Raises:
        TopologyError: lists every fault with the line that it comes from.
    """
    faults = [
        *_name_faults(name, nodes),
        *_topic_faults(nodes),
    ]
    if not any(isinstance(node, Source) for node in nodes):
        faults.append('it reads nothing: begin with topology.stream("some-topic")')
    elif not any(isinstance(node, Sink | Step | Repartition) for node in nodes):
        faults.append('it does nothing with what it reads: end with .to("some-topic")')
    if faults:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        raise TopologyError(f"topology {name!r} cannot run:{listed}")
    return Graph(name, tuple(nodes))


def _name_faults(name: str, nodes: Sequence[Node]) -> Iterator[str]:
    if not _NAME.fullmatch(name):
        yield f"its name must be made of letters, digits, '.', '_' and '-', at most 120: {name!r}"
    seen: dict[str, Node] = {}
    for node in nodes:
        if not _NAME.fullmatch(node.name):
            yield f"a step's name must be made of letters, digits, '.', '_' and '-': {node.name!r} ({node.location})"
        first = seen.setdefault(node.name, node)
        if first is not node:
            yield (
                f"two steps are called {node.name!r}, at {first.location} and at {node.location}: "
                "give one of them a name of its own with name="
            )


def _topic_faults(nodes: Sequence[Node]) -> Iterator[str]:
    readers: dict[str, Node] = {}
    for node in nodes:
        if isinstance(node, Source | Sink) and not _TOPIC.fullmatch(node.topic):
            yield (
                f"a topic's name must be made of letters, digits, '.', '_' and '-', at most 249: "
                f"{node.topic!r} ({node.location})"
            )
        if isinstance(node, Source):
            first = readers.setdefault(node.topic, node)
            if first is not node:
                yield (
                    f"topic {node.topic!r} is read twice, at {first.location} and at {node.location}: "
                    f"{_READ_ONCE.get((_way(first), _way(node)), _READ_ONCE_GLOBAL)}"
                )


def _way(node: Node) -> str:
    """Return what a source reads its topic as."""
    if isinstance(node, Source) and node.table:
        return "global table" if node.broadcast else "table"
    return "stream"
