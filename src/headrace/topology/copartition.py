"""What must have the same partitions: inputs whose keys meet in the state of a step. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from headrace.errors import TopologyError
from headrace.topology.graph import Graph, Node, Repartition, Source, Step


def internal_widths(
    graph: Graph,
    nodes: Sequence[Node],
    entries: Sequence[str],
    partitions: Mapping[str, int],
    default: int,
    existing: Mapping[str, int],
) -> dict[str, int]:
    """Return how many partitions each internal topic that is read has.

    One whose keys meet those of a source topic has as many as that; others keep what they have, and new ones get what
    those have that they meet, or ``default``.

    Args:
        graph: The graph.
        nodes: What lies between repartitions.
        entries: The names of the sources and repartitions at which records with keys enter there.
        partitions: How many partitions each source topic has.
        default: What an internal topic gets that may have any number.
        existing: What internal topics have that may keep it, by the name of the repartition.

    Raises:
        TopologyError: source topics whose keys meet have different numbers of partitions, or keys of different types
            meet.
    """
    groups: dict[str, list[str]] = {name: [name] for name in entries}
    for step, meeting in _meetings(graph, nodes, groups):
        _check_key_types(graph, step, meeting)
        _check_counts(graph, step, groups[meeting[0]], partitions)
    widths = {}
    for name, group in groups.items():
        counts = [partitions[n.topic] for n in (graph.by_name[other] for other in group) if isinstance(n, Source)]
        if isinstance(graph.by_name[name], Repartition):
            kept = [existing[other] for other in (name, *group) if other in existing]
            widths[name] = [*counts, *kept, default][0]
    return widths


def meeting(graph: Graph, nodes: Sequence[Node], entries: Sequence[str]) -> list[list[str]]:
    """Return the sources and repartitions whose keys meet in the state of steps, as groups of two and more.

    Args:
        graph: The graph.
        nodes: What lies between repartitions.
        entries: The names of the sources and repartitions at which records with keys enter there.
    """
    groups: dict[str, list[str]] = {name: [name] for name in entries}
    for _ in _meetings(graph, nodes, groups):
        pass
    return [group for name, group in groups.items() if len(group) > 1 and name == group[0]]


def _meetings(
    graph: Graph, nodes: Sequence[Node], groups: dict[str, list[str]]
) -> Iterator[tuple[Step, Sequence[str]]]:
    """Yield the steps at which keys of several entries meet, with these, after putting the groups of these together."""
    for step in nodes:
        if not isinstance(step, Step) or not keeps_keys(graph, step):
            continue
        met = _entries_above(graph, step, groups)
        if len(met) > 1:
            joined = [name for name in groups if any(name in groups[other] for other in met)]
            groups.update(dict.fromkeys(joined, joined))
            yield step, met


def keeps_keys(graph: Graph, step: Step) -> bool:
    """Return whether a step keeps state by key; one that looks up in what every task has takes any records."""
    above = (graph.by_name[port.node] for port in step.inputs)
    return step.spec.stateful and not any(isinstance(node, Source) and node.broadcast for node in above)


def _entries_above(graph: Graph, step: Step, entries: Mapping[str, object]) -> list[str]:
    found: set[str] = set()
    seen: set[str] = set()
    todo = [port.node for port in step.inputs]
    while todo:
        name = todo.pop()
        if name in entries:
            found.add(name)
        elif name not in seen:
            seen.add(name)
            todo += [port.node for port in graph.by_name[name].inputs]
    return [name for name in entries if name in found]


def _check_key_types(graph: Graph, step: Step, meeting: Sequence[str]) -> None:
    kinds = {name: node.key.name for name in meeting if isinstance(node := graph.by_name[name], Source | Repartition)}
    if len(set(kinds.values())) > 1:
        raise TopologyError(
            f"step {step.name!r} ({step.location}) brings together keys of different types, which are never equal: "
            f"{', '.join(f'{_called(graph, name)} has {kind}' for name, kind in kinds.items())}",
            remedy="Give stream(), table() or key_by() the key= that makes them alike, such as key=int",
        )


def _check_counts(graph: Graph, step: Step, joined: Sequence[str], partitions: Mapping[str, int]) -> None:
    topics = [node.topic for name in joined if isinstance(node := graph.by_name[name], Source)]
    if len({partitions[topic] for topic in topics}) > 1:
        raise TopologyError(
            f"step {step.name!r} ({step.location}) brings together keys of topics with different numbers of "
            f"partitions: {', '.join(f'{topic} has {partitions[topic]}' for topic in sorted(topics))}",
            remedy="Give the topics the same number of partitions, or send one through an internal topic: leave out "
            "keyed_by= and use key_by() for a stream, or .repartition() for a table",
        )


def _called(graph: Graph, name: str) -> str:
    node = graph.by_name[name]
    return node.topic if isinstance(node, Source) else repr(name)
