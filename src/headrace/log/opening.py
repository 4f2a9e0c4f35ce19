"""Opens the log that settings name, of whatever kind it is."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from headrace.clock import Clock
from headrace.errors import SettingsError
from headrace.log.api import Log
from headrace.settings import Settings


def open_log(
    settings: Settings, clock: Clock, worker: int | None = None, environment: Mapping[str, str] = os.environ
) -> Log:
    """Open the log that the settings name; what Kafka wants to be told beside stands in ``HEADRACE_KAFKA_*``.

    Args:
        settings: Say which.
        clock: For the log.
        worker: Which of several workers on this machine uses it.
        environment: Where those variables are.

    Raises:
        SettingsError: there is no such kind of log, or it cannot be used.
    """
    if settings.log == "memory://":
        from headrace.log.memory import MemoryLog

        return MemoryLog(clock)
    if settings.log.startswith("kafka://"):
        from headrace.log.kafka.log import KafkaLog
        from headrace.log.kafka.options import KafkaOptions

        client_log = logging.getLogger("aiokafka")
        if client_log.level == logging.NOTSET:
            client_log.setLevel(logging.CRITICAL)  # it says the same many times a second; the log says it once
        return KafkaLog(settings.log, clock=clock, options=KafkaOptions.load(environment, worker))
    if "://" in settings.log:
        scheme = settings.log.split("://")[0]
        raise SettingsError(
            f"there is no log of kind {scheme}://",
            remedy="Give a directory or kafka://host:port with --log or HEADRACE_LOG",
        )
    from headrace.log.embedded.log import EmbeddedLog

    return EmbeddedLog(Path(settings.log), clock=clock, fsync=settings.fsync)
