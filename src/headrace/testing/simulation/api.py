"""Whether a topology comes through whatever happens to its workers: the real runtime in a simulated world."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from headrace.dsl.builder import Topology
from headrace.testing.simulation.outcome import Reference, outcome_of
from headrace.testing.simulation.result import SimulationResult, Statistics, Violation
from headrace.testing.simulation.runs import Simulation, UndisturbedError, judge, live, result_of, undisturbed
from headrace.testing.simulation.scenario import Inputs, Scenario, prepare
from headrace.testing.simulation.shrink import Attempt, Shrunk, shrink

MakeInputs = Callable[[random.Random], Inputs]
Check = Callable[[SimulationResult], object]

SEEDS_PER_INPUT = 20
"""So many seeds in a row share an input if a function makes it: what they are compared with is made once."""
_TAIL = 40


class Simulator:
    """Runs one topology for many seeds.

    Args:
        topology: What to run; or what makes it anew for every run, if its functions keep anything themselves.
        inputs: By topic, values in the order of arrival (or ``Event``s); or a function that makes them of a
            ``random.Random``.
        simulation: How it is run.
        check: Is given the result of each run; what it raises as an ``AssertionError`` is a violation.
        settings: Fields of ``Settings`` that no seed decides.

    Raises:
        TopologyError: the topology cannot run as it is written.
    """

    def __init__(
        self,
        topology: Topology | Callable[[], Topology],
        inputs: Inputs | MakeInputs,
        *,
        simulation: Simulation | None = None,
        check: Check | None = None,
        **settings: Any,
    ) -> None:
        given = simulation or Simulation()
        self.simulation = replace(given, settings={**given.settings, **settings})
        self._topology = topology
        self._inputs = inputs if callable(inputs) else {topic: list(rows) for topic, rows in inputs.items()}
        self._check = check
        self._prepared: dict[tuple[int, int], tuple[Scenario, Reference | UndisturbedError]] = {}

    def prepare(self, seed: int) -> None:
        """Make the undisturbed runs with which the run of a seed is compared, if they are not there yet."""
        self._ready((self._group(seed), 2**31))

    def run(self, seed: int, attempt: Attempt | None = None) -> SimulationResult:
        """Run with one seed.

        Args:
            seed: Decides everything.
            attempt: What to leave out; None for nothing.
        """
        simulation, records = self.simulation, 2**31
        if attempt is not None:
            simulation = replace(simulation, only=attempt.faults, workers=attempt.workers)
            records = attempt.records
        key = (self._group(seed), records)
        scenario, reference = self._ready(key)
        if isinstance(reference, UndisturbedError):
            return self._without_faults(reference, seed)
        if not isinstance(self._topology, Topology):
            made = self._topology()
            scenario = replace(scenario, topology=made, plan=replace(scenario.plan, graph=made.graph()))
        world = live(scenario, simulation, seed)
        outcome, reference = judge(world, reference, simulation)
        self._prepared[key] = scenario, reference
        result = result_of(world, outcome, reference, seed)
        return result if self._check is None or result.tardy else self._checked(result, self._check)

    def shrink(self, failed: SimulationResult, most_runs: int = 150) -> Shrunk:
        """Make a failing run as small as it gets while it fails in the same way."""
        records = max(map(len, self._ready((self._group(failed.seed), 2**31))[0].inputs.values()), default=0)
        first = Attempt(failed.faults, records, self.simulation.workers)
        return shrink(lambda attempt: self.run(failed.seed, attempt), first, failed, most_runs)

    def _group(self, seed: int) -> int:
        return seed // SEEDS_PER_INPUT if callable(self._inputs) else 0

    def _ready(self, key: tuple[int, int]) -> tuple[Scenario, Reference | UndisturbedError]:
        if key not in self._prepared:
            group, records = key
            if records < 2**31:
                scenario = self._ready((group, 2**31))[0].shortened(records)
            else:
                scenario = self._scenario(group)
                self._prepared = {}  # those of other inputs are not needed any more
            try:
                reference: Reference | UndisturbedError = undisturbed(scenario, self.simulation)
            except UndisturbedError as error:
                reference = error
            self._prepared[key] = scenario, reference
        return self._prepared[key]

    def _scenario(self, group: int) -> Scenario:
        made = self._topology if isinstance(self._topology, Topology) else self._topology()
        inputs: Mapping[str, Iterable[Any]]
        inputs = self._inputs(random.Random(group)) if callable(self._inputs) else self._inputs
        planned = ("repartition_partitions", "guarantee")
        given = {name: value for name, value in self.simulation.settings.items() if name in planned}
        return prepare(made, inputs, partitions=self.simulation.partitions, **given)

    def _without_faults(self, error: UndisturbedError, seed: int) -> SimulationResult:
        world = error.world
        outcome = outcome_of(world)
        result = result_of(world, outcome, Reference(world.scenario, (outcome,)), seed)
        first = result.violations[0]
        told = Violation(first.check, f"even without any fault: {first.message}", first.at_ms)
        return replace(result, violations=(told, *result.violations[1:]))

    def _checked(self, result: SimulationResult, check: Check) -> SimulationResult:
        try:
            check(result)
        except AssertionError as error:
            told = Violation("your own check", str(error) or "it failed", result.statistics.virtual_ms)
            return replace(result, violations=(*result.violations, told))
        return result


def simulate(
    topology: Topology | Callable[[], Topology],
    inputs: Inputs | MakeInputs,
    *,
    seed: int,
    simulation: Simulation | None = None,
    check: Check | None = None,
    **settings: Any,
) -> SimulationResult:
    """Run a topology in a simulated world, in which the seed decides what goes wrong, and return what came of it.

    The workers, tasks, checkpoints and groups are the real ones. Time, threads, the log, the checkpoint store and the
    disks are simulated: workers crash in the middle of anything they do, stand still and come back, lose what was not
    flushed; requests fail, get lost, arrive late or twice. Minutes pass in a fraction of a second, and the same seed
    does the same again.

    Args:
        topology: What to run; or what makes it anew for every run, if its functions keep anything themselves.
        inputs: By topic, values in the order of arrival (or ``Event``s); or a function that makes them of a
            ``random.Random``.
        seed: Decides everything.
        simulation: How many workers and partitions there are, and what goes wrong.
        check: Is given the result; what it raises as an ``AssertionError`` is a violation.
        settings: Fields of ``Settings`` that the seed shall not decide.

    Raises:
        TopologyError: the topology cannot run as it is written.

    Example:
        >>> from headrace import Topology, agg
        >>> topology = Topology("visits")
        >>> topology.stream("visits", keyed_by="page", time="at").aggregate(n=agg.count()).changes().to("counts")
        >>> visits = [{"page": f"/{n % 3}", "at": n * 100} for n in range(30)]
        >>> simulate(topology, {"visits": visits}, seed=7).violations
        ()
    """
    return Simulator(topology, inputs, simulation=simulation, check=check, **settings).run(seed)


def assert_simulates(
    topology: Topology | Callable[[], Topology],
    inputs: Inputs | MakeInputs,
    *,
    seeds: int = 100,
    first_seed: int = 0,
    simulation: Simulation | None = None,
    check: Check | None = None,
    **settings: Any,
) -> Statistics:
    """Fail unless a topology comes through the simulated worlds of many seeds; see ``simulate``.

    Its outputs, repeats left out, and the final state of its tasks must be those of undisturbed runs; repeats must
    repeat what was there where the plan says so; positions must have no gaps, each task one owner; checkpoints must be
    whole and agree with committed offsets; and work must go on once nothing goes wrong any more.

    Args:
        topology: As for ``simulate``.
        inputs: As for ``simulate``; a function makes new ones for every few seeds.
        seeds: How many seeds.
        first_seed: The first of them.
        simulation: As for ``simulate``.
        check: As for ``simulate``.
        settings: As for ``simulate``.

    Returns:
        What happened in all runs together.

    Raises:
        AssertionError: something is not as it must be; the message has the seed, and the fewest faults, records and
            workers with which it happens.
    """
    __tracebackhide__ = True
    simulator = Simulator(topology, inputs, simulation=simulation, check=check, **settings)
    total = Statistics()
    for seed in range(first_seed, first_seed + seeds):
        result = simulator.run(seed)
        if not result.ok:
            shrunk = simulator.shrink(result)
            raise AssertionError(explain(result, shrunk, _again(shrunk, simulator.simulation)))
        total += result.statistics
    return total


def explain(failed: SimulationResult, shrunk: Shrunk, again: str) -> str:
    """Return the paragraph that tells a developer what went wrong, and how to see it again."""
    violation = shrunk.result.violations[0]
    faults = "".join(f"  {fault}\n" for fault in shrunk.result.faults) or "  none\n"
    tail = "".join(f"  {line}\n" for line in shrunk.result.trace[-_TAIL:])
    return (
        f"seed {failed.seed} violates {violation}\n\n"
        f"The fewest faults with which it happens ({len(failed.faults)} struck at first), with "
        f"{shrunk.attempt.records} records per topic and at most {shrunk.attempt.workers} workers:\n{faults}"
        f"{_hint(shrunk)}\n"
        f"The last of {len(shrunk.result.trace)} lines of its trace:\n{tail}\n"
        f"To see it again:\n  {again}"
    )


def _hint(shrunk: Shrunk) -> str:
    """Say what to look for in the topology's own functions, where they are the likeliest cause."""
    if shrunk.result.violations[0].check == "no worker stops":
        return ""
    if not shrunk.result.faults:
        return (
            "Nothing had to go wrong: the same records gave other results. Look in the topology's functions for "
            "chance, the clock, and variables that live outside state.\n"
        )
    return (
        "If the topology's functions use chance, the clock, or variables that live outside state, look there first: a "
        "replay calls them again.\n"
    )


def _again(shrunk: Shrunk, simulation: Simulation) -> str:
    given = "".join(f", {name}={value!r}" for name, value in simulation.settings.items())
    return (
        f"Simulator(topology, inputs{given}).run({shrunk.result.seed}, Attempt(\n    "
        f"{list(shrunk.attempt.faults)},\n    records={shrunk.attempt.records}, workers={shrunk.attempt.workers}))"
    )
