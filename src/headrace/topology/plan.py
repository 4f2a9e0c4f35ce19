"""How a graph runs: cut at repartitions into sub-topologies, each a set of tasks, one per partition. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from headrace.errors import SettingsError, TopologyError
from headrace.operators.async_map import AsyncMap
from headrace.operators.retrying import Retry, final_policy
from headrace.record import TopicPartition
from headrace.topology.copartition import internal_widths
from headrace.topology.graph import Graph, Node, Port, Repartition, Sink, Source, Step

AT_LEAST_ONCE = "at-least-once"
"""The guarantee that what is not deterministic may be repeated with other content."""

EXACTLY_ONCE = "exactly-once"
"""The guarantee that it leaves through an outbox, and so is repeated as it was or not at all."""


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
    """For an internal topic, whether a replay upstream repeats positions, so that repeats can be dropped; those of what
    left through an outbox are dropped in any case."""
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
    outbox: frozenset[str] = frozenset()
    """The sinks and repartitions, by name, of which outputs wait for the checkpoint that contains them."""
    waiting_letters: frozenset[str] = frozenset()
    """The sub-topologies whose dead letters do so too."""
    transactions: bool = False
    """Whether everything that goes to users' topics waits as well, and leaves in transactions."""

    def internal_topics(self) -> dict[str, int]:
        """Return the internal topics and their partitions."""
        return {i.topic: i.partitions for sub in self.subtopologies for i in sub.inputs if i.upstream}

    def source_topics(self) -> list[str]:
        """Return the topics that users write and this topology reads."""
        return [i.topic for sub in self.subtopologies for i in sub.inputs if not i.upstream]

    def topics_read_once(self) -> set[str]:
        """Return the source topics of which one task reads each partition, and not every task all of them."""
        return {i.topic for sub in self.subtopologies for i in sub.inputs if not (i.upstream or i.broadcast)}

    def sinks(self) -> list[Sink]:
        """Return the sinks."""
        return [node for node in self.graph.nodes if isinstance(node, Sink)]

    def dead_letter_topic(self) -> str | None:
        """Return the topic that records which failed are kept in; None if no step keeps any."""
        kept = any(final_policy(node.on_error) == "dead-letter" for node in self.graph.nodes)
        return f"{self.graph.name}-dead-letter" if kept else None

    def transacted(self, sub: SubTopology) -> frozenset[str]:
        """Return the topics to which the tasks of a sub-topology write in transactions."""
        if not self.transactions:
            return frozenset()
        topics = {node.topic for node in sub.nodes if isinstance(node, Sink)}
        letters = self.dead_letter_topic()
        if letters is not None and any(final_policy(node.on_error) == "dead-letter" for node in sub.nodes):
            topics.add(letters)
        return frozenset(topics)

    def tasks(self) -> dict[TaskId, SubTopology]:
        """Return every task with its sub-topology, upstream ones first."""
        return {task: sub for sub in self.subtopologies for task in sub.tasks()}


def internal_topic(graph: Graph, repartition: Repartition) -> str:
    """Return the name of a repartition's topic."""
    return f"{graph.name}-{repartition.name}-repartition"


def source_topics(graph: Graph) -> list[str]:
    """Return the topics that the graph reads."""
    return [node.topic for node in graph.nodes if isinstance(node, Source)]


