"""Driving one worker: the loop of its turns, its heartbeat, and an orderly end."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

from headrace.clock import Clock
from headrace.errors import HeadraceError
from headrace.runtime.hosts.slow import SlowSteps
from headrace.runtime.hosts.status import WorkerStatus
from headrace.runtime.hosts.watching import LOOK_MS, TopicWatch
from headrace.runtime.workers.lifecycle import Phase
from headrace.runtime.workers.parts import Blame
from headrace.runtime.workers.pressure import Wait, waits
from headrace.runtime.workers.slot import Slot
from headrace.runtime.workers.worker import Worker
from headrace.settings import Settings

_log = logging.getLogger("headrace")

_STATUS_MS = 250
_LOOKING_S = 5
"""How long the end waits for a look at the topics that is under way."""


class Host:
    """Runs a worker in the calling thread until it is done.

    Args:
        worker: The worker.
        clock: Tells the time.
        settings: Of the run.
        on_status: Called now and then with what the worker is doing.
        on_overdue: Called from another thread if draining takes longer than ``drain_timeout_ms``, with what made the
            worker drain if that was an error.
        watch: Looks after the topics.
        on_stuck: Called from another thread if a step does not come back within ``step_timeout_ms``, with what is to
            be said of it; it ends the process. From then on the worker says no more that it lives.
    """

    def __init__(
        self,
        worker: Worker,
        clock: Clock,
        settings: Settings,
        on_status: Callable[[WorkerStatus], None],
        on_overdue: Callable[[HeadraceError | None], None],
        watch: TopicWatch | None = None,
        on_stuck: Callable[[HeadraceError], None] | None = None,
    ) -> None:
        self.status = WorkerStatus()
        self._worker = worker
        self._clock = clock
        self._settings = settings
        self._on_status = on_status
        self._on_overdue = on_overdue
        self._watch = watch
        self._stopping = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._ended = threading.Event()
        self._turned_ms = clock.monotonic_ms()
        self._turns = 0
        self._slow = SlowSteps(worker, clock, settings)
        self._on_stuck = on_stuck
        self._drain_ms: int | None = None
        self._told_ms = 0
        self._failure: HeadraceError | None = None

    def stop(self) -> None:
        """Ask the worker to drain; returns at once and may be called from anywhere."""
        if self._drain_ms is None:
            self._drain_ms = self._clock.monotonic_ms()
        self._stopping = True
        # A signal handler may interrupt the very wait that this ends; an event would be locked by then.
        self._wake.put(None)

    def live(self) -> bool:
        """Return whether the worker makes turns."""
        limit_ms = self._settings.step_timeout_ms
        return not limit_ms or self._clock.monotonic_ms() - self._turned_ms < limit_ms

    def ready(self) -> bool:
        """Return whether all tasks that the worker has are running and none waits for something outside."""
        return self.status.state == "running" and not self._stopping and not self.observed().waiting

    def observed(self) -> WorkerStatus:
        """Return the status, and in it a turn that lasts for long; may be called from anywhere."""
        slow_ms = self._settings.slow_step_ms
        if not slow_ms or self._clock.monotonic_ms() - self._turned_ms < slow_ms or self._worker.done:
            return self.status
        task = self._worker.current
        tasks = () if task is None else (str(task),)
        return dataclasses.replace(self.status, waiting=(*self.status.waiting, (Wait.TURN.value, tasks)))

    def run(self) -> None:
        """Run until the worker has drained or its bounded input has ended.

        Raises:
            HeadraceError: why it could not go on; the tasks that were not at fault have been handed over.
        """
        beat = threading.Thread(
            target=self._beat, args=(threading.get_ident(),), name="headrace-heartbeat", daemon=True
        )
        beat.start()
        looking = threading.Thread(target=self._look, name="headrace-topics", daemon=True)
        looking.start()
        draining = False
        try:
            while not self._worker.done:
                if self._stopping and not draining:
                    draining = True
                    self._worker.drain()
                wait_ms = self._turn()
                self._tell("draining" if draining else "running", force=self._worker.done)
                if wait_ms:
                    self._wait(wait_ms)
        finally:
            self._ended.set()
            beat.join()
            looking.join(_LOOKING_S)  # it may wait for brokers that do not answer
        if self._failure is not None:
            raise self._failure

    def _wait(self, wait_ms: int) -> None:
        try:
            self._wake.get(timeout=wait_ms / 1000)
        except Empty:
            pass

    def _turn(self) -> int:
        self._turned_ms = self._clock.monotonic_ms()
        self._turns += 1
        try:
            return self._worker.turn()
        except HeadraceError as error:
            blame = self._worker.abandon()
            if blame is Blame.NOBODY:
                _log.warning("a task that another worker has by now failed: %s", error)
            elif self._failure is None:
                self._failure = error
                self.stop()
            else:
                _log.warning("while draining: %s", error)
                if blame is Blame.WORKER:
                    self._worker.close()
            return 0

    def _tell(self, state: str, *, force: bool) -> None:
        now = self._clock.monotonic_ms()
        if not force and now - self._told_ms < _STATUS_MS:
            return
        self._told_ms = now
        slots = self._worker.slots()
        totals = self._worker.totals
        restoring = [slot for slot in slots if slot.phase is Phase.RESTORING]
        self.status = WorkerStatus(
            state="finished" if self._worker.done else state,
            tasks=len(slots),
            restoring=len(restoring),
            restored_bytes=sum(slot.restored_bytes for slot in restoring),
            restore_bytes=sum(slot.restore_bytes for slot in restoring),
            waiting=self._waiting(slots, now),
            records_in=tuple(totals.records_in.items()),
            records_out=totals.records_out.total(),
            late=totals.late,
            errors=totals.errors,
            lag_records=totals.lag_records,
            watermark_ms=totals.watermark_ms,
        )
        self._on_status(self.status)

    def _waiting(self, slots: list[Slot], now: int) -> tuple[tuple[str, tuple[str, ...]], ...]:
        found: dict[Wait, list[str]] = {}
        for slot in slots:
            restoring = slot.phase is Phase.RESTORING
            for wait in (Wait.RESTORE,) if restoring else waits(slot.facts(self._settings, now)):
                found.setdefault(wait, []).append(str(slot.id))
        return tuple((wait.value, tuple(sorted(found[wait]))) for wait in sorted(found))

    def _look(self) -> None:
        """Look after the topics beside the turns, as the log may take its time to answer."""
        while self._watch is not None and not self._ended.wait(LOOK_MS / 1000):
            try:
                self._watch.look()
            except HeadraceError as error:
                if not self._stopping:
                    self._failure = error
                    self.stop()
                return

    def _beat(self, thread: int) -> None:
        """Keep the membership alive beside the turns of a thread, and watch what takes too long there.

        The worker lives only as long as it comes back from its steps, however late: while one takes longer than it
        may, its tasks are better off elsewhere.
        """
        interval = self._settings.heartbeat_interval_ms / 1000
        while not self._ended.wait(interval):
            stuck = self._slow.look(self._turns, thread)
            if stuck is None:
                self._say_it_lives()
            elif self._on_stuck is not None:
                self._on_stuck(stuck)
                return
            begun = self._drain_ms
            if begun is not None and self._clock.monotonic_ms() - begun > self._settings.drain_timeout_ms:
                self._on_overdue(self._failure)
                return
        self._slow.end()

    def _say_it_lives(self) -> None:
        try:
            self._worker.membership.heartbeat()
        except Exception as error:  # noqa: BLE001  # whatever it was, the thread watches deadlines as well
            _log.warning("heartbeat failed: %s", error)
