"""What the type checker knows of a topology; it is checked, not run."""

from typing import Any, assert_type

import msgspec

from headrace import Json, KeyedStream, Record, Stream, Topology, agg, hopping, session, tumbling
from headrace.dsl.keyed import WindowResults
from headrace.dsl.windowed import WindowedStream
from headrace.operators.aggregates import Aggregate
from headrace.testing.driver import TopologyTestDriver


class Order(msgspec.Struct):
    number: int
    customer: str
    total: float


class Line(msgspec.Struct):
    article: str


def lines_of(order: Order) -> list[Line]:
    return [Line(str(order.number))]


topology = Topology("typed")

# Sources.
orders = topology.stream("orders", value=Order)
keyed = topology.stream("keyed", value=Order, keyed_by="customer", time="at", out_of_orderness="5s")
assert_type(orders, Stream[Order])
assert_type(keyed, KeyedStream[Order])
assert_type(topology.stream("a"), Stream[dict[str, Any]])
assert_type(topology.stream("b", keyed_by=lambda value: value["k"]), KeyedStream[dict[str, Any]])
assert_type(topology.stream("c", value=str), Stream[str])

# What a function is given and makes.
assert_type(orders.map(lambda order: order.total), Stream[float])
assert_type(keyed.map(lambda order: order.total), KeyedStream[float])
assert_type(orders.flat_map(lines_of), Stream[Line])
assert_type(keyed.flat_map(lines_of).map(lambda line: line.article), KeyedStream[str])
assert_type(orders.filter(lambda order: order.total > 1), Stream[Order])
assert_type(keyed.filter(lambda order: order.total > 1), KeyedStream[Order])
assert_type(keyed.tap(print), KeyedStream[Order])

# Keys.
assert_type(orders.key_by("customer"), KeyedStream[Order])
assert_type(orders.deduplicate("number", within="1h"), KeyedStream[Order])
assert_type(keyed.deduplicate("number", within="1h"), KeyedStream[Order])
assert_type(keyed.merge(keyed), Stream[Order])
assert_type(keyed.branch(a=lambda order: True)["a"], KeyedStream[Order])

# Windows.
windows = keyed.window(hopping("1m", "10s"), lateness="5s")
assert_type(windows, WindowedStream[Order])
results = windows.aggregate(total=agg.sum("total"), orders=agg.count())
assert_type(results, WindowResults)
assert_type(results.map(lambda result: result["total"]), KeyedStream[Any])
assert_type(results.filter(lambda result: result["total"] > 1), WindowResults)
assert_type(results.filter(lambda result: result["total"] > 1).late, KeyedStream[Any])
assert_type(agg.reduce(lambda a, b: a + b, "total"), Aggregate)
assert_type(results.to("results", value=Json()), None)

# Tests.
assert_type(TopologyTestDriver(topology).read("results"), list[Record])


def refused() -> None:
    """What the type checker refuses; nobody calls this."""
    orders.map(lambda order: order.price)  # type: ignore[attr-defined]
    orders.filter(lambda order: order.number.upper())  # type: ignore[attr-defined]
    orders.map(lines_of).map(lambda line: line.article)  # type: ignore[attr-defined]
    orders.window(tumbling("1m"))  # type: ignore[attr-defined]
    orders.merge(topology.stream("d"))  # type: ignore[arg-type]
    keyed.window(session("1m")).aggregate(total="total")  # type: ignore[arg-type]
    keyed.window(session("1m")).aggregate(n=agg.count(), emit="update")  # type: ignore[arg-type]
    keyed.window("1m")  # type: ignore[arg-type]
    topology.stream("e", on_error="ignore")  # type: ignore[call-overload]
