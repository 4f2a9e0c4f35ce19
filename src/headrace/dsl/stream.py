"""``Stream``, ``KeyedStream`` and ``WindowedStream``: each method appends a node and returns what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any, Generic, Literal, Self, TypeVar

from headrace.dsl.definition import (
    Definition,
    check_function,
    check_policy,
    check_selector,
    key_serde_of,
    merged_serde,
    serde_of_results,
    user_location,
)
from headrace.errors import TopologyError
from headrace.operators.aggregates import Aggregate
from headrace.operators.api import MAIN, Spec
from headrace.operators.compiled import check_aggregates
from headrace.operators.deduplicate import Deduplicate
from headrace.operators.selectors import Selector, decode_keys, function_name, selector_name
from headrace.operators.sessions import SessionAggregate
from headrace.operators.stateless import branching, filtering, flat_mapping, mapping, merging, tapping
from headrace.operators.windowed import LATE, WindowedAggregate
from headrace.operators.windows import AlignedWindows, SessionWindows, Windows
from headrace.serde.api import Serde, serde_for
from headrace.serde.msgpack import Msgpack
from headrace.settings import duration_ms
from headrace.topology.graph import ErrorPolicy, Port, Repartition, Sink, Step

V = TypeVar("V")
U = TypeVar("U")


class Stream(Generic[V]):
    """Records without a known key. Made by ``Topology.stream`` and by other streams."""

    def __init__(self, definition: Definition, port: Port, anchor: str, value: Serde[Any], key: Serde[Any]) -> None:
        self._definition = definition
        self._port = port
        self._anchor = anchor
        """What names of later steps begin with: the nearest source, repartition or window above."""
        self._value = value
        self._key = key

    def map(
        self, function: Callable[[V], U], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Stream[U]:
        """Replace each value by what ``function`` makes of it; the record keeps its key, time and headers.

        Example:
            >>> from headrace import Topology
            >>> clicks = Topology("t").stream("clicks").map(lambda click: click["page"])
        """
        check_function(function, "map")
        port = self._step(mapping(function), f"map-{function_name(function)}", name, on_error)
        return self._next(port, serde_of_results(function))

    def filter(
        self, predicate: Callable[[V], Any], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Self:
        """Keep the records for whose value ``predicate`` is true."""
        check_function(predicate, "filter")
        return self._same(self._step(filtering(predicate), f"filter-{function_name(predicate)}", name, on_error))

    def flat_map(
        self, function: Callable[[V], Iterable[U]], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Stream[U]:
        """Replace each record by one for every value that ``function`` makes of its value."""
        check_function(function, "flat_map")
        port = self._step(flat_mapping(function), f"flat_map-{function_name(function)}", name, on_error)
        return self._next(port, serde_of_results(function, each=True))

    def tap(
        self, function: Callable[[V], Any], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Self:
        """Call ``function`` with each value and pass the records on; after a crash it sees some of them again."""
        check_function(function, "tap")
        return self._same(self._step(tapping(function), f"tap-{function_name(function)}", name, on_error))

    def branch(
        self, *, name: str | None = None, on_error: ErrorPolicy | None = None, **predicates: Callable[[V], Any]
    ) -> dict[str, Self]:
        """Split into named streams: a record goes to the first whose predicate is true, and nowhere if none is.

        Example:
            >>> from headrace import Topology
            >>> sizes = Topology("t").stream("orders").branch(big=lambda o: o["total"] > 100, small=lambda o: True)
            >>> sorted(sizes)
            ['big', 'small']
        """
        if not predicates:
            raise TopologyError(f"branch needs at least one predicate, such as big=... ({user_location()})")
        for label, predicate in predicates.items():
            check_function(predicate, f"branch {label}=")
        port = self._step(branching(tuple(predicates.items())), "branch", name, on_error)
        return {label: self._same(Port(port.node, label)) for label in predicates}

    def merge(self, *others: Stream[V], name: str | None = None) -> Stream[V]:
        """Put the records of several streams into one, in no particular order between them."""
        for other in others:
            if getattr(other, "_definition", None) is not self._definition:
                raise TopologyError(f"merge needs streams of the same topology ({user_location()})")
        streams = (self, *others)
        anchor = "-and-".join(dict.fromkeys(stream._anchor for stream in streams))
        name = name or self._definition.free_name(f"{anchor}-merge")
        self._add_step(merging(), name, tuple(stream._port for stream in streams), None)
        value = merged_serde([stream._value for stream in streams])
        return Stream(self._definition, Port(name), anchor, value, self._key)

    def key_by(
        self, selector: Selector, *, key: Any = None, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> KeyedStream[V]:
        """Key the records by a field or a function of the value, through an internal topic.

        Nothing is moved where the stream is keyed by that very field already.

        Args:
            selector: What the key is.
            key: Its type or serde; taken from the field's annotation or the function's, else ``str``.
            name: Names the internal topic: ``<topology>-<name>-repartition``.
            on_error: What happens with a record that has no such key; the topology's policy if None.
        """
        check_selector(selector, "key_by")
        if isinstance(self, KeyedStream) and isinstance(selector, str) and self._keyed_by == selector and key is None:
            return self
        kind = getattr(self._value, "kind", None)
        serde = serde_for(key, "key of key_by", lambda: key_serde_of(kind, selector))
        name = name or f"{self._anchor}-by-{selector_name(selector)}"
        self._definition.add(
            Repartition(
                name=name,
                inputs=(self._port,),
                selector=selector,
                key=serde,
                value=self._value,
                on_error=self._policy(on_error),
                location=user_location(),
            )
        )
        return KeyedStream(self._definition, Port(name), name, self._value, serde, selector)

    def deduplicate(
        self, by: Selector, *, within: str | timedelta, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> KeyedStream[V]:
        """Drop records whose id was seen less than ``within`` of event time before.

        A stream without a key is keyed by the id first; a keyed one looks inside each key.

        Args:
            by: The id: a field or a function of the value; text, a number, bytes or a tuple of them.
            within: For how long an id is remembered, in event time.
            name: The step's name, under which its state is kept.
            on_error: What happens with a record without an id; the topology's policy if None.
        """
        return self.key_by(by, on_error=on_error).deduplicate(by, within=within, name=name, on_error=on_error)

    def to(
        self,
        topic: str,
        *,
        value: Any = None,
        partitions: int | None = None,
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> None:
        """Write the records to a topic, which is made if it does not exist.

        Args:
            topic: Its name.
            value: The serde or type of what is written; MessagePack if None.
            partitions: How many a new topic gets; as many as the widest source if None.
            name: The step's name, which stands in the id that every output record carries.
            on_error: What happens with a value that cannot be encoded; the topology's policy if None.
        """
        default = self._value if not isinstance(self._value, Msgpack) else Msgpack()
        serde = serde_for(value, f"value of to({topic!r})", lambda: default)
        self._definition.add(
            Sink(
                name=name or f"{self._anchor}-to-{topic}",
                inputs=(self._port,),
                topic=topic,
                value=serde,
                partitions=partitions,
                on_error=self._policy(on_error),
                location=user_location(),
            )
        )

    def _policy(self, on_error: ErrorPolicy | None) -> ErrorPolicy:
        return check_policy(on_error or self._definition.on_error)

    def _step(self, spec: Spec, label: str, name: str | None, on_error: ErrorPolicy | None) -> Port:
        """Append a step; one that keeps state must not get a name that depends on others."""
        wanted = f"{self._anchor}-{label}"
        name = name or (wanted if spec.stateful else self._definition.free_name(wanted))
        self._add_step(spec, name, (self._port,), on_error)
        return Port(name, MAIN)

    def _add_step(self, spec: Spec, name: str, inputs: tuple[Port, ...], on_error: ErrorPolicy | None) -> None:
        policy = self._policy(on_error)
        self._definition.add(Step(name=name, inputs=inputs, spec=spec, on_error=policy, location=user_location()))

    def _next(self, port: Port, value: Serde[Any]) -> Stream[Any]:
        return Stream(self._definition, port, self._anchor, value, self._key)

    def _same(self, port: Port) -> Self:
        return type(self)(self._definition, port, self._anchor, self._value, self._key)


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
