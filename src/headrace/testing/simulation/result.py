"""What came of a simulated run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.record import Record


class Violation(NamedTuple):
    """Something that was not as it must be."""

    check: str
    """The name of the check, such as ``no gaps``."""
    message: str
    at_ms: int
    """When, in virtual milliseconds since the start."""

    def __str__(self) -> str:
        return f"{self.check}, at {self.at_ms / 1000:.3f} s: {self.message}"


@dataclass(frozen=True)
class Statistics:
    """What happened in a run, or in several together."""

    faults: Counter[str] = field(default_factory=Counter)
    """How many faults struck, by kind."""
    checkpoints: int = 0
    """Manifests that were written."""
    records: int = 0
    """Records of the sources."""
    outputs: int = 0
    """Records written to sinks, repeats included."""
    repeats: int = 0
    """Those of them that came again."""
    lives: int = 0
    """Workers that were started."""
    lost: int = 0
    """Records that were lost with the power before they were flushed."""
    virtual_ms: int = 0

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.faults + other.faults,
            self.checkpoints + other.checkpoints,
            self.records + other.records,
            self.outputs + other.outputs,
            self.repeats + other.repeats,
            self.lives + other.lives,
            self.lost + other.lost,
            self.virtual_ms + other.virtual_ms,
        )


@dataclass(frozen=True)
class SimulationResult:
    """What came of the run of one seed."""

    seed: int
    violations: tuple[Violation, ...]
    trace: tuple[str, ...]
    """What happened, in order, as text."""
    digest: str
    """Of the trace and the outputs: the same for the same seed, settings and code."""
    faults: tuple[str, ...]
    """The names of the faults that struck."""
    outputs: Mapping[str, Sequence[Record]]
    """By topic, what was written, decoded, without repeats: by id, or by content where ids may come again otherwise."""
    statistics: Statistics
    order_dependent: tuple[str, ...] = ()
    """Edges whose content depends on the order in which inputs come, by the topology's own nature; only the ids of
    these were checked."""
    tardy: bool = False
    """Whether the end of the input came when the clock had closed windows already, so that records were late, how many
    nobody can say: contents were not compared then, nor was your own check asked."""

    @property
    def ok(self) -> bool:
        """Return whether nothing was violated."""
        return not self.violations
