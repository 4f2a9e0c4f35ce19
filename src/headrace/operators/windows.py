"""Which windows a record belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from headrace.errors import TopologyError
from headrace.settings import duration_ms


@dataclass(frozen=True, slots=True)
class AlignedWindows:
    """Windows ``[start, start + size)`` that start at every multiple of ``every`` since the epoch."""

    size_ms: int
    every_ms: int

    @property
    def label(self) -> str:
        """Name the windows, for step names."""
        if self.size_ms == self.every_ms:
            return f"tumbling-{self.size_ms}ms"
        return f"hopping-{self.size_ms}ms-{self.every_ms}ms"

    def first_end(self, timestamp: int) -> int:
        """Return the end of the earliest window that holds ``timestamp``."""
        return self.last_end(timestamp - self.size_ms) + self.every_ms

    def last_end(self, timestamp: int) -> int:
        """Return the end of the latest window that holds ``timestamp``."""
        return timestamp - timestamp % self.every_ms + self.size_ms

    def shape(self) -> dict[str, Any]:
        """Describe what stored windows depend on."""
        return {"windows": "aligned", "size_ms": self.size_ms, "every_ms": self.every_ms}


@dataclass(frozen=True, slots=True)
class SessionWindows:
    """Windows ``[first, last + gap)`` around records that are less than ``gap`` apart."""

    gap_ms: int

    @property
    def label(self) -> str:
        """Name the windows, for step names."""
        return f"session-{self.gap_ms}ms"

    def shape(self) -> dict[str, Any]:
        """Describe what stored sessions depend on."""
        return {"windows": "session", "gap_ms": self.gap_ms}


Windows = AlignedWindows | SessionWindows


def tumbling(size: str | timedelta) -> AlignedWindows:
    """Cut time into windows of one size that follow each other.

    Windows are ``[start, end)`` and aligned to the epoch, UTC.

    Raises:
        TopologyError: the size is zero.
        SettingsError: it is not a duration.

    Example:
        >>> tumbling("1m").last_end(59_999), tumbling("1m").last_end(60_000)
        (60000, 120000)
    """
    return hopping(size, size)


def hopping(size: str | timedelta, every: str | timedelta) -> AlignedWindows:
    """Cut time into windows of one size that start at every ``every`` and so overlap.

    Args:
        size: How long a window is.
        every: How long after one window the next one starts; at most ``size``, so that no record is in none.

    Raises:
        TopologyError: one is zero, or ``every`` is longer than ``size``.
        SettingsError: one is not a duration.
    """
    size_ms, every_ms = duration_ms(size, "window size"), duration_ms(every, "window hop")
    if size_ms == 0 or every_ms == 0:
        raise TopologyError("a window needs a size and a hop of at least 1ms")
    if every_ms > size_ms:
        raise TopologyError(
            f"windows of {size_ms} ms every {every_ms} ms would leave records between them in no window",
            remedy="Make the hop at most as long as the window",
        )
    return AlignedWindows(size_ms, every_ms)


def session(gap: str | timedelta) -> SessionWindows:
    """Put records that are less than ``gap`` apart into one window, ``[first, last + gap)``.

    Raises:
        TopologyError: the gap is zero.
        SettingsError: it is not a duration.
    """
    gap_ms = duration_ms(gap, "session gap")
    if gap_ms == 0:
        raise TopologyError("a session needs a gap of at least 1ms")
    return SessionWindows(gap_ms)
