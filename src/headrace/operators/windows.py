"""Which windows a record belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from headrace.state.keys import TIME_WIDTH, decode_time, encode_time

Window = tuple[int, int]
"""The end and the start of a window, in this order, so that windows sort by when they close."""

_FEW_WINDOWS = 8


class WindowLayout(Protocol):
    """Windows of time that follow from a record's timestamp alone, and how each is called in the store."""

    @property
    def prefix_width(self) -> int:
        """Return how many bytes a window's prefix has."""
        ...

    def prefix(self, window: Window) -> bytes:
        """Return what stands before the keys of a window; it sorts like the window."""
        ...

    def window(self, prefix: bytes) -> Window:
        """Return the window of a prefix."""
        ...

    def windows_of(self, timestamp: int) -> Sequence[Window]:
        """Return every window that holds ``timestamp``, in order."""
        ...

    def split(self, timestamps: Sequence[int]) -> list[tuple[Window, list[int] | None]]:
        """Return the windows of a batch, in order, and the places of their records; None for all of them."""
        ...

    def closed(self, timestamps: Sequence[int], end: int) -> list[bool] | None:
        """Return which records are in windows none of which ends after ``end``; None if no record is."""
        ...

    def last_end(self, timestamp: int) -> int:
        """Return the end of the last window that holds ``timestamp``."""
        ...


@dataclass(frozen=True, slots=True)
class AlignedWindows:
    """Windows ``[start, start + size)`` that start at every multiple of ``every`` since the epoch."""

    size_ms: int
    every_ms: int
    prefix_width: ClassVar[int] = TIME_WIDTH

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

    def prefix(self, window: Window) -> bytes:
        """Return the window's end, from which its start follows."""
        return encode_time(window[0])

    def window(self, prefix: bytes) -> Window:
        """Return the window of a prefix."""
        end = decode_time(prefix)
        return (end, end - self.size_ms)

    def windows_of(self, timestamp: int) -> list[Window]:
        """Return every window that holds ``timestamp``, in order."""
        size, last = self.size_ms, self.last_end(timestamp)
        return [(end, end - size) for end in range(self.first_end(timestamp), last + 1, self.every_ms)]

    def split(self, timestamps: Sequence[int]) -> list[tuple[Window, list[int] | None]]:
        """Return the windows of a batch, in order, and the places of their records; None for all of them."""
        low, high = min(timestamps), max(timestamps)
        first, last, every, size = self.first_end(low), self.last_end(high), self.every_ms, self.size_ms
        if first == last:
            return [((first, first - size), None)]
        if (last - first) // every < _FEW_WINDOWS:
            ends = range(first, last + 1, every)
            return [((e, e - size), [i for i, t in enumerate(timestamps) if e - size <= t < e]) for e in ends]
        groups: dict[int, list[int]] = {}
        for i, t in enumerate(timestamps):
            for end in range(self.first_end(t), self.last_end(t) + 1, every):
                groups.setdefault(end, []).append(i)
        return [((end, end - size), groups[end]) for end in sorted(groups)]

    def closed(self, timestamps: Sequence[int], end: int) -> list[bool] | None:
        """Return which records are in windows none of which ends after ``end``; None if no record is."""
        if self.last_end(min(timestamps)) > end:
            return None
        last_end = self.last_end
        return [last_end(t) <= end for t in timestamps]

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


@dataclass(frozen=True, slots=True)
class SlidingWindows:
    """Windows ``[t + 1 - size, t + 1)``, one for every time ``t`` at which a key has a record."""

    size_ms: int

    @property
    def label(self) -> str:
        """Name the windows, for step names."""
        return f"sliding-{self.size_ms}ms"

    def shape(self) -> dict[str, Any]:
        """Describe what stored panes depend on."""
        return {"windows": "sliding", "size_ms": self.size_ms}


@dataclass(frozen=True, slots=True)
class CountingWindows:
    """Windows of ``size`` records of one key, in the order of event time."""

    size: int

    @property
    def label(self) -> str:
        """Name the windows, for step names."""
        return f"counting-{self.size}"

    def shape(self) -> dict[str, Any]:
        """Describe what stored windows depend on."""
        return {"windows": "counting", "size": self.size}
