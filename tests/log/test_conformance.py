"""The published suite, on the logs that come with headrace."""

from __future__ import annotations

from pathlib import Path

from headrace.clock import Clock
from headrace.log.api import Log
from headrace.log.embedded.log import EmbeddedLog
from headrace.log.memory import MemoryLog
from headrace.testing.conformance.log import LogContract


class TestMemoryLog(LogContract):
    def open_log(self, directory: Path, clock: Clock) -> Log:
        return MemoryLog(clock)


class TestEmbeddedLog(LogContract):
    def open_log(self, directory: Path, clock: Clock) -> Log:
        return EmbeddedLog(directory / "log", clock=clock)

    def another_log(self, log: Log, directory: Path, clock: Clock) -> Log:
        return EmbeddedLog(directory / "log", clock=clock)