def plan(
    graph: Graph,
    partitions: Mapping[str, int],
    repartition_partitions: int = 0,
    existing: Mapping[str, int] | None = None,
    guarantee: str = AT_LEAST_ONCE,
    transactions: bool = False,
) -> Plan:
    """Cut ``graph`` into sub-topologies.

    Args:
        graph: A validated graph.
        partitions: How many partitions each source topic has.
        repartition_partitions: How many internal topics get; 0 for as many as they have, or as the widest source.
        existing: How many partitions topics have that exist, internal ones among them.
        guarantee: With ``exactly-once``, what is not deterministic leaves through an outbox.
        transactions: With that, whether everything that goes to users' topics does, and in transactions.

    Raises:
        SettingsError: there is no such guarantee, or it has no transactions.
        TopologyError: keyed streams meet in one step whose topics are partitioned differently or have other keys.
    """
    if guarantee not in (AT_LEAST_ONCE, EXACTLY_ONCE):
        raise SettingsError(f"the guarantee must be {AT_LEAST_ONCE} or {EXACTLY_ONCE}: {guarantee!r}")
    if transactions and guarantee != EXACTLY_ONCE:
        raise SettingsError(
            f"there are no transactions with {guarantee}", remedy=f"Give --guarantee {EXACTLY_ONCE} as well"
        )
    subs: list[SubTopology] = []
    deterministic: dict[str, bool] = {}
    for nodes in _components(graph):
        names = {node.name for node in nodes}
        default = repartition_partitions or _width(nodes, partitions)
        entry = [node.name for node in nodes if _is_entry(node, names)]
        kept = {} if repartition_partitions else _existing(graph, nodes, existing or {})
        widths = internal_widths(graph, nodes, entry, partitions, default, kept)
        inputs: list[Input] = []
        level = 0
        for node in nodes:
            if isinstance(node, Source):
                inputs.append(Input(node.topic, node.name, partitions[node.topic], broadcast=node.broadcast))
            elif isinstance(node, Repartition) and _is_entry(node, names):
                writers = [sub for sub in subs if any(n is node for n in sub.nodes)]
                upstream = tuple(str(task) for sub in writers for task in sub.tasks())
                level = max([level, *(sub.level + 1 for sub in writers)])
                topic, width = internal_topic(graph, node), widths[node.name]
                inputs.append(Input(topic, node.name, width, upstream, deterministic[node.name]))
        writes = [
            node
            for node in graph.nodes
            if isinstance(node, Repartition) and any(p.node in names for p in node.inputs) and graph.children(node.name)
        ]
        inputs.sort(key=lambda item: item.broadcast)  # a sub-topology is called after an input of its own
        sub = SubTopology(inputs[0].node, tuple(inputs), (*nodes, *[w for w in writes if w.name not in names]), level)
        for write in writes:
            deterministic[write.name] = is_deterministic(graph, sub, write)
        subs.append(sub)
    made = Plan(graph, tuple(subs))
    if guarantee != EXACTLY_ONCE:
        return made
    outbox = {edge.name for sub in subs for edge in written(sub) if not is_deterministic(graph, sub, edge)}
    letters = {sub.name for sub in subs if outbox.intersection(e.name for e in written(sub)) or _unsure(graph, sub)}
    if transactions:
        outbox |= {sink.name for sink in made.sinks()}
        letters = {sub.name for sub in subs}
    return replace(made, outbox=frozenset(outbox), waiting_letters=frozenset(letters), transactions=transactions)


def written(sub: SubTopology) -> list[Sink | Repartition]:
    """Return the nodes by which a sub-topology writes."""
    sources = sub.sources
    return [n for n in sub.nodes if isinstance(n, Sink) or (isinstance(n, Repartition) and n.name not in sources)]


def at_least_once(plan: Plan) -> dict[str, str]:
    """Return the sinks and repartitions, by name, of which repeats cannot be told from records, and why.

    They are those at which a replay may not repeat itself, and all that is made of them; but not what leaves through an
    outbox.
    """
    weak: dict[str, str] = {}
    for sub in plan.subtopologies:
        for edge in written(sub):
            reason = None if edge.name in plan.outbox else why_not_deterministic(plan.graph, sub, edge)
            above = {node.name for node in _above(plan.graph, sub, edge)}
            repeated = [item.node for item in sub.inputs if item.node in weak and item.node in above]
            if reason is None and repeated:
                reason = f"it is made of {_listed(repeated)}, which may hold repeats"
            if reason is not None:
                weak[edge.name] = reason
    return weak


