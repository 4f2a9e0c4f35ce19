"""Work that may have to wait. Pure.

Whatever a task does is a generator, which yields when it cannot go on by itself: a call that failed is to be made again
a little later, or calls are under way elsewhere. Until it is over, the task does nothing else, so what it does is the
same as if it had not waited; other tasks of the worker go on.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Wait(Protocol):
    """What work waits for."""

    def over(self, now_ms: int) -> bool:
        """Return whether the work can go on; ``now_ms`` is by a clock that never goes back."""
        ...

    def cancel(self) -> None:
        """Learn that nobody waits any more."""
        ...


Work = Generator[Wait, None, T_co]
"""Something that is done step by step, and what comes of it."""


class Pause:
    """Waits for time to pass, from when it is looked at first."""

    def __init__(self, duration_ms: int) -> None:
        self.duration_ms = duration_ms
        self._end_ms: int | None = None

    def over(self, now_ms: int) -> bool:
        """Return whether it has passed."""
        if self._end_ms is None:
            self._end_ms = now_ms + self.duration_ms
        return now_ms >= self._end_ms

    def cancel(self) -> None:
        """Do no more than forget when it would end."""
        self._end_ms = None


class Parked(Generic[T]):
    """Work that waits."""

    def __init__(self, work: Work[T], wait: Wait) -> None:
        self.wait = wait
        self._work = work

    def resume(self) -> T | Parked[T]:
        """Go on; return what came of it, or the work if it waits again."""
        return start(self._work)

    def drop(self) -> None:
        """Give the work up where it stands."""
        self.wait.cancel()
        self._work.close()


def start(work: Work[T]) -> T | Parked[T]:
    """Begin work, or go on with it.

    Example:
        >>> def add(a: int, b: int) -> Work[int]:
        ...     yield Pause(100)
        ...     return a + b
        >>> parked = start(add(1, 2))
        >>> parked.wait.over(0), parked.wait.over(100), parked.resume()
        (False, True, 3)
    """
    try:
        return Parked(work, next(work))
    except StopIteration as end:
        value: T = end.value
        return value
