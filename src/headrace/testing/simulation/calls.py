"""Calls of asynchronous steps in virtual time: they are really made, on an event loop whose clock jumps."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

from headrace.clock import Clock
from headrace.operators.async_map import Answers, Calls
from headrace.runtime.workers.calls import BatchFlight


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait for timers: the clock of the loop jumps to the next one."""

    jumped_ms = 0.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0 if timeout is not None else None)
        if not found and timeout is not None and timeout > 0:
            self.jumped_ms += timeout * 1000
        return found


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while it works, and jumps when it has nothing to do."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual seconds since the loop was made."""
        return self._jumping.jumped_ms / 1000


class SimulatedCalls:
    """Makes the calls of one worker; see ``operators.async_map.Caller``.

    Args:
        loop: The event loop of the run.
        clock: That of the worker, for remembered results.
        now_ms: Tells the virtual time.
        delay_ms: Says how long the calls of a batch take beside what they wait for themselves.
    """

    def __init__(self, loop: JumpingLoop, clock: Clock, now_ms: Callable[[], int], delay_ms: Callable[[], int]) -> None:
        self._loop = loop
        self._clock = clock
        self._now_ms = now_ms
        self._delay_ms = delay_ms

    def begin(self, calls: Calls) -> SimulatedFlight:
        """Make calls; what came of them is known after a while of virtual time."""
        begun = self._loop.time()
        flight = BatchFlight(calls, self._loop, self._clock, self._sleep)

        async def make() -> None:
            flight.start()
            whole = flight._whole
            assert whole is not None
            await asyncio.wait([whole])

        self._loop.run_until_complete(make())
        took_ms = int((self._loop.time() - begun) * 1000)
        return SimulatedFlight(flight, self._now_ms, self._now_ms() + took_ms + self._delay_ms())

    def close(self) -> None:
        """Do nothing: the loop belongs to the run."""

    async def _sleep(self, duration_ms: int) -> None:
        passed = self._loop.create_future()
        self._loop.call_later(duration_ms / 1000, passed.set_result, None)
        await passed


class SimulatedFlight:
    """Calls that were made already, of which nobody knows until their time has come."""

    def __init__(self, flight: BatchFlight, now_ms: Callable[[], int], end_ms: int) -> None:
        self._flight = flight
        self._now_ms = now_ms
        self._end_ms = end_ms

    def over(self, now_ms: int) -> bool:
        """Return whether every call has ended."""
        return self._now_ms() >= self._end_ms

    def cancel(self) -> None:
        """Forget the calls."""
        self._end_ms = 2**62

    def answers(self) -> Answers:
        """Return what came of the calls."""
        return self._flight.answers()
