"""How a graph runs: cut at repartitions into sub-topologies, each a set of tasks, one per partition. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from headrace.errors import TopologyError
from headrace.record import TopicPartition
from headrace.topology.graph import Graph, Node, Port, Repartition, Sink, Source, Step


class TaskId(NamedTuple):
    """One sub-topology on one partition: the unit of assignment, state, checkpoint and recovery."""

    subtopology: str
    partition: int

    def __str__(self) -> str:
        return f"{self.subtopology}-{self.partition}"


@dataclass(frozen=True, slots=True)
class Input:
    """A topic that a sub-topology reads."""

    topic: str
    node: str
    """The source, or the repartition whose downstream half this is."""
    partitions: int
    upstream: tuple[str, ...] = ()
    """For an internal topic, every task that writes to it."""
    deterministic: bool = True
    """For an internal topic, whether a replay upstream repeats positions, so that repeats can be dropped."""
    broadcast: bool = False
    """Whether every task reads all partitions of it."""


@dataclass(frozen=True, slots=True)
class SubTopology:
    """What lies between repartitions and runs as one task per partition."""

    name: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    """Sources or repartitions read, steps, sinks, and repartitions written, in order."""
    level: int
    """0 reads sources only; what reads from an internal topic is one above its writers."""

    @property
    def partitions(self) -> int:
        """Return how many tasks there are."""
        return max(item.partitions for item in self.inputs if not item.broadcast)

    def tasks(self) -> list[TaskId]:
        """Return the tasks."""
        return [TaskId(self.name, partition) for partition in range(self.partitions)]

    def reads(self, partition: int) -> list[TopicPartition]:
        """Return what the task of ``partition`` reads: what it owns, and all of what is read by every task."""
        everywhere = [TopicPartition(i.topic, n) for i in self.inputs if i.broadcast for n in range(i.partitions)]
        return self.owns(partition) + everywhere

    def owns(self, partition: int) -> list[TopicPartition]:
        """Return what the task of ``partition`` reads and no other task of the sub-topology does."""
        return [TopicPartition(i.topic, partition) for i in self.inputs if partition < i.partitions and not i.broadcast]

    @property
    def sources(self) -> frozenset[str]:
        """Return the names of the nodes at which records enter."""
        return frozenset(item.node for item in self.inputs)


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph and the sub-topologies that it runs as."""

    graph: Graph
    subtopologies: tuple[SubTopology, ...]

    def internal_topics(self) -> dict[str, int]:
        """Return the internal topics and their partitions."""
        return {i.topic: i.partitions for sub in self.subtopologies for i in sub.inputs if i.upstream}

    def source_topics(self) -> list[str]:
        """Return the topics that users write and this topology reads."""
        return [i.topic for sub in self.subtopologies for i in sub.inputs if not i.upstream]

    def sinks(self) -> list[Sink]:
        """Return the sinks."""
        return [node for node in self.graph.nodes if isinstance(node, Sink)]

    def tasks(self) -> dict[TaskId, SubTopology]:
        """Return every task with its sub-topology, upstream ones first."""
        return {task: sub for sub in self.subtopologies for task in sub.tasks()}


def internal_topic(graph: Graph, repartition: Repartition) -> str:
    """Return the name of a repartition's topic."""
    return f"{graph.name}-{repartition.name}-repartition"


def source_topics(graph: Graph) -> list[str]:
    """Return the topics that the graph reads."""
    return [node.topic for node in graph.nodes if isinstance(node, Source)]


def plan(graph: Graph, partitions: Mapping[str, int], repartition_partitions: int = 0) -> Plan:
    """Cut ``graph`` into sub-topologies.

    Args:
        graph: A validated graph.
        partitions: How many partitions each source topic has.
        repartition_partitions: How many internal topics get; 0 for as many as the widest source.

    Raises:
        TopologyError: keyed streams whose topics are partitioned differently meet in one step.
    """
    subs: list[SubTopology] = []
    deterministic: dict[str, bool] = {}
    for nodes in _components(graph):
        names = {node.name for node in nodes}
        width = repartition_partitions or _width(nodes, partitions)
        inputs: list[Input] = []
        level = 0
        for node in nodes:
            if isinstance(node, Source):
                inputs.append(Input(node.topic, node.name, partitions[node.topic], broadcast=node.broadcast))
            elif isinstance(node, Repartition) and not names.issuperset(p.node for p in node.inputs):
                writers = [sub for sub in subs if any(n is node for n in sub.nodes)]
                upstream = tuple(str(task) for sub in writers for task in sub.tasks())
                level = max([level, *(sub.level + 1 for sub in writers)])
                inputs.append(Input(internal_topic(graph, node), node.name, width, upstream, deterministic[node.name]))
        writes = [
            node
            for node in graph.nodes
            if isinstance(node, Repartition) and any(p.node in names for p in node.inputs) and graph.children(node.name)
        ]
        inputs.sort(key=lambda item: item.broadcast)  # a sub-topology is called after an input of its own
        entry = {item.node for item in inputs if not item.broadcast}
        sub = SubTopology(inputs[0].node, tuple(inputs), (*nodes, *[w for w in writes if w.name not in names]), level)
        _check_copartitioned(graph, sub, entry)
        for write in writes:
            deterministic[write.name] = is_deterministic(graph, sub, write)
        subs.append(sub)
    return Plan(graph, tuple(subs))


