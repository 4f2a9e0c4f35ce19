"""Event time at every step of a task. Pure.

Each step knows only the time of what is above it: a stream that merely shares the task moves nothing of another's. So
what follows from one input follows from that input's records alone, and a replay repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from headrace.operators.api import Operator, RunningWatermark
from headrace.record import MIN_WATERMARK, TIMESTAMP_LIMIT


class Mark(NamedTuple):
    """The event time of a stream."""

    watermark: int
    idle: bool
    """True if the stream has run dry, so that what it meets should not wait for it."""


def meet(marks: Iterable[Mark]) -> Mark:
    """Return the time of what several streams come together in: the least of those that are waited for.

    If all of them are idle, it is the greatest.

    Example:
        >>> meet([Mark(5, False), Mark(9, False), Mark(2, True)])
        Mark(watermark=5, idle=False)
        >>> meet([Mark(5, True), Mark(9, True)])
        Mark(watermark=9, idle=True)
    """
    all_marks = list(marks)
    waited_for = [mark.watermark for mark in all_marks if not mark.idle]
    if waited_for:
        return Mark(min(waited_for), False)
    return Mark(max(mark.watermark for mark in all_marks), True)


class ChainTime:
    """The event time at every step of a chain; it never goes back.

    Args:
        sources: Where records enter.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self._marks: dict[str, Mark] = {name: Mark(MIN_WATERMARK, False) for name in sources}
        """What leaves each source and step."""
        self._operators: dict[str, Operator] = {}
        self._inputs: dict[str, tuple[str, ...]] = {}
        self._reached: dict[str, int] = {}
        """What each step knows of."""
        self._unaware: set[str] = set()
        """Steps that were not told anything yet."""
        self._holds: dict[str, dict[str, int]] = {name: {name: 0} for name in self._marks}
        """How far what leaves a step is behind each source above it."""
        self._held: dict[str, dict[str, int]] = {}
        """The same of what a step gets."""

    def add(self, name: str, inputs: Sequence[str], operator: Operator) -> None:
        """Add a step behind those that it reads."""
        self._operators[name] = operator
        self._inputs[name] = tuple(inputs)
        self._reached[name] = MIN_WATERMARK
        self._unaware.add(name)
        self._marks[name] = Mark(MIN_WATERMARK, False)
        own = TIMESTAMP_LIMIT - operator.output_watermark(TIMESTAMP_LIMIT)
        held: dict[str, int] = {}
        for above in inputs:
            for source, hold in self._holds[above].items():
                held[source] = max(hold, held.get(source, 0))
        self._held[name] = held
        self._holds[name] = {source: hold + own for source, hold in held.items()}

    def hold(self, name: str) -> int:
        """Return how far what leaves a source or step is behind the sources above it, at most."""
        return max(self._holds[name].values())

    def held(self, name: str) -> int:
        """Return how far what a step gets is behind the sources above it, at most."""
        return max(self._held[name].values())

    def sources_of(self, name: str) -> list[str]:
        """Return the sources above a step."""
        return list(self._holds[name])

    def take(self, sources: Mapping[str, Mark]) -> None:
        """Learn the time of sources."""
        self._marks.update(sources)

    def reach(self, name: str) -> int | None:
        """Return what a step has now to be told, None if it knows; its inputs must have been reached before."""
        found = meet(self._marks[above] for above in self._inputs[name])
        before = self._reached[name]
        reached = self._reached[name] = max(before, found.watermark)
        self._marks[name] = Mark(self._operators[name].output_watermark(reached), found.idle)
        if reached == before and name not in self._unaware:
            return None
        self._unaware.discard(name)
        return reached

    @property
    def marks(self) -> Mapping[str, Mark]:
        """Return what leaves each source and step."""
        return self._marks

    def at(self, inputs: Iterable[str]) -> Mark:
        """Return the time of what comes together from several sources and steps."""
        return meet(self._marks[name] for name in inputs)

    def ahead(self, sources: Mapping[str, Mark]) -> dict[str, Mark]:
        """Return what would leave each source and step if the sources had other times."""
        marks = {**self._marks, **sources}
        for name, operator in self._operators.items():
            found = meet(marks[above] for above in self._inputs[name])
            marks[name] = Mark(operator.output_watermark(max(self._reached[name], found.watermark)), found.idle)
        return marks

    def is_due(self, sources: Mapping[str, Mark]) -> bool:
        """Return whether anything would close if the sources had other times."""
        marks = self.ahead(sources)
        for name, operator in self._operators.items():
            would_reach = meet(marks[above] for above in self._inputs[name]).watermark
            if would_reach > self._reached[name]:
                closes = operator.next_close()
                if closes is not None and closes <= would_reach:
                    return True
        return False

    def next_close(self, source: str) -> int:
        """Return a watermark of ``source`` at which something may close, no later than need be.

        It is beyond all times if nothing is open.
        """
        marks = [(operator.next_close(), self._held[name].get(source)) for name, operator in self._operators.items()]
        found = [closes + hold for closes, hold in marks if closes is not None and hold is not None]
        return min(found, default=TIMESTAMP_LIMIT)

    def seen_by(self, name: str, running: RunningWatermark, source: str) -> RunningWatermark:
        """Return the time of ``source`` as it moves through a batch as the time that a step sees."""
        holds = self._held[name]
        whole = running.whole if isinstance(running, Seen) else running
        waited_for = [other for other in holds if other != source and not self._marks[other].idle]
        others = [self._marks[other].watermark - holds[other] for other in waited_for]
        hold, floor = holds.get(source, 0), self._reached[name]
        if not others and not hold and floor == MIN_WATERMARK:
            return whole
        return Seen(whole, hold, min(others, default=None), floor)

    def state(self) -> dict[str, int]:
        """Return what a checkpoint keeps."""
        return dict(self._reached)

    def restore(self, kept: Mapping[str, int]) -> None:
        """Take what a checkpoint kept; every step is still to be told."""
        self._reached.update({name: reached for name, reached in kept.items() if name in self._reached})


class Seen:
    """A running watermark as a step sees it: held back on the way, and no further than other inputs are."""

    def __init__(self, running: RunningWatermark, hold_ms: int, others: int | None, floor: int) -> None:
        self.whole = running
        self._hold_ms = hold_ms
        self._others = others
        self._floor = floor
        self.last = self._seen(running.last)

    def before(self, offset: int) -> int:
        """Return the watermark just before the record at ``offset``."""
        return self._seen(self.whole.before(offset))

    def _seen(self, watermark: int) -> int:
        watermark -= self._hold_ms
        if self._others is not None and self._others < watermark:
            watermark = self._others
        return watermark if watermark > self._floor else self._floor
