"""Making a failing run small: fewer faults, fewer records, fewer workers, as long as it still fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from headrace.testing.simulation.result import SimulationResult


class Attempt(NamedTuple):
    """What a failing run is reduced to."""

    faults: tuple[str, ...]
    """The faults that may strike."""
    records: int
    """The most records of each topic."""
    workers: int


class Shrunk(NamedTuple):
    """The smallest failing run that was found."""

    attempt: Attempt
    result: SimulationResult
    runs: int
    """How many runs that took."""


Run = Callable[[Attempt], SimulationResult]


def shrink(run: Run, first: Attempt, failed: SimulationResult, most_runs: int = 150) -> Shrunk:
    """Leave out what is not needed for a run to fail.

    Args:
        run: Makes a run.
        first: What the failing run had.
        failed: What came of it.
        most_runs: How many runs may be made.
    """
    return _Shrinking(run, first, failed, most_runs).go()


class _Shrinking:
    def __init__(self, run: Run, first: Attempt, failed: SimulationResult, most_runs: int) -> None:
        self._run = run
        self._best, self._result = first, failed
        self._check = failed.violations[0].check
        self._left = most_runs
        self._runs = 0

    def go(self) -> Shrunk:
        self._fewer_faults()
        self._fewer_records()
        for workers in range(1, self._best.workers):
            if self._still_fails(self._best._replace(workers=workers)):
                break
        self._fewer_faults()
        return Shrunk(self._best, self._result, self._runs)

    def _still_fails(self, attempt: Attempt) -> bool:
        if self._left <= 0:
            return False
        self._left -= 1
        self._runs += 1
        result = self._run(attempt)
        if not any(violation.check == self._check for violation in result.violations):
            return False
        # What did not strike is not needed.
        struck = set(result.faults)
        kept = tuple(fault for fault in attempt.faults if fault in struck)
        self._best, self._result = attempt._replace(faults=kept), result
        return True

    def _fewer_faults(self) -> None:
        """Leave out one part after the other, each half as large as before when none can be spared."""
        if self._best.faults and self._still_fails(self._best._replace(faults=())):
            return
        parts = 2
        while len(self._best.faults) > 1 and self._left > 0:
            for rest in _without_parts(self._best.faults, parts):
                if self._still_fails(self._best._replace(faults=rest)):
                    parts = max(2, parts - 1)
                    break
            else:
                if parts >= len(self._best.faults):
                    return
                parts = min(len(self._best.faults), parts * 2)

    def _fewer_records(self) -> None:
        least, most = 0, self._best.records
        while least + 1 < most and self._left > 0:
            middle = (least + most) // 2
            if self._still_fails(self._best._replace(records=middle)):
                most = middle
            else:
                least = middle


def _without_parts(faults: Sequence[str], parts: int) -> list[tuple[str, ...]]:
    """Return what is left when each of so many parts is left out.

    Example:
        >>> _without_parts(["a", "b", "c"], 2)
        [('b', 'c'), ('a',)]
    """
    cuts = [len(faults) * part // parts for part in range(parts + 1)]
    return [(*faults[:start], *faults[end:]) for start, end in pairwise(cuts)]
