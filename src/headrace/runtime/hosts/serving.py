"""Opens the status server, for those who want one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from headrace.settings import Settings

if TYPE_CHECKING:
    from headrace.runtime.hosts.http import Check, StatusServer


def serve(
    settings: Settings, exposition: Callable[[], bytes], live: Callable[[], bool], ready: Check
) -> StatusServer | None:
    """Start serving metrics and health; return None if the settings want no port.

    Args:
        settings: Say where.
        exposition: Returns the metrics.
        live: Tells whether work goes on.
        ready: Tells whether everything is at work, and what is not.

    Raises:
        SettingsError: the address cannot be used.
    """
    if settings.metrics_port == 0:
        return None
    # The library takes a quarter of the time that a worker takes to start, and most workers serve nothing themselves.
    from headrace.runtime.hosts.http import StatusServer

    server = StatusServer(settings.metrics_host, settings.metrics_port, exposition, lambda: (live(), {}), ready)
    server.start()
    return server
