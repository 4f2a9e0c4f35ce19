"""``Stream``: records without a known key. Each method appends a node and returns what comes out of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, overload

from headrace.dsl.calls import async_map, async_policy
from headrace.dsl.definition import (
    Definition,
    check_async_function,
    check_fields,
    check_function,
    check_selector,
    check_writable,
    key_serde_of,
    merged_serde,
    serde_of_results,
    user_location,
)
from headrace.errors import TopologyError
from headrace.operators.api import MAIN, Spec
from headrace.operators.async_map import AsyncMap, Cache, Order
from headrace.operators.retrying import Retry
from headrace.operators.selectors import Selector, SelectorOf, function_name, selector_name
from headrace.operators.stateless import Stateless, branching, filtering, flat_mapping, mapping, merging, tapping
from headrace.serde.api import Serde, internal_serde, serde_for
from headrace.serde.msgpack import Msgpack
from headrace.topology.graph import ErrorPolicy, Port, Repartition, Sink, Step

if TYPE_CHECKING:
    from headrace.dsl.keyed import KeyedStream
    from headrace.dsl.table import GlobalTable

V = TypeVar("V")
U = TypeVar("U")
R = TypeVar("R")

_KEYED_ONLY = ("window", "as_of", "process", "aggregate", "reduce", "to_table")


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

    def map_async(
        self,
        function: Callable[[V], Awaitable[U]],
        *,
        concurrency: int = 100,
        order: Order = "key",
        timeout: str | timedelta = "30s",
        retry: Retry | None = None,
        cache: Cache | None = None,
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Stream[U]:
        """Replace each value by what an ``async def`` function returns for it, with many calls under way at a time.

        The calls of one batch are made together, on an event loop that all tasks of a worker share, while other tasks
        go on. The task goes on with the batch when all of them have ended; its position never passes one that has not,
        so after a crash those that were under way are made again. What the function answers may differ by then, so
        what leaves the task behind this step counts as at-least-once.

        Args:
            function: ``async def function(value)``; it must not block.
            concurrency: The most calls of this step that each task has under way at a time.
            order: With ``"key"``, calls for records with one key are made one after the other, in their order; records
                without a key count as having one key. With ``"input"``, all calls overlap. In both cases the results
                go on in the order of the records. With ``"none"``, they go on in the order in which the calls ended.
            timeout: How long one call may take; then it is cancelled and has failed with ``TimeoutError``.
            retry: Which failed calls are made again, and when: ``retry(...)``, whose ``then`` counts if ``on_error``
                is None.
            cache: How results are remembered: ``Cache(...)``; no call is made for a value that has a result.
            name: The step's name.
            on_error: What happens with a record whose call failed; the topology's policy if None.

        Raises:
            TopologyError: ``function`` is no ``async def``, or an option makes no sense.
            SettingsError: ``timeout`` is no duration.

        Example:
            >>> from headrace import Cache, Topology, retry
            >>> async def country_of(click: dict[str, str]) -> str:
            ...     return click["ip"]  # asks a service
            >>> clicks = Topology("t").stream("clicks")
            >>> countries = clicks.map_async(country_of, order="input", retry=retry(3), cache=Cache(by="ip"))
        """
        check_async_function(function, "map_async")
        policy = self._definition.policy(async_policy(retry, on_error), retries=True)
        tries = policy if isinstance(policy, Retry) else None
        spec = async_map(function, concurrency, order, timeout, tries, cache)
        port = self._step(spec, f"map_async-{function_name(function)}", name, policy)
        return self._next(port, serde_of_results(function))

    def filter(
        self, predicate: Callable[[V], Any], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Self:
        """Keep the records for whose value ``predicate`` is true.

        Example:
            >>> from headrace import Topology
            >>> paid = Topology("t").stream("orders").filter(lambda order: order["paid"])
        """
        check_function(predicate, "filter")
        return self._same(self._step(filtering(predicate), f"filter-{function_name(predicate)}", name, on_error))

    def flat_map(
        self, function: Callable[[V], Iterable[U]], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Stream[U]:
        """Replace each record by one for every value that ``function`` makes of its value.

        Example:
            >>> from headrace import Topology
            >>> lines = Topology("t").stream("orders").flat_map(lambda order: order["lines"])
        """
        check_function(function, "flat_map")
        port = self._step(flat_mapping(function), f"flat_map-{function_name(function)}", name, on_error)
        return self._next(port, serde_of_results(function, each=True))

    def tap(
        self, function: Callable[[V], Any], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Self:
        """Call ``function`` with each value and pass the records on; after a crash it sees some of them again.

        Example:
            >>> from headrace import Topology
            >>> Topology("t").stream("orders").tap(print).to("orders-seen")
        """
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

    def merge(self, *others: Stream[U], name: str | None = None) -> Stream[V | U]:
        """Put the records of several streams into one, in no particular order between them.

        The result is keyed if all of them are, by keys of one type. Values may be of several types; where they must
        be written before the next ``map`` (to an internal topic, into state) only plain ones can then be read back.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("t")
            >>> topology.stream("orders-eu").merge(topology.stream("orders-us")).to("orders")
        """
        for other in others:
            if getattr(other, "_definition", None) is not self._definition:
                raise TopologyError(f"merge needs streams of the same topology ({user_location()})")
        streams: tuple[Stream[Any], ...] = (self, *others)
        anchor = "-and-".join(dict.fromkeys(stream._anchor for stream in streams))
        name = name or self._definition.free_name(f"{anchor}-merge")
        self._add_step(merging(), name, tuple(stream._port for stream in streams), None)
        value = merged_serde([stream._value for stream in streams])
        return Stream(self._definition, Port(name), anchor, value, self._key)

    def key_by(
        self, selector: SelectorOf[V], *, key: Any = None, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> KeyedStream[V]:
        """Key the records by a field or a function of the value, through an internal topic.

        Nothing is moved where the stream is keyed by that very field already.

        Args:
            selector: What the key is.
            key: Its type, such as ``int`` or ``tuple[str, int]``, or serde; taken from the field's annotation or the
                function's, else ``str``.
            name: Names the internal topic: ``<topology>-<name>-repartition``.
            on_error: What happens with a record that has no such key; the topology's policy if None.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("t")
            >>> by_page = topology.stream("clicks").key_by("page")
            >>> by_day = topology.stream("sales").key_by(lambda sale: sale["at"] // 86_400_000, key=int, name="by-day")
        """
        from headrace.dsl.keyed import KeyedStream

        check_selector(selector, "key_by")
        check_fields(getattr(self._value, "kind", None), selector, "key_by")
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
                value=internal_serde(self._value),
                on_error=self._policy(on_error),
                location=user_location(),
            )
        )
        return KeyedStream(self._definition, Port(name), name, self._value, serde, selector)

    @overload
    def join(
        self, other: GlobalTable[U], combine: Callable[[V, U], R], *, on: SelectorOf[V],
        how: Literal["inner"] = "inner", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Stream[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: GlobalTable[U], combine: Callable[[V, U | None], R], *, on: SelectorOf[V],
        how: Literal["left"], name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Stream[R]: ...  # fmt: skip
    def join(
        self,
        other: GlobalTable[Any],
        combine: Callable[[Any, Any], Any],
        *,
        on: Selector | None = None,
        how: Literal["inner", "left"] = "inner",
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
        **keyed_only: Any,
    ) -> Stream[Any]:
        """Look up for each record the row that a global table has at that moment.

        The record keeps its key, time and headers. Changes of the table act on the records that come after them; the
        whole table is read before the first record.

        Args:
            other: A ``Topology.global_table``. Whatever else can be joined needs a keyed stream: use ``key_by`` first.
            combine: (value, row) -> result. With ``how="left"`` the row may be None.
            on: The key to look up: a field or a function of the value; None finds nothing.
            how: ``"inner"`` drops records for which there is no row, ``"left"`` keeps them.
            name: The step's name, under which the table's rows are kept.
            on_error: What happens with a record on which ``on`` or ``combine`` fails; the topology's policy if None.
            **keyed_only: Options of ``KeyedStream.join``; they are refused.

        Raises:
            TopologyError: ``other`` is no global table of this topology, or ``how`` is unknown.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("t")
            >>> currencies = topology.global_table("currencies")
            >>> sales = topology.stream("sales").join(currencies, lambda s, c: s["sum"] * c["rate"], on="currency")
        """
        from headrace.dsl.global_join import join_global
        from headrace.dsl.table import GlobalTable

        if not isinstance(other, GlobalTable):
            raise TopologyError(
                f"a stream without a key cannot be joined with a {type(other).__name__} ({user_location()})",
                remedy="Use key_by() first, or read the other topic with topology.global_table()",
            )
        if keyed_only:
            raise TopologyError(f"{min(keyed_only)}= does not belong to a join with a global table ({user_location()})")
        return join_global(self, other, combine, on=on, how=how, name=name, on_error=on_error)

    def deduplicate(
        self,
        by: SelectorOf[V],
        *,
        within: str | timedelta,
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[V]:
        """Drop records whose id was seen less than ``within`` of event time before.

        A stream without a key is keyed by the id first; a keyed one looks inside each key.

        Args:
            by: The id: a field or a function of the value; text, a number, bytes or a tuple of them.
            within: For how long an id is remembered, in event time.
            name: The step's name, under which its state is kept.
            on_error: What happens with a record without an id; the topology's policy if None.

        Example:
            >>> from headrace import Topology
            >>> Topology("t").stream("orders").deduplicate(by="order_id", within="1h").to("orders-once")
        """
        return self.key_by(by, on_error=on_error).deduplicate(by, within=within, name=name, on_error=on_error)

    def to(
        self,
        topic: str,
        *,
        value: type[V] | Serde[V] | None = None,
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

        Raises:
            TopologyError: ``value`` is nothing that can be written, or ``partitions`` is no number of them.

        Example:
            >>> from headrace import Json, Topology
            >>> Topology("t").stream("clicks").to("clicks-as-json", value=Json(), partitions=8)
        """
        if partitions is not None and (type(partitions) is not int or partitions < 1):
            raise TopologyError(
                f"partitions of to({topic!r}) must be a whole number of at least 1, not {partitions!r} "
                f"({user_location()})",
                remedy="Leave it out for as many as the widest source",
            )
        default = self._value if not isinstance(self._value, Msgpack) else Msgpack()
        serde = serde_for(value, f"value of to({topic!r})", lambda: default)
        check_writable(serde, f"to({topic!r})")
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

    if not TYPE_CHECKING:  # a type checker reports the missing method by itself

        def __getattr__(self, name: str) -> Any:
            if name in _KEYED_ONLY:
                raise TopologyError(
                    f"{name} needs a keyed stream ({user_location()})",
                    remedy="Use key_by(...) first, or say keyed_by= where the topic is read if it is keyed already",
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _policy(self, on_error: ErrorPolicy | None) -> ErrorPolicy:
        """Return the policy of a node that cannot make calls again."""
        return self._definition.policy(on_error)

    def _step(self, spec: Spec, label: str, name: str | None, on_error: ErrorPolicy | None) -> Port:
        """Append a step; one that keeps state must not get a name that depends on others."""
        wanted = f"{self._anchor}-{label}"
        name = name or (wanted if spec.stateful else self._definition.free_name(wanted))
        self._add_step(spec, name, (self._port,), on_error)
        return Port(name, MAIN)

    def _add_step(self, spec: Spec, name: str, inputs: tuple[Port, ...], on_error: ErrorPolicy | None) -> None:
        policy = self._definition.policy(_of_operator(spec, on_error), retries=_retries(spec))
        self._definition.add(Step(name=name, inputs=inputs, spec=spec, on_error=policy, location=user_location()))

    def _next(self, port: Port, value: Serde[Any]) -> Stream[Any]:
        return Stream(self._definition, port, self._anchor, value, self._key)

    def _same(self, port: Port) -> Self:
        return type(self)(self._definition, port, self._anchor, self._value, self._key)


def _retries(spec: Spec) -> bool:
    """Return whether a step calls user functions record by record and keeps no state, so that it can call again."""
    return isinstance(spec, AsyncMap) or (isinstance(spec, Stateless) and spec.kind != "merge")


def _of_operator(spec: Spec, on_error: ErrorPolicy | None) -> ErrorPolicy | None:
    """Return the policy of a step; that of a join is meant for the function that combines, in a step behind it."""
    if isinstance(on_error, Retry) and "join" in spec.kind and not _retries(spec):
        return on_error.then
    return on_error