def by_outbox(plan: Plan) -> dict[str, str]:
    """Return the sinks and repartitions, by name, whose outputs leave through an outbox, and why they have to."""
    reasons = {
        edge.name: why_not_deterministic(plan.graph, sub, edge)
        for sub in plan.subtopologies
        for edge in written(sub)
        if edge.name in plan.outbox
    }
    return {name: reason for name, reason in reasons.items() if reason is not None}


def _unsure(graph: Graph, sub: SubTopology) -> bool:
    """Return whether a replay may set other records aside as dead letters, or number them in another way."""
    for node in sub.nodes:
        if final_policy(node.on_error) != "dead-letter" or node.name in sub.sources:
            continue
        if why_not_deterministic(graph, sub, node) is not None:
            return True
        if isinstance(node, Step):
            above = {found.name for found in _above(graph, sub, node)}
            meets = node.spec.stateful and len(sub.sources & above) > 1
            if meets or node.spec.uses_clock or _chance(node) is not None:
                return True
    return False


def is_deterministic(graph: Graph, sub: SubTopology, edge: Repartition | Sink) -> bool:
    """Tell whether a replay of a task repeats what it wrote on an edge, position for position."""
    return why_not_deterministic(graph, sub, edge) is None


def why_not_deterministic(graph: Graph, sub: SubTopology, edge: Node) -> str | None:
    """Say why a replay of a task may not repeat what it wrote on an edge, position for position; None if it does.

    The same is true of what comes to a step.

    It does where state, if there is any on the way, follows from the records of one input alone, and where what closing
    windows make does not mix with what comes at once or from other windows: the order between them depends on how the
    input was cut into batches. Processing time repeats nothing. (Event time that the clock moved is checkpointed first,
    and what it closes so repeated as it was.)
    """
    above = {node.name for node in _above(graph, sub, edge)}
    steps = [node for node in graph.nodes if isinstance(node, Step) and node.name in above]
    stateful = [step for step in steps if step.spec.stateful]
    entries = [node.name for node in graph.nodes if node.name in sub.sources & above]
    if stateful and len(entries) != 1:
        for step in stateful:
            meeting = {node.name for node in _above(graph, sub, step)}.intersection(entries)
            if len(meeting) > 1:
                return f"{_listed(e for e in entries if e in meeting)} meet in the state of step {step.name!r}"
        return f"{_listed(entries)} meet behind the state of step {stateful[0].name!r}"
    for step in steps:
        if step.spec.uses_clock:
            return f"step {step.name!r} acts on processing time"
        if chance := _chance(step):
            return chance
    births = _all_births(graph, sub, edge)
    if len(births) == 1 or births <= sub.sources:
        return None
    made = _listed(name for name in graph.by_name if name in births - sub.sources)
    others = _listed(name for name in graph.by_name if name in births & sub.sources)
    return f"what time makes at {made} mixes with {others or 'each other'} at {_mixing(graph, sub, edge)!r}"


def _chance(step: Step) -> str | None:
    """Say why a step may make something else of the same records when it gets them again; None if it does not.

    Then positions mean other records, in other partitions, as soon as something behind the step looks at its results.
    """
    if isinstance(step.spec, AsyncMap):
        return f"step {step.name!r} may get other answers when it asks again"
    if isinstance(step.on_error, Retry) and final_policy(step.on_error) != "stop":
        return f"step {step.name!r} may need fewer tries for a record that it left out"
    return None


def _listed(names: Iterable[str]) -> str:
    return " and ".join(map(repr, names))


def _births(graph: Graph, sub: SubTopology, port: Port) -> set[str]:
    """Return the nodes at which what passes ``port`` came to be: sources, and steps that made it as time passed."""
    node = graph.by_name[port.node]
    if node.name in sub.sources or (isinstance(node, Step) and port.port in node.spec.timed_ports):
        return {node.name}
    births: set[str] = set()
    for above in node.inputs:
        births |= _births(graph, sub, above)
    return births


