"""What the type checker knows of a topology; it is checked, not run."""

from collections.abc import Iterator
from typing import Any, assert_type
from uuid import UUID

import msgspec
import pydantic
from google.protobuf.wrappers_pb2 import StringValue

from headrace import (
    Aggregate,
    Avro,
    Cache,
    Context,
    GlobalTable,
    Json,
    KeyedStream,
    ListState,
    MapState,
    Process,
    Protobuf,
    Record,
    SchemaRegistry,
    Stream,
    Table,
    Topology,
    ValueState,
    agg,
    counting,
    every,
    hopping,
    retry,
    session,
    sliding,
    tumbling,
    when,
)
from headrace.dsl.joins import JoinResults
from headrace.dsl.keyed import WindowResults
from headrace.dsl.processing import ProcessResults
from headrace.dsl.windowed import WindowedStream
from headrace.testing import TopologyTestDriver


class Order(msgspec.Struct):
    number: int
    customer: str
    total: float
    at: int


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
assert_type(keyed.merge(keyed), KeyedStream[Order])
assert_type(keyed.merge(orders), Stream[Order])
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
for emit in (every("10s"), when(lambda result: result["total"] > 1)):
    assert_type(windows.aggregate(total=agg.sum("total"), emit=emit), WindowResults)
assert_type(windows.aggregate(total=agg.sum("total"), emit="update"), WindowResults)


class Halves:
    """A window assigner."""

    name = "halves"

    def windows(self, timestamp: int) -> list[tuple[int, int]]:
        return [(0, timestamp + 1)]

    def shape(self) -> dict[str, Any]:
        return {}


class Wrong(Halves):
    """Not one: it says when windows end only."""

    def windows(self, timestamp: int) -> list[int]:  # type: ignore[override]
        return [timestamp]


for kind in (sliding("1m"), counting(5)):
    assert_type(keyed.window(kind), WindowedStream[Order])
assert_type(keyed.window(Halves()), WindowedStream[Order])
assert_type(results.to("results", value=Json()), None)

# Joins.
payments = topology.stream("payments", value=Line, keyed_by="article")
customers = topology.table("customers", value=Line)
joined = keyed.join(payments, lambda order, line: (order.total, line.article), within="1h")
assert_type(joined, JoinResults[tuple[float, str]])
assert_type(joined.late, KeyedStream[Any])
assert_type(
    keyed.join(payments, lambda order, line: line and order.total, within=("1h", "1m"), how="left"),
    JoinResults[Line | None | float],
)
assert_type(keyed.join(customers, lambda order, row: row.article), KeyedStream[str])
assert_type(keyed.join(customers, lambda order, row: row is None, how="left", match="latest"), KeyedStream[bool])
assert_type(keyed.as_of(payments, lambda order, line: line is None, within="1d"), KeyedStream[bool])
assert_type(keyed.as_of(payments, lambda order, line: line.article, how="inner"), KeyedStream[str])

# Tables.
stock = topology.table("stock", value=Line)
placed = topology.table("placed", value=Order)
rates = topology.global_table("rates", value=float)
assert_type(stock, Table[Line])
assert_type(topology.table("f"), Table[dict[str, Any]])
assert_type(rates, GlobalTable[float])
assert_type(placed.filter(lambda order: order.total > 1), Table[Order])
assert_type(placed.map_values(lambda order: order.total), Table[float])
assert_type(placed.changes(), KeyedStream[Order | None])
assert_type(placed.join(stock, lambda order, line: line.article), Table[str])
assert_type(placed.join(stock, lambda order, line: line is None, how="left", on="customer"), Table[bool])
assert_type(placed.join(stock, lambda order, line: order is None, how="outer"), Table[bool])
assert_type(keyed.to_table(), Table[Order])
assert_type(keyed.aggregate(total=agg.sum("total")), Table[dict[str, Any]])
assert_type(keyed.reduce(lambda a, b: a if a.total > b.total else b), Table[Order])
assert_type(orders.join(rates, lambda order, rate: order.total * rate, on="customer"), Stream[float])
assert_type(keyed.join(rates, lambda order, rate: rate is None, on="customer", how="left"), KeyedStream[bool])


# Asynchronous calls, and what happens with records that fail.
async def total_of(order: Order) -> float:
    return order.total


assert_type(orders.map_async(total_of, order="input", timeout="5s"), Stream[float])
assert_type(keyed.map_async(total_of, retry=retry(3), cache=Cache(by="number")), KeyedStream[float])
assert_type(keyed.map(lines_of, on_error=retry(3, on=OSError, then="dead-letter")), KeyedStream[list[Line]])


def tested() -> None:
    """What tests use."""
    assert_type(TopologyTestDriver(topology).read("results"), list[Record])


class Rider(pydantic.BaseModel):
    name: str
    number: int


