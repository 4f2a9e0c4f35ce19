"""Mistakes that the type checker finds in a topology; it is checked, not run, and nobody calls anything here.

Every line with an ignored error must really be one: mypy warns of an ignore that is not needed. What a type checker
cannot see (a field that is named by text, a function of ``Any``) is found when the topology is defined or run.
"""

import msgspec

from headrace import Context, Json, Msgpack, Topology, ValueState, agg, retry, tumbling
from headrace.testing import TopologyTestDriver, assert_records, assert_survives_crashes
from headrace.testing.strategies import disordered, late, records


class Order(msgspec.Struct):
    number: int
    customer: str
    total: float


class Line(msgspec.Struct):
    article: str


topology = Topology("mistaken")
orders = topology.stream("orders", value=Order)
keyed = topology.stream("keyed", value=Order, keyed_by="customer")
lines = topology.table("lines", value=Line)


def article(line: Line) -> str:
    return line.article


async def asked(order: Order) -> float:
    return order.total


def seen(order: Order, context: Context, last: ValueState[float]) -> list[float]:
    return [last.value]


def a_forgotten_key_by() -> None:
    orders.window(tumbling("1m"))  # type: ignore[attr-defined]
    orders.aggregate(total=agg.sum("total"))  # type: ignore[attr-defined]
    orders.reduce(lambda a, b: a)  # type: ignore[attr-defined]
    orders.to_table()  # type: ignore[attr-defined]
    orders.process(seen, last=ValueState(float, default=0.0))  # type: ignore[attr-defined]
    orders.as_of(keyed, lambda a, b: a)  # type: ignore[attr-defined]
    orders.join(lines, lambda order, line: order)  # type: ignore[call-overload]
    keyed.join(orders, lambda a, b: a, within="1m")  # type: ignore[call-overload]
    topology.stream("plain").window(tumbling("1m"))  # type: ignore[attr-defined]
    keyed.map(lambda order: order.total).key_by(lambda total: total).map(lambda total: total.nonsense)  # type: ignore[attr-defined]


def a_wrong_selector() -> None:
    orders.key_by(7)  # type: ignore[arg-type]
    orders.key_by(lambda order: order.client)  # type: ignore[attr-defined]
    orders.key_by(article)  # type: ignore[arg-type]
    orders.key_by()  # type: ignore[call-arg]
    orders.deduplicate(lambda order: order.id, within="1h")  # type: ignore[attr-defined]
    keyed.deduplicate(article, within="1h")  # type: ignore[arg-type]
    keyed.deduplicate("number")  # type: ignore[call-arg]
    topology.stream("a", value=Order, keyed_by=article)  # type: ignore[arg-type]
    topology.stream("b", value=Order, time=lambda order: order.when)  # type: ignore[attr-defined]
    topology.stream("c", value=Order, keyed_by=7)  # type: ignore[call-overload]
    topology.table("d", value=Order, time=article)  # type: ignore[arg-type]
    topology.stream("e", key_by="customer")  # type: ignore[call-overload]
    agg.sum(7)  # type: ignore[arg-type]


def a_function_of_another_type() -> None:
    orders.map(article)  # type: ignore[arg-type]
    orders.filter(article)  # type: ignore[arg-type]
    orders.flat_map(lambda order: order.number)  # type: ignore[arg-type, return-value]
    orders.tap(article)  # type: ignore[arg-type]
    orders.branch(big=article)  # type: ignore[arg-type]
    keyed.map(lambda order: order.total).map(article)  # type: ignore[arg-type]
    orders.map_async(lambda order: order.total)  # type: ignore[arg-type, return-value]
    orders.map_async(asked).filter(lambda total: total.upper())  # type: ignore[attr-defined]
    lines.filter(lambda line: line.number)  # type: ignore[attr-defined]
    keyed.process(article)  # type: ignore[arg-type]
    orders.map("total")  # type: ignore[arg-type]


def a_wrong_type_into_a_topic() -> None:
    orders.to("a", value=Line)  # type: ignore[arg-type]
    orders.map(lambda order: order.total).to("c", value=str)  # type: ignore[arg-type]
    keyed.window(tumbling("1m")).aggregate(n=agg.count()).to("d", value=Order)  # type: ignore[arg-type]
    lines.to("e", value=Order)  # type: ignore[arg-type]
    orders.to(7)  # type: ignore[arg-type]
    orders.to("f", partition=1)  # type: ignore[call-arg]


def what_is_right_into_a_topic() -> None:
    orders.to("a", value=Order)
    orders.to("b", value=Json(Order))
    orders.to("c", value=Json())
    orders.to("d", value=Msgpack())
    orders.map(lambda order: order.customer).to("e", value=str)
    keyed.window(tumbling("1m")).aggregate(n=agg.count()).to("f", value=Json())
    lines.to("g", value=Json(Line))
    topology.stream("g").to("h", value=dict)
    orders.key_by(lambda order: order.customer).to("i")
    orders.key_by(len).to("j")  # type: ignore[arg-type]


def a_wrong_option() -> None:
    orders.map(asked, on_error="ignore")  # type: ignore[arg-type]
    orders.map(asked, on_error=retry)  # type: ignore[arg-type]
    retry("3")  # type: ignore[arg-type]
    keyed.window(tumbling(60))  # type: ignore[arg-type]
    keyed.window(tumbling("1m"), lateness=5)  # type: ignore[arg-type]
    Topology("t", on_error="drop")  # type: ignore[arg-type]


def a_wrong_test() -> None:
    driver = TopologyTestDriver(orders)  # type: ignore[arg-type]
    driver.crash_after(3)  # type: ignore[arg-type, call-arg]
    assert_records(driver.read("a")[0], [])  # type: ignore[arg-type]
    assert_survives_crashes(topology, 7)  # type: ignore[arg-type]
    disordered(late([1], beyond="1s"))  # type: ignore[list-item]
    records(Order)  # type: ignore[arg-type]
    driver.send("orders", {}, "key", "2026-01-01")  # type: ignore[arg-type]
