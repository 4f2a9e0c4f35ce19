"""Finds out what a worker is at if it does not come back from it: which step, which records, and where in the code.

Another thread looks; what is looked at pays nothing for it. While user code holds Python's lock, as a regular
expression that backtracks for ever does, nobody can look, nor say that the worker lives: its tasks go to others.
"""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from headrace.clock import Clock
from headrace.errors import FatalError
from headrace.runtime.tasks.executor import step_of
from headrace.runtime.workers.slot import Slot
from headrace.runtime.workers.worker import Worker
from headrace.settings import Settings

_log = logging.getLogger("headrace")

_RUNTIME = Path(__file__).parents[1]
_WORK = tuple(str(_RUNTIME / name) for name in ("tasks/executor.py", "tasks/task.py", "workers/worker.py"))
"""Where work is done, the innermost first: what stands further out in a stack is the same for all work."""
_PAUSE_MS = 2_000
"""Between two looks no more than this counts: the process may have been stopped, and did nothing meanwhile."""


class Whereabouts(NamedTuple):
    """What a worker is at."""

    what: str
    """The step, task and records, as a subject of a sentence."""
    stack: str
    """The frames from the step to the line that runs, without values."""


class SlowSteps:
    """Watches one worker.

    Args:
        worker: The worker.
        clock: Tells the time.
        settings: Say what is slow, and how long a step may take at most.
    """

    def __init__(self, worker: Worker, clock: Clock, settings: Settings) -> None:
        self._worker = worker
        self._clock = clock
        self._slow_ms = settings.slow_step_ms
        self._limit_ms = settings.step_timeout_ms
        self._pause_ms = max(_PAUSE_MS, 2 * settings.heartbeat_interval_ms)
        self._at: object = None
        self._since_ms = self._looked_ms = clock.monotonic_ms()
        self._told: tuple[str, Slot | None] | None = None
        """What was said of the step that the worker is at now."""

    def look(self, turn: int, thread: int) -> FatalError | None:
        """Look, and say so if a step is slow; to be called often.

        Args:
            turn: The number of the turn that the worker makes.
            thread: The id of the thread that it makes it in.

        Returns:
            Why the worker should be given up, if a step has taken longer than it may.
        """
        now_ms = self._clock.monotonic_ms()
        self._since_ms += max(0, now_ms - self._looked_ms - self._pause_ms)
        self._looked_ms = now_ms
        at = (turn, self._worker.current)
        lasted_ms = now_ms - self._since_ms
        if at != self._at:
            self._came_back(lasted_ms)
            self._at, self._since_ms = at, now_ms
            return None
        if self._slow_ms and lasted_ms >= self._slow_ms:
            self._tell(lasted_ms, thread)
        if self._limit_ms and lasted_ms >= self._limit_ms:
            return self._given_up(lasted_ms, thread)
        return None

    def end(self) -> None:
        """Take note that the worker came back for the last time."""
        self._came_back(self._clock.monotonic_ms() - self._since_ms)

    def _tell(self, lasted_ms: int, thread: int) -> None:
        if self._told is None:
            slot, place = self._slot(), self._whereabouts(thread)
            if place is None:
                return
            self._told = place.what, slot
            if slot is not None:
                slot.metrics.slowed()
            _log.warning(
                "%s has taken %.1f s so far; the worker does nothing else until it comes back. It is at\n%s",
                place.what, lasted_ms / 1000, place.stack,
            )  # fmt: skip
        slot = self._told[1]
        if slot is not None:
            slot.metrics.step_lasts(lasted_ms / 1000)

    def _came_back(self, lasted_ms: int) -> None:
        if self._told is None:
            return
        (what, slot), self._told = self._told, None
        if slot is not None:
            slot.metrics.step_lasts(0)
        _log.warning("%s came back after %.1f s", what, lasted_ms / 1000)

    def _given_up(self, lasted_ms: int, thread: int) -> FatalError | None:
        place = self._whereabouts(thread)
        if place is None:
            return None
        error = FatalError(
            f"{place.what} did not come back within {lasted_ms / 1000:.1f} s: the worker gives itself up, so that its "
            "tasks go to others, and what it did since the last checkpoints will be done again",
            remedy="Look at the stack above. If a step may take that long, raise HEADRACE_STEP_TIMEOUT (0s for ever)",
        )
        error.add_note(f"{place.what} is at\n{place.stack}")
        return error

    def _slot(self) -> Slot | None:
        task = self._worker.current
        return next((slot for slot in self._worker.slots() if slot.id == task), None)

    def _whereabouts(self, thread: int) -> Whereabouts | None:
        """Return where the worker is, None if it came back just now."""
        frame = sys._current_frames().get(thread)
        if frame is None or (self._slot() is None and self._worker.current is not None):
            return None
        return Whereabouts(_named(step_of(frame), self._slot()), _stack(frame))


def _named(step: str, slot: Slot | None) -> str:
    """Return the subject of a sentence about a step, or about what else a task or worker does."""
    if slot is None:
        return "what the worker does for no task of its own"
    who = f"step {step!r} of task {slot.id}" if step else f"task {slot.id}"
    if slot.task is None:
        return who
    spans = [
        f"{partition} offsets {position} to {slot.readers[partition].position - 1}"
        for partition, position in slot.task.positions.items()
        if partition in slot.readers and slot.readers[partition].position > position
    ]
    if spans:
        return f"{who}, at {' and '.join(spans)},"
    return f"{who}, as time passes," if step else who


def _stack(frame: FrameType) -> str:
    """Return the frames from where the work is done to the line that runs."""
    frames = traceback.extract_stack(frame)
    for file in _WORK:
        places = [place for place, summary in enumerate(frames) if summary.filename == file]
        if places:
            return "".join(traceback.format_list(frames[places[-1] :])).rstrip()
    return "".join(traceback.format_list(frames)).rstrip()