def _all_births(graph: Graph, sub: SubTopology, node: Node) -> set[str]:
    return set().union(*(_births(graph, sub, port) for port in node.inputs))


def must_stop_for_time(graph: Graph, sub: SubTopology) -> bool:
    """Tell whether time must move between the records of a batch for all steps of a task.

    Steps do by themselves what is due between two records, or when the batch has gone by. That is not enough where what
    time makes meets in the state of a step what comes at once, or what time makes elsewhere; nor where what several
    steps make as time passes comes by several ways.
    """
    for step in (node for node in sub.nodes if isinstance(node, Step) and node.name not in sub.sources):
        births = _all_births(graph, sub, step)
        if step.spec.stateful and len(births) > 1 and not births <= sub.sources:
            return True
        above = [node for node in _above(graph, sub, step) if isinstance(node, Step) and node.spec.timed_ports]
        if len(step.inputs) > 1 and len(above) > 1:
            return True
    return False


def _mixing(graph: Graph, sub: SubTopology, node: Node) -> str:
    """Return the uppermost node at which comes together what is mixed at ``node``."""
    for port in node.inputs:
        births = _births(graph, sub, port)
        if len(births) > 1 and not births <= sub.sources:
            return _mixing(graph, sub, graph.by_name[port.node])
    return node.name


def topics_above(graph: Graph, sub: SubTopology, node: Node) -> list[str]:
    """Return the topics that what comes to ``node``, or leaves by it, follows from."""
    above = {found.name for found in _above(graph, sub, node)}
    return [item.topic for item in sub.inputs if item.node in above]


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
            raise TopologyError(
                f"topology {graph.name!r} repartitions in a circle: {_circle(waiting)}",
                remedy="What comes out of an internal topic cannot meet what went in: let that go through one too, by "
                "key_by() for a stream or .repartition() for a table, before they meet",
            )
        waiting.remove(nodes)
        done |= {node.name for node in nodes}
        if not (len(nodes) == 1 and isinstance(nodes[0], Repartition) and not graph.children(nodes[0].name)):
            yield nodes


def _circle(waiting: Sequence[Sequence[Node]]) -> str:
    """Name the repartitions that wait for each other, with their lines."""
    left = {node.name: node for nodes in waiting for node in nodes}
    entries = [n for n in left.values() if isinstance(n, Repartition) and any(p.node in left for p in n.inputs)]
    return ", ".join(f"{node.name!r} ({node.location})" for node in entries)


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


def _is_entry(node: Node, names: set[str]) -> bool:
    """Return whether records with keys enter at a node of a component whose nodes have ``names``."""
    if isinstance(node, Repartition):
        return not names.issuperset(port.node for port in node.inputs)
    return isinstance(node, Source) and not node.broadcast


def depends_on(graph: Graph, node: str, other: str) -> bool:
    """Return whether ``node`` lies in the same sub-topology as ``other``, or in one that what is made there goes to."""
    components = _connected(graph)
    home = {member.name: place for place, members in enumerate(components) for member in members}
    todo, seen = [home[node]], set()
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            todo += [home[p.node] for n in components[place] if isinstance(n, Repartition) for p in n.inputs]
    return home[other] in seen


def _existing(graph: Graph, nodes: Sequence[Node], existing: Mapping[str, int]) -> dict[str, int]:
    """Return how many partitions the internal topics of repartitions have, where they exist."""
    topics = {node.name: internal_topic(graph, node) for node in nodes if isinstance(node, Repartition)}
    return {name: existing[topic] for name, topic in topics.items() if topic in existing}


def _width(nodes: list[Node], partitions: Mapping[str, int]) -> int:
    """Return how many partitions internal topics get whose keys meet no source: as many as are read beside them."""
    beside = [partitions[n.topic] for n in nodes if isinstance(n, Source) and not n.broadcast]
    return max(beside or partitions.values())
