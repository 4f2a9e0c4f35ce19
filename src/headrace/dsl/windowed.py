"""``WindowedStream``: a keyed stream cut into windows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from headrace.dsl.definition import user_location
from headrace.errors import TopologyError
from headrace.operators.aggregates import Aggregate
from headrace.operators.api import Spec
from headrace.operators.compiled import check_aggregates
from headrace.operators.selectors import decode_keys
from headrace.operators.sessions import SessionAggregate
from headrace.operators.windowed import LATE, WindowedAggregate
from headrace.operators.windows import SessionWindows, Windows
from headrace.serde.msgpack import Msgpack
from headrace.topology.graph import ErrorPolicy, Port

if TYPE_CHECKING:
    from headrace.dsl.keyed import KeyedStream, WindowResults

V = TypeVar("V")


class WindowedStream(Generic[V]):
    """A keyed stream cut into windows; ``aggregate`` makes results of them."""

    def __init__(self, stream: KeyedStream[V], windows: Windows, lateness_ms: int) -> None:
        self._stream = stream
        self._windows = windows
        self._lateness_ms = lateness_ms

    def aggregate(
        self,
        *,
        emit: Literal["close"] = "close",
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
        **aggregates: Aggregate,
    ) -> WindowResults:
        """Aggregate each window of each key and emit one result when it closes.

        A result is a dict: ``key``, ``window_start``, ``window_end`` (milliseconds) and the aggregates by name. It
        has the key of its records and the timestamp ``window_end - 1``.

        Args:
            emit: When results leave: at ``"close"``, once the watermark has passed the window's end and lateness.
            name: The step's name, under which its state is kept.
            on_error: What happens with a record that an aggregate fails on; the topology's policy if None.
            **aggregates: What to compute, from ``headrace.agg``.

        Returns:
            The results, and in ``.late`` the records that came too late for any window.

        Raises:
            TopologyError: an aggregate is none or has a reserved name.

        Example:
            >>> from headrace import Topology, agg, tumbling
            >>> views = Topology("t").stream("views", keyed_by="page")
            >>> views.window(tumbling("1m")).aggregate(views=agg.count()).to("views-per-minute")
        """
        from headrace.dsl.keyed import WindowResults

        check_aggregates(aggregates)
        if emit != "close":
            raise TopologyError(f'emit must be "close", not {emit!r} ({user_location()})')
        stream, windows = self._stream, self._windows
        key = stream._key
        spec: Spec
        if isinstance(windows, SessionWindows):
            spec = SessionAggregate(windows, dict(aggregates), self._lateness_ms, partial(decode_keys, key))
        else:
            spec = WindowedAggregate(windows, dict(aggregates), self._lateness_ms, partial(decode_keys, key))
        port = stream._step(spec, windows.label, name, on_error)
        late = stream._same(Port(port.node, LATE))
        return WindowResults(stream._definition, port, port.node, Msgpack(), key, late)
