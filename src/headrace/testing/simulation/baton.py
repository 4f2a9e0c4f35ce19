"""Virtual time, and threads of which exactly one runs at any moment.

What is due stands in a heap and is run by whichever thread has the baton. Most of it runs to its end without being
interrupted, in that very thread. Only what pauses in the middle keeps its thread, which then waits until the pause is
over, while another one goes on with the heap. Nothing depends on how the machine schedules threads.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from typing import Any


class Crashed(BaseException):  # no error: it ends a process that has crashed, and nobody may catch it
    """Unwinds the threads of a simulated process that is dead."""


class _Runner:
    """A thread that runs what is due, or waits for the baton."""

    def __init__(self, baton: Baton) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.unwinds: threading.Lock | None = None
        """Whom to give the baton back to once the action that pauses here has unwound."""
        self.thread = threading.Thread(target=self._serve, args=(baton,), name="simulation", daemon=True)

    def _serve(self, baton: Baton) -> None:
        while True:
            self.lock.acquire()
            if baton.closed:
                return
            baton.serve(self)


class Pause:
    """What waits in the middle of something; it belongs to the owner that began it."""

    def __init__(self, runner: _Runner, owner: Any) -> None:
        self.runner = runner
        self.owner = owner
        self.killed_by: threading.Lock | None = None
        """The lock of whoever waits until this has unwound."""


class _Entry:
    """Something that is due."""

    __slots__ = ("action", "cancelled", "inline", "pause")

    def __init__(self, action: Callable[[], None] | None, pause: Pause | None, inline: bool) -> None:
        self.action = action
        self.pause = pause
        self.inline = inline
        self.cancelled = False


class Baton:
    """Runs actions in the order of virtual time."""

    def __init__(self) -> None:
        self.now = 0
        """Virtual milliseconds since the start."""
        self.closed = False
        self.steps = 0
        self._heap: list[tuple[int, float, int, _Entry]] = []
        self._serial = 0
        self._free: list[_Runner] = []
        self._runners: list[_Runner] = []
        self._current: _Runner | None = None
        self._owner: Any = None
        self._paused: dict[Pause, _Entry] = {}
        self._main = threading.Lock()
        self._main.acquire()
        self._until: Callable[[], bool] = lambda: True
        self._failure: BaseException | None = None

    def after(
        self, delay_ms: int, action: Callable[[], None], *, tie: float = 0.5, owner: Any = None, inline: bool = False
    ) -> Callable[[], None]:
        """Run ``action`` in a while, and return what calls it off.

        Args:
            delay_ms: In how many virtual milliseconds.
            action: What to do.
            tie: Decides between actions that are due at the same time.
            owner: On whose behalf.
            inline: It never pauses, so that it may run in the middle of another action.
        """
        entry = _Entry(action if owner is None else lambda: self._on_behalf(owner, action), None, inline)
        self._push(delay_ms, tie, entry)

        def cancel() -> None:
            entry.cancelled = True

        return cancel

    def pause(self, delay_ms: int, tie: float = 0.5) -> None:
        """Let time pass, and others go on, in the middle of an action.

        Raises:
            Crashed: the owner of the action has crashed meanwhile.
        """
        due = (self.now + delay_ms, tie)
        while self._heap and self._heap[0][:2] <= due and (self._heap[0][3].inline or self._heap[0][3].cancelled):
            time, _, _, entry = heapq.heappop(self._heap)
            if not entry.cancelled and entry.action is not None:
                self.now = max(self.now, time)
                self._act(entry.action)
        if not self._heap or self._heap[0][:2] > due:
            self.now = max(self.now, due[0])
            return
        runner, owner = self._current, self._owner
        assert runner is not None, "only an action can pause"
        paused = Pause(runner, owner)
        entry = self._paused[paused] = _Entry(None, paused, inline=False)
        self._push(delay_ms, tie, entry)
        self._pass_on()
        runner.lock.acquire()
        self._current, self._owner = runner, owner
        del self._paused[paused]
        if paused.killed_by is not None:
            runner.unwinds = paused.killed_by
            raise Crashed

    def kill(self, owner: Any) -> None:
        """Unwind everything that pauses on behalf of ``owner``."""
        for paused, entry in list(self._paused.items()):
            if paused.owner is owner:
                entry.cancelled = True
                back = paused.killed_by = threading.Lock()
                back.acquire()
                current, acting = self._current, self._owner
                paused.runner.lock.release()
                back.acquire()
                self._current, self._owner = current, acting

    def run(self, until: Callable[[], bool]) -> None:
        """Run what is due until something holds; it is asked after every action.

        Raises:
            BaseException: what an action raised.
        """
        self._until = until
        if until():
            return
        self._pass_on()
        self._main.acquire()
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Unwind what pauses, and end the threads."""
        for paused in list(self._paused):
            if paused in self._paused:
                self.kill(paused.owner)
        self.closed = True
        for runner in self._runners:
            runner.lock.release()
        for runner in self._runners:
            runner.thread.join()

    def serve(self, runner: _Runner) -> None:
        """Run what is due until the baton goes to another thread."""
        self._current = runner
        while True:
            if self._failure is not None or self._until():
                return self._give_back(runner)
            if not self._heap:
                self._failure = RuntimeError("nothing is left to happen")
                continue
            time, _, _, entry = heapq.heappop(self._heap)
            if entry.cancelled:
                continue
            self.now = max(self.now, time)
            self.steps += 1
            if entry.pause is not None:
                self._free.append(runner)
                entry.pause.runner.lock.release()
                return None
            assert entry.action is not None
            self._act(entry.action)
            if runner.unwinds is not None:
                back, runner.unwinds = runner.unwinds, None
                self._free.append(runner)
                back.release()
                return None

    def _act(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Crashed:
            return
        except BaseException as error:  # noqa: BLE001  # it is raised again by ``run``
            self._failure = self._failure or error

    def _on_behalf(self, owner: Any, action: Callable[[], None]) -> None:
        before, self._owner = self._owner, owner
        try:
            action()
        finally:
            self._owner = before

    def _give_back(self, runner: _Runner) -> None:
        self._free.append(runner)
        self._main.release()

    def _push(self, delay_ms: int, tie: float, entry: _Entry) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (self.now + delay_ms, tie, self._serial, entry))

    def _pass_on(self) -> None:
        """Hand the baton to a thread that has nothing else to do."""
        if self._free:
            runner = self._free.pop()
        else:
            runner = _Runner(self)
            self._runners.append(runner)
            runner.thread.start()
        runner.lock.release()
