"""How batches that came by several ways are put in order for a step of several inputs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from headrace.operators.api import Batch, Outputs, SidedOperator

_NEVER = -(1 << 62)

Way = tuple[int, int, Batch]
"""Which input of a step a batch came by, how far behind its watermark is, and the batch."""


def by_port(outputs: Outputs, ports: Sequence[str]) -> Outputs:
    """Make one batch again for each port of what a step without state made of single records."""
    made = [(port, [batch for by, batch in outputs if by == port]) for port in ports]
    return [(port, Batch.concatenate(batches)) for port, batches in made if batches]


def interleave(ways: list[Way], held: int) -> list[tuple[Batch, list[int]]]:
    """Put what came by several ways into the order of the input, or, if windows made it, of their closing.

    What time made behind a record comes after whatever the record itself did. Of one input record, or one moment, it
    stays in the order of the ways. Returns batches, and for each which input its records came by.

    Args:
        ways: What came.
        held: How far behind the task's watermark that of the step is. What came by a way that is less far behind lies
            ahead of it.
    """
    of_time = [batch.timed or batch.offsets[0] < 0 for _, _, batch in ways]
    if len(ways) == 1 and not (of_time[0] and ways[0][1] < held):
        side, _, batch = ways[0]
        return [(batch, [side] * len(batch))]
    whole = Batch.concatenate([batch for _, _, batch in ways])
    sides = [side for side, _, batch in ways for _ in range(len(batch))]
    offsets = whole.offsets
    if not any(of_time):
        rows = sorted(range(len(whole)), key=lambda row: (offsets[row], sides[row]))
        return [(whole.pick(rows), [sides[row] for row in rows])]
    made: list[int] = []
    """When time made each record; before all times for one that it did not make."""
    for (_, hold, batch), timed in zip(ways, of_time, strict=True):
        if timed:
            made += [moment + hold for moment in batch.moments or batch.timestamps]
        else:
            made += [_NEVER] * len(batch)
    whole.moments = [moment - held for moment in made]
    rows = sorted(range(len(whole)), key=lambda row: (offsets[row], made[row], sides[row]))
    parts = []
    for timed, group in groupby(rows, key=lambda row: made[row] > _NEVER):
        part = list(group)
        batch = whole.pick(part)
        batch.timed = timed and batch.running is not None
        batch.moments = batch.moments if timed else None
        parts.append((batch, [sides[row] for row in part]))
    return parts


def taking_sides(operator: Any, sides: Sequence[int]) -> Callable[[Batch], Outputs]:
    """Return what takes a batch whose records came by ``sides``."""
    sided: SidedOperator = operator
    return lambda batch: sided.process_sides(batch, sides)
