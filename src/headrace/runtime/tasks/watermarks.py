"""How event time moves in the inputs of a task. Pure: the time of day is an argument.

Every input has a watermark. That of a source partition is the highest timestamp seen less the allowed disorder; that
of an internal partition is the least of what its writers reported. Where inputs come together
(``runtime.tasks.times``), it is the least of them. An input that has run dry is *idle*: it is left out, and its own
time moves on by what passes on the clock, never by a jump to it, so that the last windows close and a replay of old
data loses nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from headrace.record import MIN_WATERMARK, Progress
from headrace.runtime.tasks.times import Mark


class SourceTime:
    """Event time of one source partition."""

    def __init__(self, out_of_orderness_ms: int, idle_after_ms: int) -> None:
        self.out_of_orderness_ms = out_of_orderness_ms
        self.watermark = MIN_WATERMARK
        self.idle = False
        self._idle_after_ms = idle_after_ms
        self._active_ms: int | None = None
        """When it last had a record or was not at its end."""
        self._idle_ms: int | None = None
        """Since when it has been idle; later, when the clock last moved the watermark."""
        self._passed_ms = 0
        """What has passed since then."""

    def observe(self, highest: int) -> None:
        """Take the highest timestamp of a batch."""
        self.watermark = max(self.watermark, highest - self.out_of_orderness_ms, MIN_WATERMARK)
        self.idle = False
        self._active_ms = self._idle_ms = None
        self._passed_ms = 0

    @property
    def mark(self) -> Mark:
        """Return its event time."""
        return Mark(self.watermark, self.idle)

    @property
    def ahead(self) -> Mark:
        """Return where the clock would have it: while it is idle, time moves by what passes."""
        return Mark(self.watermark + self._passed_ms, self.idle)

    def tick(self, now_ms: int, at_end: bool) -> None:
        """Learn the time, and whether everything there is was read."""
        if not at_end or self._active_ms is None:
            self._active_ms = now_ms
        self.idle = at_end and now_ms - self._active_ms >= self._idle_after_ms
        if not self.idle or self.watermark == MIN_WATERMARK:
            self._idle_ms = None
        elif self._idle_ms is None:
            self._idle_ms = now_ms
        self._passed_ms = 0 if self._idle_ms is None else max(0, now_ms - self._idle_ms)

    def move(self, watermark: int) -> None:
        """Move the watermark to where the clock has it, or the end of the input."""
        if self._idle_ms is not None:
            self._idle_ms += self._passed_ms
        self._passed_ms = 0
        self.watermark = max(self.watermark, watermark)

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

    @property
    def mark(self) -> Mark:
        """Return its event time."""
        return Mark(self.watermark, self.idle)

    @property
    def ahead(self) -> Mark:
        """Return its event time: only writers know more."""
        return self.mark

    def tick(self, now_ms: int, at_end: bool) -> None:
        """Do nothing: writers report when they run dry."""

    def move(self, watermark: int) -> None:
        """Move the watermark to where the end of the input has it."""
        self.watermark = max(self.watermark, watermark)

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


class Running:
    """The watermark of a source as it moved through one batch."""

    def __init__(self, timestamps: Sequence[int], offsets: Sequence[int], source: SourceTime) -> None:
        self._timestamps = timestamps
        self._offsets = offsets
        self._disorder = source.out_of_orderness_ms
        self._before = source.watermark
        self._highest: list[int] | None = None
        self.last = self._at(max(timestamps))

    def before(self, offset: int) -> int:
        """Return the watermark just before the record at ``offset``."""
        place = bisect_left(self._offsets, offset)
        if place == 0:
            return self._before
        if self._highest is None:
            self._highest = list(accumulate(self._timestamps, max))
        return self._at(self._highest[place - 1])

    def _at(self, highest: int) -> int:
        return max(self._before, highest - self._disorder)
