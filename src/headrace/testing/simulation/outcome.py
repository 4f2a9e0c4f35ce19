"""What a run leaves behind, and how it may differ from what undisturbed runs leave. Pure but for reading the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from headrace.record import RecordBatch, TopicPartition
from headrace.runtime.tasks.edges import left_by_outbox
from headrace.testing.simulation.checks import Row
from headrace.testing.simulation.scenario import Scenario
from headrace.testing.simulation.world import World
from headrace.topology.plan import written

_SHOWN = 5
_NEAR = 1_000_000
"""Two positions that are further apart left an outbox with different checkpoints."""


@dataclass(frozen=True)
class Outcome:
    """The sinks' content, and the state of the tasks."""

    edges: Mapping[str, Mapping[str, Mapping[int, Row]]]
    """By the name of the sink and the source of the ids, what was written at each position."""
    all_rows: Mapping[str, Counter[Row]]
    """By the name of the sink, every row with how often it was written, repeats included."""
    states: Mapping[str, Mapping[bytes, bytes]]
    """By task, the rows of its newest checkpoint."""

    def rows(self, edge: str) -> Counter[Row]:
        """Return what an edge wrote, without repeats."""
        return Counter(row for positions in self.edges.get(edge, {}).values() for row in positions.values())


def outcome_of(world: World) -> Outcome:
    """Read what a run left."""
    edges: dict[str, dict[str, dict[int, Row]]] = {}
    all_rows: dict[str, Counter[Row]] = {}
    for sink in world.scenario.plan.sinks():
        edges[sink.name], all_rows[sink.name] = {}, Counter()
    for topic in dict.fromkeys(sink.topic for sink in world.scenario.plan.sinks()):
        for _, batch in batches(world, topic):
            if batch.origin is None:
                continue  # a record of the input, if a topology writes to what it reads
            edge = batch.origin.source.split("/")[1]
            if edge not in edges:
                continue
            places = edges[edge].setdefault(batch.origin.source, {})
            headers = batch.headers or [()] * len(batch)
            rows = zip(batch.keys, batch.values.split(), batch.timestamps, headers, strict=True)
            for position, row in zip(batch.origin.positions, rows, strict=True):
                places.setdefault(position, row)
                all_rows[edge][row] += 1
    states = {}
    for task in map(str, world.scenario.plan.tasks()):
        newest = world.checks.newest(task)
        states[task] = {} if newest is None else world.checks.rows_of(newest)
    return Outcome(edges, all_rows, states)


def batches(world: World, topic: str) -> Iterator[tuple[int, RecordBatch]]:
    """Yield everything that is in a topic, with the number of its partition."""
    for number in range(world.scenario.partitions[topic]):
        partition = TopicPartition(topic, number)
        reader = world.log.reader(partition, world.log.start_offset(partition))
        while (batch := reader.read(2**31)) is not None:
            if not batch.control:
                yield number, batch


@dataclass(frozen=True)
class Reference:
    """What undisturbed runs have in common."""

    scenario: Scenario
    outcomes: tuple[Outcome, ...]

    @property
    def order_dependent(self) -> frozenset[str]:
        """Return the edges that undisturbed runs fill differently, and may."""
        first, scenario = self.outcomes[0], self.scenario
        subs = [sub for sub in scenario.plan.subtopologies if sub.name in scenario.clocked]
        clocked = {edge.name for sub in subs for edge in written(sub)}
        return frozenset(
            edge
            for edge in first.edges
            if edge in clocked
            or (
                edge not in scenario.strict and any(other.rows(edge) != first.rows(edge) for other in self.outcomes[1:])
            )
        )

    @property
    def comparable_states(self) -> frozenset[str]:
        """Return the tasks whose state undisturbed runs leave alike, and whose input has no repeats."""
        first, scenario = self.outcomes[0], self.scenario
        alike = {
            task for task in first.states if all(other.states[task] == first.states[task] for other in self.outcomes)
        }
        for sub in scenario.plan.subtopologies:
            if sub.name in scenario.clocked or any(item.node in scenario.weak for item in sub.inputs):
                alike -= set(map(str, sub.tasks()))
        return frozenset(alike)


