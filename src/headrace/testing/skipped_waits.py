"""Calls of asynchronous steps in a test: they are really made, but nothing waits for time to pass between them."""

from __future__ import annotations

from headrace.operators.async_map import Caller
from headrace.runtime.tasks.edges import Append
from headrace.runtime.tasks.parking import Pause
from headrace.runtime.tasks.task import Task
from headrace.runtime.workers.calls import AsyncCalls, BatchFlight


class SkippedWaits:
    """A clock that stands still but for the waits between calls, which pass at once.

    Example:
        >>> waits = SkippedWaits()
        >>> waits.now = 5_000
        >>> waits.monotonic_ms(), waits.waited_ms
        (5000, 0)
    """

    def __init__(self) -> None:
        self.now = 0
        """The processing time, as the test moved it."""
        self.waited_ms = 0
        """How long tasks would have waited before they made calls again."""
        self._calls = AsyncCalls(self, self._sleep)

    @property
    def caller(self) -> Caller:
        """Return what makes the calls."""
        return self._calls

    def finish(self, task: Task) -> list[Append]:
        """Let a task that waits go on until it waits for nothing; return what is to be appended because of it."""
        appends: list[Append] = []
        while (wait := task.parked) is not None:
            if isinstance(wait, BatchFlight):
                wait.wait()
            appends += task.resume(self.waited_ms)
            if task.parked is wait and isinstance(wait, Pause):
                self.waited_ms += wait.duration_ms
        return appends

    def close(self) -> None:
        """End the thread that makes calls, if there is one."""
        self._calls.close()

    def now_ms(self) -> int:
        """Return the processing time."""
        return self.now

    def monotonic_ms(self) -> int:
        """Return the processing time: that of the test never goes back."""
        return self.now

    def sleep_ms(self, duration_ms: int) -> None:
        """Let nothing pass but the count."""
        self.waited_ms += duration_ms

    async def _sleep(self, duration_ms: int) -> None:
        self.sleep_ms(duration_ms)
