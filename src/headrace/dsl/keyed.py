"""``KeyedStream``: records of which those with one key are in one partition, so that state can be kept per key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Self, TypeVar

from headrace.dsl.definition import Definition, check_selector, user_location
from headrace.dsl.stream import Stream
from headrace.dsl.windowed import WindowedStream
from headrace.errors import TopologyError
from headrace.operators.deduplicate import Deduplicate
from headrace.operators.selectors import Selector, selector_name
from headrace.operators.windows import AlignedWindows, SessionWindows, Windows
from headrace.serde.api import Serde
from headrace.settings import duration_ms
from headrace.topology.graph import ErrorPolicy, Port

V = TypeVar("V")
U = TypeVar("U")


class KeyedStream(Stream[V]):
    """Records of which those with one key are in one partition, so that state can be kept per key."""

    def __init__(
        self,
        definition: Definition,
        port: Port,
        anchor: str,
        value: Serde[Any],
        key: Serde[Any],
        keyed_by: Selector | None = None,
    ) -> None:
        super().__init__(definition, port, anchor, value, key)
        self._keyed_by = keyed_by
        """The field that the key is, as long as no step may have changed it."""

    def map(
        self, function: Callable[[V], U], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> KeyedStream[U]:
        """Replace each value by what ``function`` makes of it; the record keeps its key, time and headers."""
        return self._keyed(super().map(function, name=name, on_error=on_error))

    def flat_map(
        self, function: Callable[[V], Iterable[U]], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> KeyedStream[U]:
        """Replace each record by one for every value that ``function`` makes of its value, all with its key."""
        return self._keyed(super().flat_map(function, name=name, on_error=on_error))

    def deduplicate(
        self, by: Selector, *, within: str | timedelta, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> KeyedStream[V]:
        """Drop records whose id was seen with the same key less than ``within`` of event time before."""
        within_ms = duration_ms(within, "within of deduplicate")
        if within_ms == 0:
            raise TopologyError(f"deduplicate within 0 would drop nothing ({user_location()})")
        check_selector(by, "deduplicate by=")
        label = f"deduplicate-{selector_name(by)}"
        return self._same(self._step(Deduplicate(by, within_ms), label, name, on_error))

    def window(self, windows: Windows, *, lateness: str | timedelta = "0s") -> WindowedStream[V]:
        """Put the records of each key into windows of event time.

        Args:
            windows: ``tumbling(size)``, ``hopping(size, every)`` or ``session(gap)``.
            lateness: How long after its end, by the watermark, a window still takes records before it closes.
        """
        if not isinstance(windows, AlignedWindows | SessionWindows):
            raise TopologyError(
                f"window needs tumbling(...), hopping(...) or session(...), not {type(windows).__name__} "
                f"({user_location()})"
            )
        return WindowedStream(self, windows, duration_ms(lateness, "lateness of window"))

    def _same(self, port: Port) -> Self:
        return type(self)(self._definition, port, self._anchor, self._value, self._key, self._keyed_by)

    def _keyed(self, stream: Stream[U]) -> KeyedStream[U]:
        return KeyedStream(self._definition, stream._port, self._anchor, stream._value, self._key)


class WindowResults(KeyedStream[dict[str, Any]]):
    """Window results: a keyed stream of dicts, with the late records beside it."""

    def __init__(
        self,
        definition: Definition,
        port: Port,
        anchor: str,
        value: Serde[Any],
        key: Serde[Any],
        late: KeyedStream[Any],
    ) -> None:
        super().__init__(definition, port, anchor, value, key)
        self.late = late
        """Records that came after all their windows had closed, unchanged; they are counted in any case."""

    def _same(self, port: Port) -> Self:
        return type(self)(self._definition, port, self._anchor, self._value, self._key, self.late)
