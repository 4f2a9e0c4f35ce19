"""Windows that a user writes: the protocol, and the checks on what an assigner says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.errors import TopologyError
from headrace.operators.windows import Window
from headrace.state.keys import TIME_WIDTH, decode_time, encode_time

_KNOWN_TIMES = 8192
_BIAS = 1 << 63
"""Added to a start, which may lie before the epoch, so that it is stored as a number that is not negative."""
_FAR = 1 << 62
"""No window starts further than this before the epoch or ends further behind it."""


class WindowAssigner(Protocol):
    """Windows of your own: say which ones hold a time, and ``KeyedStream.window`` does the rest.

    Windows are ``[start, end)`` in whole milliseconds since the epoch. They may overlap, differ in length, and leave
    times uncovered: a record in no window counts nowhere and is not late. They close as others do, when the watermark
    reaches their end plus the lateness, and work with every ``emit=``.

    An assigner must be immutable and its methods pure: the same answer for the same timestamp, in every process and
    after every restart.

    Example:
        >>> from headrace import Topology, agg
        >>> class OddSeconds:
        ...     name = "odd-seconds"
        ...
        ...     def windows(self, timestamp):
        ...         second = timestamp // 1000
        ...         return [(second * 1000, second * 1000 + 1000)] if second % 2 else []
        ...
        ...     def shape(self):
        ...         return {"windows": "odd-seconds"}
        >>> clicks = Topology("t").stream("clicks", keyed_by="page")
        >>> clicks.window(OddSeconds()).aggregate(n=agg.count()).to("counts")
    """

    @property
    def name(self) -> str:
        """Name the windows: it becomes part of the step's name and stands in error messages."""
        ...

    def windows(self, timestamp: int) -> Sequence[tuple[int, int]]:
        """Return the ``(start, end)`` of every window that holds ``timestamp``, in any order."""
        ...

    def shape(self) -> dict[str, Any]:
        """Describe what the windows depend on, as JSON: state kept under another shape is refused."""
        ...


@dataclass(frozen=True, slots=True)
class CustomWindows:
    """The windows of a user's assigner."""

    assigner: WindowAssigner

    @property
    def label(self) -> str:
        """Name the windows, for step names."""
        return self.assigner.name

    def shape(self) -> dict[str, Any]:
        """Describe what stored windows depend on."""
        return {"windows": "custom", "name": self.assigner.name, "shape": self.assigner.shape()}


class CustomLayout:
    """The running form of ``CustomWindows``: it asks the assigner about each time once, as long as it remembers.

    Every method that takes timestamps raises what the assigner raises, before anything has taken effect.
    """

    prefix_width = 2 * TIME_WIDTH

    def __init__(self, assigner: WindowAssigner) -> None:
        self._assigner = assigner
        self._known: dict[int, list[Window]] = {}

    def prefix(self, window: Window) -> bytes:
        """Return the window's end and start."""
        return encode_time(window[0]) + encode_time(window[1] + _BIAS)

    def window(self, prefix: bytes) -> Window:
        """Return the window of a prefix."""
        return (decode_time(prefix), decode_time(prefix, TIME_WIDTH) - _BIAS)

    def windows_of(self, timestamp: int) -> list[Window]:
        """Return every window that holds ``timestamp``, in order.

        Raises:
            TopologyError: what the assigner says are no windows that hold it.
            Exception: the assigner failed.
        """
        known = self._known.get(timestamp)
        if known is None:
            known = self._ask(timestamp)
            if len(self._known) >= _KNOWN_TIMES:
                self._known.clear()
            self._known[timestamp] = known
        return known

    def split(self, timestamps: Sequence[int]) -> list[tuple[Window, list[int] | None]]:
        """Return the windows of a batch, in order, and the places of their records."""
        groups: dict[Window, list[int]] = {}
        for i, t in enumerate(timestamps):
            for window in self.windows_of(t):
                groups.setdefault(window, []).append(i)
        return [(window, groups[window]) for window in sorted(groups)]

    def closed(self, timestamps: Sequence[int], end: int) -> list[bool] | None:
        """Return which records are in windows none of which ends after ``end``; None if no record is."""
        mask = [self.last_end(t) <= end for t in timestamps]
        return mask if any(mask) else None

    def last_end(self, timestamp: int) -> int:
        """Return the end of the last window that holds ``timestamp``; that of a record in no window never comes."""
        windows = self.windows_of(timestamp)
        return windows[-1][0] if windows else _FAR

    def _ask(self, timestamp: int) -> list[Window]:
        found = self._assigner.windows(timestamp)
        try:
            windows = [(end, start) for start, end in found]
        except (TypeError, ValueError):
            raise self._error("must return a sequence of (start, end)") from None
        for end, start in windows:
            if type(start) is not int or type(end) is not int:
                kinds = f"({type(start).__name__}, {type(end).__name__})"
                raise self._error(f"must return whole numbers of milliseconds, not {kinds}")
            if not start <= timestamp < end:
                raise self._error(f"returned [{start}, {end}) for the time {timestamp}, which lies outside")
            if start < -_FAR or end > _FAR:
                raise self._error(f"returned [{start}, {end}), which is no span of milliseconds since the epoch")
        return sorted(set(windows))

    def _error(self, what: str) -> TopologyError:
        return TopologyError(
            f"windows() of the window assigner {self._assigner.name!r} {what}",
            remedy="Return (start, end) in milliseconds since the epoch for every window with start <= timestamp < end",
        )
