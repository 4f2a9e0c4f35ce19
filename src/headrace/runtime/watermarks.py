"""How event time moves in a task. Pure: the time of day is an argument.

Every input has a watermark. That of a source partition is the highest timestamp seen less the allowed disorder; that
of an internal partition is the least of what its writers reported. The task's is the least of its inputs'. An input
that has run dry is *idle* and is left out; when all are idle, time moves on by what passes on the clock, never by a
jump to it, so that the last windows close and a replay of old data loses nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from headrace.operators.api import RunningWatermark
from headrace.record import MIN_WATERMARK, Progress


class SourceTime:
    """Event time of one source partition."""

    def __init__(self, out_of_orderness_ms: int, idle_after_ms: int) -> None:
        self.out_of_orderness_ms = out_of_orderness_ms
        self.watermark = MIN_WATERMARK
        self.idle = False
        self._idle_after_ms = idle_after_ms
        self._active_ms: int | None = None
        """When it last had a record or was not at its end."""

    def observe(self, highest: int) -> None:
        """Take the highest timestamp of a batch."""
        self.watermark = max(self.watermark, highest - self.out_of_orderness_ms, MIN_WATERMARK)
        self.idle = False
        self._active_ms = None

    def tick(self, now_ms: int, at_end: bool) -> None:
        """Learn the time, and whether everything there is was read."""
        if not at_end or self._active_ms is None:
            self._active_ms = now_ms
        self.idle = at_end and now_ms - self._active_ms >= self._idle_after_ms

    def state(self) -> list[Any]:
        """Return what a checkpoint keeps."""
        return [self.watermark]

    def restore(self, state: Sequence[Any]) -> None:
        """Take what a checkpoint kept."""
        self.watermark = state[0]


class InternalTime:
    """Event time of one internal partition, from what the tasks that write to it report."""

    def __init__(self, upstream: Sequence[str]) -> None:
        self._progress = dict.fromkeys(upstream, Progress(MIN_WATERMARK, False, -1))
        self.watermark = MIN_WATERMARK
        self.idle = False

    def observe(self, upstream: str, progress: Progress) -> None:
        """Take a report; a writer's own watermark and end never go back."""
        before = self._progress.get(upstream)
        if before is None:
            return  # a writer of an older plan
        self._progress[upstream] = Progress(
            max(before.watermark, progress.watermark), progress.idle, max(before.end, progress.end)
        )
        waited_for = [p.watermark for p in self._progress.values() if not p.idle]
        self.idle = not waited_for
        least = min(waited_for) if waited_for else max(p.watermark for p in self._progress.values())
        self.watermark = max(self.watermark, least)

    def tick(self, now_ms: int, at_end: bool) -> None:
        """Do nothing: writers report when they run dry."""

    def ended(self, bound: int) -> bool:
        """Return whether every writer is finished up to ``bound``."""
        return all(progress.end >= bound for progress in self._progress.values())

    def slowest(self) -> str:
        """Return the writer that holds the watermark back."""
        return min(self._progress, key=lambda name: (self._progress[name].idle, self._progress[name].watermark))

    def state(self) -> list[Any]:
        """Return what a checkpoint keeps."""
        return [self.watermark, {name: list(progress) for name, progress in self._progress.items()}]

    def restore(self, state: Sequence[Any]) -> None:
        """Take what a checkpoint kept."""
        self.watermark = state[0]
        for name, (watermark, idle, end) in state[1].items():
            if name in self._progress:
                self._progress[name] = Progress(watermark, idle, end)
        self.idle = all(progress.idle for progress in self._progress.values())


InputTime = SourceTime | InternalTime


class TaskTime:
    """Event time of a task: the least of its inputs that are not idle."""

    def __init__(self, inputs: Mapping[Any, InputTime]) -> None:
        self._inputs = dict(inputs)
        self.watermark = MIN_WATERMARK
        self._idle_ms: int | None = None
        """Since when every input has been idle; later, when the watermark was last moved by the clock."""
        self._ticked_ms = 0

    @property
    def idle(self) -> bool:
        """Return whether every input has run dry."""
        return all(item.idle for item in self._inputs.values())

    def others(self, key: Any) -> int | None:
        """Return the least watermark of the inputs but ``key`` that are waited for; None if there is none."""
        return min((i.watermark for k, i in self._inputs.items() if k != key and not i.idle), default=None)

    def update(self) -> int:
        """Take the inputs' watermarks and return the task's, which never goes back."""
        waited_for = [item.watermark for item in self._inputs.values() if not item.idle]
        if waited_for:
            self.watermark = max(self.watermark, min(waited_for))
        else:
            self.watermark = max(self.watermark, max(item.watermark for item in self._inputs.values()))
        return self.watermark

    def tick(self, now_ms: int, at_end: Mapping[Any, bool]) -> int:
        """Learn the time and which inputs were read to their end; return where the clock would have the watermark.

        While every input is idle, it would move by what passes. ``move`` makes it so.
        """
        for key, item in self._inputs.items():
            item.tick(now_ms, at_end[key])
        self._ticked_ms = now_ms
        self.update()
        own = all(isinstance(item, SourceTime) for item in self._inputs.values())
        if not (self.idle and own and self.watermark > MIN_WATERMARK):
            self._idle_ms = None
            return self.watermark
        if self._idle_ms is None:
            self._idle_ms = now_ms
        return self.watermark + max(0, now_ms - self._idle_ms)

    def move(self, watermark: int) -> None:
        """Move the watermark to where the clock would have it."""
        self.watermark = max(self.watermark, watermark)
        if self._idle_ms is not None:
            self._idle_ms = self._ticked_ms

    def held_back_by(self) -> Any:
        """Return the input whose watermark is the least."""
        return min(self._inputs, key=lambda key: (self._inputs[key].idle, self._inputs[key].watermark))


class Running:
    """The watermark of a task as it moved through one source batch."""

    def __init__(
        self, timestamps: Sequence[int], offsets: Sequence[int], source: SourceTime, others: int | None, floor: int
    ) -> None:
        self._timestamps = timestamps
        self._offsets = offsets
        self._disorder = source.out_of_orderness_ms
        self._before = source.watermark
        self._others = others
        self._floor = floor
        self._highest: list[int] | None = None
        self.last = self._at(max(timestamps))

    def before(self, offset: int) -> int:
        """Return the watermark just before the record at ``offset``."""
        place = bisect_left(self._offsets, offset)
        if place == 0:
            return self._floor
        if self._highest is None:
            self._highest = list(accumulate(self._timestamps, max))
        return self._at(self._highest[place - 1])

    def _at(self, highest: int) -> int:
        watermark = max(self._before, highest - self._disorder, MIN_WATERMARK)
        if self._others is not None:
            watermark = min(watermark, self._others)
        return max(watermark, self._floor)


class HeldBack:
    """A running watermark as it is behind a step that holds it back."""

    def __init__(self, running: RunningWatermark, by_ms: int) -> None:
        self.whole = running
        self.last = max(MIN_WATERMARK, running.last - by_ms)
        self._by_ms = by_ms

    def before(self, offset: int) -> int:
        """Return the watermark just before the record at ``offset``."""
        return max(MIN_WATERMARK, self.whole.before(offset) - self._by_ms)


def held_back(running: RunningWatermark, by_ms: int) -> HeldBack:
    """Return the task's running watermark as it is ``by_ms`` behind; it may have been held back before."""
    return HeldBack(running.whole if isinstance(running, HeldBack) else running, by_ms)