def is_deterministic(graph: Graph, sub: SubTopology, edge: Repartition | Sink) -> bool:
    """Tell whether a replay of a task repeats what it wrote on an edge, position for position.

    It does where state, if there is any on the way, follows from the records of one input alone, and where what closing
    windows make does not mix with what comes at once or from other windows: the order between them depends on how the
    input was cut into batches. Processing time repeats nothing. (Event time that the clock moved is checkpointed first,
    and what it closes so repeated as it was.)
    """
    above = _above(graph, sub, edge)
    stateful = any(isinstance(node, Step) and node.spec.stateful for node in above)
    if stateful and sum(node.name in sub.sources for node in above) != 1:
        return False
    if any(isinstance(node, Step) and node.spec.uses_clock for node in above):
        return False
    births: set[str] = set()
    for port in edge.inputs:
        births |= _births(graph, sub, port)
    return len(births) == 1 or births <= sub.sources


def _births(graph: Graph, sub: SubTopology, port: Port) -> set[str]:
    """Return the nodes at which what passes ``port`` came to be: sources, and steps that made it as time passed."""
    node = graph.by_name[port.node]
    if node.name in sub.sources or (isinstance(node, Step) and port.port in node.spec.timed_ports):
        return {node.name}
    births: set[str] = set()
    for above in node.inputs:
        births |= _births(graph, sub, above)
    return births


def _above(graph: Graph, sub: SubTopology, edge: Node) -> list[Node]:
    seen: dict[str, Node] = {}
    todo = [port.node for port in edge.inputs]
    while todo:
        node = graph.by_name[todo.pop()]
        if node.name not in seen:
            seen[node.name] = node
            if node.name not in sub.sources:
                todo += [port.node for port in node.inputs]
    return list(seen.values())


def _components(graph: Graph) -> Iterator[list[Node]]:
    """Yield what is connected without crossing a repartition, upstream before downstream.

    A repartition belongs to the component that reads it, a source that every task reads to all that do.
    """
    waiting = _connected(graph)
    done: set[str] = set()
    while waiting:
        for nodes in waiting:
            needs = {p.node for n in nodes if isinstance(n, Repartition) for p in n.inputs}
            if needs <= done:
                break
        else:
            raise TopologyError(f"topology {graph.name!r} repartitions in a circle")
        waiting.remove(nodes)
        done |= {node.name for node in nodes}
        if not (len(nodes) == 1 and isinstance(nodes[0], Repartition) and not graph.children(nodes[0].name)):
            yield nodes


def _connected(graph: Graph) -> list[list[Node]]:
    """Return the components in no order between them."""
    everywhere = [node for node in graph.nodes if isinstance(node, Source) and node.broadcast]
    shared = {node.name for node in everywhere}
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for node in graph.nodes:
        leader[node.name] = node.name
        if not isinstance(node, Repartition):
            for port in node.inputs:
                if port.node not in shared:
                    leader[find(node.name)] = find(port.node)
    groups: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.name not in shared:
            groups.setdefault(find(node.name), []).append(node)
    return [
        [s for s in everywhere if any(p.node == s.name for n in nodes for p in n.inputs)] + nodes
        for nodes in groups.values()
    ]


def _width(nodes: list[Node], partitions: Mapping[str, int]) -> int:
    """Return how many partitions internal topics that ``nodes`` read get: as many as the sources read beside them."""
    beside = [partitions[n.topic] for n in nodes if isinstance(n, Source) and not n.broadcast]
    return max(beside or partitions.values())


def _check_copartitioned(graph: Graph, sub: SubTopology, entry: set[str]) -> None:
    for step in sub.nodes:
        if not (isinstance(step, Step) and step.spec.stateful):
            continue
        above = {node.name for node in _above(graph, sub, step)} & entry
        counts = {item.topic: item.partitions for item in sub.inputs if item.node in above}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{topic} has {n}" for topic, n in sorted(counts.items()))
            raise TopologyError(
                f"step {step.name!r} ({step.location}) brings together keys of topics with different numbers of "
                f"partitions: {listed}",
                remedy="Give the topics the same number of partitions, or use key_by() on one of the streams",
            )
