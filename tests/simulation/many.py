"""Many seeds over the test topologies, under both guarantees; for now and then, as it takes its time::

    python -m tests.simulation.many --seeds 700 --jobs 2
    python -m tests.simulation.many --seeds 50 --topology windows --topology asked --first-seed 5000

Each of ``--jobs`` processes takes parts of ``SEEDS_PER_INPUT`` seeds, which share their input. The topologies that no
replay repeats run exactly-once, all others at-least-once. Every failure is printed as it comes with what it takes to
see it again; at the end stands what happened in all. The exit code is 1 if any seed failed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import NamedTuple

from headrace.testing import Simulation, Simulator
from headrace.testing.simulation.api import SEEDS_PER_INPUT
from headrace.testing.simulation.result import Statistics
from tests.simulation.topologies import BY_NAME, simulator_of
from tests.simulation.unsure import UNSURE

CASES = BY_NAME | UNSURE


class Part(NamedTuple):
    """What one process does in one go."""

    topology: str
    first: int
    count: int


class Done(NamedTuple):
    """What came of a part: the seeds that failed with the first violation of each, and what happened."""

    part: Part
    failed: list[tuple[int, str]]
    statistics: Statistics


def simulator(topology: str) -> Simulator:
    settings = {"guarantee": "exactly-once"} if topology in UNSURE else {}
    return simulator_of(CASES[topology], Simulation(settings=settings))


def run(part: Part) -> Done:
    made, total, failed = simulator(part.topology), Statistics(), []
    for seed in range(part.first, part.first + part.count):
        result = made.run(seed)
        total += result.statistics
        if not result.ok:
            failed.append((seed, str(result.violations[0])))
    return Done(part, failed, total)


def parts(topologies: Sequence[str], first: int, seeds: int) -> Iterator[Part]:
    """Yield all parts, those of the first seeds of every topology first."""
    for start in range(first, first + seeds, SEEDS_PER_INPUT):
        for topology in topologies:
            yield Part(topology, start, min(SEEDS_PER_INPUT, first + seeds - start))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100, help="how many for each topology")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--topology", action="append", choices=sorted(CASES), help="only this one; may be repeated")
    chosen = parser.parse_args(arguments)
    begun, told, failures, seeds = time.monotonic(), time.monotonic(), 0, 0
    totals: dict[str, Statistics] = {}
    with ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool:
        todo = list(parts(chosen.topology or list(CASES), chosen.first_seed, chosen.seeds))
        for future in as_completed([pool.submit(run, part) for part in todo]):
            done = future.result()
            name = done.part.topology
            seeds += done.part.count
            totals[name] = totals.get(name, Statistics()) + done.statistics
            for seed, violation in done.failed:
                failures += 1
                print(f"FAILED: {name}, seed {seed}: {violation}\n  simulator({name!r}).run({seed})", flush=True)
            if time.monotonic() - told > 30:
                told = time.monotonic()
                print(f"{seeds} seeds, {failures} failed, {told - begun:.0f} s", flush=True)
    for name, total in totals.items():
        print(f"\n{name}:\n{described(total)}")
    whole = sum(totals.values(), Statistics())
    print(f"\nin all: {seeds} seeds, {failures} failed, {time.monotonic() - begun:.0f} s\n{described(whole)}")
    return int(failures > 0)


def described(total: Statistics) -> str:
    faults = ", ".join(f"{count} {kind}" for kind, count in total.faults.most_common())
    return (
        f"  {total.virtual_ms / 3_600_000:.1f} virtual hours, {total.lives} workers, {total.checkpoints} checkpoints, "
        f"{total.copies} copies, {total.records} records in, {total.outputs} out with {total.repeats} repeats, "
        f"{total.lost} lost with the power\n  {total.faults.total()} faults: {faults}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
