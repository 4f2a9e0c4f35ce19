"""What tests of the embedded log's files share."""

from __future__ import annotations

from pathlib import Path

from headrace.log.embedded.log import EmbeddedLog
from headrace.record import TopicPartition
from headrace.testing.conformance.log_support import StillClock, read_all, values_of

TOPIC = "payments"
PART = TopicPartition(TOPIC, 0)


def open_log(directory: Path, fsync: str = "checkpoint", clock: StillClock | None = None) -> EmbeddedLog:
    return EmbeddedLog(directory, clock=clock or StillClock(), fsync=fsync)


def files(directory: Path, suffix: str = ".log") -> list[Path]:
    return sorted((directory / "topics" / TOPIC / "0").glob(f"*{suffix}"))


def contents(log: EmbeddedLog, start: int = 0) -> list[bytes | None]:
    reader = log.reader(PART, start)
    try:
        return values_of(read_all(reader))
    finally:
        reader.close()
