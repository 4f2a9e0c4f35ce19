"""Single runs: what the seed decides about their course, and what is made of them."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from headrace.record import Record
from headrace.serde.api import Serde
from headrace.settings import Settings
from headrace.testing.simulation.draws import Draws
from headrace.testing.simulation.faults import Faults
from headrace.testing.simulation.outcome import Outcome, Reference, batches, compare, gaps, outcome_of
from headrace.testing.simulation.result import SimulationResult, Statistics, Violation
from headrace.testing.simulation.scenario import Scenario
from headrace.testing.simulation.world import Course, World
from headrace.topology.graph import Graph, Node, Repartition, Source

_SCHEDULES = 3
"""Undisturbed runs with which every run is compared; in the last of them, the clock closes what it can."""
_IDLE_MS = 70_000


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """How a topology is simulated; the seed of each run decides the rest.

    Example:
        >>> Simulation(workers=2, faults=Faults(power=0)).partitions
        3
    """

    workers: int = 3
    """The most workers that a run has at a time."""
    partitions: int = 3
    """How many partitions every source topic has."""
    faults: Faults = field(default_factory=Faults)
    """What goes wrong."""
    tardy: float = 0.12
    """The share of runs in which the end of the input comes when the clock has closed windows already."""
    only: Collection[str] | None = None
    """The names of the faults that may strike, as a result names them; None for all that the seed decides."""
    more_schedules: int = 8
    """Undisturbed runs that are made besides when a run seems to differ from the first ones, to see whether it may."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Fields of ``Settings`` that no seed decides."""


def course_of(draws: Draws, simulation: Simulation, scenario: Scenario) -> Course:
    """Decide how a run goes."""
    heartbeat = draws.one("heartbeat", (300, 600, 1000))
    given: dict[str, Any] = {
        "checkpoint_interval_ms": draws.one("interval", (200, 500, 1000, 2500, 6000)),
        "heartbeat_interval_ms": heartbeat,
        "session_timeout_ms": heartbeat * draws.whole("patience", 3, 8),
        "drain_timeout_ms": 25_000,
        "cache_bytes": draws.one("cache", (0, 2000, 10**6)),
        "batch_records": draws.one("batch", (1, 3, 16, 4096)),
        **simulation.settings,
    }
    input_ms = int(min(8000, scenario.idle_after_ms * 0.4) * (0.2 + 0.8 * draws.unit("input")))
    patient = draws.unit("patient") < 0.15
    tardy = draws.unit("tardy") < simulation.tardy
    if tardy:
        input_ms = min(100_000, scenario.idle_after_ms) * 2 + draws.whole("later", 0, 30_000)
    faults_ms = input_ms + draws.whole("faults", 1000, 9000) + (draws.whole("longer", 20, 60) * 1000 if patient else 0)
    return Course(
        workers=draws.whole("workers", 1, simulation.workers),
        settings=Settings(**given),
        input_ms=input_ms,
        faults_ms=faults_ms,
        idle_ms=draws.whole("idle", 40, 110) * 1000 if draws.unit("idles") < 0.15 else 0,
        again_ms=draws.whole("again", 300, 6000) if draws.unit("goes on") < 0.6 else 0,
        pace=draws.one("pace", (0.02, 0.1, 0.3)),
        longest_wait_ms=draws.one("longest", (60, 200)),
        shared_machine=draws.unit("shared") < 0.4,
        tardy=tardy,
    )


@contextmanager
def folder() -> Iterator[Path]:
    """Make a place for state directories, in memory if the machine has one, and remove it."""
    memory = Path("/dev/shm")
    made = tempfile.mkdtemp(prefix="headrace-simulation-", dir=memory if memory.is_dir() else None)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the workers' warnings to themselves: nearly all that they warn of was made to happen."""
    logger = logging.getLogger("headrace")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def live(scenario: Scenario, simulation: Simulation, seed: int, course: Course | None = None) -> World:
    """Make a run."""
    draws = Draws(seed)
    with folder() as place, quiet():
        world = World(
            scenario=scenario,
            draws=draws,
            course=course or course_of(draws, simulation, scenario),
            faults=simulation.faults,
            folder=place,
            only=simulation.only,
        )
        world.run()
    return world


