"""Driving one worker: the loop of its turns, its heartbeat, and an orderly end."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from headrace.clock import Clock
from headrace.errors import HeadraceError
from headrace.runtime.lifecycle import Phase
from headrace.runtime.parts import Blame
from headrace.runtime.worker import Worker
from headrace.settings import Settings

_log = logging.getLogger("headrace")

_STATUS_MS = 250
_STUCK_MS = 600_000
"""A turn that lasts this long is taken for stuck by ``/live``; slow user code may well take a minute."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """What one worker is doing, as values."""

    state: str = "starting"
    tasks: int = 0
    restoring: int = 0
    waiting: int = 0
    """Tasks whose outputs the log does not take."""
    records_in: tuple[tuple[str, int], ...] = ()
    """By topic."""
    records_out: int = 0
    late: int = 0
    errors: int = 0
    lag_records: int = 0
    watermark_ms: int | None = None


class Host:
    """Runs a worker in the calling thread until it is done.

    Args:
        worker: The worker.
        clock: Tells the time.
        settings: Of the run.
        on_status: Called now and then with what the worker is doing.
        on_overdue: Called from another thread if draining takes longer than ``drain_timeout_ms``, with what made the
            worker drain if that was an error.
    """

    def __init__(
        self,
        worker: Worker,
        clock: Clock,
        settings: Settings,
        on_status: Callable[[WorkerStatus], None],
        on_overdue: Callable[[HeadraceError | None], None],
    ) -> None:
        self.status = WorkerStatus()
        self._worker = worker
        self._clock = clock
        self._settings = settings
        self._on_status = on_status
        self._on_overdue = on_overdue
        self._stopping = False
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._ended = threading.Event()
        self._turned_ms = clock.monotonic_ms()
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
        return self._clock.monotonic_ms() - self._turned_ms < _STUCK_MS

    def ready(self) -> bool:
        """Return whether all tasks that the worker has are running and their outputs are taken."""
        at_work = self.status.state == "running" and not self._stopping
        return at_work and not self.status.restoring and not self.status.waiting

    def run(self) -> None:
        """Run until the worker has drained or its bounded input has ended.

        Raises:
            HeadraceError: why it could not go on; the tasks that were not at fault have been handed over.
        """
        beat = threading.Thread(target=self._beat, name="headrace-heartbeat", daemon=True)
        beat.start()
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
        if self._failure is not None:
            raise self._failure

    def _wait(self, wait_ms: int) -> None:
        try:
            self._wake.get(timeout=wait_ms / 1000)
        except Empty:
            pass

    def _turn(self) -> int:
        self._turned_ms = self._clock.monotonic_ms()
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
        restoring = sum(slot.phase is Phase.RESTORING for slot in slots)
        self.status = WorkerStatus(
            "finished" if self._worker.done else state,
            len(slots),
            restoring,
            sum(bool(slot.unsent) for slot in slots),
            tuple(totals.records_in.items()),
            totals.records_out.total(),
            totals.late,
            totals.errors,
            totals.lag_records,
            totals.watermark_ms,
        )
        self._on_status(self.status)

    def _beat(self) -> None:
        """Keep the membership alive beside the turns, and watch the drain's deadline."""
        interval = self._settings.heartbeat_interval_ms / 1000
        while not self._ended.wait(interval):
            try:
                self._worker.membership.heartbeat()
            except Exception as error:  # noqa: BLE001  # whatever it was, this thread watches the deadline as well
                _log.warning("heartbeat failed: %s", error)
            begun = self._drain_ms
            if begun is not None and self._clock.monotonic_ms() - begun > self._settings.drain_timeout_ms:
                self._on_overdue(self._failure)
                return
