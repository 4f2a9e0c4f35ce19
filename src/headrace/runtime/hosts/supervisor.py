"""Several workers on one machine, each a process, under one that watches them and does nothing else.

The supervisor keeps the last report of each worker, so that metrics and health answer at once whatever a worker is
doing. A worker that dies is started again, and so is one that could not begin as something did not answer; one that
ends with another error ends them all, each after draining.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from headrace.clock import SystemClock
from headrace.errors import FatalError, HeadraceError, RetriableError
from headrace.metrics import merge_expositions
from headrace.runtime.hosts.host import Host
from headrace.runtime.hosts.status import WorkerStatus
from headrace.settings import Settings

_log = logging.getLogger("headrace")

_REPORT_S = 0.5
_SILENT_MS = 15_000
"""A worker without a report for this long is shown as down; it may only be busy."""
_RESTARTS = 5
_RESTARTS_WITHIN_MS = 60_000
_AGAIN_MS = 2_000
"""How long a worker that could not begin waits before it is started again."""
_SPARE_MS = 5_000
"""What a worker gets beyond the drain timeout before it is killed."""

Run = Callable[..., None]
"""(index, report, *arguments): runs one worker to its end, in its process."""


class Report:
    """The worker's end of the line to its supervisor."""

    def __init__(self, line: Connection) -> None:
        self._line = line
        self._status = WorkerStatus()
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def take(self, status: WorkerStatus) -> None:
        """Take the worker's newest status; it goes with the next report."""
        self._status = status

    def start(self, exposition: Callable[[], bytes], host: Host) -> None:
        """Report from now on, and stop the worker if the supervisor is gone."""

        def run() -> None:
            while not self._ended.wait(_REPORT_S):
                if not self.send(("report", host.observed(), exposition(), host.live(), host.ready())):
                    host.stop()
                    return

        threading.Thread(target=run, name="headrace-report", daemon=True).start()

    def end(self, error: HeadraceError | None) -> None:
        """Send the last status and why the worker ended."""
        self._ended.set()
        notes = getattr(error, "__notes__", [])
        self.send(("end", self._status, error, notes))

    def send(self, message: Any) -> bool:
        """Send one message; return whether anybody is there."""
        with self._lock:
            try:
                self._line.send(message)
            except OSError:
                return False
        return True


@dataclass(slots=True)
class _Child:
    """One worker as its supervisor sees it."""

    process: BaseProcess
    line: Connection
    status: WorkerStatus = field(default_factory=WorkerStatus)
    exposition: bytes | None = None
    live: bool = True
    ready: bool = False
    heard_ms: int = 0
    ended: bool = False


