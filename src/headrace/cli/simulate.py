"""``headrace simulate``: a topology in a world where everything goes wrong."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from headrace.cli.failures import FAILED, load
from headrace.cli.lines import Stop
from headrace.cli.options import GuaranteeOption, load_settings
from headrace.cli.output import duration, note, show_table
from headrace.cli.progress import progress_bar
from headrace.clock import Clock, SystemClock
from headrace.errors import NotFoundError, SettingsError

if TYPE_CHECKING:
    from headrace.testing.simulation.api import Simulator
    from headrace.testing.simulation.result import SimulationResult, Statistics
    from headrace.testing.simulation.shrink import Shrunk

_RECORDS = 100
_WORKERS = 3
_PLAIN_EVERY_MS = 10_000
_FAULT = re.compile(r"[a-z]+@[a-z0-9.]+|[a-z0-9.]+:[a-z]+#[0-9]+:[a-z-]+")


@dataclass(frozen=True)
class Wanted:
    """What every process that simulates is told."""

    module: str
    inputs: tuple[tuple[str, str], ...]
    records: int
    workers: int
    partitions: int
    only: tuple[str, ...] | None
    guarantee: str


def simulate(
    module: Annotated[str, typer.Argument(metavar="MODULE[:NAME]", help="Where the topology is, as for import.")],
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many seeds to run.")] = 100,
    first_seed: Annotated[int, typer.Option(min=0, metavar="SEED", help="The first of them.")] = 0,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="SEED", help="Run this one seed and show its trace.")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=26, metavar="N", help="The most workers that a run has.")
    ] = _WORKERS,
    partitions: Annotated[int, typer.Option(min=1, metavar="N", help="Partitions of the topics it reads.")] = 3,
    records: Annotated[
        int, typer.Option(min=1, metavar="N", help="The most records that come to each topic.")
    ] = _RECORDS,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="TOPIC=FILE", help="Lines of JSON for a topic; once for each topic."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, metavar="N", help="Processes that share the seeds.")] = 1,
    only: Annotated[
        str | None,
        typer.Option(metavar="FAULT,...", help="Let only these faults strike, by the names that a failure shows."),
    ] = None,
    guarantee: GuaranteeOption = None,
) -> None:
    """Run a topology through simulated failures and check it.

    Nothing may be lost or counted twice, whatever fails and whenever.

    Workers, checkpoints and groups are the real ones; time, disks, network and crashes are simulated and follow from
    the seed, so that what fails once fails again. Outputs and state are compared with those of undisturbed runs.

    Values come from --input, from a function simulation_input(random) in the module that returns values by topic, or
    are made from the types of the sources.

    \b
    headrace simulate topologies.card_spend --seeds 1000 --jobs 4
    headrace simulate topologies.card_spend --seed 42
    """
    settings = load_settings(guarantee=guarantee)
    load(module)
    wanted = Wanted(
        module, _parsed_inputs(inputs or ()), records, workers, partitions,
        _parsed_only(only), settings.guarantee,
    )  # fmt: skip
    between = Between()
    simulator = make_simulator(wanted, lambda _: between.look())
    clock = SystemClock()
    begun_ms = clock.monotonic_ms()
    chosen = [seed] if seed is not None else range(first_seed, first_seed + seeds)
    failed, total, done = _run_all(_results(simulator, wanted, chosen, jobs, between), len(chosen), clock)
    _show(load(module).name, total, done, len(failed), clock.monotonic_ms() - begun_ms)
    if not (failed or total.outputs):
        note(
            "nothing came out, so this proves little: give input of which something is made, by --input TOPIC=FILE for "
            f"each topic, by a function simulation_input(random) in {module.partition(':')[0]} that returns values by "
            "topic, or with more --records"
        )
    with between:
        if seed is not None and not failed:
            print("\n".join(simulator.run(seed).trace))
        if failed:
            _explain(simulator, wanted, failed[0])
            raise typer.Exit(FAILED)


class Between:
    """Lets Ctrl-C wait for the end of a simulated run, whose threads cannot be left in the middle."""

    def __init__(self) -> None:
        self._stop = Stop()
        self._before: Any = None

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGINT, self._stop.set)

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def look(self) -> None:
        """Raise the ``KeyboardInterrupt`` that has waited."""
        if self._stop:
            raise KeyboardInterrupt


def make_simulator(wanted: Wanted, on_run: Callable[[SimulationResult], None] | None = None) -> Simulator:
    """Make what runs the seeds; ``on_run`` is called after each run.

    Raises:
        InvalidError: there is no input.
    """
    from headrace.testing.simulation.api import Simulator
    from headrace.testing.simulation.runs import Simulation

    simulation = Simulation(workers=wanted.workers, partitions=wanted.partitions, only=wanted.only)
    return Simulator(
        load(wanted.module), _inputs(wanted), simulation=simulation, check=on_run, guarantee=wanted.guarantee
    )


def run_seeds(wanted: Wanted, seeds: Sequence[int]) -> tuple[list[SimulationResult], Statistics]:
    """Run seeds in a process of their own; return what failed, and what happened in all of them."""
    return _run_here(make_simulator(wanted), seeds)


def _run_here(simulator: Simulator, seeds: Sequence[int]) -> tuple[list[SimulationResult], Statistics]:
    from headrace.testing.simulation.result import Statistics

    total, failed = Statistics(), []
    for seed in seeds:
        result = simulator.run(seed)
        total += result.statistics
        if not result.ok:
            failed.append(replace(result, outputs={}))
    return failed, total


def _run_all(
    results: Generator[tuple[list[SimulationResult], Statistics, int]], seeds: int, clock: Clock
) -> tuple[list[SimulationResult], Statistics, int]:
    """Run all seeds, up to the first that fails."""
    from headrace.testing.simulation.result import Statistics

    total, failed, done = Statistics(), list[Any](), 0
    told = _Progress(clock, seeds)
    try:
        with told, closing(results):
            for some_failed, statistics, count in results:
                done += count
                failed += some_failed
                total += statistics
                told.update(done)
                if failed:
                    break
    except KeyboardInterrupt:
        note(f"stopped after {done:,} of {seeds:,} seeds; none of them failed")
        raise
    return sorted(failed, key=lambda result: result.seed), total, done


def _results(
    simulator: Simulator, wanted: Wanted, seeds: Sequence[int], jobs: int, between: Between
) -> Generator[tuple[list[SimulationResult], Statistics, int]]:
    if jobs == 1 or len(seeds) == 1:
        with between:
            for seed in seeds:
                yield *_run_here(simulator, [seed]), 1
                between.look()
        return
    from headrace.testing.simulation.api import SEEDS_PER_INPUT

    parts = [seeds[start : start + SEEDS_PER_INPUT] for start in range(0, len(seeds), SEEDS_PER_INPUT)]
    with ProcessPoolExecutor(min(jobs, len(parts)), get_context("spawn"), end_with_parent) as pool:
        running: dict[Future[Any], int] = {pool.submit(run_seeds, wanted, part): len(part) for part in parts}
        try:
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield *future.result(), running.pop(future)
        finally:
            # Whether all is done, one seed failed or Ctrl-C came: what still runs is of no use.
            for process in active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Leave Ctrl-C to the process that started this one, and end as soon as that has ended, however it did."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="headrace-parent", daemon=True).start()


class _Progress:
    """A bar on a terminal, a line now and then elsewhere."""

    def __init__(self, clock: Clock, seeds: int) -> None:
        self._clock = clock
        self._seeds = seeds
        self._told_ms = clock.monotonic_ms()
        self._bar = progress_bar() if sys.stderr.isatty() else None
        self._task = None if self._bar is None else self._bar.add_task("simulating", total=seeds, told="")

    def __enter__(self) -> None:
        if self._bar is not None:
            self._bar.start()

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int) -> None:
        """Show how many seeds are done."""
        now_ms = self._clock.monotonic_ms()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, told="seeds")
            self._bar.refresh()
        elif now_ms - self._told_ms >= _PLAIN_EVERY_MS:
            self._told_ms = now_ms
            note(f"simulating: {done:,} of {self._seeds:,} seeds")


def _show(name: str, total: Statistics, seeds: int, failed: int, elapsed_ms: int) -> None:
    faults = total.faults
    crashes = sum(count for kind, count in faults.items() if "crash" in kind) + faults["power"]
    timed = faults["pause"] + faults["silence"]
    others = faults.total() - crashes - timed - faults["drain"]
    rows = [
        ("seeds", f"{seeds:,}"),
        ("seeds that failed", f"{failed:,}"),
        ("virtual time", duration(total.virtual_ms)),
        ("workers started", f"{total.lives:,}"),
        ("crashes", f"{crashes:,}"),
        ("losses of power", f"{faults['power']:,}, {total.lost:,} records lost with them"),
        ("pauses and silences", f"{timed:,}"),
        ("drains", f"{faults['drain']:,}"),
        ("other faults", f"{others:,}"),
        ("checkpoints", f"{total.checkpoints:,}"),
        ("copies of state", f"{total.copies:,}"),
        ("records in", f"{total.records:,}"),
        ("records out", f"{total.outputs:,}, {total.repeats:,} of them repeats"),
        ("took", duration(elapsed_ms)),
    ]
    show_table(f"simulation of {name}", ["what", "how much"], rows, right=["how much"])


def _explain(simulator: Simulator, wanted: Wanted, failed: SimulationResult) -> None:
    from headrace.testing.simulation.api import explain

    note(f"seed {failed.seed} violates {failed.violations[0].check}; looking for the shortest way to it")
    shrunk = simulator.shrink(failed)
    print()
    print(explain(failed, shrunk, _command(wanted, shrunk)))


def _command(wanted: Wanted, shrunk: Shrunk) -> str:
    parts = [f"headrace simulate {wanted.module} --seed {shrunk.result.seed}"]
    parts += [f"--input {topic}={file}" for topic, file in wanted.inputs]
    if wanted.partitions != 3:
        parts.append(f"--partitions {wanted.partitions}")
    if wanted.guarantee != "at-least-once":
        parts.append(f"--guarantee {wanted.guarantee}")
    parts.append(f"--workers {shrunk.attempt.workers} --records {shrunk.attempt.records}")
    parts.append(f"--only '{','.join(shrunk.attempt.faults)}'")
    return " ".join(parts)


def _parsed_only(given: str | None) -> tuple[str, ...] | None:
    """Return the names of faults; ``'crash@1'`` and ``'a.1:create#7:lost'`` are such."""
    if given is None:
        return None
    names = tuple(name for part in given.split(",") if (name := part.strip()))
    for name in names:
        if not _FAULT.fullmatch(name):
            raise SettingsError(
                f"--only: {name!r} is no name of a fault",
                remedy="Take names from the message of a failure, such as crash@1 or a.1:create#7:lost",
            )
    return names


def _parsed_inputs(given: Sequence[str]) -> tuple[tuple[str, str], ...]:
    parsed = tuple(map(_parsed, given))
    topics = [topic for topic, _ in parsed]
    if twice := [topic for topic in topics if topics.count(topic) > 1]:
        raise SettingsError(f"--input gives values for topic {twice[0]!r} twice", remedy="Put them into one file")
    return parsed


def _parsed(given: str) -> tuple[str, str]:
    topic, equals, file = given.partition("=")
    if not equals or not topic or not file:
        raise SettingsError(f"--input must be TOPIC=FILE, not {given!r}")
    if not Path(file).is_file():
        raise NotFoundError(f"there is no file {file!r} for topic {topic!r}")
    return topic, file


def _inputs(wanted: Wanted) -> Any:
    """Return the input, or what makes it."""
    from headrace.testing.simulation.generated import check_typed, generated

    graph = load(wanted.module).graph()
    if wanted.inputs:
        values = {topic: _values(file)[: wanted.records] for topic, file in wanted.inputs}
        if not any(values.values()):
            files = ", ".join(file for _, file in wanted.inputs)
            raise SettingsError(f"there are no values in {files}", remedy="Put one JSON value on each line")
        return values
    made = getattr(importlib.import_module(wanted.module.partition(":")[0]), "simulation_input", None)
    if made is not None:

        def from_module(random: Any) -> Mapping[str, list[Any]]:
            return {topic: list(values)[: wanted.records] for topic, values in made(random).items()}

        return from_module
    check_typed(graph)
    return lambda random: generated(graph, random, wanted.records)


def _values(file: str) -> list[Any]:
    values = []
    for number, line in enumerate(Path(file).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values.append(msgspec.json.decode(line))
        except msgspec.DecodeError as error:
            raise SettingsError(
                f"line {number} of {file} is not JSON: {error}", remedy="Give a file with one JSON value on each line"
            ) from error
    return values