# Serdes and aggregates.
assert_type(topology.stream("riders", value=Rider), Stream[Rider])
assert_type(topology.stream("messages", value=Protobuf(StringValue)), Stream[StringValue])
assert_type(topology.stream("numbers", value=float), Stream[float])
assert_type(topology.stream("ids", value=UUID, key=UUID), Stream[UUID])
avro = Avro({"type": "string"}, wire="confluent", registry=SchemaRegistry("http://localhost:8081"), schema_id=1)
topology.stream("avro", value=avro).to("copy", value=avro)
assert_type(agg.sum("total").where(lambda order: order.total > 1).then(round), Aggregate)
assert_type(agg.combine(lambda a, b: a / b, a=agg.sum("total"), b=agg.count_distinct("customer")), Aggregate)
assert_type(agg.fold(dict, lambda kept, order: kept, lambda a, b: a | b), Aggregate)
assert_type(agg.quantile("total", [0.5, 0.9]), Aggregate)


class Totals(Process[Order, Line]):
    total = ValueState(float, default=0.0, ttl="1h")
    latest = ValueState(Order)
    recent = ListState(Order)
    articles = MapState(str, int)

    def on_record(self, record: Order, context: Context) -> Iterator[Line]:
        assert_type(self.total.value, float)
        assert_type(self.latest.value, Order | None)
        assert_type(list(self.recent), list[Order])
        assert_type(self.articles["a"], int)
        self.total.value += record.total
        self.total.value = "much"  # type: ignore[assignment]
        self.recent.append(3)  # type: ignore[arg-type]
        self.articles[3] = 3  # type: ignore[index]
        context.set_timer("t", at=3, after="1m")  # type: ignore[call-overload]
        yield Line(context.key)


def lines_over(order: Order, context: Context, limit: ValueState[int]) -> Iterator[Line]:
    yield Line(str(limit.value))


def at_midnight(name: str, context: Context, limit: ValueState[int]) -> list[Line]:
    return []


# User code with state and timers.
assert_type(keyed.process(Totals), ProcessResults[Line])
assert_type(keyed.process(Totals(), outputs={"audit": Line}).output("audit"), KeyedStream[Any])
assert_type(keyed.process(lines_over, limit=ValueState(int, default=0)), ProcessResults[Line])
assert_type(keyed.process(lines_over, on_timer=at_midnight, limit=ValueState(int)), ProcessResults[Line])
assert_type(keyed.process(Totals).map(lambda line: line.article), KeyedStream[str])


def refused() -> None:
    """What the type checker refuses; nobody calls this."""
    orders.map(lambda order: order.price)  # type: ignore[attr-defined]
    orders.filter(lambda order: order.number.upper())  # type: ignore[attr-defined]
    orders.map(lines_of).map(lambda line: line.article)  # type: ignore[attr-defined]
    orders.window(tumbling("1m"))  # type: ignore[attr-defined]
    orders.merge(topology.stream("d", value=Line)).map(lambda value: value.total)  # type: ignore[union-attr]
    keyed.window(session("1m")).aggregate(total="total")  # type: ignore[arg-type]
    keyed.window(session("1m")).aggregate(n=agg.count(), emit="never")  # type: ignore[arg-type]
    keyed.window("1m")  # type: ignore[arg-type]
    keyed.window(Wrong())  # type: ignore[arg-type]
    counting("5")  # type: ignore[arg-type]
    orders.as_of(payments, lambda order, line: line)  # type: ignore[attr-defined]
    orders.join(payments, lambda order, line: line, within="1m")  # type: ignore[call-overload]
    keyed.join(payments, lambda order, line: line)  # type: ignore[call-overload]
    keyed.join(customers, lambda order, row: row, within="1m")  # type: ignore[call-overload]
    keyed.as_of(payments, lambda order, line: line.article)  # type: ignore[union-attr]
    keyed.join(payments, lambda order, line: line.article, within="1m", how="left")  # type: ignore[call-overload]
    topology.stream("e", on_error="ignore")  # type: ignore[call-overload]
    placed.map_values(lambda order: order.price)  # type: ignore[attr-defined]
    placed.join(stock, lambda order, line: line.article, how="left")  # type: ignore[call-overload]
    placed.join(stock, lambda order, line: 1, how="outer", on="article")  # type: ignore[call-overload]
    placed.join(keyed, lambda order, line: 1)  # type: ignore[call-overload]
    orders.join(stock, lambda order, line: 1, on="article")  # type: ignore[call-overload]
    keyed.reduce(lambda a, b: a.total)  # type: ignore[arg-type, return-value]
    orders.map_async(lines_of)  # type: ignore[arg-type]
    orders.map_async(total_of, order="keys")  # type: ignore[arg-type]
    orders.filter(lines_of, on_error="ignore")  # type: ignore[arg-type]
    Protobuf("Order")  # type: ignore[arg-type]
    Avro("string", wire="framed")  # type: ignore[arg-type]
    agg.top("total")  # type: ignore[arg-type]
    agg.combine(max, a=agg.count)  # type: ignore[arg-type]
    orders.process(Totals)  # type: ignore[attr-defined]
    payments.process(Totals)  # type: ignore[arg-type]
    payments.process(lines_over, limit=ValueState(int))  # type: ignore[arg-type]
    keyed.process(lines_over, limit=3)  # type: ignore[call-overload]
    keyed.process(Totals, name=3)  # type: ignore[call-overload]
