"""``KeyedStream``: records of which those with one key are in one partition, so that state can be kept per key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Literal, Self, TypeVar, overload

from headrace.dsl.definition import (
    Definition,
    check_aggregated_fields,
    check_fields,
    check_function,
    check_selector,
    located,
    user_location,
)
from headrace.dsl.stream import Stream
from headrace.dsl.windowed import WindowedStream
from headrace.dsl.windows import AnyWindows, lateness_of, windows_of
from headrace.errors import TopologyError
from headrace.operators.aggregates import Aggregate
from headrace.operators.async_map import Cache, Order
from headrace.operators.compiled import check_aggregates
from headrace.operators.deduplicate import Deduplicate
from headrace.operators.in_order import InOrder
from headrace.operators.keyed_state import KeyedState
from headrace.operators.programs import Context, Process
from headrace.operators.retrying import Retry
from headrace.operators.running import RESERVED, RunningAggregate, RunningReduce
from headrace.operators.selectors import Selector, SelectorOf, function_name, selector_name
from headrace.serde.api import Serde
from headrace.settings import duration_ms
from headrace.topology.graph import ErrorPolicy, Port

if TYPE_CHECKING:
    from headrace.dsl.joins import JoinResults, Match, Within
    from headrace.dsl.processing import NamedOutputs, ProcessResults
    from headrace.dsl.table import GlobalTable, Table

V = TypeVar("V")
U = TypeVar("U")
R = TypeVar("R")


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
    ) -> KeyedStream[U]:
        """Replace each value by what an ``async def`` function returns for it; see ``Stream.map_async``."""
        results = super().map_async(
            function, concurrency=concurrency, order=order, timeout=timeout, retry=retry, cache=cache,
            name=name, on_error=on_error,
        )  # fmt: skip
        return self._keyed(results)

    def flat_map(
        self, function: Callable[[V], Iterable[U]], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> KeyedStream[U]:
        """Replace each record by one for every value that ``function`` makes of its value, all with its key."""
        return self._keyed(super().flat_map(function, name=name, on_error=on_error))

    @overload
    def merge(self, *others: KeyedStream[U], name: str | None = None) -> KeyedStream[V | U]: ...
    @overload
    def merge(self, *others: Stream[U], name: str | None = None) -> Stream[V | U]: ...
    def merge(self, *others: Stream[Any], name: str | None = None) -> Stream[Any]:
        """Put the records of several streams into one, in no particular order between them.

        The result is keyed if all of them are, by keys of one type: what is behind sees the records of a key from all
        of them. Their topics must then have the same number of partitions.

        Example:
            >>> from headrace import Topology, agg, tumbling
            >>> topology = Topology("shop")
            >>> orders = topology.stream("orders", keyed_by="customer")
            >>> returns = topology.stream("returns", keyed_by="customer")
            >>> contacts = orders.merge(returns).window(tumbling("1d")).aggregate(contacts=agg.count())
        """
        merged = super().merge(*others, name=name)
        kinds = {stream._key.name for stream in (self, *others)}
        if len(kinds) > 1 or not all(isinstance(other, KeyedStream) for other in others):
            return merged
        return self._keyed(merged, merged._anchor)

    def deduplicate(
        self,
        by: SelectorOf[V],
        *,
        within: str | timedelta,
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[V]:
        """Drop records whose id was seen with the same key less than ``within`` of event time before."""
        within_ms = duration_ms(within, f"within of deduplicate ({user_location()})")
        if within_ms == 0:
            raise TopologyError(f"deduplicate within 0 would drop nothing ({user_location()})")
        check_selector(by, "deduplicate by=")
        check_fields(getattr(self._value, "kind", None), by, "deduplicate by=")
        label = f"deduplicate-{selector_name(by)}"
        return self._same(self._step(Deduplicate(by, within_ms), label, name, on_error))

    def in_order(self, *, name: str | None = None) -> KeyedStream[V]:
        """Hold each record back until all before it have come, so that what follows sees them in the order of time.

        Records leave once the watermark has passed them, by timestamp and, of one timestamp, as they came. A late one
        leaves with the watermark that it found for its timestamp. Put it before ``process`` where order matters.

        Args:
            name: The step's name, under which the records that wait are kept.

        Example:
            >>> from headrace import Topology
            >>> from headrace.testing import TopologyTestDriver
            >>> topology = Topology("journal")
            >>> topology.stream("entries", keyed_by="book", time="at", out_of_orderness="1s").in_order().to("journal")
            >>> driver = TopologyTestDriver(topology)
            >>> driver.send_many("entries", [{"book": "a", "at": 700}, {"book": "a", "at": 300}])
            >>> driver.end_input()
            >>> [record.timestamp for record in driver.read("journal")]
            [300, 700]
        """
        return self._same(self._step(InOrder(self._value), "in_order", name, None))

    def to_table(self) -> Table[V]:
        """Take each record for the row of its key from there on; one whose value is None deletes the row.

        Example:
            >>> from headrace import Topology
            >>> latest = Topology("t").stream("positions", keyed_by="vehicle").to_table()
        """
        from headrace.dsl.table import Table

        return Table(self._keyed(self))

    def aggregate(
        self, *, name: str | None = None, on_error: ErrorPolicy | None = None, **aggregates: Aggregate
    ) -> Table[dict[str, Any]]:
        """Aggregate all records of each key, without end, into a table.

        Every record makes a new row: a dict with ``key`` and the aggregates by name. A row has the key and the
        timestamp of the record that made it.

        Args:
            name: The step's name, under which its state is kept.
            on_error: What happens with a record that an aggregate fails on; the topology's policy if None.
            **aggregates: What to compute, from ``headrace.agg``.

        Raises:
            TopologyError: an aggregate is none or has a reserved name.

        Example:
            >>> from headrace import Topology, agg
            >>> from headrace.testing import TopologyTestDriver
            >>> topology = Topology("spend")
            >>> payments = topology.stream("payments", keyed_by="customer")
            >>> payments.aggregate(total=agg.sum("total")).filter(lambda row: row["total"] > 5).to("big-spenders")
            >>> driver = TopologyTestDriver(topology)
            >>> driver.send_many("payments", [{"customer": "c1", "total": 4}, {"customer": "c1", "total": 3}])
            >>> [record.value for record in driver.read("big-spenders")]
            [None, {'key': 'c1', 'total': 7}]
        """
        from headrace.dsl.table import table_of

        located(check_aggregates, aggregates, RESERVED)
        check_aggregated_fields(getattr(self._value, "kind", None), aggregates)
        port = self._step(RunningAggregate(dict(aggregates), self._key), "aggregate", name, on_error)
        return table_of(self, port)

    def reduce(
        self, function: Callable[[V, V], V], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Table[V]:
        """Combine the values of each key, one after the other, into a table that has the combined value.

        Every record makes a new row, with the timestamp of the record. The first one is the row as it is.

        Args:
            function: (combined so far, next value) -> combined, of the same type; None deletes the row.
            name: The step's name, under which its state is kept.
            on_error: What happens with a record on which it fails; the topology's policy if None.

        Example:
            >>> from headrace import Topology
            >>> bids = Topology("t").stream("bids", keyed_by="auction")
            >>> highest = bids.reduce(lambda best, bid: bid if bid["price"] > best["price"] else best)
        """
        from headrace.dsl.table import table_of

        check_function(function, "reduce")
        label = f"reduce-{function_name(function)}"
        return table_of(self, self._step(RunningReduce(function, self._value), label, name, on_error), self._value)

    def window(self, windows: AnyWindows, *, lateness: str | timedelta = "0s") -> WindowedStream[V]:
        """Put the records of each key into windows of event time.

        Args:
            windows: ``tumbling(size)``, ``hopping(size, every)``, ``sliding(size)``, ``session(gap)``,
                ``counting(records)``, or a ``WindowAssigner`` of your own.
            lateness: How long after its end, by the watermark, a window still takes records before it closes.

        Raises:
            TopologyError: ``windows`` are none, or the lateness is negative.
            SettingsError: the lateness is not a duration.

        Example:
            >>> from headrace import Topology, agg, session
            >>> clicks = Topology("t").stream("clicks", keyed_by="user", time="at")
            >>> visits = clicks.window(session("30m"), lateness="1m").aggregate(clicks=agg.count())
        """
        found = windows_of(windows)
        return WindowedStream(self, found, lateness_of(lateness, found))

    @overload
    def join(
        self, other: KeyedStream[U], combine: Callable[[V, U], R], *, within: Within, how: Literal["inner"] = "inner",
        lateness: str | timedelta | None = None, name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> JoinResults[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: KeyedStream[U], combine: Callable[[V, U | None], R], *, within: Within, how: Literal["left"],
        lateness: str | timedelta | None = None, name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> JoinResults[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: KeyedStream[U], combine: Callable[[V | None, U], R], *, within: Within, how: Literal["right"],
        lateness: str | timedelta | None = None, name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> JoinResults[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: KeyedStream[U], combine: Callable[[V | None, U | None], R], *, within: Within,
        how: Literal["outer"], lateness: str | timedelta | None = None, name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> JoinResults[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: Table[U], combine: Callable[[V, U], R], *, how: Literal["inner"] = "inner",
        match: Match | None = None, name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: Table[U], combine: Callable[[V, U | None], R], *, how: Literal["left"],
        match: Match | None = None, name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: GlobalTable[U], combine: Callable[[V, U], R], *, on: SelectorOf[V] | None = None,
        how: Literal["inner"] = "inner", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: GlobalTable[U], combine: Callable[[V, U | None], R], *, on: SelectorOf[V] | None = None,
        how: Literal["left"], name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[R]: ...  # fmt: skip
    def join(
        self,
        other: Any,
        combine: Callable[[Any, Any], Any],
        *,
        within: Within | None = None,
        how: str = "inner",
        lateness: str | timedelta | None = None,
        match: Match | None = None,
        on: Selector | None = None,
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Any:
        """Join with another keyed stream, with a table, or with a global table.

        **Two streams** need ``within``: records of one key are a pair if the right one is at most ``before`` earlier
        and at most ``after`` later than the left one. A pair leaves as soon as both are there, with the later of their
        timestamps. A record with no partner leaves, if ``how`` asks for it, with its own timestamp once the watermark
        has passed the last time at which a partner could still come (of ``how="outer"``, by the longer of both ways).
        A record that comes when that has passed is late: it is counted, and is in ``.late`` or ``.late_right``. A pair
        of an inner join of which both records were behind the watermark is behind it too. A stream may be joined with
        itself: every record then meets the others and itself, as in SQL.

        **A table** gives each record the row of its key as it was at the record's time: the record waits until the
        watermark has passed that time. Changes take effect in the order of the table's topic. A late record meets the
        row as of the watermark, and gets that for its timestamp. With ``match="latest"`` a record meets the row that is
        known when it comes, at once; a replay may then find other rows.

        **A global table** is looked up at once, by the field ``on`` or, without it, by the stream's key.

        Headers of the left record are kept where the right side is a table; pairs of two streams have none.

        Args:
            other: What to join with: of the same topology, with keys of the same type, and partitioned alike.
            combine: (left value, right value) -> the result's value. The side that ``how`` lets be missing is None.
            within: One duration for both ways or ``(before, after)``; for two streams only.
            how: ``"inner"``; ``"left"``; and, of two streams, ``"right"`` and ``"outer"``.
            lateness: How long records wait for partners that are late, beyond ``within``; for two streams only.
            match: ``"as-of"`` (the default) or ``"latest"``; for tables only.
            on: The field of the record, or a function of it, that is a key of the global table.
            name: The step's name, under which its state is kept.
            on_error: What happens where ``combine`` fails; the topology's policy if None.

        Raises:
            TopologyError: the two cannot be joined, or an option does not belong to such a join.
            SettingsError: a duration is none.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("shop")
            >>> orders = topology.stream("orders", keyed_by="order_id", time="at")
            >>> payments = topology.stream("payments", keyed_by="order_id", time="at")
            >>> paid = orders.join(payments, lambda order, payment: {**order, **payment}, within=("0s", "1h"))
        """
        from headrace.dsl.joins import join

        options = {
            "within": within, "lateness": lateness, "match": match, "on": on, "name": name, "on_error": on_error,
        }  # fmt: skip
        return join(self, other, combine, how, options)

    @overload
    def as_of(
        self, right: KeyedStream[U], combine: Callable[[V, U | None], R], *, within: str | timedelta | None = None,
        how: Literal["left"] = "left", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[R]: ...  # fmt: skip
    @overload
    def as_of(
        self, right: KeyedStream[U], combine: Callable[[V, U], R], *, within: str | timedelta | None = None,
        how: Literal["inner"], name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[R]: ...  # fmt: skip
    def as_of(
        self,
        right: Any,
        combine: Callable[[Any, Any], Any],
        *,
        within: str | timedelta | None = None,
        how: str = "left",
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[Any]:
        """Join each record with the latest record of another stream that has its key and is not later than it.

        A record waits until the watermark has passed its time, so that the other stream is known up to there; results
        leave in the order of time. They have the record's timestamp and headers. A late record, of either side, counts
        as one of the watermark at which it came, and gets that for its timestamp. A right record without a value ends
        what was before it.

        Args:
            right: The other stream: of the same topology, with keys of the same type, and partitioned alike.
            combine: (left value, right value) -> the result's value. With ``how="left"`` the right one may be None.
            within: How old the other record may be. If None, the latest one of each key is kept for ever.
            how: ``"left"`` keeps records for which there is none, ``"inner"`` drops them.
            name: The step's name, under which its state is kept.
            on_error: What happens where ``combine`` fails; the topology's policy if None.

        Raises:
            TopologyError: the two cannot be joined.
            SettingsError: ``within`` is no duration.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("trading")
            >>> trades = topology.stream("trades", keyed_by="symbol", time="at")
            >>> quotes = topology.stream("quotes", keyed_by="symbol", time="at")
            >>> priced = trades.as_of(quotes, lambda t, q: {**t, "bid": q["bid"]}, within="1m", how="inner")
        """
        from headrace.dsl.joins import as_of

        return as_of(self, right, combine, within, how, name, on_error)

    @overload
    def process(
        self, process: Process[V, U] | type[Process[V, U]], *, name: str | None = None, outputs: NamedOutputs = (),
        drop: Iterable[str] = (), uses_clock: bool = False, on_error: ErrorPolicy | None = None,
    ) -> ProcessResults[U]: ...  # fmt: skip
    @overload
    def process(
        self, process: Callable[Concatenate[V, Context, ...], Iterable[U] | None], *,
        on_timer: Callable[Concatenate[str, Context, ...], Iterable[U] | None] | None = None,
        on_clock_timer: Callable[Concatenate[str, Context, ...], Iterable[U] | None] | None = None,
        name: str | None = None, outputs: NamedOutputs = (), drop: Iterable[str] = (), uses_clock: bool = False,
        on_error: ErrorPolicy | None = None, **states: KeyedState,
    ) -> ProcessResults[U]: ...  # fmt: skip
    def process(
        self,
        process: Any,
        *,
        on_timer: Callable[..., Any] | None = None,
        on_clock_timer: Callable[..., Any] | None = None,
        name: str | None = None,
        outputs: NamedOutputs = (),
        drop: Iterable[str] = (),
        uses_clock: bool = False,
        on_error: ErrorPolicy | None = None,
        **states: Any,
    ) -> ProcessResults[Any]:
        """Run code of one's own on every record, with state and timers per key: for what no other operator covers.

        ``process`` is a subclass of ``Process``, an object of one, or a function ``(record, context, **states)`` that
        yields results or returns a list of them; a function's states are given by name. Results of a record have its
        timestamp, those of a timer its time. A timer runs when the watermark has passed it, between two records. What
        a record's code wrote is undone if it raises; a timer whose code raises is used up. Behind a repartition event
        time moves with the batches that other tasks write, so that a timer may run some records later than it could.

        All that one key keeps is one row, which is read and written whole: a key should keep no more than fits in
        memory many times over. When a bounded input ends, the timers run up to the latest that is set then; those that
        they set for later stay for a later run. States may be added in a later version of a topology; see
        ``ValueState`` for types that change.

        Args:
            process: The code.
            on_timer: With a function, what handles timers: a function ``(name, context, **states)``.
            on_clock_timer: The same for timers of processing time.
            name: The step's name, under which its state is kept; made from the class's or function's name if None.
            outputs: The names of outputs beside the main one, or what their values are by name.
            drop: Names of states that the code had once: what is stored of them is forgotten.
            uses_clock: Whether the code asks for ``context.now_ms``.
            on_error: What happens with a record or timer that the code fails on; the topology's policy if None.
            **states: With a function, its states.

        Returns:
            What the code yields, and by ``.output(name)`` what it emits to each output.

        Raises:
            TopologyError: the code or a state cannot be used as it is written.

        Example:
            >>> from collections.abc import Iterator
            >>> from headrace import Context, Topology, ValueState
            >>> def rises(reading: dict[str, float], context: Context, last: ValueState[float]) -> Iterator[float]:
            ...     if reading["level"] > last.value:
            ...         yield reading["level"] - last.value
            ...     last.value = reading["level"]
            >>> readings = Topology("t").stream("readings", keyed_by="gauge", time="at")
            >>> readings.process(rises, last=ValueState(float, default=0.0)).to("rises")
        """
        from headrace.dsl.processing import processed

        return processed(
            self, process, on_timer=on_timer, on_clock_timer=on_clock_timer, name=name, outputs=outputs, drop=drop,
            uses_clock=uses_clock, on_error=on_error, states=states,
        )  # fmt: skip

    def _same(self, port: Port) -> Self:
        return type(self)(self._definition, port, self._anchor, self._value, self._key, self._keyed_by)

    def _keyed(self, stream: Stream[U], anchor: str | None = None) -> KeyedStream[U]:
        return KeyedStream(self._definition, stream._port, anchor or self._anchor, stream._value, self._key)


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
