"""``WindowedStream``: a keyed stream cut into windows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

from headrace.dsl.definition import check_aggregated_fields, located
from headrace.dsl.windows import check_joins, emission_of
from headrace.operators.aggregates import Aggregate
from headrace.operators.aggregation import WindowedAggregate, Windows
from headrace.operators.compiled import check_aggregates
from headrace.operators.emission import Every, When
from headrace.operators.selectors import decode_keys
from headrace.operators.windowed import LATE
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
        emit: Literal["close", "update"] | Every | When = "close",
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
        **aggregates: Aggregate,
    ) -> WindowResults:
        """Aggregate each window of each key and emit one result when it closes, or as ``emit`` says.

        A result is a dict: ``key``, ``window_start``, ``window_end`` (milliseconds) and the aggregates by name. It
        has the key of its records and, at a close, the timestamp ``window_end - 1``.

        Args:
            emit: When results leave.

                - ``"close"``: once, when the watermark has passed the window's end and lateness.
                - ``"update"``: after every record, one for each window that it is in, and nothing at the close. A
                  result carries the timestamp of its record, or the watermark before it if that is more, so that it
                  is never late for what follows. For a session it is about the session as it is then, which may have
                  taken in others that had results of their own.
                - ``every("10s")``: at regular times what has changed, and at the close; see ``every``.
                - ``when(predicate)``: once something is true of the result, and at the close; see ``when``.

                Sliding and counting windows emit at their close only.
            name: The step's name, under which its state is kept.
            on_error: What happens with a record that an aggregate fails on; the topology's policy if None.
            **aggregates: What to compute, from ``headrace.agg``.

        Returns:
            The results, and in ``.late`` the records that came too late for any window.

        Raises:
            TopologyError: an aggregate is none or has a reserved name, or ``emit`` is not for these windows.

        Example:
            >>> from headrace import Topology, agg, tumbling
            >>> views = Topology("t").stream("views", keyed_by="page")
            >>> views.window(tumbling("1m")).aggregate(views=agg.count()).to("views-per-minute")
        """
        from headrace.dsl.keyed import WindowResults

        located(check_aggregates, aggregates)
        stream, windows = self._stream, self._windows
        check_aggregated_fields(getattr(stream._value, "kind", None), aggregates)
        check_joins(windows, aggregates)
        key = stream._key
        emission = emission_of(emit, windows)
        spec = WindowedAggregate(windows, dict(aggregates), self._lateness_ms, partial(decode_keys, key), emission)
        port = stream._step(spec, windows.label, name, on_error)
        late = stream._same(Port(port.node, LATE))
        return WindowResults(stream._definition, port, port.node, Msgpack(), key, late)