def undisturbed(scenario: Scenario, simulation: Simulation, count: int = _SCHEDULES, first: int = 0) -> Reference:
    """Run without faults under a few schedules, and with each source before the others."""
    calm = replace(simulation, faults=Faults.none(), only=None)
    outcomes: list[Outcome] = []
    topics: list[str | None] = [None, *(topic for topic in scenario.inputs if len(scenario.inputs) > 1)]
    for number in range(first, first + count):
        seed = -1 - number
        course = course_of(Draws(seed), calm, scenario)
        input_ms = int(min(8000, scenario.idle_after_ms * 0.4))
        course = replace(
            course, topic_first=topics[number % len(topics)], idle_ms=_IDLE_MS if number % _SCHEDULES == 2 else 0,
            tardy=False, input_ms=input_ms, faults_ms=input_ms + 500,
        )  # fmt: skip
        world = live(scenario, calm, seed, course)
        if world.violations:
            raise UndisturbedError(world)
        outcomes.append(outcome_of(world))
    return Reference(scenario, tuple(outcomes))


class UndisturbedError(Exception):
    """Even a run without faults goes wrong."""

    def __init__(self, world: World) -> None:
        super().__init__(str(world.violations[0]))
        self.world = world


def judge(world: World, reference: Reference, simulation: Simulation) -> tuple[Outcome, Reference]:
    """Compare a run with undisturbed ones, and note what is wrong; make sure first that it may not be so."""
    outcome = outcome_of(world)
    if world.violations:
        return outcome, reference
    if world.course.tardy:
        # What the clock has closed by then depends on how long everything took.
        found = gaps(world.scenario, outcome, world.checks.edges)
    else:
        found = compare(outcome, reference, world.checks.edges)
    if simulation.more_schedules and any(check != "no gaps" for check, _ in found):
        more = undisturbed(reference.scenario, simulation, simulation.more_schedules, len(reference.outcomes))
        reference = Reference(reference.scenario, reference.outcomes + more.outcomes)
        found = compare(outcome, reference, world.checks.edges)
    for check, message in found:
        world.violations.append(Violation(check, message, world.baton.now))
    return outcome, reference


def result_of(world: World, outcome: Outcome, reference: Reference, seed: int) -> SimulationResult:
    """Gather what came of a run."""
    digest = blake2b("\n".join(world.trace).encode(), digest_size=16)
    for edge, rows in outcome.all_rows.items():
        digest.update(repr((edge, sorted(rows.items(), key=repr))).encode())
    kinds = Counter(_kind(fault) for fault in world.chance.injected)
    written = sum(rows.total() for rows in outcome.all_rows.values())
    fresh = sum(len(positions) for sources in outcome.edges.values() for positions in sources.values())
    statistics = Statistics(
        kinds, world.checks.checkpoints, world.scenario.records, written, written - fresh, world.started, world.lost,
        world.baton.now,
    )  # fmt: skip
    return SimulationResult(
        seed, tuple(world.violations), tuple(world.trace), digest.hexdigest(), tuple(world.chance.injected),
        _decoded(world), statistics, tuple(sorted(reference.order_dependent)), world.course.tardy,
    )  # fmt: skip


def _kind(fault: str) -> str:
    """Return what kind of fault a name means."""
    if "@" in fault:
        return fault.partition("@")[0]
    operation, _, kind = fault.rpartition(":")
    return f"{operation.split(':')[1].partition('#')[0]} {kind}"


def _decoded(world: World) -> dict[str, list[Record]]:
    graph = world.scenario.plan.graph
    sinks = {sink.name: (sink, _key_serde(graph, sink)) for sink in world.scenario.plan.sinks()}
    found: dict[str, list[Record]] = {sink.topic: [] for sink, _ in sinks.values()}
    for topic, records in found.items():
        seen: set[object] = set()
        for number, batch in batches(world, topic):
            if batch.origin is None or batch.origin.source.split("/")[1] not in sinks:
                continue
            sink, key_serde = sinks[batch.origin.source.split("/")[1]]
            weak = sink.name in world.scenario.weak
            for place, record in enumerate(batch.records(topic, number)):
                # Where ids may come again with other content, they say nothing about repeats.
                content = (sink.name, record.key, record.value, record.timestamp)
                name = content if weak else (batch.origin.source, batch.origin.positions[place])
                if name not in seen:
                    seen.add(name)
                    key, value = key_serde.decode(record.key), sink.value.decode(record.value)
                    records.append(replace(record, key=key, value=value))
    return found


def _key_serde(graph: Graph, node: Node) -> Serde[Any]:
    """Return the serde of the keys at a node: that of the source or repartition above it."""
    while not isinstance(node, Source | Repartition):
        node = graph.by_name[node.inputs[0].node]
    return node.key
