"""Values and keys of every kind through sources, internal topics, state and sinks, with a crash in between."""

from dataclasses import dataclass
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pytest
from pydantic import BaseModel

from headrace import (
    Avro,
    Float,
    Json,
    Msgpack,
    Protobuf,
    RetriableError,
    SchemaRegistry,
    Topology,
    TopologyError,
    Uuid,
    agg,
    tumbling,
)
from headrace.record import JoinedBytes, RecordBatch
from headrace.runtime.tasks.ingest import ingest
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.graph import Source
from tests.serde.messages import Order as OrderMessage

SCHEMA = {
    "type": "record", "name": "Order",
    "fields": [{"name": "id", "type": "string"}, {"name": "total", "type": "double"}],
}  # fmt: skip
OLD = {
    "type": "record",
    "name": "Order",
    "fields": [{"name": "id", "type": "string"}, {"name": "total", "type": "int"}],
}


class OrderStruct(msgspec.Struct):
    id: str
    total: float


@dataclass
class OrderData:
    id: str
    total: float


class OrderDict(TypedDict):
    id: str
    total: float


class OrderModel(BaseModel):
    id: str
    total: float


VALUES: list[tuple[Any, Any]] = [
    (OrderStruct, OrderStruct), (OrderData, OrderData), (OrderDict, OrderDict), (OrderModel, OrderModel),
    (Json(OrderStruct), OrderStruct), (Json(OrderData), OrderData), (Json(OrderDict), OrderDict),
    (Json(OrderModel), OrderModel), (Avro(SCHEMA), dict), (Avro(SCHEMA, OrderModel), OrderModel),
    (Avro(SCHEMA, OrderStruct, wire="confluent", registry={1: SCHEMA, 2: OLD}, schema_id=1), OrderStruct),
    (Protobuf(OrderMessage), OrderMessage), (Protobuf(OrderMessage, wire="confluent", schema_id=4), OrderMessage),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), VALUES, ids=[getattr(v, "name", v) for v, _ in VALUES])
def test_values_of_every_kind(value: Any, kind: Any) -> None:
    topology = Topology("t")
    orders = topology.stream("orders", value=value)
    seen = orders.key_by("id").deduplicate("total", within="1h")
    seen.window(tumbling("1m")).aggregate(total=agg.sum("total"), n=agg.count()).to("totals")
    seen.to("seen", value=value)
    driver = TopologyTestDriver(topology, partitions=2)
    for id_, total in (("a", 1.0), ("b", 2.0), ("a", 1.0), ("a", 4.0)):
        driver.send("orders", kind(id=id_, total=total), timestamp=5)
    driver.checkpoint()
    driver.crash()
    driver.restart()
    driver.end_input()
    assert sorted((row.value["key"], row.value["total"], row.value["n"]) for row in driver.read("totals")) == [
        ("a", 5.0, 2), ("b", 2.0, 1),
    ]  # fmt: skip
    found = sorted([record.value for record in driver.read("seen")], key=repr)
    assert found == sorted([kind(id="a", total=1.0), kind(id="a", total=4.0), kind(id="b", total=2.0)], key=repr)


class Visit(msgspec.Struct):
    user: UUID
    seconds: float


def test_uuids_as_keys_and_floats_as_values() -> None:
    topology = Topology("t")
    visits = topology.stream("visits", value=Visit).key_by("user")
    visits.window(tumbling("1m")).aggregate(n=agg.count()).to("counts")
    visits.map(lambda visit: visit.seconds).to("seconds", value=float)
    visits.map(lambda visit: visit.user).to("users", value=Uuid())
    driver = TopologyTestDriver(topology)
    driver.send("visits", Visit(UUID(int=1), 2), timestamp=0)
    driver.send("visits", Visit(UUID(int=1), 0.5), timestamp=0)
    driver.end_input()
    (row,) = driver.read("counts")
    assert (row.value["key"], row.value["n"], row.key) == (str(UUID(int=1)), 2, UUID(int=1))
    assert [record.value for record in driver.read("seconds")] == [2.0, 0.5]
    assert [record.value for record in driver.read("users")] == [UUID(int=1)] * 2


def model_of(order: OrderStruct) -> OrderModel:
    return OrderModel(id=order.id, total=order.total)


def test_models_that_a_map_makes() -> None:
    topology = Topology("t")
    models = topology.stream("orders", value=OrderStruct).map(model_of).key_by("id")
    kept = {"last": agg.last(kind=OrderModel), "top": agg.top(1, by="total", kind=OrderModel)}
    rows = models.window(tumbling("1m")).aggregate(**kept)
    rows.map(lambda row: (row["last"].total, row["top"][0].total)).to("last", value=Msgpack(tuple[float, float]))
    driver = TopologyTestDriver(topology, cache_bytes=0)
    for total in (1.0, 3.0, 2.0):
        driver.send("orders", OrderStruct("a", total), timestamp=0)
        driver.checkpoint()
    driver.end_input()
    assert [record.value for record in driver.read("last")] == [(2.0, 3.0)]


@pytest.mark.parametrize("value", [Json(), Json(OrderData), Avro(SCHEMA), Avro(SCHEMA, OrderData), Msgpack()])
def test_what_an_internal_topic_would_change_is_refused(value: Any) -> None:
    topology = Topology("t")
    orders = topology.stream("others", value=value)
    made = topology.stream("orders", value=Msgpack(OrderStruct)).map(lambda order: order)
    made._value = orders._value
    made.key_by(lambda order: order.id).to("out", value=Msgpack())
    driver = TopologyTestDriver(topology)
    with pytest.raises(
        TopologyError, match=r"sends OrderStruct objects .* behind which they would be (dicts|OrderData)"
    ):
        driver.send("orders", OrderStruct("a", 1.0), timestamp=0)


def source_of(serde: Any) -> Source:
    topology = Topology("t", on_error="skip")
    topology.stream("orders", value=serde).to("out", value=Json())
    source = topology.graph().nodes[0]
    assert isinstance(source, Source)
    return source


def good_value(serde: Any) -> Any:
    if isinstance(serde, Float):
        return 1.5
    return UUID(int=1) if isinstance(serde, Uuid) else serde.kind(id="a", total=1.0)


@pytest.mark.parametrize(
    "serde", [Avro(SCHEMA, OrderModel), Protobuf(OrderMessage), Json(OrderModel), Msgpack(OrderModel), Float(), Uuid()]
)
def test_each_record_that_does_not_decode_is_found(serde: Any) -> None:
    source, failed = source_of(serde), []
    (good,) = serde.encode_many([good_value(serde)])
    records = RecordBatch([5, 6, 7], [None] * 3, JoinedBytes.of([good, b"\x0a\x7f", None]), offsets=[1, 2, 3])
    batch = ingest(source, records, lambda offset, error: failed.append(offset))
    assert batch is not None
    assert (failed, list(batch.offsets), batch.values) == ([2], [1, 3], [serde.decode(good), None])


def test_no_record_is_at_fault_if_the_registry_cannot_be_reached() -> None:
    registry = SchemaRegistry("http://127.0.0.1:1", timeout="1s")
    source, failed = source_of(Avro(wire="confluent", registry=registry)), []
    records = RecordBatch([5], [None], JoinedBytes.of([b"\0\0\0\0\x01x"]), offsets=[1])
    with pytest.raises(RetriableError, match="schema registry"):
        ingest(source, records, lambda offset, error: failed.append(offset))
    assert failed == []
