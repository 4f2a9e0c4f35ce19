"""The only module that reads the time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time to the shell of the program; pure code is given the time as an argument."""

    def now_ms(self) -> int:
        """Return milliseconds since the Unix epoch, UTC."""
        ...

    def monotonic_ms(self) -> int:
        """Return milliseconds of a clock that never goes backwards, for measuring how long something lasts."""
        ...

    def sleep_ms(self, duration_ms: int) -> None:
        """Block the calling thread for ``duration_ms``."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        """Return milliseconds since the Unix epoch, UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return milliseconds of the monotonic clock."""
        return time.monotonic_ns() // 1_000_000

    def sleep_ms(self, duration_ms: int) -> None:
        """Block the calling thread for ``duration_ms``."""
        time.sleep(duration_ms / 1000)