def compare(outcome: Outcome, reference: Reference, appended: Mapping[str, Mapping[int, Row]]) -> list[tuple[str, str]]:
    """Return what is wrong with an outcome: the name of the check, and what it found."""
    scenario = reference.scenario
    expected, loose = reference.outcomes[0], reference.order_dependent
    found: list[tuple[str, str]] = gaps(scenario, outcome, appended)
    for edge in expected.edges:
        if edge in loose or edge in scenario.tainted:
            continue
        should, there = expected.rows(edge), outcome.rows(edge)
        if edge in scenario.weak:
            should, there = Counter(set(should)), Counter(set(outcome.all_rows[edge]))
        if should != there:
            found.append(("outputs are those of an undisturbed run", _difference(edge, should, there)))
    for task in sorted(reference.comparable_states):
        if outcome.states[task] != expected.states[task]:
            should_be, is_now = expected.states[task], outcome.states[task]
            differing = sorted(key for key in should_be.keys() | is_now.keys() if should_be.get(key) != is_now.get(key))
            shown = "\n".join(
                f"  {key!r}: {should_be.get(key)!r} expected, {is_now.get(key)!r} found" for key in differing[:_SHOWN]
            )
            found.append(
                ("state is that of an undisturbed run", f"task {task} differs in {len(differing)} rows:\n{shown}")
            )
    return found


def gaps(scenario: Scenario, outcome: Outcome, appended: Mapping[str, Mapping[int, Row]]) -> list[tuple[str, str]]:
    """Look whether the positions of each source follow each other without gaps."""
    return list(_gaps(scenario, outcome, appended))


def _gaps(scenario: Scenario, outcome: Outcome, appended: Mapping[str, Mapping[int, Row]]) -> Iterator[tuple[str, str]]:
    for edge, sources in outcome.edges.items():
        if edge in scenario.weak:
            continue
        for source, positions in sources.items():
            missing = _missing(source, positions)
            if missing:
                yield "no gaps", f"{source} wrote up to position {max(positions)}, but {_listed(missing)} are missing"
    internal = {
        node.name for sub in scenario.plan.subtopologies for node in written(sub) if node.name not in outcome.edges
    } - set(scenario.weak)
    by_source: dict[str, dict[int, Row]] = {}
    for name, positions in appended.items():
        source = name.split("|", 1)[1]
        if source.split("/")[1] in internal:
            by_source.setdefault(source, {}).update(positions)
    for source, positions in by_source.items():
        missing = _missing(source, positions)
        if missing:
            yield "no gaps", f"{source} wrote up to position {max(positions)}, but {_listed(missing)} are missing"


def _missing(source: str, positions: Collection[int]) -> list[int]:
    """Return the positions that are not there though later ones are."""
    if not positions:
        return []
    order = sorted(positions)
    if not left_by_outbox(source):
        return [] if len(order) == order[-1] + 1 else sorted(set(range(order[-1] + 1)).difference(order))
    # Those that leave with one checkpoint follow each other; each checkpoint begins at a number of its own.
    return [before + 1 for before, after in pairwise(order) if before + 1 < after < before + _NEAR]


def _difference(edge: str, expected: Counter[Row], found: Counter[Row]) -> str:
    missing, unexpected = expected - found, found - expected
    lines = [f"sink {edge!r}: {missing.total()} rows are missing, {unexpected.total()} are unexpected"]
    for told, rows in (("missing", missing), ("unexpected", unexpected)):
        lines += [f"  {told}: {row[0]!r} {row[1]!r} at {row[2]}" for row in sorted(rows, key=repr)[:_SHOWN]]
    return "\n".join(lines)


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return f"{shown} and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else shown
