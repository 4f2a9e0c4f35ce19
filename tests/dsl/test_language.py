"""The language: names, checks at the user's line, and what each method appends."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from headrace import Json, SettingsError, Topology, TopologyError, agg, session, tumbling
from headrace.serde.primitives import Bytes, Int, Str
from headrace.testing.driver import TopologyTestDriver
from headrace.topology.graph import Repartition, Sink, Source, Step


class Order(msgspec.Struct):
    number: int
    customer: str


def here() -> int:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return frame.f_back.f_lineno


def names(topology: Topology) -> list[str]:
    return [node.name for node in topology.graph().nodes]


def test_names_come_from_the_place() -> None:
    topology = Topology("t")
    orders = topology.stream("orders", value=Order, keyed_by="customer")
    orders.deduplicate("number", within="1h").window(tumbling("1m")).aggregate(n=agg.count()).to("counts")
    orders.key_by("number").map(str).filter(bool).to("texts")
    assert names(topology) == [
        "orders", "orders-deduplicate-number", "orders-tumbling-60000ms", "orders-tumbling-60000ms-to-counts",
        "orders-by-number", "orders-by-number-map-str", "orders-by-number-filter-bool", "orders-by-number-to-texts",
    ]  # fmt: skip


def build(extra: Callable[[Any, Any], Any] | None) -> dict[str, str]:
    """Return the kinds of all steps that own state or an internal topic, by name."""
    topology = Topology("t")
    orders = topology.stream("orders", value=Order, keyed_by="customer")
    if extra is not None:
        extra(topology, orders)
    kept = orders.filter(lambda o: o.number > 1)
    kept.window(tumbling("1m")).aggregate(n=agg.count()).window(session("5m")).aggregate(n=agg.sum("n")).to("a")
    kept.map(lambda o: o).key_by("number").deduplicate("number", within="1h").to("b")
    nodes = topology.graph().nodes
    return {
        node.name: type(node).__name__
        for node in nodes
        if isinstance(node, Repartition) or (isinstance(node, Step) and node.spec.stateful)
    }


UNRELATED: list[Callable[[Any, Any], Any]] = [
    lambda topology, orders: topology.stream("other").to("elsewhere"),
    lambda topology, orders: orders.filter(lambda o: True).map(lambda o: o).to("elsewhere"),
    lambda topology, orders: orders.window(tumbling("2m")).aggregate(n=agg.count()),
    lambda topology, orders: orders.key_by("customer", name="mine").to("elsewhere"),
    lambda topology, orders: orders.merge(topology.stream("other")).key_by("number").to("elsewhere"),
]


@pytest.mark.parametrize("extra", UNRELATED)
def test_an_unrelated_step_changes_no_name_that_state_hangs_on(extra: Callable[[Any, Any], Any]) -> None:
    before, after = build(None), build(extra)
    assert before.items() <= after.items()
    assert len(before) == 4


def test_two_steps_of_one_name_fail_with_both_lines() -> None:
    topology = Topology("t")
    orders = topology.stream("orders", keyed_by="customer")
    first = here() + 1
    orders.window(tumbling("1m")).aggregate(n=agg.count()).to("a")
    orders.filter(bool).window(tumbling("1m")).aggregate(n=agg.count()).to("b")
    with pytest.raises(TopologyError) as failed:
        topology.graph()
    message = str(failed.value)
    assert "two steps are called 'orders-tumbling-60000ms'" in message
    assert f"{__file__}:{first}" in message
    assert f"{__file__}:{first + 1}" in message
    assert "name=" in message


def test_stateless_steps_of_one_kind_are_numbered() -> None:
    topology = Topology("t")
    orders = topology.stream("orders")
    orders.filter(lambda o: True).filter(lambda o: True).filter(partial(isinstance, Order)).to("a")
    assert names(topology)[1:4] == ["orders-filter-lambda", "orders-filter-lambda-2", "orders-filter-partial"]


def test_a_name_may_be_given_everywhere() -> None:
    topology = Topology("t")
    orders = topology.stream("orders", name="s", keyed_by="customer")
    orders.map(str, name="m").filter(bool, name="f").flat_map(list, name="fm").tap(print, name="t").to("x", name="to")
    orders.branch(a=bool, name="b")["a"].merge(orders, name="me").key_by("x", name="k").deduplicate(
        "x", within="1h", name="d"
    ).window(tumbling("1m")).aggregate(n=agg.count(), name="w").to("y", name="to2")
    assert names(topology) == ["s", "m", "f", "fm", "t", "to", "b", "me", "k", "d", "w", "to2"]


def test_late_records_are_at_hand_behind_a_filter_too() -> None:
    topology = Topology("t")
    results = topology.stream("orders", keyed_by="customer").window(tumbling("1m")).aggregate(n=agg.count(), name="w")
    results.filter(bool).tap(print).late.to("late")
    sink = topology.graph().nodes[-1]
    assert sink.inputs == (("w", "late"),)


def key_name(topology: Topology) -> str:
    node = topology.graph().nodes[0]
    assert isinstance(node, Source)
    return node.key.name


def of_number(order: Order) -> int:
    return order.number


def test_the_type_of_a_key_follows_from_the_field() -> None:
    def source(**options: Any) -> str:
        topology = Topology("t")
        topology.stream("orders", **options).to("x")
        return key_name(topology)

    assert source() == "str"
    assert source(value=Order, keyed_by="customer") == "str"
    assert source(value=Order, keyed_by="number") == "int"
    assert source(value=Json(Order), keyed_by="number") == "int"
    assert source(value=Order, keyed_by=of_number) == "int"
    assert source(value=Order, keyed_by="number", key=str) == "str"
    assert source(key=bytes) == "bytes"
    assert source(key=Int()) == "int"
    assert isinstance(Bytes(), type(Bytes()))


def customer_and_number(order: Order) -> tuple[str, int]:
    return order.customer, order.number


def test_a_key_may_have_several_parts() -> None:
    topology = Topology("t")
    orders = topology.stream("orders", value=Order)
    orders.key_by(customer_and_number).aggregate(n=agg.count()).to("counts")
    orders.key_by(lambda order: (order.number, "x"), key=tuple[int, str], name="b").to("moved")
    driver = TopologyTestDriver(topology, partitions=4)
    driver.send_many("orders", [Order(1, "ann"), Order(2, "ann"), Order(1, "bob"), Order(1, "ann")])
    counts = [(record.key, record.value["key"], record.value["n"]) for record in driver.read("counts")]
    assert sorted((key, n) for key, _, n in counts) == [
        (("ann", 1), 1), (("ann", 1), 2), (("ann", 2), 1), (("bob", 1), 1)
    ]  # fmt: skip
    assert all(list(key) == name for key, name, _ in counts)
    assert {record.key for record in driver.read("moved")} == {(1, "x"), (2, "x")}


def inexact(order: Order) -> tuple[str, float]:
    return order.customer, float(order.number)


def test_a_key_of_parts_that_cannot_be_keys_is_refused() -> None:
    orders = Topology("t").stream("orders", value=Order)
    with pytest.raises(TopologyError, match=r"cannot be tuple\[str, float\].*its parts are not each one of str, int"):
        orders.key_by(inexact)
    with pytest.raises(TopologyError, match=r"key of key_by cannot be tuple\[str, \.\.\.\]"):
        orders.key_by("customer", key=tuple[str, ...])


def test_key_by_takes_the_type_too() -> None:
    topology = Topology("t")
    orders = topology.stream("orders", value=Order)
    orders.key_by("number", name="a").to("x", name="x1")
    orders.key_by("customer", name="b").to("x", name="x2")
    orders.key_by(of_number, name="c").to("x", name="x3")
    orders.key_by("number", key=Str(), name="d").to("x", name="x4")
    found = [node.key.name for node in topology.graph().nodes if isinstance(node, Repartition)]
    assert found == ["int", "str", "int", "str"]


def test_nothing_moves_where_the_stream_is_keyed_by_that_field_already() -> None:
    topology = Topology("t")
    orders = topology.stream("orders", keyed_by="customer")
    orders.filter(bool).key_by("customer").to("a")
    orders.map(dict).key_by("customer").to("b")
    assert [n.name for n in topology.graph().nodes if isinstance(n, Repartition)] == ["orders-by-customer"]


def test_a_sink_writes_what_the_stream_reads_unless_told() -> None:
    topology = Topology("t")
    topology.stream("a", value=Json()).filter(bool).to("x")
    topology.stream("b", value=str).to("y")
    topology.stream("c", value=Order).to("z")
    topology.stream("d", value=Json()).map(dict).to("v")
    topology.stream("e").to("w", value=Json())
    found = {n.topic: n.value.name for n in topology.graph().nodes if isinstance(n, Sink)}
    assert found == {"x": "json", "y": "str", "z": "msgpack", "v": "msgpack", "w": "json"}


def test_what_is_merged_keeps_its_type_if_all_have_it() -> None:
    def value(*serdes: Any) -> str:
        topology = Topology("t")
        first, *rest = [topology.stream(f"s{i}", value=serde) for i, serde in enumerate(serdes)]
        first.merge(*rest).key_by(str).to("x")
        return next(node.value.name for node in topology.graph().nodes if isinstance(node, Repartition))

    assert value(Order, Order) == "msgpack[Order]"
    assert value(Json(Order), Json(Order)) == "json[Order]"
    assert value(Json(Order), Order) == "msgpack[Order]"
    assert value(Json(), None) == "msgpack"
    assert value(Order, None) == "msgpack"
    assert value(str, str) == "str"
    assert value(str, int) == "msgpack"


async def slow(value: Any) -> Any:
    return value


WRONG: list[Callable[[Any], Any]] = [
    lambda s: s.to("out", partitions=0),
    lambda s: s.to_table().to("out", partitions="4"),
    lambda s: s.map("field"),
    lambda s: s.map(slow),
    lambda s: s.filter(None),
    lambda s: s.flat_map(5),
    lambda s: s.tap(slow),
    lambda s: s.branch(),
    lambda s: s.branch(a=5),
    lambda s: s.key_by(5),
    lambda s: s.merge("other"),
    lambda s: s.merge(Topology("u").stream("x")),
    lambda s: s.deduplicate(5, within="1s"),
    lambda s: s.deduplicate("x", within="0s"),
    lambda s: s.window("1m"),
    lambda s: s.map(str, name=5),
    lambda s: s.aggregate(name=agg.count(), n=agg.count()),
    lambda s: s.window(tumbling("1m")).aggregate(n=agg.count(), emit="never"),
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_work_is_refused_at_the_users_line(wrong: Callable[[Any], Any]) -> None:
    stream = Topology("t").stream("in", keyed_by="k")
    with pytest.raises(TopologyError) as failed:
        wrong(stream)
    assert f"({__file__}:{wrong.__code__.co_firstlineno})" in str(failed.value)


@pytest.mark.parametrize("option", [{"time": 5}, {"keyed_by": 5}, {"time": slow}, {"keyed_by": ["k"]}])
def test_so_is_a_source(option: Any) -> None:
    with pytest.raises(TopologyError, match=r"(time|keyed_by)= of stream\('in'\)"):
        Topology("t").stream("in", **option)


@pytest.mark.parametrize("option", [{"value": 5}, {"key": [str]}])
def test_so_is_what_cannot_be_decoded_into(option: Any) -> None:
    with pytest.raises(TopologyError, match=r"of stream\('in'\)"):
        Topology("t").stream("in", **option)


@pytest.mark.parametrize("option", ["out_of_orderness", "idle_after"])
def test_so_is_what_is_no_duration(option: str) -> None:
    with pytest.raises(SettingsError, match=f"{option} of stream"):
        Topology("t").stream("in", **{option: "soon"})  # type: ignore[call-overload]
