"""``Table``: the latest value of each key, and ``GlobalTable``, of which every task has the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from headrace.dsl.definition import Definition, check_function, serde_of_results, user_location
from headrace.dsl.internal import send, uncircled
from headrace.errors import TopologyError
from headrace.operators.rows import combining, filtering_rows, mapping_rows
from headrace.operators.selectors import Selector, SelectorOf, function_name
from headrace.operators.table_join import TableJoin
from headrace.serde.api import Serde
from headrace.serde.msgpack import Msgpack
from headrace.topology.graph import ErrorPolicy, Port

if TYPE_CHECKING:
    from headrace.dsl.keyed import KeyedStream

V = TypeVar("V")
U = TypeVar("U")
R = TypeVar("R")

How = Literal["inner", "left", "outer"]
"""Which rows of a join there are: those of both sides, all of the left, or all."""


class Table(Generic[V]):
    """The latest value of each key. Made by ``Topology.table``, by aggregates, and by ``KeyedStream.to_table``.

    A table is a stream of changes, each of which puts a row in the place of the one that its key had; a value of None
    deletes the row. The changes come in the order of their topic, whatever their timestamps are. Functions that are
    given rows never see None, and must not change what they are given.

    Example:
        >>> from headrace import Topology
        >>> from headrace.testing import TopologyTestDriver
        >>> topology = Topology("shops")
        >>> shops = topology.table("shops")
        >>> shops.filter(lambda shop: shop["open"]).map_values(lambda shop: shop["city"]).to("cities")
        >>> driver = TopologyTestDriver(topology)
        >>> driver.send("shops", {"city": "Ulm", "open": True}, key="s1")
        >>> driver.send("shops", {"city": "Ulm", "open": False}, key="s1")
        >>> [(record.key, record.value) for record in driver.read("cities")]
        [('s1', 'Ulm'), ('s1', None)]
    """

    def __init__(self, changes: KeyedStream[Any]) -> None:
        self._changes = changes

    def filter(
        self, predicate: Callable[[V], Any], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Table[V]:
        """Keep the rows for which ``predicate`` is true; a row for which it becomes false is deleted.

        Args:
            predicate: Is given the row.
            name: The step's name.
            on_error: What happens with a change on which it fails; the topology's policy if None. A change that is
                left out leaves the row as it was.
        """
        check_function(predicate, "filter")
        changes = self._changes
        label = f"filter-{function_name(predicate)}"
        return Table(changes._same(changes._step(filtering_rows(predicate), label, name, on_error)))

    def map_values(
        self, function: Callable[[V], U], *, name: str | None = None, on_error: ErrorPolicy | None = None
    ) -> Table[U]:
        """Replace each row by what ``function`` makes of it; None would delete it.

        Args:
            function: Is given the row.
            name: The step's name.
            on_error: What happens with a change on which it fails; the topology's policy if None.
        """
        check_function(function, "map_values")
        changes = self._changes
        label = f"map_values-{function_name(function)}"
        port = changes._step(mapping_rows(function), label, name, on_error)
        return Table(_keyed(changes, port, changes._anchor, serde_of_results(function)))

    def changes(self) -> KeyedStream[V | None]:
        """Return the changes as a stream: a record for each, whose value is the new row, or None for a deleted one.

        Functions of the stream are given the None too: filter first what they cannot take.

        Example:
            >>> from headrace import Topology
            >>> Topology("t").table("shops").changes().filter(lambda shop: shop is not None).to("shops-as-they-were")
        """
        return self._changes

    def to(
        self,
        topic: str,
        *,
        value: type[V] | Serde[V] | None = None,
        partitions: int | None = None,
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> None:
        """Write the changes to a topic; a deleted row is written as a record without a value.

        Args:
            topic: Its name; it is made if it does not exist.
            value: The serde or type of what is written; MessagePack if None.
            partitions: How many a new topic gets; as many as the widest source if None.
            name: The step's name, which stands in the id that every output record carries.
            on_error: What happens with a row that cannot be encoded; the topology's policy if None.
        """
        self._changes.to(topic, value=value, partitions=partitions, name=name, on_error=on_error)

    def repartition(self, *, name: str | None = None) -> Table[V]:
        """Send the changes through an internal topic, with the keys that they have.

        It gives the table the partitions of what it is joined with, if their topics have different numbers of them.

        Args:
            name: Names the internal topic: ``<topology>-<name>-repartition``.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("t")
            >>> few, many = topology.table("shops"), topology.table("cities")
            >>> few.repartition().join(many, lambda shop, city: shop | city).to("shops-and-cities")
        """
        changes = self._changes
        name = name or f"{changes._anchor}-again"
        port = send(changes, changes._port, name, changes._key, changes._value)
        return Table(_keyed(changes, port, name, changes._value))

    @overload
    def join(
        self, other: Table[U], combine: Callable[[V, U], R], *, how: Literal["inner"] = "inner",
        on: SelectorOf[V] | None = None, name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Table[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: Table[U], combine: Callable[[V, U | None], R], *, how: Literal["left"],
        on: SelectorOf[V] | None = None, name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Table[R]: ...  # fmt: skip
    @overload
    def join(
        self, other: Table[U], combine: Callable[[V | None, U | None], R], *, how: Literal["outer"],
        on: None = None, name: str | None = None, on_error: ErrorPolicy | None = None,
    ) -> Table[R]: ...  # fmt: skip
    def join(
        self,
        other: Any,
        combine: Callable[[Any, Any], Any],
        *,
        how: How = "inner",
        on: Selector | None = None,
        name: str | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> Table[Any]:
        """Join with the rows of another table: those with the same key, or, with ``on``, those referred to.

        A change on either side changes the joined rows: each is made anew, or deleted when it no longer exists.

        Args:
            other: The other table.
            combine: (row, other row) -> joined row. With ``how="left"`` the other row may be None, with
                ``how="outer"`` either, though never both.
            how: Which joined rows there are: ``"inner"`` for rows that have a partner, ``"left"`` for all rows of this
                table, ``"outer"`` for all rows of both.
            on: The field of a row, or a function of it, that is a key of the other table; None if a row refers to
                nothing. The joined rows have the keys of this table.
            name: The step's name, under which its state is kept. With ``on`` it also begins the names of two internal
                topics.
            on_error: What happens with a change on which ``on`` or ``combine`` fails; the topology's policy if None.

        Raises:
            TopologyError: ``other`` is no table of this topology, or ``how`` is unknown.

        Example:
            >>> from headrace import Topology
            >>> topology = Topology("parcels")
            >>> orders, parcels = topology.table("orders"), topology.table("parcels")
            >>> orders.join(parcels, lambda order, parcel: order | parcel).to("orders-with-parcels")
            >>> customers = topology.table("customers")
            >>> named = orders.join(customers, lambda o, c: {**o, "name": c["name"]}, on="customer_id", name="named")
        """
        _check_other(self, other, combine, how)
        if on is not None:
            from headrace.dsl.foreign_key import join_foreign

            return Table(join_foreign(self._changes, other._changes, combine, on, how, name, on_error))
        left, right = self._changes, other._changes
        name = name or f"{left._anchor}-join-{right._anchor}"
        ports = uncircled(left, right, name)
        left._add_step(TableJoin(left._value, right._value, how), name, ports, on_error)
        return Table(combined(left, name, combine, on_error))


class GlobalTable(Generic[V]):
    """A table of which every task has the whole, to look rows up in: see ``Stream.join``. Made by ``Topology``."""

    def __init__(self, definition: Definition, source: str, value: Serde[Any], key: Serde[Any]) -> None:
        self._definition = definition
        self._source = source
        self._value = value
        self._key = key


def combined(stream: KeyedStream[Any], step: str, combine: Any, on_error: ErrorPolicy | None) -> KeyedStream[Any]:
    """Append the step that makes one value of each pair that the join ``step`` found.

    Args:
        stream: Gives the result its keys.
        step: The join; later steps are called after it.
        combine: The user's function of both sides.
        on_error: What happens with a pair on which it fails.
    """
    name = stream._definition.free_name(f"{step}-combine")
    stream._add_step(combining(combine), name, (Port(step),), on_error)
    return _keyed(stream, Port(name), step, serde_of_results(combine))


def table_of(stream: KeyedStream[Any], port: Port, value: Serde[Any] | None = None) -> Table[Any]:
    """Return what leaves by ``port``, a step with state of its own on ``stream``, as a table."""
    return Table(_keyed(stream, port, port.node, value or Msgpack()))


def _keyed(stream: KeyedStream[Any], port: Port, anchor: str, value: Serde[Any]) -> KeyedStream[Any]:
    from headrace.dsl.keyed import KeyedStream

    return KeyedStream(stream._definition, port, anchor, value, stream._key)


def _check_other(table: Table[Any], other: Any, combine: Any, how: str) -> None:
    """Refuse what a table cannot be joined with, at the line that does."""
    if isinstance(other, GlobalTable):
        raise TopologyError(
            f"a table cannot be joined with a global table ({user_location()}): a change of the global table would not "
            "change the joined rows",
            remedy="Read the topic with topology.table() and join with on=, or join a stream with the global table",
        )
    if not isinstance(other, Table):
        raise TopologyError(
            f"a table can be joined with a table, not with a {type(other).__name__} ({user_location()})",
            remedy="Make a table of a keyed stream with .to_table(), or join the stream with the table",
        )
    if other._changes._definition is not table._changes._definition:
        raise TopologyError(f"join needs a table of the same topology ({user_location()})")
    check_function(combine, "join")
    if how not in ("inner", "left", "outer"):
        raise TopologyError(f'how must be "inner", "left" or "outer", not {how!r} ({user_location()})')
