"""``Topology``: where streams begin and nodes are gathered."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar, overload

from headrace.dsl.definition import Definition, check_fields, check_policy, check_selector, key_serde_of, user_location
from headrace.dsl.keyed import KeyedStream
from headrace.dsl.stream import Stream
from headrace.dsl.table import GlobalTable, Table
from headrace.operators.selectors import Selector, SelectorOf
from headrace.serde.api import Serde, serde_for
from headrace.serde.primitives import Str
from headrace.settings import duration_ms
from headrace.topology.graph import ErrorPolicy, Graph, Port, Source
from headrace.topology.validate import validate

V = TypeVar("V")


class Topology:
    """A stream-processing program: what it reads, what it does with it, where the results go.

    Args:
        name: Names the consumer group, the checkpoints and the internal topics; change it and the program starts
            anew. Letters, digits, ``.``, ``_`` and ``-``.
        on_error: What happens with a record that cannot be decoded or processed, unless a step says otherwise:
            ``"stop"`` ends the worker with the user's traceback, ``"skip"`` counts the record and goes on,
            ``"dead-letter"`` writes the untouched input record to the topic ``<topology>-dead-letter`` with what
            failed in its headers. ``retry(...)`` calls functions again first, in the steps that can.

    Example:
        >>> from headrace import Topology
        >>> topology = Topology("shouting")
        >>> topology.stream("words", value=str).map(str.upper).to("loud-words")
    """

    def __init__(self, name: str, *, on_error: ErrorPolicy = "stop") -> None:
        self.name = name
        self._definition = Definition(check_policy(on_error))

    @overload
    def stream(
        self, topic: str, *, value: type[V] | Serde[V], key: Any = None, keyed_by: SelectorOf[V],
        time: SelectorOf[V] | None = None, out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[V]: ...  # fmt: skip
    @overload
    def stream(
        self, topic: str, *, value: type[V] | Serde[V], key: Any = None, keyed_by: None = None,
        time: SelectorOf[V] | None = None, out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Stream[V]: ...  # fmt: skip
    @overload
    def stream(
        self, topic: str, *, value: None = None, key: Any = None, keyed_by: Selector,
        time: Selector | None = None, out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> KeyedStream[dict[str, Any]]: ...  # fmt: skip
    @overload
    def stream(
        self, topic: str, *, value: None = None, key: Any = None, keyed_by: None = None,
        time: Selector | None = None, out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s", name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Stream[dict[str, Any]]: ...  # fmt: skip
    def stream(
        self,
        topic: str,
        *,
        value: Any = None,
        key: Any = None,
        keyed_by: Selector | None = None,
        time: Selector | None = None,
        out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "30s",
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Any:
        """Read a topic.

        Args:
            topic: Its name; it must exist when the topology starts.
            value: What a value is: a ``msgspec.Struct``, dataclass, ``TypedDict`` or pydantic model (from MessagePack),
                ``bytes``, ``str``, ``int``, ``float``, ``UUID``, or a serde such as ``Json(Payment)`` or
                ``Avro("payment.avsc")``. Dicts from MessagePack if None.
            key: What a key is: ``str`` (the default, UTF-8), ``int``, ``bytes``, ``UUID``, a tuple of them such as
                ``tuple[str, int]``, or a serde.
            keyed_by: The field, or a function of the value, by which the producers already key this topic. It makes
                the stream keyed without a repartition; a record whose key is something else is an error.
            time: The field, or a function of the value, that holds the event time: whole milliseconds since the
                epoch or an aware ``datetime``. The record's own timestamp if None.
            out_of_orderness: How far behind the latest event time of its partition a record may be without being
                late.
            idle_after: A partition that was read to its end and got nothing for this long no longer holds time back.
            name: The step's name; the topic if None.
            on_error: What happens with a record that does not decode; the topology's policy if None.

        Returns:
            A ``KeyedStream`` if ``keyed_by`` is given, else a ``Stream``.

        Raises:
            TopologyError: ``value`` or ``key`` is nothing that can be decoded into.
            SettingsError: a duration is none.

        Example:
            >>> from headrace import Json, Topology
            >>> topology = Topology("shop")
            >>> clicks = topology.stream("clicks", value=Json(), time="at", out_of_orderness="5s")
            >>> orders = topology.stream("orders", keyed_by="customer_id", on_error="dead-letter")
        """
        where = f"stream({topic!r})"
        serde = serde_for(value, f"value of {where}")
        key_serde = serde_for(key, f"key of {where}", lambda: key_serde_of(getattr(serde, "kind", value), keyed_by))
        for what, selector in (("keyed_by=", keyed_by), ("time=", time)):
            if selector is not None:
                check_selector(selector, f"{what} of {where}")
                check_fields(getattr(serde, "kind", None), selector, f"{what} of {where}")
        node = Source(
            name=name or topic,
            topic=topic,
            value=serde,
            key=key_serde,
            keyed_by=keyed_by,
            time=time,
            out_of_orderness_ms=duration_ms(out_of_orderness, f"out_of_orderness of {where} ({user_location()})"),
            idle_after_ms=duration_ms(idle_after, f"idle_after of {where} ({user_location()})"),
            on_error=self._definition.policy(on_error),
            location=user_location(),
        )
        self._definition.add(node)
        if keyed_by is None:
            return Stream(self._definition, Port(node.name), node.name, serde, key_serde)
        return KeyedStream(self._definition, Port(node.name), node.name, serde, key_serde, keyed_by)

    @overload
    def table(
        self, topic: str, *, value: type[V] | Serde[V], key: Any = None, time: SelectorOf[V] | None = None,
        out_of_orderness: str | timedelta = "0s", idle_after: str | timedelta = "0s",
        name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Table[V]: ...  # fmt: skip
    @overload
    def table(
        self, topic: str, *, value: None = None, key: Any = None, time: Selector | None = None,
        out_of_orderness: str | timedelta = "0s", idle_after: str | timedelta = "0s",
        name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Table[dict[str, Any]]: ...  # fmt: skip
    def table(
        self,
        topic: str,
        *,
        value: Any = None,
        key: Any = None,
        time: Selector | None = None,
        out_of_orderness: str | timedelta = "0s",
        idle_after: str | timedelta = "0s",
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Table[Any]:
        """Read a topic as a table: each record is the row of its key until the next one.

        A record without a value deletes the row. The order of the topic counts, not that of the timestamps. A record
        without a key is an error.

        Args:
            topic: Its name; it must exist when the topology starts.
            value: What a row is, as for ``stream``.
            key: What a key is: ``str`` (the default, UTF-8), ``int``, ``bytes``, ``UUID``, a tuple of them such as
                ``tuple[str, int]``, or a serde.
            time: The field, or a function of the row, that holds the event time. The record's own timestamp if None,
                and for records without a value.
            out_of_orderness: How far behind the latest event time of its partition a record may be.
            idle_after: A partition that was read to its end and got nothing for this long no longer holds time back;
                at once, if nothing is said: what is joined with a table that seldom changes need not wait for it.
            name: The step's name; the topic if None.
            on_error: What happens with a record that does not decode; the topology's policy if None.

        Raises:
            TopologyError: ``value`` or ``key`` is nothing that can be decoded into.
            SettingsError: a duration is none.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("shop")
            >>> customers = topology.table("customers", time="changed_at")
            >>> orders = topology.stream("orders", keyed_by="customer_id", time="at")
            >>> orders.join(customers, lambda order, customer: order | customer).to("orders-with-customers")
        """
        where = f"table({topic!r})"
        node = self._table_source(where, topic, value, key, time, name, on_error)
        node = replace(
            node,
            out_of_orderness_ms=duration_ms(out_of_orderness, f"out_of_orderness of {where} ({user_location()})"),
            idle_after_ms=duration_ms(idle_after, f"idle_after of {where} ({user_location()})"),
        )
        self._definition.add(node)
        return Table(KeyedStream(self._definition, Port(node.name), node.name, node.value, node.key))

    @overload
    def global_table(
        self, topic: str, *, value: type[V] | Serde[V], key: Any = None,
        name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> GlobalTable[V]: ...  # fmt: skip
    @overload
    def global_table(
        self, topic: str, *, value: None = None, key: Any = None,
        name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> GlobalTable[dict[str, Any]]: ...  # fmt: skip
    def global_table(
        self,
        topic: str,
        *,
        value: Any = None,
        key: Any = None,
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> GlobalTable[Any]:
        """Read a topic as a table of which every task has the whole, to look rows up in by any key.

        It is read to its end before any stream that is joined with it, and takes no part in event time. It costs disk
        and reading in every task, so it is meant for small tables; for others, join tables with ``on=``.

        Args:
            topic: Its name; it must exist when the topology starts. It may have any number of partitions.
            value: What a row is, as for ``stream``.
            key: What a key is: ``str`` (the default, UTF-8), ``int``, ``bytes``, ``UUID``, a tuple of them such as
                ``tuple[str, int]``, or a serde.
            name: The step's name; the topic if None.
            on_error: What happens with a record that does not decode; the topology's policy if None.

        Raises:
            TopologyError: ``value`` or ``key`` is nothing that can be decoded into.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("priced")
            >>> products = topology.global_table("products")
            >>> sales = topology.stream("sales")
            >>> sales.join(products, lambda s, p: s["n"] * p["price"], on="product_id").to("turnover")
        """
        where = f"global_table({topic!r})"
        node = replace(self._table_source(where, topic, value, key, None, name, on_error), broadcast=True)
        self._definition.add(node)
        return GlobalTable(self._definition, node.name, node.value, node.key)

    def _table_source(
        self, where: str, topic: str, value: Any, key: Any, time: Selector | None, name: str | None, on_error: Any
    ) -> Source:
        serde = serde_for(value, f"value of {where}")
        if time is not None:
            check_selector(time, f"time= of {where}")
            check_fields(getattr(serde, "kind", None), time, f"time= of {where}")
        return Source(
            name=name or topic,
            topic=topic,
            value=serde,
            key=serde_for(key, f"key of {where}", Str),
            time=time,
            idle_after_ms=0,
            table=True,
            on_error=self._definition.policy(on_error),
            location=user_location(),
        )

    def graph(self) -> Graph:
        """Return the topology as immutable data, checked whole.

        Raises:
            TopologyError: lists every fault.
        """
        return validate(self.name, self._definition.nodes)
