"""What keeping copies of others' state takes: a thread for it, and locks that show who lives."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeVar

from headrace.runtime.workers.locks import TakeLock
from headrace.testing.simulation.life import Life

T = TypeVar("T")

_LOOK_MS = 20


class Line(Executor):
    """Runs the jobs of one worker one after the other, as a pool of one thread does."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._waiting: deque[Callable[[], None]] = deque()
        self._submitted = 0
        self._busy = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Begin a job once those before it have ended."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                result = fn(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  # whoever waits for the job gets it
                future.set_exception(error)
            else:
                future.set_result(result)
            self._next()

        self._waiting.append(work)
        if not self._busy:
            self._next()
        return future

    def _next(self) -> None:
        self._busy = bool(self._waiting)
        if self._busy:
            self._submitted += 1
            delay, tie = self._life.around.draws.pair(f"{self._life.name}:copy#{self._submitted}")
            self._life.around.baton.after(int(delay * 20), self._waiting.popleft(), tie=tie, owner=self._life)


class Locks:
    """The locks on files of all machines; a worker's are free when it has died."""

    def __init__(self) -> None:
        self._holders: dict[Path, Life] = {}

    def of(self, life: Life) -> TakeLock:
        """Return what takes locks for one worker; see ``runtime.workers.locks.TakeLock``."""

        def take(path: Path, *, wait: bool) -> Callable[[], None] | None:
            while (holder := self._holders.get(path)) is not None and holder.alive:
                if not wait:
                    return None
                life.around.baton.pause(_LOOK_MS)
            self._holders[path] = life
            return lambda: self._free(path, life)

        return take

    def _free(self, path: Path, life: Life) -> None:
        if self._holders.get(path) is life:
            del self._holders[path]
