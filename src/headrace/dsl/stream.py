"""``Stream``: records without a known key. Each method appends a node and returns what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

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
from headrace.operators.api import MAIN, Spec
from headrace.operators.selectors import Selector, function_name, selector_name
from headrace.operators.stateless import branching, filtering, flat_mapping, mapping, merging, tapping
from headrace.serde.api import Serde, serde_for
from headrace.serde.msgpack import Msgpack
from headrace.topology.graph import ErrorPolicy, Port, Repartition, Sink, Step

if TYPE_CHECKING:
    from headrace.dsl.keyed import KeyedStream

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
        from headrace.dsl.keyed import KeyedStream

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