class Supervisor:
    """Starts workers and keeps what they report."""

    def __init__(self, run: Run, arguments: tuple[Any, ...], settings: Settings) -> None:
        self._run = run
        self._arguments = arguments
        self._settings = settings
        self._context = multiprocessing.get_context("spawn")
        self._clock = SystemClock()
        self._children: dict[int, _Child] = {}
        self._restarts: list[int] = []
        self._again: dict[int, int] = {}
        """Workers that could not begin, and when they are started again."""
        self._failure: HeadraceError | None = None
        self._stopped_ms: int | None = None

    def start(self) -> None:
        """Start every worker."""
        for index in range(self._settings.workers):
            self._start(index)

    def stop(self) -> None:
        """Ask every worker to drain; may be called from a signal handler."""
        if self._stopped_ms is None:
            self._stopped_ms = self._clock.monotonic_ms()
        for child in self._children.values():
            if not child.ended and child.process.is_alive():
                child.process.terminate()

    def run(self) -> Iterator[list[WorkerStatus]]:
        """Yield the workers' statuses now and then until the last one has ended.

        Raises:
            HeadraceError: why a worker could not go on.
        """
        while self._goes_on():
            lines = {child.line: index for index, child in self._children.items() if not child.ended}
            for line in wait(list(lines), timeout=_REPORT_S):
                self._hear(lines[line])  # type: ignore[index]
            self._start_again()
            self._enforce_deadline()
            yield [child.status for child in self._children.values()]
        if self._failure is not None:
            raise self._failure

    def exposition(self) -> bytes:
        """Return the metrics of all workers, labelled with their index."""
        silent = self._clock.monotonic_ms() - _SILENT_MS
        return merge_expositions(
            {i: c.exposition if not c.ended and c.heard_ms > silent else None for i, c in list(self._children.items())}
        )

    def live(self) -> bool:
        """Return whether every worker makes turns, as far as is known."""
        return all(child.live for child in list(self._children.values()))

    def ready(self) -> bool:
        """Return whether every worker is ready."""
        children = list(self._children.values())
        return bool(children) and self._stopped_ms is None and all(c.ready and not c.ended for c in children)

    def close(self) -> None:
        """End what still runs, at once."""
        for child in self._children.values():
            if child.process.is_alive():
                child.process.kill()
            child.process.join()
            child.line.close()

    def _start(self, index: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(self._run, index, theirs, self._arguments), name=f"headrace-worker-{index}"
        )
        # A terminal sends Ctrl-C to the workers as well, but they do what the supervisor tells them. Imports are slow,
        # so they must be deaf from the start.
        resource_tracker.ensure_running()
        heard = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, heard)
        theirs.close()
        self._children[index] = _Child(process, ours, heard_ms=self._clock.monotonic_ms())
        if self._stopped_ms is not None:
            process.terminate()

    def _hear(self, index: int) -> None:
        child = self._children[index]
        try:
            message = child.line.recv()
        except (EOFError, OSError):
            self._died(index)
            return
        child.heard_ms = self._clock.monotonic_ms()
        if message[0] == "report":
            _, child.status, child.exposition, child.live, child.ready = message
            return
        _, child.status, error, notes = message
        child.ended = True
        # Everything is closed by now; a thread of the user's may keep the process, which is then ended in close().
        child.process.join(_SPARE_MS / 1000)
        if isinstance(error, RetriableError) and child.exposition is None and self._stopped_ms is None:
            # What it did not reach, the command reached before: the other workers wait for it as well.
            child.line.close()
            _log.warning("worker %s could not begin, and is started again: %s", index, error)
            self._again[index] = self._clock.monotonic_ms() + _AGAIN_MS
        elif error is not None:
            for note in notes:
                error.add_note(note)
            self._failure = self._failure or error
            self.stop()

    def _goes_on(self) -> bool:
        waits = bool(self._again) and self._stopped_ms is None
        return waits or any(not child.ended for child in self._children.values())

    def _start_again(self) -> None:
        """Start the workers that could not begin, when it is time."""
        now = self._clock.monotonic_ms()
        for index in [index for index, due in self._again.items() if now >= due and self._stopped_ms is None]:
            del self._again[index]
            self._start(index)

    def _died(self, index: int) -> None:
        """Start a worker again that ended without a word, unless that happens again and again."""
        child = self._children[index]
        child.process.join(_SPARE_MS / 1000)
        if child.process.is_alive():
            child.process.kill()
            child.process.join()
        child.line.close()
        code = child.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        if self._stopped_ms is not None:
            child.ended = True
            if code == -signal.SIGTERM:
                return  # it was told to stop before it had begun
            self._failure = self._failure or FatalError(f"worker {index} ended with {how} while draining")
            return
        now = self._clock.monotonic_ms()
        self._restarts = [then for then in self._restarts if now - then < _RESTARTS_WITHIN_MS] + [now]
        if len(self._restarts) > _RESTARTS:
            child.ended = True
            self._failure = self._failure or FatalError(
                f"workers died {len(self._restarts)} times within a minute, the last one, {index}, with {how}",
                remedy="Look for what kills them: memory limits, or crashes in native code",
            )
            self.stop()
            return
        _log.warning("worker %s died with %s; it is started again", index, how)
        self._start(index)

    def _enforce_deadline(self) -> None:
        if self._stopped_ms is None:
            return
        if self._clock.monotonic_ms() - self._stopped_ms > self._settings.drain_timeout_ms + _SPARE_MS:
            for child in self._children.values():
                if not child.ended and child.process.is_alive():
                    child.process.kill()


@contextmanager
def supervise(run: Run, arguments: tuple[Any, ...], settings: Settings) -> Iterator[Supervisor]:
    """Make a supervisor, whose workers end with the block, whatever happens.

    Args:
        run: What each worker runs; importable, for its process begins anew.
        arguments: What it gets behind its index and its report.
        settings: How many workers, and how long draining may take.
    """
    supervisor = Supervisor(run, arguments, settings)
    try:
        yield supervisor
    finally:
        supervisor.close()


def _work(run: Run, index: int, line: Connection, arguments: tuple[Any, ...]) -> None:
    """Run in the worker's process."""
    logging.basicConfig(level=logging.WARNING, format=f"headrace worker {index}: %(message)s")
    report = Report(line)
    try:
        run(index, report, *arguments)
    except HeadraceError as error:
        report.end(error)
    except Exception as error:  # noqa: BLE001  # whatever it was, the others must hear of it
        failure = FatalError(f"worker {index} failed: {type(error).__name__}: {error}")
        failure.add_note("".join(traceback.format_exception(error)).rstrip())
        report.end(failure)
    else:
        report.end(None)
