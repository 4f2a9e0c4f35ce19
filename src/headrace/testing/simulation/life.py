"""One life of one simulated worker: the real worker, its loop, its heartbeat and its jobs, until it leaves or dies."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from headrace.errors import HeadraceError, RetriableError
from headrace.runtime.workers.bounds import Bounds
from headrace.runtime.workers.parts import Blame, Parts
from headrace.runtime.workers.worker import Worker
from headrace.testing.simulation import faults
from headrace.testing.simulation.baton import Baton, Crashed
from headrace.testing.simulation.draws import Draws
from headrace.testing.simulation.faults import Chance

T = TypeVar("T")

EPOCH_MS = 1_700_000_000_000
"""What the clocks of the workers say at the start of a run, more or less."""


class Surroundings(Protocol):
    """What a worker lives in."""

    baton: Baton
    draws: Draws
    chance: Chance
    pace: float
    """How likely it is that another goes on when an operation begins."""
    late: int
    """How many requests are under way that nobody waits for any more."""
    longest_wait_ms: int
    """The longest that an idle worker waits for its next turn."""

    def tell(self, who: str, what: str) -> None:
        """Write a line of the trace."""
        ...

    def violated(self, check: str, message: str) -> None:
        """Note that something is not as it must be."""
        ...

    def died(self, life: Life) -> None:
        """Learn that a worker crashed."""
        ...

    def left(self, life: Life) -> None:
        """Learn that a worker left in order."""
        ...


class LifeClock:
    """The clocks of one machine: off by a while, and a little too fast or too slow."""

    def __init__(self, baton: Baton, offset_ms: int, begun_ms: int, drift: float) -> None:
        self._baton = baton
        self._offset_ms = EPOCH_MS + offset_ms
        self._begun_ms = begun_ms
        self._drift = 1 + drift

    def now_ms(self) -> int:
        """Return milliseconds since the Unix epoch, as this machine sees it."""
        return self._offset_ms + int(self._baton.now * self._drift)

    def monotonic_ms(self) -> int:
        """Return milliseconds of a clock that never goes backwards."""
        return self._begun_ms + int(self._baton.now * self._drift)

    def sleep_ms(self, duration_ms: int) -> None:
        """Let time pass."""
        self._baton.pause(duration_ms)


class Jobs(Executor):
    """Runs the jobs of one worker as actions of the simulation."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._submitted = 0

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Begin a job in a moment."""
        future: Future[T] = Future()
        self._submitted += 1
        delay, tie = self._life.around.draws.pair(f"{self._life.name}:job#{self._submitted}")

        def work() -> None:
            try:
                result = fn(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  # whoever waits for the job gets it
                future.set_exception(error)
            else:
                future.set_result(result)

        self._life.around.baton.after(int(delay * 20), work, tie=tie, owner=self._life)
        return future


class Life:
    """From a start to a crash or an orderly end.

    Args:
        around: What it lives in.
        member: The name of the worker, which its later lives share.
        number: Which life of that worker it is.
        machine: Where its state directory is.
        bounds: Where its input ends, for a run that does.
    """

    def __init__(self, around: Surroundings, member: str, number: int, machine: Path, bounds: Bounds | None) -> None:
        self.around = around
        self.member = member
        self.number = number
        self.name = f"{member}.{number}"
        self.machine = machine
        self.bounds = bounds
        self.alive = True
        self.frozen_until = 0
        """Until when the whole worker stands still."""
        self.silent_until = 0
        """Until when its heartbeat does."""
        self.worker: Worker | None = None
        self.parts: Parts | None = None
        self.stopping_ms: int | None = None
        draws = around.draws
        self.clock = LifeClock(
            around.baton,
            draws.whole(f"{member}/offset", -20_000, 20_000),
            draws.whole(f"{member}/boot", 0, 10**7),
            (draws.unit(f"{member}/drift") - 0.5) / 50,
        )
        self.jobs = Jobs(self)
        self._counts: dict[str, int] = {}
        self._crash_after: str | None = None
        self._draining = False
        self._turns = 0
        self._idle = 0

    # --- operations: see ``objects.Operator``

    def operate(self, kind: str, effect: Callable[[], T], told: str) -> T:
        """Carry an operation out, unless the worker crashes or the operation fails."""
        if self.strike(kind, told) == faults.FAIL:
            raise RetriableError(f"simulated: {kind} failed")
        result = effect()
        self.finish()
        return result

    def strike(self, kind: str, told: str) -> str | None:
        """Begin an operation: let time pass and others go on, and return what is to become of it."""
        if not self.alive:
            raise Crashed
        number = self._counts[kind] = self._counts.get(kind, 0) + 1
        operation = f"{self.name}:{kind}#{number}"
        chance, pace = self.around.draws.pair(operation)
        if pace < self.around.pace:
            share = pace / self.around.pace
            self._pause(0 if share < 0.5 else int(5 * share) if share < 0.9 else int(100 * share), chance)
        struck = self.around.chance.strikes(kind, operation, chance)
        if told:
            self.around.tell(self.name, f"{kind} {told}" if struck is None else f"{kind} {told}: {struck}")
        elif struck is not None:
            self.around.tell(self.name, f"{kind}: {struck}")
        self._crash_after = None
        if struck == faults.CRASH_BEFORE:
            self.crash()
        if struck == faults.SLOW:
            self._pause(100 + int(3000 * pace), chance)
            return None
        if struck == faults.CRASH_AFTER:
            self._crash_after = operation
            return None
        return struck

    def finish(self) -> None:
        """End an operation, and the life if it was to crash after it."""
        if self._crash_after is not None:
            self.crash()

    def later(self, effect: Callable[[], object]) -> None:
        """Carry something out in a while, whatever becomes of the worker."""
        number = self._counts["later"] = self._counts.get("later", 0) + 1
        delay, tie = self.around.draws.pair(f"{self.name}:later#{number}")

        self.around.late += 1

        def arrive() -> None:
            self.around.late -= 1
            self.around.tell(self.name, "a late request arrives")
            effect()

        self.around.baton.after(50 + int(4000 * delay), arrive, tie=tie, inline=True)

    def crash(self) -> None:
        """Die, here and now.

        Raises:
            Crashed: always, to unwind the thread that is in the middle of it.
        """
        self.die("crashes")
        raise Crashed

    # --- life

    def die(self, how: str) -> None:
        """Die: nothing that this worker does has any effect from now on."""
        if not self.alive:
            return
        self.alive = False
        self.around.tell(self.name, how)
        self.around.died(self)

    def begin(self, make: Callable[[Life], Parts]) -> None:
        """Start the process."""
        self.around.baton.after(0, lambda: self._start(make), owner=self)

    def stop(self) -> None:
        """Ask the worker to drain, as SIGTERM does."""
        if self.stopping_ms is None:
            self.stopping_ms = self.around.baton.now
            self.around.tell(self.name, "is told to stop")

    def _start(self, make: Callable[[Life], Parts]) -> None:
        self.around.tell(self.name, "starts")
        self.parts = make(self)
        try:
            self.worker = Worker(self.parts, self.member, self.bounds)
        except RetriableError as error:
            self.die(f"cannot start: {error.message}")
            return
        self._next_beat()
        self._next_turn(0)

    def _next_beat(self) -> None:
        assert self.parts is not None
        interval = self.parts.settings.heartbeat_interval_ms
        self.around.baton.after(interval, self._beat, tie=0.3, inline=True)

    def _beat(self) -> None:
        worker = self.worker
        if not self.alive or worker is None or worker.done:
            return
        if self.around.baton.now >= max(self.frozen_until, self.silent_until):
            worker.membership.heartbeat()
        self._next_beat()

    def _next_turn(self, wait_ms: int) -> None:
        self._turns += 1
        delay, tie = self.around.draws.pair(f"{self.name}:turn#{self._turns}")
        self._idle = self._idle + 1 if wait_ms >= 10 else 0
        longest = 3 if wait_ms == 0 else min(20 + 10 * self._idle, self.around.longest_wait_ms)
        self.around.baton.after(wait_ms + int(delay * longest), self._turn, tie=tie, owner=self)

    def _turn(self) -> None:
        worker = self.worker
        if not self.alive or worker is None:
            return
        self._pause(0, 0.5, only_frozen=True)
        try:
            wait_ms = self._guarded_turn(worker)
        except Exception:  # noqa: BLE001  # whatever it is, it would have ended the process
            self.around.violated("no bug in a worker", f"{self.name} failed:\n{traceback.format_exc(limit=-12)}")
            self.die("ends with a bug")
            return
        if worker.done:
            self.alive = False
            self.around.tell(self.name, "left")
            self.around.left(self)
        elif self.alive:
            self._next_turn(wait_ms)

    def _guarded_turn(self, worker: Worker) -> int:
        assert self.parts is not None
        if self.stopping_ms is not None:
            if not self._draining:
                self._draining = True
                worker.drain()
            if self.around.baton.now - self.stopping_ms > self.parts.settings.drain_timeout_ms:
                if self.around.chance.over and self.stopping_ms >= self.around.chance.over_since:
                    self.around.violated("draining ends", f"{self.name} drains for longer than its deadline")
                self.die("takes too long to drain and is killed")
                return 0
        try:
            return worker.turn()
        except HeadraceError as error:
            blame = worker.abandon()
            if blame is not Blame.NOBODY:
                where = "".join(traceback.format_exception(error, limit=-6))
                self.around.violated(
                    "no worker stops", f"{self.name} stopped, to blame is the {blame.value}: {error}\n{where}"
                )
                self.die("stops with an error")
            return 0

    def _pause(self, delay_ms: int, tie: float, *, only_frozen: bool = False) -> None:
        baton = self.around.baton
        if not only_frozen:
            baton.pause(delay_ms, tie)
        while baton.now < self.frozen_until:
            baton.pause(self.frozen_until - baton.now, tie)
