"""Names of fields that a type does not have are refused at the user's line."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel, ConfigDict, Field

from headrace import Avro, Json, Protobuf, Topology, TopologyError, agg, session, tumbling
from headrace.dsl.definition import check_fields
from headrace.serde.primitives import Int, Str, Uuid
from tests.serde import messages


class Order(msgspec.Struct, rename="camel"):
    order_id: str
    customer: str
    total: float = 0.0
    at: int = 0

    @property
    def half(self) -> float:
        return self.total / 2


@dataclass
class OrderData:
    order_id: str
    customer: str


class OrderDict(TypedDict):
    order_id: str
    customer: str


class OrderModel(BaseModel):
    order_id: str = Field(alias="orderId")
    customer: str

    @property
    def shout(self) -> str:
        return self.customer.upper()


class OrderRow(NamedTuple):
    order_id: str
    customer: str


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    customer: str


class Lazy:
    name: str

    def __getattr__(self, name: str) -> Any:
        return name


KINDS = [Order, OrderData, OrderDict, OrderModel, OrderRow]


@pytest.mark.parametrize("kind", KINDS)
def test_fields_of_every_kind_of_type(kind: Any) -> None:
    check_fields(kind, "customer", "key_by")
    check_fields(kind, "order_id", "key_by")
    check_fields(kind, len, "key_by")
    with pytest.raises(TopologyError, match=rf"key_by: {kind.__name__} has no field 'custmer' .*mean 'customer'\?"):
        check_fields(kind, "custmer", "key_by")
    with pytest.raises(TopologyError, match=rf"{kind.__name__} has no field 'xxx' .*It has 'order_id', 'customer'"):
        check_fields(kind, "xxx", "key_by")


def test_what_can_be_read_is_a_field() -> None:
    check_fields(Order, "half", "key_by")
    check_fields(OrderModel, "shout", "key_by")
    check_fields(messages.Order, "total", "key_by")
    for kind, name in ((Order, "orderId"), (OrderModel, "orderId"), (OrderDict, "items"), (messages.Order, "totl")):
        with pytest.raises(TopologyError, match=f"has no field '{name}'"):
            check_fields(kind, name, "key_by")


@pytest.mark.parametrize("kind", [None, Any, dict, dict[str, int], Open, Lazy, list[Order], int | None])
def test_where_fields_are_not_known_nothing_is_refused(kind: Any) -> None:
    check_fields(kind, "anything", "key_by")


def orders(**options: Any) -> Any:
    return Topology("t").stream("orders", value=Order, keyed_by="customer", **options)


MISTAKES: list[tuple[Callable[[], Any], str]] = [
    (lambda: Topology("t").stream("o", value=Order, keyed_by="custmer"), r"keyed_by= of stream\('o'\)"),
    (lambda: Topology("t").stream("o", value=Json(OrderModel), time="att"), r"time= of stream\('o'\)"),
    (lambda: Topology("t").table("o", value=Order, time="att"), r"time= of table\('o'\)"),
    (lambda: orders().key_by("custmer"), "key_by"),
    (lambda: orders().filter(bool).key_by("custmer"), "key_by"),
    (lambda: orders().deduplicate("order", within="1h"), "deduplicate by="),
    (lambda: Topology("t").stream("o", value=Order).deduplicate("order", within="1h"), "key_by"),
    (lambda: orders().window(tumbling("1m")).aggregate(n=agg.count(), sum=agg.sum("totl")), "sum= of aggregate"),
    (lambda: orders().window(session("1m")).aggregate(x=agg.top(3, by="totl").where(bool)), "x= of aggregate"),
    (lambda: orders().aggregate(x=agg.combine(max, a=agg.count_distinct("user"))), "x= of aggregate"),
]


@pytest.mark.parametrize(("make", "where"), MISTAKES)
def test_every_place_that_takes_a_field_asks(make: Callable[[], Any], where: str) -> None:
    with pytest.raises(TopologyError, match=where) as failed:
        make()
    line = inspect.getsourcelines(make)[1]
    assert f"{__file__}:{line}" in str(failed.value)


def test_after_a_map_it_is_the_type_that_it_makes() -> None:
    def summed(order: Order) -> OrderData:
        return OrderData(order.order_id, order.customer)

    with pytest.raises(TopologyError, match="OrderData has no field 'total'"):
        orders().map(summed).key_by("total")
    orders().map(lambda order: {"x": 1}).key_by("x")


def test_the_key_of_a_field_is_what_its_annotation_says() -> None:
    class Visit(msgspec.Struct):
        user: UUID
        page: str
        number: int

    topology = Topology("t")
    visits = topology.stream("visits", value=Visit)
    keys = [type(visits.key_by(name)._key) for name in ("user", "page", "number")]
    assert keys == [Uuid, Str, Int]
    assert type(topology.stream("others", value=Visit, keyed_by="user")._key) is Uuid
    assert type(topology.stream("more", key=UUID)._key) is Uuid


def test_what_can_only_read_is_not_written_with() -> None:
    topology = Topology("t")
    stream = topology.stream("a", value=Avro("string", wire="confluent", registry={}))
    with pytest.raises(TopologyError, match=r"to\('b'\): Avro .* needs schema_id= .*test_fields\.py"):
        stream.to("b")
    with pytest.raises(TopologyError, match=r"to\('b'\): Protobuf .* needs schema_id="):
        stream.to("b", value=Protobuf(messages.Order, wire="confluent"))
    stream.to("b", value=Json())


def test_streams_of_different_schemas_are_not_of_one_type() -> None:
    schema = {"type": "record", "name": "R", "fields": [{"name": "k", "type": "string"}]}
    other = {**schema, "fields": [{"name": "k", "type": "bytes"}]}
    topology = Topology("t")
    one, same, changed = (topology.stream(str(i), value=Avro(s)) for i, s in enumerate([schema, schema, other]))
    assert one.merge(same)._value.name == "avro[R]"
    assert one.merge(changed)._value.name == "msgpack"
